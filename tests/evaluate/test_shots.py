"""Verdicts at several numbers of examples: rows as they were judged, and each advice once, where it holds."""

import pytest

from tljax.evaluate import shots
from tljax.evaluate.shots import Point
from tljax.transfer.verdict import curve_sentence, judge


def point(
    k: int, examples: int, ours: list[float], control: list[float], n: int = 500, unit: str = "accuracy"
) -> Point:
    return Point(k, examples, judge(ours, control, n, unit=unit), tuple(ours), tuple(control))


PAYS = point(1, 1, [0.8, 0.82, 0.81], [0.3, 0.31, 0.29])
ALIKE = point(5, 5, [0.82, 0.80], [0.81, 0.82])
ALL = point(0, 48, [0.82, 0.80], [0.81, 0.82])
NEGATIVE = point(10, 10, [0.5], [0.9])


def test_table():
    found = shots.render([PAYS, ALIKE, ALL], "lora").splitlines()
    assert found[:4] == [
        "examples a class                 lora         from scratch  difference    95 % interval  seeds"
        "              verdict",
        "1                 0.810 [0.800…0.820]  0.300 [0.290…0.310]      +0.510  +0.452 … +0.568      3"
        "        transfer pays",
        "5                 0.810 [0.800…0.820]  0.815 [0.810…0.820]      -0.005  -0.202 … +0.192      2"
        "  no difference found",
        "all (48)          0.810 [0.800…0.820]  0.815 [0.810…0.820]      -0.005  -0.202 … +0.192      2"
        "  no difference found",
    ]
    assert found[5] == "scores: test accuracy"
    told = curve_sentence([(1, PAYS.verdict), (5, ALIKE.verdict), (48, ALL.verdict)])
    assert found[6] == "T" + told[1:]
    assert told.startswith("transfer pays up to 1 example a class")


def test_one_number_has_its_own_sentence():
    found = shots.render([NEGATIVE], "full")
    assert NEGATIVE.verdict.sentence()[1:] in found
    assert "Negative transfer: 0.500 against 0.900 from scratch" in found


def test_without_an_interval():
    found = shots.render([point(0, 1, [3.0], [2.0], 0, "ndcg_10")], "full").splitlines()
    assert found[1].split() == ["all", "3.000", "2.000", "+1.000", "–", "1", "no", "difference", "found"]
    assert found[3] == "scores: test NDCG@10"


ADVICE = [  # (name, points, tried, number of lines, words, words that are not there)
    ("none is needed", [PAYS], (), 0, "", ""),
    ("one for all", [ALIKE], (), 1, "To try: take the cheaper", "At "),
    ("fewer labels were measured", [PAYS, ALL], (), 1, "At all (48), to try: take the cheaper", "fewer labels"),
    ("nothing fewer was", [ALL], (), 1, "fewer labels", "At "),
    ("of two kinds", [PAYS, ALIKE, NEGATIVE], (), 2, "At 10, to try: train from scratch", "At 1,"),
    ("together where it is the same", [PAYS, ALIKE, ALL], (), 1, "At 5, all (48), to try: ", ""),
    ("what was tried", [NEGATIVE], ("layers",), 1, "a larger learning rate", "fewer frozen layers"),
]


@pytest.mark.parametrize(("points", "tried", "count", "words", "absent"), [row[1:] for row in ADVICE],
                         ids=[row[0] for row in ADVICE])  # fmt: skip
def test_advice(points, tried, count, words, absent):
    found = shots.advice(points, tried)
    text = "\n".join(found)
    assert len(found) == count
    assert words in text
    assert not absent or absent not in text
    assert shots.render(points, "full", tried).endswith(text)
