"""Rare events against scikit-learn, against the book's protocol written out, and against its published counts."""

import numpy as np
import pytest

from tljax.errors import DataError, DivergedError
from tljax.evaluate import detection


def cases(seed: int, most: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores with many ties: as many different scores as examples at the most, and one at the least."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, most))
    return rng.integers(0, 2, n), rng.integers(0, rng.integers(1, n + 1), n) / 7


COUNTED = [  # (name, labels, scores, AUC, average precision)
    ("in order", [0, 0, 1], [1, 2, 3], 1.0, 1.0),
    ("in the wrong order", [1, 0, 0], [1, 2, 3], 0.0, 1 / 3),
    ("all alike", [0, 1, 0, 0], [5, 5, 5, 5], 0.5, 0.25),
    ("a tie above", [1, 0, 0], [2, 2, 1], 0.75, 0.5),
    ("between two", [1, 0, 1], [3, 2, 1], 0.5, (1 + 2 / 3) / 2),
    ("negative scores", [0, 1], [-2, -1], 1.0, 1.0),
    ("no positive", [0, 0], [1, 2], None, None),
    ("no negative", [1, 1], [1, 2], None, 1.0),
    ("nothing", [], [], None, None),
]


@pytest.mark.parametrize(("labels", "scores", "auc", "ap"), [r[1:] for r in COUNTED], ids=[r[0] for r in COUNTED])
@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64])
def test_counted(labels, scores, auc, ap, kind):
    labels, scores = np.array(labels, kind), np.array(scores, np.float32)
    assert detection.roc_auc(labels, scores) == auc
    assert detection.average_precision(labels, scores) == (None if ap is None else pytest.approx(ap))  # a sum of floats


@pytest.mark.parametrize("seed", range(60))
def test_agrees_with_scikit_learn(seed):
    from sklearn import metrics

    labels, scores = cases(seed, most=400 if seed % 10 == 0 else 30)
    auc, ap = detection.roc_auc(labels, scores), detection.average_precision(labels, scores)
    if 0 < labels.sum() < len(labels):
        assert auc == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-14)  # theirs is a sum of trapezoids
    else:
        assert auc is None
    if labels.any():
        assert ap == pytest.approx(metrics.average_precision_score(labels, scores), abs=1e-14)
    else:
        assert ap is None


@pytest.mark.parametrize("seed", range(10))
def test_only_the_order_of_scores_counts(seed):
    labels, scores = cases(seed)
    for score in (detection.roc_auc, detection.average_precision):
        assert score(labels, np.exp(scores) - 9) == score(labels, scores)
        assert score(labels[::-1], scores[::-1]) == score(labels, scores)


def card_precision_by_the_book(days, cards, labels, scores, k) -> list[float]:
    """One dictionary a day, as one would do it by hand."""
    blocked, shares = set(), []
    for day in sorted(set(days)):
        best = {}  # card -> (score, label)
        for card, label, score in [e[1:] for e in zip(days, cards, labels, scores, strict=True) if e[0] == day]:
            if card not in blocked:
                was = best.get(card, (score, label))
                best[card] = (max(score, was[0]), max(label, was[1]))
        first = sorted(best, key=lambda card: (-best[card][0], card))[:k]
        caught = {card for card in first if best[card][1] == 1}
        blocked |= caught
        shares.append(len(caught) / k)
    return shares


@pytest.mark.parametrize("seed", range(40))
def test_card_precision_by_the_book(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 120)), int(rng.integers(1, 6))
    days, cards = rng.integers(0, 6, n).astype(np.uint8), rng.integers(0, 15, n).astype(np.uint16)
    labels, scores = (rng.random(n) < 0.3).astype(np.uint8), rng.integers(0, 8, n) / 8
    mean, by_day = detection.card_precision(days, cards, labels, scores, k)
    events = [array.tolist() for array in (days, cards, labels, scores)]
    assert by_day == card_precision_by_the_book(*events, k)
    assert mean == pytest.approx(np.mean(by_day))
    named = np.array([f"card {card:02d}" for card in cards])
    assert detection.card_precision(days, named, labels, scores, k) == (mean, by_day)


