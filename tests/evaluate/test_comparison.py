"""Strategies side by side: the Pareto front, the advice, the table, the picture, the page."""

import io

import numpy as np
import pytest
from pages import EVIL, read
from PIL import Image

from tljax.evaluate import comparison
from tljax.evaluate.comparison import Row, Run, Shared


def runs(strategy, scores, seconds, validation=None, n=1000, **changes):
    """A run for each score; `validation` as `scores`, or None."""
    return [Run(**{"strategy": strategy, "seed": i, "score": score, "split": "test", "examples": n, "seconds": seconds,
                   "validation": None if validation is None else validation[i], "trainable": 1234567,
                   "peak_bytes": 45_600_000, "work": 1.01, **changes})
            for i, score in enumerate(scores)]  # fmt: skip


def table(*rows) -> list[Row]:
    return comparison.rows([run for row in rows for run in row])


FRONTS = [
    # (name, score, seconds) -> the front
    ([("a", 0.9, 10)], {"a"}),
    ([("a", 0.9, 10), ("b", 0.8, 1)], {"a", "b"}),
    ([("a", 0.9, 10), ("b", 0.8, 11)], {"a"}),
    ([("a", 0.9, 10), ("b", 0.9, 11)], {"a"}),  # as good and slower
    ([("a", 0.9, 10), ("b", 0.8, 10)], {"a"}),  # as fast and worse
    ([("a", 0.9, 10), ("b", 0.9, 10)], {"a", "b"}),  # the same in both: neither beats the other
    ([("a", 0.9, 10), ("b", 0.9, 10), ("c", 0.9, 9)], {"c"}),
    ([("a", 0.7, 1), ("b", 0.6, 2), ("c", 0.9, 3), ("d", 0.95, 4), ("e", 0.95, 5)], {"a", "c", "d"}),
    ([], set()),
]


@pytest.mark.parametrize(("points", "front"), FRONTS)
def test_the_front(points, front):
    assert comparison.front(table(*(runs(name, [score], seconds) for name, score, seconds in points))) == front


def test_the_front_goes_by_means_over_seeds():
    made = table(runs("a", [0.2, 1.0], 10), runs("b", [0.5, 0.6], 5))
    assert comparison.front(made) == {"a", "b"}


ADVICE = [
    ("a single row", [runs("a", [0.9, 0.91], 10)],
     "Take a: the best test score, 0.905, and nothing here is faster."),
    ("the best is clearly better", [runs("a", [0.9, 0.91], 10), runs("b", [0.7, 0.75], 1)],
     "Take a: the best test score, 0.905, and b is faster and clearly below."),
    ("than several", [runs("a", [0.9, 0.91], 10), runs("b", [0.7, 0.75], 1), runs("c", [0.1, 0.2], 2)],
     "Take a: the best test score, 0.905, and b, c are faster and clearly below."),
    ("the best is the fastest", [runs("a", [0.9, 0.91], 1), runs("b", [0.9, 0.905], 10)],
     "Take a: the best test score, 0.905, and nothing here is faster."),
    ("within seed noise", [runs("a", [0.90, 0.94], 20), runs("b", [0.88, 0.90], 5), runs("c", [0.85, 0.899], 1)],
     "Take b: its test score, 0.890, is within the noise of 2 seeds of the best (a, 0.920), at 4.0 times less time."),
    ("hardly faster", [runs("a", [0.90, 0.94], 20), runs("b", [0.88, 0.90], 18.1)],
     "Take a: the best test score, 0.920, and b is hardly faster."),
    ("a tenth faster", [runs("a", [0.90, 0.94], 20), runs("b", [0.88, 0.90], 17.9)],
     "Take b: its test score, 0.890, is within the noise of 2 seeds of the best (a, 0.920), at 1.1 times less time."),
    ("below or hardly faster", [runs("a", [0.90, 0.94], 20), runs("b", [0.88, 0.90], 19), runs("c", [0.1, 0.2], 2)],
     "Take a: the best test score, 0.920, and c is faster and clearly below; b is hardly faster."),
    ("ten times", [runs("a", [0.90, 0.94], 20), runs("b", [0.88, 0.90], 2)],
     "Take b: its test score, 0.890, is within the noise of 2 seeds of the best (a, 0.920), at 10 times less time."),
    ("one seed, few examples", [runs("a", [0.9], 20, n=20), runs("b", [0.8], 5, n=20)],
     "Take b: its test score, 0.800, is within what the number of examples can tell apart of the best (a, 0.900), at "
     "4.0 times less time."),
    ("one seed, many examples", [runs("a", [0.9], 20, n=2000), runs("b", [0.8], 5, n=2000)],
     "Take a: the best test score, 0.900, and b is faster and clearly below."),
    ("validation decides, and not test", [runs("a", [0.5, 0.5], 9, [0.9, 0.92]), runs("b", [0.8, 0.8], 1, [0.7, 0.7])],
     "Take a: the best validation score, 0.910, and b is faster and clearly below."),
    ("nothing", [], ""),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "sentence"), [row[1:] for row in ADVICE], ids=[row[0] for row in ADVICE])
def test_advice(rows, sentence):
    assert comparison.advice(table(*rows)) == sentence


def test_where_not_all_have_validation_scores_the_test_scores_decide_for_all():
    """A validation score of one and a test score of another are not compared."""
    mixed = table(runs("a", [0.6, 0.6], 9, [0.9, 0.9]), runs("b", [0.7, 0.7], 1))
    assert comparison.advice(mixed) == "Take b: the best test score, 0.700, and nothing here is faster."


