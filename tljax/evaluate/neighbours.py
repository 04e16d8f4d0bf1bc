"""Item-based nearest neighbours: what those who have your items have besides, the baseline that is hard to beat.

Legend: n histories, I items, E (item, neighbour) entries. The user-item matrix is never dense: how many users have two
items is a count of equal keys in a sorted array.
"""

import dataclasses

import numpy as np

from tljax.errors import DataError
from tljax.evaluate.ranking import Histories, checked_ids, pairs

PAIRS = 1 << 22  # pairs of items that are sorted at once: about 400 MB in all


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """For each item the items that it speaks for, and how much.

    Attributes:
      starts: int64 (I + 1,). Entries starts[j] to starts[j + 1] are those in which j is the neighbour.
      targets: int64 (E,), the item whose neighbour j is. similarities: float64 (E,).
    """

    starts: np.ndarray
    targets: np.ndarray
    similarities: np.ndarray

    @property
    def items(self) -> int:
        return len(self.starts) - 1

    def score(self, histories: Histories) -> np.ndarray:
        """Sum of an item's similarities to those of its k neighbours that the history has, each counted once.

        Args:
          histories: n arrays of items, or int (n, S) padded with -1. The result is dense: hand over some hundred at a
            time. An item of the history has a score like any other.

        Returns:
          float64 (n, I); 0 where nothing speaks for an item.

        Raises:
          DataError: items outside the catalogue.
        """
        n = len(histories)
        case, item = pairs(histories, self.items)
        case, item = np.divmod(np.unique(case * self.items + item), self.items)
        lengths = np.diff(self.starts)[item]
        at = _ranges(self.starts[item], lengths)
        cells = np.repeat(case, lengths) * self.items + self.targets[at]
        return np.bincount(cells, self.similarities[at], minlength=n * self.items).reshape(n, self.items)


def item_knn(
    user_ids: np.ndarray, item_ids: np.ndarray, users: int, items: int, k: int = 100, shrink: float = 100.0
) -> Neighbours:
    """The k most similar items of each item, by c_ij / (sqrt(c_i c_j) + shrink): cosine over users who have both, which
    `shrink` lowers where the counts are small (Sarwar et al. 2001; with the shrink term Ferrari Dacrema et al. 2019,
    who found it ahead of most neural recommenders of its day).

    c_i users have item i; how often does not count. Of equally similar items the one with the smaller id is nearer; an
    item is not its own neighbour, and items that no user has both of are not neighbours. The work grows with the sum
    over users of their history's length squared.

    Args:
      user_ids, item_ids: int, one of each for every event.
      users, items: how many there are.
      k, shrink: for a fair comparison to be chosen on validation data. The defaults were, on SASRec's Video events
        (31,013 users, 23,715 items), where k from 50 to 500 matters little and shrink from 0 to 100 a lot.

    Raises:
      DataError: ids that do not fit.
    """
    user, item = checked_ids(user_ids, users, "users"), checked_ids(item_ids, items)
    if len(user) != len(item):
        raise DataError("ranking", f"{len(user)} users and {len(item)} items", "one of both for every event")
    if k < 1 or shrink < 0:
        raise ValueError(f"k is {k} and shrink {shrink}, expected at least 1 and at least 0")
    item, user = np.divmod(np.unique(item * users + user), users)
    held_by, holds = np.bincount(item, minlength=items), np.bincount(user, minlength=users)
    item_starts, user_starts = _starts(held_by), _starts(holds)
    of_user = item[np.argsort(user, kind="stable")]
    pairs_before = _starts(holds[user])[item_starts]  # the pairs that the items before this one make

    kept, low = [], 0
    while low < items:
        high = int(np.searchsorted(pairs_before, pairs_before[low] + PAIRS, side="right")) - 1
        high = max(high, low + 1)  # a single item may make more
        events = slice(item_starts[low], item_starts[high])
        lengths = holds[user[events]]
        beside = of_user[_ranges(user_starts[user[events]], lengths)]
        keys, together = np.unique(np.repeat(item[events], lengths) * items + beside, return_counts=True)
        i, j = np.divmod(keys, items)
        others = i != j
        i, j, together = i[others], j[others], together[others]
        similarity = together / (np.sqrt(held_by[i] * held_by[j]) + shrink)
        order = np.lexsort((-similarity, i))  # stable: of equals the smaller j
        place = np.arange(len(order)) - np.searchsorted(i, i)[order]
        nearest = order[place < k]
        kept.append((i[nearest], j[nearest], similarity[nearest]))
        low = high
    target, neighbour, similarity = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    order = np.argsort(neighbour, kind="stable")
    return Neighbours(_starts(np.bincount(neighbour, minlength=items)), target[order], similarity[order])


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, … of each range, one range after the other.

    >>> _ranges(np.array([5, 0, 7]), np.array([2, 0, 3]))
    array([5, 6, 7, 8, 9])
    """
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