EVENTS = [  # (name, (day, card, label, score) of each event, k, each day's share)
    ("the largest score counts", [(0, 1, 1, 0.1), (0, 1, 0, 0.9), (0, 2, 0, 0.5)], 1, [1.0]),
    ("a card counts once", [(0, 1, 1, 0.9), (0, 1, 1, 0.8), (0, 2, 1, 0.7)], 2, [1.0]),
    ("of k, on a day with fewer cards too", [(0, 1, 1, 0.9)], 4, [0.25]),
    ("found cards are blocked", [(0, 1, 1, 0.9), (1, 1, 1, 0.9), (1, 2, 0, 0.1)], 1, [1.0, 0.0]),
    ("missed cards are not", [(0, 1, 1, 0.1), (0, 2, 0, 0.9), (1, 1, 1, 0.9)], 1, [0.0, 1.0]),
    ("nor are wrong alarms", [(0, 1, 0, 0.9), (1, 1, 1, 0.9)], 1, [0.0, 1.0]),
    ("a day of blocked cards alone counts as 0", [(0, 1, 1, 0.9), (3, 1, 1, 0.9)], 1, [1.0, 0.0]),
    ("equal scores go by id", [(0, 2, 1, 0.5), (0, 1, 0, 0.5)], 1, [0.0]),
    ("days in order, not in the order of the rows", [(1, 1, 1, 0.9), (0, 1, 1, 0.9), (0, 2, 0, 0.1)], 1, [1.0, 0.0]),
]


@pytest.mark.parametrize(("events", "k", "by_day"), [row[1:] for row in EVENTS], ids=[row[0] for row in EVENTS])
def test_card_precision_by_hand(events, k, by_day):
    days, cards, labels, scores = (np.array(column) for column in zip(*events, strict=True))
    assert detection.card_precision(days, cards, labels, scores, k) == (np.mean(by_day), by_day)


def test_card_precision_of_nothing():
    none = np.zeros(0, int)
    assert detection.card_precision(none, none, none, none) == (None, [])


def known_by_the_book(days, cards, labels, train, test) -> list[bool]:
    """A set that grows from day to day of the test."""
    frauds = [(day, card) for day, card, label in zip(days, cards, labels, strict=True) if label]
    known = {card for day, card in frauds if train[0] <= day < train[1]}
    out = [False] * len(days)
    for i in range(test[1] - test[0]):
        known |= {card for day, card in frauds if day == train[1] + i - 1}
        for row, (day, card) in enumerate(zip(days, cards, strict=True)):
            if day == test[0] + i and card in known:
                out[row] = True
    return out