def test_one_finished_seed_beside_two_uses_what_the_examples_tell():
    """A budget ended in the second round."""
    made = table(runs("a", [0.90, 0.91], 10, n=50), runs("b", [0.88], 1, n=50))
    assert comparison.advice(made).startswith("Take b: its test score, 0.880, is within what the number of examples")


TABLE = table(runs("last_2", [0.95, 0.97], 12.3, [0.9, 0.92]),
              runs("head", [0.9, 0.9], 0.94, [0.85, 0.85], trainable=12, peak_bytes=None, work=None),
              runs("a_strategy:with.a=long_name", [0.8], 123.4, [0.8]))  # fmt: skip


def test_the_table_is_aligned():
    text = comparison.render(TABLE, Shared())
    lines = text.splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    heads = "strategy test validation seeds trainable seconds peak MB FLOPs ÷ floor"
    assert lines[0].split() == heads.split()
    assert lines[1].split() == ["*", "last_2", "0.960", "[0.950…0.970]", "0.910", "2", "1,234,567", "12", "46", "1.01"]
    assert lines[2].split() == ["*", "head", "0.900", "[0.900…0.900]", "0.850", "2", "12", "0.9", "–", "–"]
    assert lines[3].split() == ["a_strategy:with.a=long_name", "0.800", "0.800", "1", "1,234,567", "123", "46", "1.01"]
    assert lines[4:6] == ["", "* no other is both better and faster"]
    assert lines[-1] == comparison.advice(TABLE)


def test_a_table_of_rows_with_and_without_validation():
    text = comparison.render(table(runs("a", [0.9], 1, [0.8]), runs("b", [0.9], 1)), Shared())
    assert len({len(line) for line in text.splitlines()[:3]}) == 1
    text = comparison.render(table(runs("b", [0.9], 1), runs("a", [0.9], 1, [0.8])), Shared())
    assert len({len(line) for line in text.splitlines()[:3]}) == 1


def test_a_shared_pass_is_said():
    text = comparison.render(TABLE, Shared(1.23, 4.56, ("layer_1", "head")))
    assert ("frozen stages: one pass of 1.2 s for layer_1 and head, shared by the runs; had each made its own, 5 s more"
            in text)  # fmt: skip
    assert "frozen stages" not in comparison.render(TABLE, Shared())


def test_no_run_yet():
    assert comparison.render([], Shared()) == "no run is finished yet"


CROWD = [
    ("head", 0.712, 2.1),
    ("last_2", 0.853, 9.0),
    ("last_1", 0.851, 8.7),
    ("lora", 0.8511, 9.2),
    ("full", 0.9, 40.0),
]
PICTURES = {
    "several": TABLE,
    "one": TABLE[:1],
    "in a heap": table(*(runs(name, [s - 0.004, s + 0.004], t) for name, s, t in CROWD)),
    "odd names": table(runs("$x^", [0.5], 1), runs(EVIL, [0.6], 2)),
    "no time at all": table(runs("a", [0.5], 0.0), runs("b", [0.6], 2)),
}


@pytest.mark.parametrize("which", list(PICTURES))
def test_the_picture_is_a_png(which):
    picture = Image.open(io.BytesIO(comparison.picture(PICTURES[which])))
    assert picture.format == "PNG"
    pixels = np.asarray(picture.convert("RGB"))
    assert 400 < min(picture.size) < max(picture.size) < 1200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_names_in_the_picture_do_not_overlap(monkeypatch):
    placed = []
    draw = comparison.plots.png

    def look(figure):
        figure.canvas.draw()
        axes = figure.axes[0]
        placed.extend((text.get_text(), text.get_window_extent()) for text in axes.texts)
        placed.append(("", figure.bbox))
        return draw(figure)

    monkeypatch.setattr(comparison.plots, "png", look)
    comparison.picture(PICTURES["in a heap"])
    *names, (_, whole) = placed
    assert {name for name, _ in names} == {name for name, _, _ in CROWD}
    for i, (name, box) in enumerate(names):
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1, name
        for other, box_of_other in names[:i]:
            assert not box.overlaps(box_of_other), (name, other)


def test_the_page_says_everything_and_lets_no_text_become_markup():
    document = comparison.web_page(f"title {EVIL}", table(runs(EVIL, [0.5], 1, [0.5]), runs("b", [0.6], 2, [0.6])),
                                   Shared(1.0, 2.0, (EVIL,)), {EVIL: EVIL})  # fmt: skip
    reader = read(document)
    assert not {tag for tag, _ in reader.elements} & {"script", "link", "iframe", "object", "form", "base"}
    assert "default-src 'none'" in document
    images = [attributes for tag, attributes in reader.elements if tag == "img"]
    assert len(images) == 1
    assert images[0]["src"].startswith("data:image/png;base64,")
    assert images[0]["alt"]
    assert reader.shown.count("<script>alert(1)</script>") >= 5
    for words in ("Strategies", "0.600", "1,234,567", "frozen stages: one pass of 1.0 s", "front", "yes"):
        assert words in reader.shown, words


def test_the_page_of_rows_with_and_without_validation():
    shown = read(comparison.web_page("t", table(runs("a", [0.9], 1, [0.8]), runs("b", [0.9], 1)), Shared(), {})).shown
    assert "–" in shown
