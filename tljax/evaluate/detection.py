"""Rare events: how well scores rank them above the rest, where what is undefined is None and never 0.

Legend: n examples or events. A label is 1 for the rare class (fraud, fault) and 0 for all else; a score is the higher,
the more suspicious. Counting is in integers, so ties are exact.
"""

import statistics

import numpy as np

from tljax.errors import DataError, DivergedError


def roc_auc(labels_n: np.ndarray, scores_n: np.ndarray) -> float | None:
    """Share of (positive, negative) pairs in which the positive one scores higher, an equal score counting half.

    The area under the ROC curve is the statistic of Mann & Whitney (1947) with mid-ranks (Hanley & McNeil 1982).

    Returns:
      0 to 1; None where one of the classes is absent.

    Raises:
      DataError, DivergedError: as `checked`.

    >>> roc_auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    0.875
    """
    positive_g, negative_g = _by_score(labels_n, scores_n)
    pairs = int(positive_g.sum()) * int(negative_g.sum())
    if pairs == 0:
        return None
    below_g = np.cumsum(negative_g) - negative_g
    return int((positive_g * (2 * below_g + negative_g)).sum()) / (2 * pairs)


def average_precision(labels_n: np.ndarray, scores_n: np.ndarray) -> float | None:
    """Mean over the positives of the precision at their score: sum of (R_g - R_{g-1}) P_g over falling scores.

    Equal scores are one threshold, and nothing is interpolated: the definition of scikit-learn.

    Returns:
      0 to 1; None without positives.

    Raises:
      DataError, DivergedError: as `checked`.

    >>> average_precision(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    0.8333333333333333
    """
    positive_g, negative_g = (counts[::-1] for counts in _by_score(labels_n, scores_n))
    positives = int(positive_g.sum())
    if positives == 0:
        return None
    right_g = np.cumsum(positive_g)
    precision_g = right_g / (right_g + np.cumsum(negative_g))
    return float((positive_g * precision_g).sum()) / positives


def card_precision(
    days_n: np.ndarray, cards_n: np.ndarray, labels_n: np.ndarray, scores_n: np.ndarray, k: int = 100
) -> tuple[float | None, list[float]]:
    """Card precision@k: of k cards that are looked at each day, the share that is compromised (Le Borgne et al. 2022,
    Reproducible Machine Learning for Credit Card Fraud Detection, section 4.4).

    A card counts by its largest score of the day and is compromised if one of its events of the day is a fraud. One
    that was found is blocked: its events of later days do not count. The share is of k also on days with fewer cards.
    Of cards with equal scores the one with the smaller id goes first, which the book leaves open.

    Args:
      days_n: int, the day of each event. cards_n: int or text, whose event it is.

    Returns:
      The mean over the days that have events, None without events; and each day's share, in the order of days.

    Raises:
      DataError, DivergedError: as `checked`; days and cards that do not fit.
    """
    labels, scores = checked(labels_n, scores_n)
    days, cards = _events(days_n, cards_n, len(labels))
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if len(days) == 0:
        return None, []
    order = np.argsort(days, kind="stable")
    starts = np.unique(days[order], return_index=True)[1]
    shares, found = [], cards[:0]
    for of_day in np.split(order, starts[1:]):
        rows = of_day[~np.isin(cards[of_day], found)]
        seen, which = np.unique(cards[rows], return_inverse=True)
        highest = np.full(len(seen), -np.inf)
        np.maximum.at(highest, which, scores[rows])
        looked_at = seen[np.argsort(-highest, kind="stable")[:k]]
        caught = looked_at[np.isin(looked_at, cards[rows[labels[rows]]])]
        shares.append(len(caught) / k)
        found = np.concatenate([found, caught])
    return statistics.fmean(shares), shares


def known_compromised(
    days_n: np.ndarray, cards_n: np.ndarray, labels_n: np.ndarray, train: tuple[int, int], test: tuple[int, int]
) -> np.ndarray:
    """The events of the test period that are taken out, because their card is by then known to be compromised.

    Known are the cards with a fraud in the training period; and, as a fraud is reported after a delay as long as the
    gap between the two periods, on the i-th day of the test those with a fraud up to day train[1] + i - 1 (Le Borgne et
    al. 2022, section 3.4).

    Args:
      days_n, cards_n, labels_n: of all events, those between and before the periods too.
      train, test: half-open ranges of days.

    Returns:
      bool (n,): True for what to take out; False for all events outside the test period.

    Raises:
      DataError: as `checked`; days and cards that do not fit.
    """
    (first, trained), (tested, last) = train, test
    if not first < trained <= tested < last:
        raise ValueError(f"train {train} and test {test}, expected two periods of at least a day, one after the other")
    labels = _labels(labels_n)
    days, cards = _events(days_n, cards_n, len(labels))
    distinct, card = np.unique(cards, return_inverse=True)
    fraud = labels & (days >= first)
    reported = np.where(days < trained, tested, days + (tested - trained) + 1)
    known_from = np.full(len(distinct), last)  # never before the first day of the test
    np.minimum.at(known_from, card[fraud], reported[fraud])
    return (known_from[card] <= days) & (days < last)


def checked(labels_n: np.ndarray, scores_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels as bool (n,) and scores as float64 (n,).

    Raises:
      DataError: shapes that do not fit, labels other than 0 and 1.
      DivergedError: scores that are not finite.
    """
    labels, scores = _labels(labels_n), np.asarray(scores_n)
    if scores.shape != labels.shape:
        raise DataError("evaluation", f"{len(labels)} labels and scores {scores.shape}", f"({len(labels)},)")
    scores = scores.astype(np.float64)
    if bad := np.flatnonzero(~np.isfinite(scores)).tolist():
        raise DivergedError("evaluation", f"the scores of {len(bad)} of {len(scores)} examples are not finite",
                            fix="lower --config.optim.learning_rate",
                            details=[f"example {i}: {scores[i]}" for i in bad[:20]])  # fmt: skip
    return labels, scores


def _labels(labels_n: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels_n)
    if labels.ndim != 1 or not (labels.dtype == bool or np.issubdtype(labels.dtype, np.integer)):
        raise DataError("evaluation", f"labels {labels.shape} of type {labels.dtype}", "integers (n,), 0 or 1")
    if bad := np.flatnonzero((labels != 0) & (labels != 1)).tolist():
        raise DataError("evaluation", f"{len(bad)} of {len(labels)} labels are neither 0 nor 1", "1 for the rare class",
                        details=[f"example {i}: label {labels[i]}" for i in bad[:20]])  # fmt: skip
    return labels == 1


def _events(days_n: np.ndarray, cards_n: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Days as int64: those of a file may be unsigned, and a difference would wrap around."""
    days, cards = np.asarray(days_n), np.asarray(cards_n)
    if days.shape != (n,) or cards.shape != (n,):
        raise DataError("evaluation", f"days {days.shape} and cards {cards.shape} for {n} labels", f"({n},) for both")
    if not np.issubdtype(days.dtype, np.integer):
        raise DataError("evaluation", f"days of type {days.dtype}", "whole days, as integers")
    return days.astype(np.int64), cards


def _by_score(labels_n: np.ndarray, scores_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many positives and negatives have each distinct score: two int64 arrays, in the order of rising scores."""
    labels, scores = checked(labels_n, scores_n)
    distinct, group = np.unique(scores, return_inverse=True)
    positive_g = np.bincount(group[labels], minlength=len(distinct))
    return positive_g, np.bincount(group, minlength=len(distinct)) - positive_g
