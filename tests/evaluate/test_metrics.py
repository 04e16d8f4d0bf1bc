"""Scores against hand-counted tables and against scikit-learn; undefined is never 0."""

import math

import numpy as np
import pytest

from tljax.errors import DataError, DivergedError
from tljax.evaluate import metrics


def certain(predicted: list[int], classes: int) -> np.ndarray:
    """Probabilities (N, C) that name the predicted classes beyond doubt."""
    return np.eye(classes, dtype=np.float32)[predicted]


COUNTED = [  # (name, labels, predicted, classes, accuracy, macro-F1, ((precision, recall, F1, support), ...))
    ("all right", [0, 1], [0, 1], 2, 1.0, 1.0, ((1, 1, 1, 1), (1, 1, 1, 1))),
    ("all wrong", [0, 1], [1, 0], 2, 0.0, 0.0, ((0, 0, 0, 1), (0, 0, 0, 1))),
    ("never predicted", [0, 1], [0, 0], 2, 0.5, 1 / 3, ((1 / 2, 1, 2 / 3, 1), (None, 0, 0, 1))),
    ("no example", [0, 0], [0, 1], 2, 0.5, 1 / 3, ((1, 1 / 2, 2 / 3, 2), (0, None, 0, 0))),
    ("neither", [0, 0], [0, 0], 2, 1.0, 1.0, ((1, 1, 1, 2), (None, None, None, 0))),
    ("one class", [0], [0], 1, 1.0, 1.0, ((1, 1, 1, 1),)),
    ("three", [0, 0, 0, 1, 2], [0, 0, 1, 1, 0], 3, 0.6, (2 / 3 + 2 / 3) / 3,
     ((2 / 3, 2 / 3, 2 / 3, 3), (1 / 2, 1, 2 / 3, 1), (None, 0, 0, 1))),
    ("no examples at all", [], [], 2, None, None, ((None, None, None, 0), (None, None, None, 0))),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "predicted", "c", "accuracy", "macro_f1", "per_class"),
                         [row[1:] for row in COUNTED], ids=[row[0] for row in COUNTED])  # fmt: skip
def test_counted(labels, predicted, c, accuracy, macro_f1, per_class):
    names = [f"class {i}" for i in range(c)]
    scores = metrics.classification(np.array(labels, np.int32), certain(np.array(predicted, int), c), names)
    assert scores.n == len(labels)
    assert scores.accuracy == (None if accuracy is None else pytest.approx(accuracy))  # a mean of float64
    assert scores.macro_f1 == (None if macro_f1 is None else pytest.approx(macro_f1))
    for row, name, expected in zip(scores.per_class, names, per_class, strict=True):
        assert row.name == name
        for found, value in zip(row[1:], expected, strict=True):
            assert (found is None) == (value is None), row  # 0 and undefined are two things
            assert found == (None if value is None else pytest.approx(value))


def test_agrees_with_scikit_learn():
    from sklearn import metrics as sklearn_metrics

    random = np.random.default_rng(0)
    labels = random.integers(0, 17, 400).astype(np.int32)
    logits = random.normal(size=(400, 20)) + 2 * np.eye(20)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = metrics.classification(labels, probs, [str(i) for i in range(20)])
    predicted = probs.argmax(axis=1)
    assert scores.accuracy == sklearn_metrics.accuracy_score(labels, predicted)
    assert scores.macro_f1 == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro"))
    assert scores.loss == pytest.approx(sklearn_metrics.log_loss(labels, probs, labels=range(20)))
    by_class = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(20), zero_division=np.nan
    )
    mine = [[np.nan if v is None else v for v in (c.precision, c.recall, c.f1, c.support)] for c in scores.per_class]
    np.testing.assert_allclose(np.transpose(mine), by_class, rtol=1e-12)
    assert (scores.confusion == sklearn_metrics.confusion_matrix(labels, predicted, labels=range(20))).all()


def test_confusion_has_the_true_class_in_its_row():
    scores = metrics.classification(np.array([0, 0, 1]), certain([0, 2, 1], 3), "abc")
    assert scores.confusion.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_loss_of_an_underflown_probability_is_finite():
    scores = metrics.classification(np.array([0]), certain([1], 2), "ab")
    assert scores.loss == pytest.approx(-math.log(np.finfo(np.float32).tiny))


