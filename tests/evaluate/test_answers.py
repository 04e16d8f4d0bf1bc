"""Scores of what is foretold and of ranks: counted by hand, of nothing, and of what has diverged."""

import math

import numpy as np
import pytest

from tljax.errors import DivergedError
from tljax.evaluate import answers
from tljax.evaluate.answers import Likelihood, Ranks


def test_likelihood_by_hand():
    outputs = np.array([[1.0, 0.5, 1, 0], [3.0, 0.5, 1, 1], [2.0, 2.0, 0, 0], [2.0, 1.0, 1, 0]], np.float32)
    found = answers.likelihood(outputs, ("shop", "amount"))
    assert found.fields == {"shop": (2.0, 0.75), "amount": (1.0, 0.25)}
    assert found == Likelihood(3.0, 0.5, found.fields, 4)
    assert found.summary() == {"loss": 3.0, "perplexity": math.exp(1.5), "accuracy": 0.5, "n": 4}


@pytest.mark.parametrize("fields", [1, 2, 5])
def test_likelihood_is_the_mean_of_its_fields(fields):
    rng = np.random.default_rng(fields)
    losses, right = rng.exponential(size=(50, fields)), rng.integers(0, 2, (50, fields))
    found = answers.likelihood(np.concatenate([losses, right], axis=1).astype(np.float32), "abcde"[:fields])
    assert found.loss == pytest.approx(losses.sum(1).mean(), rel=1e-6)  # outputs are float32
    assert found.accuracy == pytest.approx(right.mean())
    assert found.summary()["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-6)
    assert list(found.fields) == list("abcde"[:fields])


def test_many_answers_are_added_up_exactly_enough():
    """In float32 a million losses of 10 would be off in the third digit."""
    outputs = np.full((1_000_000, 2), 10.1, np.float32)
    assert answers.likelihood(outputs, ("words",)).loss == pytest.approx(float(np.float32(10.1)), rel=1e-12)


def test_a_loss_that_no_exponential_has():
    assert answers.likelihood(np.array([[1e6, 0.0]], np.float32), ("words",)).summary()["perplexity"] == math.exp(700)


RANKED = [
    # ranks; HR@1, HR@10, NDCG@10, MRR
    ([1], (1.0, 1.0, 1.0, 1.0)),
    ([3], (0.0, 1.0, 0.5, 1 / 3)),
    ([10], (0.0, 1.0, 1 / math.log2(11), 0.1)),
    ([11], (0.0, 0.0, 0.0, 1 / 11)),
    ([1, 3, 11, 100], (0.25, 0.5, 1.5 / 4, (1 + 1 / 3 + 1 / 11 + 0.01) / 4)),
]


@pytest.mark.parametrize(("ranks", "expected"), RANKED)
def test_ranks_by_hand(ranks, expected):
    found = answers.ranks(np.array(ranks, np.float32)[:, None])
    assert (found.hit_rate_1, found.hit_rate_10, found.ndcg_10, found.mrr) == pytest.approx(expected)
    assert found.summary() == {"hit_rate_1": found.hit_rate_1, "hit_rate_10": found.hit_rate_10,
                               "ndcg_10": found.ndcg_10, "mrr": found.mrr, "n": len(ranks)}  # fmt: skip


def test_of_nothing_there_is_no_score():
    assert answers.likelihood(np.zeros((0, 4), np.float32), ("a", "b")) == Likelihood(None, None, {}, 0)
    assert answers.likelihood(np.zeros((0, 4)), "ab").summary() == {
        "loss": None, "perplexity": None, "accuracy": None, "n": 0}  # fmt: skip
    assert answers.ranks(np.zeros((0, 1), np.float32)) == Ranks(None, None, None, None, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answers_that_are_not_finite(value):
    for score, columns in ((lambda x: answers.likelihood(x, ("a",)), 2), (answers.ranks, 1)):
        outputs = np.ones((5, columns), np.float32)
        outputs[[1, 3], 0] = value
        with pytest.raises(DivergedError, match="2 of 5 answers are not finite"):
            score(outputs)
