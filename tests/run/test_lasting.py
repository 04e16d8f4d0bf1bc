"""Time left: what is known of the same kind of run, else of the nearest; and what is guessed is called so."""

import pytest

from tljax.run.lasting import Asked, left

SIZES = {0: 100, 1: 1, 5: 5, 10: 10}
RUNS = [Asked(k, name, seed) for seed in (0, 1) for k in (1, 10, 0) for name in ("full", "scratch")]
ROUND = dict(zip(RUNS[:6], (10.0, 20.0, 30.0, 40.0, 500.0, 700.0), strict=True))

CASES = [  # (name, finished, words)
    ("nothing is finished", {}, ""),
    ("one run: all are as long", {RUNS[0]: 10.0}, "about 2 min or more left"),  # 11 x 10 s
    ("its own strategy comes first", {RUNS[0]: 10.0, RUNS[1]: 3600.0}, "about 5.0 h or more left"),  # 5 x 10, 5 x 3600
    ("the nearest number of examples", {RUNS[2]: 1.0, RUNS[4]: 9.0}, "about 34 s or more left"),
    ("a whole round", ROUND, "about 22 min left"),  # the second is like it: 1,300 s
    ("the mean of a kind", {**dict.fromkeys(RUNS[:-2], 1.0), RUNS[4]: 3.0, RUNS[5]: 21.0}, "about 24 s left"),
    ("all are finished", dict.fromkeys(RUNS, 5.0), "about 0 s left"),
]


@pytest.mark.parametrize(("taken", "words"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_left(taken, words):
    assert left(RUNS, taken, SIZES.__getitem__) == words


def test_places():
    assert Asked(5, "last_k", 2).place == "shots_5/last_k/seed_2"
