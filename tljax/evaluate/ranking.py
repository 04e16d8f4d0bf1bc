"""Recommendation: where the true item stands among all items, and how often that is near the top.

Every item of the catalogue is ranked, none is sampled: with sampled items the order of two models can turn round
(Krichene & Rendle 2020). Legend: n cases, I items, S places of a padded history. Scores are None where n is 0.
"""

from collections.abc import Sequence

import numpy as np

from tljax.errors import DataError, DivergedError

Histories = Sequence[np.ndarray] | np.ndarray  # n arrays of items, or int (n, S) with -1 in the places that are empty


def ranks(scores_nI: np.ndarray, true_n: np.ndarray, seen: Histories | None = None) -> np.ndarray:
    """1 + how many other items score at least as high as the true one: a model that scores all alike is last.

    Args:
      scores_nI: float. For a large catalogue, hand over some hundred cases at a time.
      true_n: int, 0 to I - 1.
      seen: items of each case that are not ranked, such as those the user has already; the true one always is.

    Returns:
      int64 (n,), 1 to I.

    Raises:
      DataError: shapes that do not fit, items outside the catalogue.
      DivergedError: scores that are not finite.

    >>> ranks(np.array([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3]]), np.array([2, 2]), seen=[np.array([1]), np.array([])])
    array([1, 3])
    """
    scores, true = np.asarray(scores_nI), np.asarray(true_n)
    if scores.ndim != 2 or true.shape != scores.shape[:1]:
        raise DataError("ranking", f"scores {scores.shape} and true items {true.shape}", "(n, items) and (n,)")
    n, items = scores.shape
    true = checked_ids(true, items)
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1)).tolist()
        raise DivergedError("ranking", f"the scores of {len(bad)} of {n} cases are not finite",
                            fix="lower --config.optim.learning_rate",
                            details=[f"case {i}" for i in bad[:20]])  # fmt: skip
    rows = np.arange(n)
    ahead_nI = scores >= scores[rows, true][:, None]
    if seen is not None:
        if len(seen) != n:
            raise DataError("ranking", f"seen items of {len(seen)} cases for {n} cases", "one history for each")
        ahead_nI[pairs(seen, items)] = False
    ahead_nI[rows, true] = False
    return 1 + ahead_nI.sum(axis=1, dtype=np.int64)


def hit_rate(ranks_n: np.ndarray, k: int) -> float | None:
    """Share of cases whose true item is among the first k; with one true item a case, recall@k is the same.

    >>> hit_rate(np.array([1, 10, 11, 40]), 10)
    0.5
    """
    found = _first(ranks_n, k)
    return float(found.mean()) if len(found) else None


def ndcg(ranks_n: np.ndarray, k: int) -> float | None:
    """Mean of 1 / log2(1 + rank) over the cases, 0 below rank k: NDCG@k with one relevant item, whose ideal is 1
    (Järvelin & Kekäläinen 2002).

    >>> ndcg(np.array([1, 3, 11]), 10)
    0.5
    """
    found = _first(ranks_n, k)
    return float(np.where(found, 1 / np.log2(1.0 + np.asarray(ranks_n)), 0.0).mean()) if len(found) else None


def mrr(ranks_n: np.ndarray) -> float | None:
    """Mean of 1 / rank over the cases (mean reciprocal rank, Voorhees 1999).

    >>> mrr(np.array([1, 4]))
    0.625
    """
    return float((1 / _checked(ranks_n)).mean()) if len(ranks_n) else None


def popularity(train_items: np.ndarray, items: int) -> np.ndarray:
    """How often each item occurs in the training events, float64 (items,): the scores of the simplest baseline.

    Raises:
      DataError: items outside the catalogue.
    """
    return np.bincount(checked_ids(train_items, items), minlength=items).astype(np.float64)


def pairs(histories: Histories, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Histories as (case, item), int64 of equal length, without the padding and with repetitions as they are.

    Raises:
      DataError: items outside the catalogue.
    """
    lengths = np.fromiter(map(len, histories), np.int64, len(histories))
    filled = [np.asarray(one) for one in histories if len(one)]  # an empty array is one of floats, often
    flat = np.concatenate(filled) if filled else np.zeros(0, np.int64)
    case = np.repeat(np.arange(len(histories)), lengths)
    return case[flat != -1], checked_ids(flat[flat != -1], items)


def checked_ids(ids: np.ndarray, count: int, what: str = "items") -> np.ndarray:
    """Ids as int64 (n,).

    Raises:
      DataError: ids that are not whole numbers from 0 to count - 1.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError("ranking", f"{what} {ids.shape} of type {ids.dtype}", "integers (n,)")
    if bad := np.flatnonzero((ids < 0) | (ids >= count)).tolist():
        raise DataError("ranking", f"{len(bad)} of {len(ids)} {what} are none of the {count}", f"0 to {count - 1}",
                        details=[f"place {i}: {ids[i]}" for i in bad[:20]])  # fmt: skip
    return ids.astype(np.int64)


def _checked(ranks_n: np.ndarray) -> np.ndarray:
    found = np.asarray(ranks_n)
    if (found < 1).any():
        raise DataError("ranking", f"a rank of {found.min()}", "1 for the first")
    return found


def _first(ranks_n: np.ndarray, k: int) -> np.ndarray:
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    return _checked(ranks_n) <= k
