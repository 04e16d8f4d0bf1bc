"""Curves: drawn where the numbers are, no label over another, and refused where there is nothing to draw."""

import io

import numpy as np
import pytest
from PIL import Image

from tljax.errors import DataError
from tljax.evaluate import curves

ALPHAS = np.linspace(0, 1, 11).tolist()
RISING = [(a, 0.3 + 0.6 * (1 - (1 - a) ** 3) - 0.03 * a**6) for a in ALPHAS]
LOWER = [(a, value - 0.004) for a, value in RISING]
CROSSING = [(a, 0.7 + 0.2 * a * (1.4 - a)) for a in ALPHAS]

FEW_SHOT = {
    "many": [(s, [0.3 + 0.05 * i, 0.34 + 0.05 * i], [0.1 + 0.04 * i] * 2) for i, s in enumerate([200, 1, 2, 5, 10])],
    "crowded": [(s, [0.5], [0.4]) for s in (1, *range(90, 120), 1000, 1024, 10_000)],
    "one": [(5, [0.8], [0.3])],
    "from scratch at some": [(1, [0.5, 0.6], []), (5, [0.7, 0.8], [0.4])],
    "no control": [(1, [0.5], []), (5, [0.7], [])],
    "arrays": [(1, np.array([0.5, 0.6]), np.array([0.2, 0.3]))],
}
BETWEEN = {
    "one": {"target": RISING},
    "two": {"target": RISING, "shifted": CROSSING},
    "nearly the same": {"target": RISING, "shifted": LOWER},
    "the same": {"target": RISING, "shifted": RISING},
    "best at an end": {"target": [(a, 0.5 + 0.1 * a) for a in ALPHAS], "shifted": [(a, 0.6 - 0.1 * a) for a in ALPHAS]},
    "best beside an end": {"target": [(0, 0.5), (0.9, 0.9), (1, 0.89)], "shifted": [(0, 0.4), (0.1, 0.41), (1, 0.3)]},
    "neither end": {"target": [(0.5, 0.8)]},
    "long names": {"x" * 60: RISING, "$\\frac$ of many\nlines, and more of them": CROSSING},
}
DRAWN = {f"few-shot, {name}": (curves.few_shot, points) for name, points in FEW_SHOT.items()}
DRAWN |= {f"between, {name}": (curves.interpolation, points) for name, points in BETWEEN.items()}


@pytest.fixture
def drawn(monkeypatch):
    """drawn(picture, points) is (the axes, the size of the PNG)."""
    figures, png = [], curves.plots.png
    monkeypatch.setattr(curves.plots, "png", lambda figure: figures.append(figure) or png(figure))

    def draw(picture, points):
        image = Image.open(io.BytesIO(picture(points)))
        image.load()
        return figures[-1].axes[0], image.size

    return draw


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_lies_over_another_or_is_cut(drawn, name):
    axes, size = drawn(*DRAWN[name])
    assert size == (921, 604)
    axes.figure.canvas.draw()
    low, high = axes.get_ylim()
    ticks = [
        *axes.get_xticklabels(),
        *(text for text in axes.get_yticklabels() if low <= text.get_position()[1] <= high),
    ]
    texts = [*axes.texts, *ticks, axes.xaxis.label, axes.yaxis.label, *axes.get_legend().get_texts()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    whole = axes.figure.bbox
    for i, (text, box) in enumerate(boxes):
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1, text
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1, text
        for other, box_of_other in boxes[:i]:
            assert not box.overlaps(box_of_other), (text, other)


def test_few_shot_draws_means_and_bands(drawn):
    axes, _ = drawn(curves.few_shot, FEW_SHOT["many"])
    pretrained, scratch = axes.get_lines()
    assert (pretrained.get_label(), scratch.get_label()) == ("pretrained", "from scratch")
    assert pretrained.get_xdata().tolist() == scratch.get_xdata().tolist() == [1, 2, 5, 10, 200]
    np.testing.assert_allclose(pretrained.get_ydata(), [0.37, 0.42, 0.47, 0.52, 0.32])  # means of two floats
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.3, 0.34 + 0.05 * 4)
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "5", "10", "200"]
    assert axes.get_xlabel() == "examples a class (band: smallest to largest of 2 seeds)"


@pytest.mark.parametrize(("name", "lines", "words"), [
    ("one", 2, "one seed"), ("from scratch at some", 2, "of 1 to 2 seeds"), ("no control", 1, "one seed"),
])  # fmt: skip
def test_few_shot_says_its_seeds(drawn, name, lines, words):
    axes, _ = drawn(curves.few_shot, FEW_SHOT[name])
    assert len(axes.get_lines()) == lines
    assert words in axes.get_xlabel()


NUMBERED = [  # (name, the numbers beside marks)
    ("one", {"0.300", "0.870", "0.887"}),
    ("nearly the same", {"0.300", "0.870", "0.887", "0.296", "0.866", "0.883"}),
    ("best at an end", {"0.500", "0.600"}),
    ("neither end", {"0.800"}),
]


@pytest.mark.parametrize(("name", "numbers"), NUMBERED)
def test_ends_and_best_are_marked(drawn, name, numbers):
    axes, _ = drawn(curves.interpolation, BETWEEN[name])
    assert {text.get_text() for text in axes.texts} == numbers
    rings = [line for line in axes.get_lines() if line.get_markerfacecolor() == "none"]
    best = {max(value for _, value in curve) for curve in BETWEEN[name].values()}
    assert {float(ring.get_ydata()[0]) for ring in rings} == best


REFUSED = [  # (picture, points, words)
    (curves.few_shot, [], "points at [] examples a class"),
    (curves.few_shot, [(5, [0.5], []), (5, [0.6], [])], "points at [5, 5]"),
    (curves.few_shot, [(0, [0.5], [])], "each once, at least 1"),
    (curves.few_shot, [(1, [], []), (2, [], [])], "no score at any of 2 points"),
    (curves.interpolation, {}, "0 data sets"),
    (curves.interpolation, dict.fromkeys("abc", RISING), "3 data sets"),
    (curves.interpolation, {"target": RISING, "shifted": []}, "1 of them without points"),
    (curves.interpolation, {"target": [(1.5, 0.5)]}, "expected one or two curves over alphas from 0 to 1"),
]


@pytest.mark.parametrize(("picture", "points", "words"), REFUSED)
def test_refused(picture, points, words):
    with pytest.raises(DataError) as caught:
        picture(points)
    assert words in str(caught.value)
