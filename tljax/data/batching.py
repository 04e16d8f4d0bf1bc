"""Batching: which examples stand together in a batch, as pure functions of seed and epoch.

A batch has one of a few shapes (a length from the buckets, always batch_size rows), because each shape is compiled.
Legend: n examples, B rows in a batch, T tokens.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

MAX_EDGES = 2048  # distinct lengths that the search looks at one by one


class Planned(NamedTuple):
    """A batch to be made: the examples in it (int64, at most B) and the length that they are padded to."""

    indices: np.ndarray
    length: int


class Targets(NamedTuple):
    """What is to be learned of some examples: `labels` int32 (B, …), and `weights` float32, one for each answer that a
    label asks for, 0 where none is asked."""

    labels: np.ndarray
    weights: np.ndarray


class Examples(Protocol):
    """What batches are made of. An example asks for one answer, or for several: one for each word, or event."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each example, int32 (n,); None where all have one shape."""

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, np.ndarray]:
        """The inputs, each (B, …); `seed`: of what is drawn at random."""

    def targets(self, indices: np.ndarray, length: int, seed: int | None = None) -> Targets:
        """What belongs to the inputs that `gather` makes of the same arguments."""

    @property
    def truth(self) -> np.ndarray:
        """The right answers of all examples in an evaluation, int32 (N,)."""

    def spots(self, indices: np.ndarray, length: int) -> np.ndarray:
        """Which answer each place of `targets` is, int64 (B, …) from 0 to N - 1; -1 where none is asked."""


class OneAnswer:
    """Examples that ask for one answer each, the class; unlabelled ones count as the first."""

    labels: np.ndarray | None

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def truth(self) -> np.ndarray:
        return np.zeros(len(self), np.int32) if self.labels is None else self.labels

    def targets(self, indices: np.ndarray, length: int, seed: int | None = None) -> Targets:
        return Targets(self.truth[indices].astype(np.int32), np.ones(len(indices), np.float32))

    def spots(self, indices: np.ndarray, length: int) -> np.ndarray:
        return np.asarray(indices, np.int64)


