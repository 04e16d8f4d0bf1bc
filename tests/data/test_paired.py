"""Pairs: which target belongs to which source, every target as often as any other, and features in place of inputs."""

import numpy as np
import pytest

from tljax.data import batching
from tljax.data.batching import OneAnswer
from tljax.data.paired import FeatureExamples, PairedExamples
from tljax.data.text import Ragged, TextExamples


class Numbers(OneAnswer):
    """Examples of one shape that are their numbers."""

    def __init__(self, n: int, base: int = 0):
        self.n, self.base, self.lengths = n, base, None
        self.labels = np.arange(n, dtype=np.int32) % 3

    def __len__(self) -> int:
        return self.n

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, np.ndarray]:
        return {"x": indices + self.base}

    def where(self, i: int) -> str:
        return f"row {i}"

    def digest(self) -> str:
        return f"{self.n} {self.base}"

    content = digest


def partners(pairs: PairedExamples, seed: int | None) -> list[int]:
    return (pairs.gather(np.arange(len(pairs)), 0, seed)["target/x"] - 100).tolist()


@pytest.mark.parametrize(("n", "m"), [(4, 4), (10, 4), (9, 2), (5, 1), (4, 10), (3, 200)])
def test_every_target_is_in_a_pass_as_often_as_any_other(n, m):
    pairs = PairedExamples(Numbers(n), Numbers(m, 100))
    assert len(pairs) == n
    for seed in range(20):
        counts = np.bincount(partners(pairs, batching.epoch_seed(0, seed)), minlength=m)
        assert counts.max() - counts.min() <= 1
        assert counts.sum() == n


@pytest.mark.parametrize(("n", "m"), [(10, 4), (4, 10), (7, 7)])
def test_every_pair_comes_as_often_as_any_other(n, m):
    pairs = PairedExamples(Numbers(n), Numbers(m, 100))
    counts, epochs = np.zeros((n, m)), 3000
    for epoch in range(epochs):
        counts[np.arange(n), partners(pairs, batching.epoch_seed(1, epoch))] += 1
    assert abs(counts - epochs / m).max() < 6 * np.sqrt(epochs / m)  # 6 standard deviations


def test_pairs_are_made_anew_in_each_epoch_and_again_with_its_seed():
    pairs = PairedExamples(Numbers(30), Numbers(20, 100))
    made = [partners(pairs, batching.epoch_seed(3, epoch)) for epoch in range(20)]
    assert len({tuple(one) for one in made}) == 20
    again = PairedExamples(Numbers(30), Numbers(20, 100))
    assert [partners(again, batching.epoch_seed(3, epoch)) for epoch in range(20)] == made
    assert partners(pairs, None) == [i % 20 for i in range(30)]


@pytest.mark.parametrize("seed", [None, 0, 17, 2**32 - 1])
def test_a_pair_does_not_depend_on_the_batch(seed):
    pairs = PairedExamples(Numbers(11), Numbers(30, 100))
    whole = pairs.gather(np.arange(11), 0, seed)
    for indices in ([5], [5, 0, 10], [10, 10]):
        some = pairs.gather(np.array(indices), 0, seed)
        assert some.keys() == {"x", "target/x"}
        for name, value in some.items():
            assert value.tolist() == whole[name][indices].tolist()


def texts(lengths: list[int], token: int) -> TextExamples:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TextExamples(Ragged(np.full(offsets[-1], token, np.int32), offsets), np.arange(len(lengths)) % 2, str, 0)


def test_texts_of_the_target_have_one_length():
    """Otherwise each length of the source would be compiled with each of the target."""
    pairs = PairedExamples(texts([2, 5, 3], 7), texts([4, 1], 9))
    assert pairs.lengths.tolist() == [2, 5, 3]
    for length in (5, 8):
        made = pairs.gather(np.array([0, 1]), length, 1)
        assert made["input_ids"].shape == (2, length)
        assert made["target/input_ids"].shape == (2, 4)
        assert sorted(made["target/attention_mask"].sum(1).tolist()) == [1, 4]
        assert set(made["target/input_ids"].ravel().tolist()) == {9, 0}


def test_questions_and_answers_are_the_sources():
    source = Numbers(5)
    pairs, at = PairedExamples(source, Numbers(3, 100)), np.array([4, 1])
    assert pairs.truth.tolist() == source.truth.tolist()
    labels, weights = pairs.targets(at, 0, 1)
    assert (labels.tolist(), weights.tolist()) == ([1, 1], [1, 1])
    assert pairs.spots(at, 0).tolist() == [4, 1]
    assert pairs.where(2) == "row 2"
    batch = batching.collate(pairs, batching.Planned(at, 0), 3, 1)
    assert batch["weights"].tolist() == [1, 1, 0]
    assert batch["inputs"]["target/x"].shape == (3,)


def test_the_digest_is_of_both():
    digests = {PairedExamples(Numbers(5, a), Numbers(3, b)).digest() for a in (0, 1) for b in (0, 1)}
    assert len(digests) == 4


def test_features_in_place_of_the_source():
    features = np.arange(20, dtype=np.float32).reshape(5, 4)
    own = FeatureExamples(features, Numbers(5))
    pairs = PairedExamples(own, Numbers(3, 100))
    made = pairs.gather(np.array([3, 0]), 0, 2)
    assert made.keys() == {"source_features", "target/x"}
    assert made["source_features"].tolist() == features[[3, 0]].tolist()
    assert (len(pairs), pairs.lengths, pairs.where(1)) == (5, None, "row 1")
    assert pairs.targets(np.array([3, 0]), 0).labels.tolist() == [0, 0]
    assert own.truth.tolist() == [0, 1, 2, 0, 1]
    assert own.digest() == Numbers(5).digest()
