"""Pictures: of the right size and with the right classes, for few classes and for many; histories cut by a kill."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tljax.errors import DataError
from tljax.evaluate import metrics, plots


def noisy(classes: int, examples: int = 2000, errors: float = 0.2, names: list[str] | None = None) -> metrics.Scores:
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, examples).astype(np.int32)
    predicted = np.where(random.random(examples) < errors, random.integers(0, classes, examples), labels)
    names = names or [f"class_{i:03d}" for i in range(classes)]
    return metrics.classification(labels, np.eye(classes, dtype=np.float32)[predicted], names)


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


@pytest.mark.parametrize("classes", [1, 2, 5, 14, 81, 150])
def test_confusion_is_a_picture_of_modest_size(classes):
    image = opened(plots.confusion(noisy(classes)))
    assert image.format == "PNG"
    assert all(400 <= side <= 1800 for side in image.size), image.size
    assert len(image.convert("L").getcolors()) > 10  # something is drawn


DRAWN = [(5, 5), (40, 40), (41, 30), (150, 30)]


@pytest.mark.parametrize(("classes", "most"), DRAWN)
def test_drawn_classes(classes, most):
    drawn = plots.drawn_classes(noisy(classes).confusion).tolist()
    assert drawn == sorted(set(drawn))
    assert len(drawn) == most or most - 1 == len(drawn) > 5  # a pair is drawn whole or not at all


def test_the_most_confused_are_drawn():
    confusion = np.diag(np.full(100, 50))
    confusion[7, 93], confusion[60, 2] = 9, 4
    assert plots.drawn_classes(confusion).tolist() == [2, 7, 60, 93]


def test_without_confusions_the_largest_are_drawn():
    assert plots.drawn_classes(np.diag(np.arange(100))).tolist() == list(range(70, 100))


def test_names_that_matplotlib_would_interpret():
    names = ["$5 and $6", "$\\frac$", "عربي", "名前", "tab\tline\n", "x" * 300]
    opened(plots.confusion(noisy(6, names=names)))  # warnings are errors here: of missing glyphs, of bad mathematics


def test_a_class_without_examples():
    opened(plots.confusion(metrics.classification(np.array([0, 0]), np.eye(2)[[0, 1]], ["a", "b"])))


HISTORY = [
    {"kind": "train", "step": 10, "loss": 2.0},
    {"kind": "train", "step": 20, "loss": 1.0},
    {"kind": "evaluation", "step": 20, "loss": 1.1, "accuracy": 0.7, "macro_f1": None},
    {"kind": "train", "step": 30, "loss": None},
]
CURVES = [  # (name, history, score, panels)
    ("both", HISTORY, "accuracy", 2),
    ("loss alone", HISTORY[:2], "accuracy", 1),
    ("chosen by loss", HISTORY, "loss", 1),
    ("one point", HISTORY[:1], "accuracy", 1),
    ("nothing", [], "accuracy", 1),
]


@pytest.mark.parametrize(("history", "score", "panels"), [row[1:] for row in CURVES], ids=[row[0] for row in CURVES])
def test_learning_curve(history, score, panels):
    width, height = opened(plots.learning_curve(history, score)).size
    assert round(width / height) == (3 if panels == 2 else 1)


def test_series_takes_what_went_last_and_skips_undefined():
    again = [*HISTORY, {"kind": "train", "step": 10, "loss": 1.9}, {"kind": "train", "loss": 5.0}]
    assert plots.series(again, "train", "loss") == ([10, 20], [1.9, 1.0])
    assert plots.series(again, "evaluation", "loss") == ([20], [1.1])
    assert plots.series(HISTORY, "evaluation", "macro_f1") == ([], [])


def test_history_without_its_cut_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in HISTORY) + '{"step": 40, "lo')
    assert plots.read_history(path) == HISTORY


def test_history_names_a_broken_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: no JSON object: \[2\]"):
        plots.read_history(path)
