"""Plans: every example once, the number of batches, resume, and the exactness of the buckets."""

import itertools
from typing import Any

import numpy as np
import pytest

from tljax.data.batching import (
    OneAnswer,
    Planned,
    buckets,
    collate,
    epoch_seed,
    permutation,
    plan,
    plan_evaluation,
    stack,
)


class Numbers(OneAnswer):
    """Examples whose content is their index; length i is written `length` times."""

    def __init__(self, n: int, labels: bool = True):
        self.n, self.labels = n, np.arange(n, dtype=np.int32) % 7 if labels else None

    def __len__(self) -> int:
        return self.n

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, Any]:
        return {"x": np.repeat(indices.astype(np.int32)[:, None], max(length, 1), 1)}


def padded(lengths: np.ndarray, edges: tuple[int, ...]) -> int:
    return int(np.asarray(edges)[np.searchsorted(edges, lengths)].sum())


def cases(count: int) -> list[tuple[int, np.ndarray, int, tuple[int, ...]]]:
    """Random (seed, lengths, batch_size, buckets)."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 200))
        lengths = rng.integers(1, rng.integers(2, 60), n).astype(np.int32)
        made.append((seed, lengths, int(rng.integers(1, 40)), buckets(lengths, int(rng.integers(1, 8)))))
    return made


CASES = cases(60)


@pytest.mark.parametrize("seed", range(40))
def test_buckets_are_the_best_of_all_choices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.choice(rng.integers(1, 40, 9), 50)
    most = int(rng.integers(1, 6))
    distinct = sorted(set(lengths.tolist()))
    best = min(
        padded(lengths, (*chosen, distinct[-1]))
        for k in range(most)
        for chosen in itertools.combinations(distinct[:-1], min(k, len(distinct) - 1))
    )
    found = buckets(lengths, most)
    assert padded(lengths, found) == best
    assert len(found) <= most
    assert found[-1] == distinct[-1]


def test_buckets_of_many_distinct_lengths_stay_near_the_best() -> None:
    lengths = np.random.default_rng(0).integers(1, 8000, 20000)
    found = buckets(lengths, 4)
    assert found[-1] == lengths.max()
    even = tuple(range(2000, 8001, 2000))  # for evenly spread lengths, even edges are the best
    assert padded(lengths, found) < 1.005 * padded(lengths, even)


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [([5], 6, (5,)), ([5, 5, 9], 1, (9,)), ([1, 2, 3], 3, (1, 2, 3)), ([1, 2, 3], 9, (1, 2, 3)), (None, 6, (0,))],
)
def test_buckets_small(lengths: list[int] | None, most: int, expected: tuple[int, ...]) -> None:
    assert buckets(None if lengths is None else np.array(lengths), most) == expected


@pytest.mark.parametrize(("seed", "lengths", "batch_size", "edges"), CASES)
def test_each_example_once(seed: int, lengths: np.ndarray, batch_size: int, edges: tuple[int, ...]) -> None:
    n = len(lengths)
    for planned in (
        plan(seed, 0, n, lengths, batch_size, edges),
        plan(seed, 5, n, None, batch_size, (0,)),
        plan_evaluation(n, lengths, batch_size, edges),
        plan_evaluation(n, None, batch_size, (0,)),
    ):
        assert sorted(np.concatenate([p.indices for p in planned]).tolist()) == list(range(n))
        assert len(planned) == -(-n // batch_size)
        assert sum(len(p.indices) < batch_size for p in planned) == (n % batch_size > 0)


@pytest.mark.parametrize(("seed", "lengths", "batch_size", "edges"), CASES)
def test_length_is_the_smallest_bucket_that_fits(
    seed: int, lengths: np.ndarray, batch_size: int, edges: tuple[int, ...]
) -> None:
    for p in plan(seed, 1, len(lengths), lengths, batch_size, edges):
        assert p.length == min(edge for edge in edges if edge >= lengths[p.indices].max())


def test_an_evaluation_fills_up_the_shortest_batch() -> None:
    planned = plan_evaluation(10, np.arange(10, 0, -1), 4, (2, 6, 10))
    assert [(p.indices.tolist(), p.length) for p in planned] == [([9, 8], 2), ([7, 6, 5, 4], 6), ([3, 2, 1, 0], 10)]


def test_plan_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 500)
    edges = buckets(lengths, 4)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate([p.indices for p in plan(seed, epoch, 500, lengths, 16, edges)]).tolist()

    assert order(3, 1) == order(3, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_permutation_never_changes() -> None:
    """Pinned: a run that resumes after an upgrade must find the same order."""
    assert permutation(0, 0, 10).tolist() == PINNED_0_0
    assert permutation(7, 3, 10).tolist() == PINNED_7_3
    assert epoch_seed(7, 3) == PINNED_SEED


PINNED_0_0 = [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
PINNED_7_3 = [7, 1, 9, 6, 0, 4, 2, 8, 3, 5]
PINNED_SEED = 2682643779


def test_batches_of_a_bucket_come_in_random_order() -> None:
    lengths = np.repeat([5, 50], 400)
    shapes = [p.length for p in plan(0, 0, 800, lengths, 8, (5, 50))]
    assert shapes != sorted(shapes)
    assert shapes.count(5) == shapes.count(50) == 50


def test_order_is_uniform() -> None:
    """Each example stands in each place about equally often: 2,000 epochs of 10, expected 200 ± 6 deviations."""
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        counts[np.arange(10), permutation(1, epoch, 10)] += 1
    assert abs(counts - 200).max() < 6 * np.sqrt(200)


@pytest.mark.parametrize(
    ("n", "lengths", "batch_size", "edges", "words"),
    [
        (0, None, 4, (0,), "0 examples"),
        (3, None, 0, (0,), "batches of 0"),
        (3, [1, 2], 4, (2,), "2 lengths for 3"),
        (2, [1, 9], 4, (2, 5), "9 tokens is longer than the last bucket, 5"),
        (2, [1, 2], 4, (5, 2), "expected rising"),
    ],
)
def test_refused(n: int, lengths: list[int] | None, batch_size: int, edges: tuple[int, ...], words: str) -> None:
    known = None if lengths is None else np.array(lengths)
    for make in (lambda: plan(0, 0, n, known, batch_size, edges), lambda: plan_evaluation(n, known, batch_size, edges)):
        with pytest.raises(ValueError, match=words):
            make()


def test_collate_full_batch() -> None:
    batch = collate(Numbers(9), Planned(np.array([8, 0, 3]), 2), 3)
    assert batch["inputs"]["x"].tolist() == [[8, 8], [0, 0], [3, 3]]
    assert batch["labels"].tolist() == [1, 0, 3]
    assert batch["weights"].tolist() == [1, 1, 1]
    assert batch["rows"].tolist() == [8, 0, 3]
    assert [batch[k].dtype.name for k in ("labels", "weights", "rows")] == ["int32", "float32", "int32"]


def test_collate_pads_with_a_valid_row_of_no_weight() -> None:
    batch = collate(Numbers(9), Planned(np.array([8, 3]), 1), 5)
    assert batch["inputs"]["x"][:, 0].tolist() == [8, 3, 8, 8, 8]
    assert batch["labels"].tolist() == [1, 3, 1, 1, 1]
    assert batch["weights"].tolist() == [1, 1, 0, 0, 0]
    assert batch["rows"].tolist() == [8, 3, -1, -1, -1]


def test_collate_without_labels() -> None:
    assert collate(Numbers(9, labels=False), Planned(np.array([8, 3]), 1), 3)["labels"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("indices", [[], [1, 2, 3]])
def test_collate_refuses_what_does_not_fit(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 2"):
        collate(Numbers(9), Planned(np.array(indices, np.int64), 1), 2)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("plans", [[[8, 0, 3]], [[8, 0, 3], [1, 2, 4]], [[8, 0, 3], [5]], [[7], [7], [7]]])
def test_a_stack_is_what_collate_makes_of_each(plans: list[list[int]], labels: bool) -> None:
    """The partial last batch of an epoch too, and the one that fills a stack up."""
    planned = [Planned(np.array(indices), 2) for indices in plans]
    found = stack(Numbers(9, labels), planned, 3)
    for i, one in enumerate(planned):
        want = collate(Numbers(9, labels), one, 3)
        assert found["inputs"].keys() == want["inputs"].keys()
        for name in ("x", "labels", "weights", "rows"):
            have, expected = ({**made, **made["inputs"]}[name] for made in (found, want))
            assert np.array_equal(have[i], expected)
            assert have.dtype == expected.dtype
    assert found["rows"].shape == (len(plans), 3)


def test_a_stack_passes_the_seed_of_augmentation_on() -> None:
    class Drawn(Numbers):
        def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, Any]:
            return {"x": indices + (seed or 0)}

    assert stack(Drawn(9), [Planned(np.array([1, 2]), 0)], 2, 100)["inputs"]["x"].tolist() == [[101, 102]]


@pytest.mark.parametrize("indices", [[], [1, 2, 3]])
def test_a_stack_refuses_what_does_not_fit(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 2"):
        stack(Numbers(9), [Planned(np.array([1]), 1), Planned(np.array(indices, np.int64), 1)], 2)
