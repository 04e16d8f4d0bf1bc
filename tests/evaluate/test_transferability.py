"""Checkpoints side by side: the order, ranks by hand, the advice, the table, the lines of JSON."""

import json

import pytest

from tljax.evaluate import transferability
from tljax.evaluate.transferability import Entry, Features

FIVE = ("logme", "h_score", "transrate", "nearest_neighbours", "ridge_probe")


def features(stage="pooler", logme=0.5, others=1.0, **more) -> Features:
    return Features(stage, 64, {**dict.fromkeys(FIVE, others), "logme": logme, **more})


def entry(ref, logme=0.5, others=1.0, **more) -> Entry:
    return Entry(ref, (features(logme=logme, others=others, **more),), 1.25)


MORE = ["mean", "rank", "pass", "s"]
BROKEN = Entry("x/broken", error="x/broken: no such folder; expected a checkpoint's folder.\n  more")


def test_by_logme_and_errors_last():
    found = transferability.order([BROKEN, entry("low", -0.2), Entry("b", error="y"), entry("high", 0.1, others=0)])
    assert [one.ref for one in found] == ["high", "low", "x/broken", "b"]


RANKS = [
    ("one", [(0.5, 1, {})], [1.0], 5),
    ("as one", [(0.9, 3, {}), (0.5, 2, {})], [1.0, 2.0], 5),
    ("LogME against four", [(0.9, 1, {}), (0.5, 2, {})], [1.8, 1.2], 5),
    ("equal ones share", [(0.9, 2, {}), (0.9, 2, {}), (0.1, 1, {})], [1.5, 1.5, 3.0], 5),
    ("a head counts where all have one", [(0.9, 2, {"leep": -3.0}), (0.5, 1, {"leep": -1.0})], [7 / 6, 11 / 6], 6),
    ("and not where one has", [(0.9, 2, {}), (0.5, 1, {"leep": -1.0})], [1.0, 2.0], 5),
]


@pytest.mark.parametrize(("rows", "wanted", "count"), [row[1:] for row in RANKS], ids=[row[0] for row in RANKS])
def test_mean_ranks(rows, wanted, count):
    ranks, scores = transferability.mean_ranks([features("a", logme, others, **more) for logme, others, more in rows])
    assert ranks == pytest.approx(wanted)
    assert scores == count


STAGES = (features("layer_0", 0.7), features("layer_1", 0.2), features("pooler", 0.5))
ADVICE = [
    ("none", [BROKEN], "None of them can be scored."),
    ("one", [entry("m/a"), BROKEN], "a alone can be scored: LogME 0.5000."),
    ("agreed", [entry("m/b", 0.25, 1), entry("m/a", 0.5, 2)],
     "Begin with a: it is first by LogME (0.5000; b has 0.2500), and by the mean rank over 5 scores."),
    ("not agreed", [entry("a", 0.5, 1), entry("b", 0.25, 2), entry("c", 0.125, 0)],
     "Begin with a: it is first by LogME (0.5000; b has 0.2500), but b by the mean rank over 5 scores."),
    ("a stage below the top", [Entry("a", STAGES), entry("b", 0.25, 1)],
     "Begin with a: it is first by LogME (0.5000; b has 0.2500), and by the mean rank over 5 scores; of its stages "
     "layer_0 has the highest, 0.7000."),
    ("the top is the best stage", [Entry("a", STAGES[1:])], "a alone can be scored: LogME 0.5000."),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "sentence"), [row[1:] for row in ADVICE], ids=[row[0] for row in ADVICE])
def test_advice(entries, sentence):
    assert transferability.advice(entries) == sentence


def test_the_table():
    long = Entry("m/" + "long" * 20, STAGES, 70)
    scored = [entry("m/plain[bold]", 0.25), long, entry("m/headed", 1.0, leep=-1, nce=-2)]
    text = transferability.render([BROKEN, *scored])
    table, stages, advice = text.split("\n\n")
    heads, _, *rows = table.splitlines()
    found = [line.split() for line in (heads, *rows[:3])]
    same = ["1.00", "1.000", "1.000", "1.000"]
    assert found == [
        ["checkpoint", "width", *(heading for heading, _ in transferability.HEADINGS.values()), *MORE],
        ["headed", "64", "1.0000", *same, "-1.000", "-2.000", "1.8", "1.2"],
        ["…" + ("long" * 20)[1 - transferability.NAME :], "64", "0.5000", *same, "–", "–", "2.0", "70.0"],
        ["plain[bold]", "64", "0.2500", *same, "–", "–", "2.2", "1.2"],
    ]
    assert rows[3:] == [" broken  x/broken: no such folder; expected a checkpoint's folder."]
    assert max(map(len, table.splitlines())) <= transferability.WIDTH
    title, heads, _, *rows = stages.splitlines()
    assert title == f"stages of {found[2][0]}"
    assert "LEEP" not in heads
    assert [row.split()[0] for row in rows] == ["layer_0", "pooler", "layer_1"]
    assert advice == transferability.advice([BROKEN, *scored])


def test_only_errors_still_make_a_table():
    assert transferability.render([BROKEN]).splitlines()[-1] == "None of them can be scored."


def test_lines_of_json():
    rows = transferability.as_json([BROKEN, entry("b", 0.25, 1, leep=-1.0, nce=-2.0), Entry("a", STAGES, 7.5)])
    assert json.loads(json.dumps(rows)) == rows
    assert [row["model"] for row in rows] == ["a", "b", "x/broken"]
    first, second, third = rows
    assert (first["rank"], first["mean_rank"], first["stage"], first["seconds"]) == (1, 1.4, "pooler", 7.5)
    assert first["scores"] == {**STAGES[-1].scores, "leep": None, "nce": None}
    assert [stage["stage"] for stage in first["stages"]] == ["layer_0", "pooler", "layer_1"]
    assert first["stages"][0]["mean_rank"] == 1.8
    assert "stages" not in second
    assert third == {"model": "x/broken", "error": BROKEN.error}