def test_ties_go_to_the_first_class():
    scores = metrics.classification(np.array([0, 1]), np.full((2, 2), 0.5), "ab")
    assert scores.confusion.tolist() == [[1, 0], [1, 0]]


GOOD = np.array([[0.5, 0.5], [0.1, 0.9]])
REFUSED = [  # (name, labels, probs, error, words)
    ("negative label", [0, -1], GOOD, DataError, "example 1: label -1"),
    ("label too large", [2, 0], GOOD, DataError, "expected 0 to 1"),
    ("labels of float", [0.0, 1.0], GOOD, DataError, "labels of type float64"),
    ("rows missing", [0, 1, 1], GOOD, DataError, "expected (3,) and (3, 2)"),
    ("columns missing", [0, 1], GOOD[:, :1], DataError, "(2, 1)"),
    ("NaN", [0, 1], np.array([[0.5, 0.5], [0.1, np.nan]]), DivergedError, "1 of 2 examples are not finite"),
    ("infinite", [0, 1], np.array([[0.5, 0.5], [0.1, np.inf]]), DivergedError, "example 1"),
    ("logits", [0, 1], GOOD * 7, DataError, "hand over softmax(logits)"),
    ("logits that sum to 1", [0, 1], np.array([[2.0, -1.0], [0.1, 0.9]]), DataError, "example 0: the smallest is -1"),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "probs", "error", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(labels, probs, error, words):
    with pytest.raises(error) as caught:
        metrics.classification(np.array(labels), probs, "ab")
    assert words in str(caught.value)


def test_bfloat16_probabilities_are_accepted():
    logits = np.random.default_rng(0).normal(size=(50, 150)) * 3
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    import ml_dtypes

    rounded = probs.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert metrics.classification(np.zeros(50, np.int32), rounded, [str(i) for i in range(150)]).n == 50


INTERVALS = [(0.0, 10), (1.0, 10), (0.5, 1), (0.957, 4500)]


@pytest.mark.parametrize(("share", "n"), INTERVALS)
def test_interval_holds_the_share_and_stays_within_0_and_1(share, n):
    low, high = metrics.interval(share, n)
    assert -1e-12 <= low <= share + 1e-12  # rounding at the ends
    assert share - 1e-12 <= high <= 1 + 1e-12


def scores_of(labels: list[int], predicted: list[int], names: list[str]) -> metrics.Scores:
    return metrics.classification(np.array(labels, np.int32), certain(predicted, len(names)), names)


def test_worst_puts_undefined_classes_last():
    scores = scores_of([0, 0, 1, 2], [0, 0, 2, 2], ["good", "bad", "fair", "unseen"])
    assert [row.name for row in metrics.worst(scores, 4)] == ["bad", "fair", "good", "unseen"]
    assert [row.name for row in metrics.worst(scores, 1)] == ["bad"]


def test_confused_pairs_leave_the_diagonal_out():
    scores = scores_of([0, 0, 0, 1, 1], [1, 1, 2, 0, 1], ["a", "b", "c"])
    assert metrics.confused_pairs(scores, 10) == [("a", "b", 2, 3), ("a", "c", 1, 3), ("b", "a", 1, 2)]
    assert metrics.confused_pairs(scores, 1) == [("a", "b", 2, 3)]


def test_table_says_undefined_and_keeps_odd_names():
    names = ["[bold]a[/bold]", "tab\tnew\nline", "c"]
    text = metrics.table(scores_of([0, 0, 1], [0, 0, 0], names))
    assert "[bold]a[/bold]" in text
    assert "tab\\tnew\\nline" in text
    assert "undefined" in text.splitlines()[-2]
    assert text.splitlines()[-1] == "accuracy 0.667   macro-F1 0.400   loss 29.112   n 3"


def test_table_of_many_classes_shows_the_worst():
    labels = list(range(150))
    text = metrics.table(scores_of(labels, [*labels[:-1], 0], [f"class {i:03d}" for i in labels]), most=5)
    assert "class 149" in text
    assert "class 000" in text
    assert "class 120" not in text
    assert "the 5 classes with the lowest F1; 145 more are not shown" in text