PERIODS = [  # (train, test): without a delay, with one, with one longer than the test, with a day each
    ((3, 8), (8, 12)), ((3, 8), (10, 16)), ((0, 5), (12, 15)), ((4, 5), (5, 6)), ((4, 5), (7, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("train", "test"), PERIODS)
@pytest.mark.parametrize("seed", range(8))
def test_known_compromised_by_the_book(train, test, seed):
    rng = np.random.default_rng(seed)
    n = 200
    days, cards = rng.integers(0, 18, n).astype(np.uint32), rng.integers(0, 40, n).astype(np.uint16)
    labels = (rng.random(n) < 0.15).astype(np.uint8)
    out = detection.known_compromised(days, cards, labels, train, test)
    assert out.dtype == bool
    assert out.tolist() == known_by_the_book(days.tolist(), cards.tolist(), labels.tolist(), train, test)


FRAUDS = [  # (name, day of the fraud, test days that its card is taken out of); train (2, 4), test (6, 10)
    ("before training", 1, []),
    ("in training", 2, [6, 7, 8, 9]),
    ("on its last day", 3, [6, 7, 8, 9]),
    ("on the first day after", 4, [7, 8, 9]),
    ("on the last day before the test", 5, [8, 9]),
    ("on the first day of the test", 6, [9]),
    ("on its second", 7, []),
    ("on its last", 9, []),
    ("after it", 11, []),
]


@pytest.mark.parametrize(("fraud", "days"), [row[1:] for row in FRAUDS], ids=[row[0] for row in FRAUDS])
def test_when_a_card_is_known(fraud, days):
    """In days that one more would wrap around, too."""
    labels, one_card = np.arange(12) == fraud, np.zeros(12, int)
    for everyday, at in ((np.arange(12), 0), (np.arange(244, 256, dtype=np.uint8), 244)):
        out = detection.known_compromised(everyday, one_card, labels, (at + 2, at + 4), (at + 6, at + 10))
        assert np.flatnonzero(out).tolist() == days


def test_the_published_counts_of_the_book(testdata):
    """Section 3.4: 67,240 training transactions with 598 frauds, 58,264 test ones with 385. Day 0 is 1 April."""
    with np.load(testdata("fraud_handbook") / "fraud_handbook.npz", allow_pickle=False) as file:
        days, cards, fraud = file["time_seconds"] // 86400, file["customer_id"], file["fraud"]
    train, test = (115, 122), (129, 136)
    trained = (days >= train[0]) & (days < train[1])
    assert (trained.sum(), fraud[trained].sum()) == (67_240, 598)
    tested = (days >= test[0]) & (days < test[1])
    tested &= ~detection.known_compromised(days, cards, fraud, train, test)
    assert (tested.sum(), fraud[tested].sum()) == (58_264, 385)


GOOD = {"days_n": [0, 1], "cards_n": [5, 6], "labels_n": [0, 1], "scores_n": [0.1, 0.2]}
REFUSED = [  # (name, changes, error, words)
    ("labels of three kinds", {"labels_n": [0, 2]}, DataError, "example 1: label 2"),
    ("negative labels", {"labels_n": [-1, 1]}, DataError, "1 of 2 labels are neither 0 nor 1"),
    ("labels of float", {"labels_n": [0.0, 1.0]}, DataError, "of type float64"),
    ("labels of two axes", {"labels_n": [[0, 1]]}, DataError, "labels (1, 2)"),
    ("scores missing", {"scores_n": [0.1]}, DataError, "2 labels and scores (1,)"),
    ("scores of two classes", {"scores_n": [[0.1, 0.9], [0.5, 0.5]]}, DataError, "scores (2, 2)"),
    ("NaN", {"scores_n": [0.1, np.nan]}, DivergedError, "example 1: nan"),
    ("infinite", {"scores_n": [-np.inf, 0.1]}, DivergedError, "the scores of 1 of 2 examples are not finite"),
    ("days missing", {"days_n": [0]}, DataError, "days (1,) and cards (2,) for 2 labels"),
    ("cards missing", {"cards_n": [0]}, DataError, "cards (1,) for 2 labels"),
    ("days in parts", {"days_n": [0.5, 1.5]}, DataError, "days of type float64"),
    ("nobody looks", {"k": 0}, ValueError, "k is 0"),
]


@pytest.mark.parametrize(("changes", "error", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(changes, error, words):
    given = {key: np.array(value) for key, value in {**GOOD, **changes}.items() if key != "k"}
    with pytest.raises(error) as caught:
        detection.card_precision(**given, k=changes.get("k", 1))
    assert words in str(caught.value)


@pytest.mark.parametrize("score", [detection.roc_auc, detection.average_precision])
def test_scores_that_are_not_finite_are_refused(score):
    with pytest.raises(DivergedError):
        score(np.array([0, 1]), np.array([0.1, np.nan]))


@pytest.mark.parametrize(("train", "test"), [((0, 0), (1, 2)), ((0, 2), (1, 3)), ((0, 2), (3, 3)), ((2, 1), (3, 4))])
def test_periods_that_do_not_follow_one_another(train, test):
    one = np.zeros(1, int)
    with pytest.raises(ValueError, match="one after the other"):
        detection.known_compromised(one, one, one, train, test)