def buckets(lengths: np.ndarray | None, max_buckets: int) -> tuple[int, ...]:
    """At most `max_buckets` lengths that examples are padded to, so that the tokens after padding are fewest.

    Exact, by dynamic programming over the histogram: with the distinct lengths e_1 < … < e_m and C_j examples of at
    most e_j, the best k buckets that cover e_j cost f_k(j) = min_i f_{k-1}(i) + e_j (C_j - C_i). Above 2048 distinct
    lengths they are first rounded up to a coarser grid. The last bucket is the longest example.

    >>> buckets(np.array([3, 3, 3, 9, 10]), 2)
    (3, 10)
    """
    if lengths is None or len(lengths) == 0:
        return (0,)
    if max_buckets < 1:
        raise ValueError(f"max_buckets is {max_buckets}, expected at least 1")
    step = math.ceil(int(lengths.max()) / MAX_EDGES) if len(np.unique(lengths)) > MAX_EDGES else 1
    grid = np.minimum(-(-lengths.astype(np.int64) // step) * step, int(lengths.max()))
    edges, counts = np.unique(grid, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])  # below[j]: examples of at most edges[j - 1]
    m = len(edges)
    cost = np.full(m + 1, np.inf)
    cost[0] = 0
    chosen = []
    for _ in range(min(max_buckets, m)):
        best, previous = np.full(m + 1, np.inf), np.zeros(m + 1, np.int64)
        best[0] = 0
        for j in range(1, m + 1):
            candidates = cost[:j] + edges[j - 1] * (below[j] - below[:j])
            previous[j] = np.argmin(candidates)
            best[j] = candidates[previous[j]]
        cost = best
        chosen.append(previous)
    picked, j = [], m
    for previous in reversed(chosen):
        if j == 0:
            break
        picked.append(int(edges[j - 1]))
        j = int(previous[j])
    return tuple(sorted(picked))


def _lengths(n: int, lengths: np.ndarray | None, batch_size: int, buckets: Sequence[int]) -> np.ndarray:
    """The lengths as int64 (n,), 0 where there are none, all covered by the buckets."""
    if n < 1 or batch_size < 1:
        raise ValueError(f"{n} examples in batches of {batch_size}, expected at least 1 of both")
    if lengths is None:
        return np.zeros(n, np.int64)
    if len(lengths) != n or list(buckets) != sorted(set(buckets)):
        raise ValueError(f"{len(lengths)} lengths for {n} examples, buckets {tuple(buckets)}, expected rising")
    if lengths.max() > buckets[-1]:
        raise ValueError(f"an example of {lengths.max()} tokens is longer than the last bucket, {buckets[-1]}")
    return np.asarray(lengths, np.int64)


def permutation(seed: int, epoch: int, n: int, purpose: int = 0) -> np.ndarray:
    """A random order of 0..n-1, int64, as a function of its arguments alone.

    It sorts raw Philox numbers, whose stream NumPy guarantees for ever; `Generator.permutation` it does not, and a
    run must find its order again after an upgrade.
    """
    raw = np.random.Philox(np.random.SeedSequence([seed, epoch, purpose])).random_raw(n)
    return np.argsort(raw, kind="stable")


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's augmentation: for `collate` and `pipeline.batches`."""
    return int(np.random.SeedSequence([seed, epoch, 2]).generate_state(1, np.uint32)[0])


def plan(
    seed: int, epoch: int, n: int, lengths: np.ndarray | None, batch_size: int, buckets: Sequence[int]
) -> list[Planned]:
    """The batches of one epoch: every example exactly once, ceil(n / batch_size) batches, one partial at most.

    Examples are drawn in a random order into their buckets; what does not fill a batch moves up to the next larger
    bucket. The order of the batches is random too. Batch i is a function of (seed, epoch, i) and the data alone.

    Args:
      lengths: int (n,) tokens of each example; None: all have one shape, length 0.
      buckets: rising lengths; the last covers the longest example.
    """
    known = _lengths(n, lengths, batch_size, buckets)
    edges = np.asarray(buckets if lengths is not None else (0,), np.int64)
    order = permutation(seed, epoch, n)
    bucket = np.searchsorted(edges, known[order])
    batches: list[np.ndarray] = []
    rest = order[:0]
    for b in range(len(edges)):
        pool = np.concatenate([rest, order[bucket == b]])
        full = len(pool) // batch_size * batch_size
        batches += list(pool[:full].reshape(-1, batch_size))
        rest = pool[full:]
    if len(rest):
        batches.append(rest)
    return [_planned(batches[i], known, edges) for i in permutation(seed, epoch, len(batches), 1)]


def plan_evaluation(n: int, lengths: np.ndarray | None, batch_size: int, buckets: Sequence[int]) -> list[Planned]:
    """Every example exactly once, by rising length, in ceil(n / batch_size) batches.

    Only the first may be partial: a row that fills it up has the fewest tokens there.
    """
    known = _lengths(n, lengths, batch_size, buckets)
    edges = np.asarray(buckets if lengths is not None else (0,), np.int64)
    order = np.argsort(known, kind="stable")
    missing = -n % batch_size
    return [_planned(order[max(i, 0) : i + batch_size], known, edges) for i in range(-missing, n, batch_size)]


def _planned(indices: np.ndarray, lengths: np.ndarray, edges: np.ndarray) -> Planned:
    # The smallest bucket that holds all of them: a batch that moved up may still fit the one it came from.
    return Planned(indices, int(edges[np.searchsorted(edges, lengths[indices].max())]))


def collate(examples: Examples, planned: Planned, batch_size: int, seed: int | None = None,
            held: np.ndarray | None = None) -> dict[str, Any]:  # fmt: skip
    """The arrays of one batch, always batch_size rows.

    Padded rows repeat the first row, with weight 0: a row without any token would make NaN in a mean over tokens,
    and NaN times 0 is NaN.

    Args:
      seed: of augmentation; None: none.
      held: the rows (H,) that are made here, of a batch whose others are made elsewhere (mesh.py); None: all.

    Returns:
      {"inputs": {name: (H, …)}, "labels": int32 (H, …) (0 where unlabelled), "weights": float32 (H, …), of `Targets` on
      examples and 0 on padding, "rows": int32 (B,) example index, -1 on padding, of the whole batch}.
    """
    rows, valid = _filled(planned, batch_size)
    at = np.where(valid, np.arange(batch_size), 0)[slice(None) if held is None else held]
    need, places = np.unique(at, return_inverse=True)
    inputs = examples.gather(planned.indices[need], planned.length, seed)
    if not np.array_equal(places, np.arange(len(need))):
        inputs = {name: x[places] for name, x in inputs.items()}
    return {"inputs": inputs, **_targets(examples, rows, valid, planned.length, seed, held)}


def stack(examples: Examples, plans: Sequence[Planned], batch_size: int, seed: int | None = None,
          held: np.ndarray | None = None) -> dict[str, Any]:  # fmt: skip
    """The arrays of several batches of one length, each as `collate` makes it, with an axis for the batches before."""
    rows, valid = (np.stack(parts) for parts in zip(*(_filled(plan, batch_size) for plan in plans), strict=True))
    own = rows if held is None else rows[:, held]
    length = plans[0].length
    inputs = examples.gather(own.reshape(-1), length, seed)
    return {"inputs": {name: x.reshape(*own.shape, *x.shape[1:]) for name, x in inputs.items()},
            **_targets(examples, rows, valid, length, seed, held)}  # fmt: skip


def _filled(planned: Planned, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The examples in the rows of a batch, the first of them in those that pad; and which do not pad."""
    real = len(planned.indices)
    if not 1 <= real <= batch_size:
        raise ValueError(f"a batch of {real} examples, expected 1 to {batch_size}")
    rows = np.full(batch_size, planned.indices[0])
    rows[:real] = planned.indices
    return rows, np.arange(batch_size) < real


def _targets(examples: Examples, rows: np.ndarray, valid: np.ndarray, length: int, seed: int | None,
             held: np.ndarray | None) -> dict[str, Any]:  # fmt: skip
    own, real = (rows, valid) if held is None else (rows[..., held], valid[..., held])
    labels, weights = examples.targets(own.reshape(-1), length, seed)
    weights = np.where(real.reshape(-1, *[1] * (weights.ndim - 1)), weights, np.float32(0))
    return {"labels": labels.reshape(*own.shape, *labels.shape[1:]),
            "weights": weights.reshape(*own.shape, *weights.shape[1:]),
            "rows": np.where(valid, rows, -1).astype(np.int32)}  # fmt: skip
