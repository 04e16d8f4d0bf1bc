"""Ranks and what is made of them, against counting one by one."""

import math

import numpy as np
import pytest

from tljax.errors import DataError, DivergedError
from tljax.evaluate import ranking


def rank_by_counting(scores: list[float], true: int, seen: set[int]) -> int:
    others = (item for item in range(len(scores)) if item != true and item not in seen)
    return 1 + sum(scores[item] >= scores[true] for item in others)


RANKS = [  # (name, scores, true, seen, rank)
    ("first", [0.9, 0.1, 0.2], 0, [], 1),
    ("last", [0.9, 0.1, 0.2], 1, [], 3),
    ("a tie counts against it", [0.5, 0.5, 0.1], 0, [], 2),
    ("whichever comes first", [0.5, 0.5, 0.1], 1, [], 2),
    ("all alike", [0.0, 0.0, 0.0, 0.0], 2, [], 4),
    ("what was seen does not count", [0.9, 0.8, 0.2], 2, [0], 2),
    ("once only", [0.9, 0.8, 0.2], 2, [0, 0, 0], 2),
    ("below it neither", [0.9, 0.8, 0.2], 0, [1, 2], 1),
    ("the true item counts, seen or not", [0.9, 0.8, 0.2], 1, [1], 2),
    ("padding is no item", [0.9, 0.8, 0.2], 1, [-1, 0, -1], 1),
    ("one item", [0.0], 0, [], 1),
]


@pytest.mark.parametrize(("scores", "true", "seen", "rank"), [r[1:] for r in RANKS], ids=[r[0] for r in RANKS])
def test_ranks_by_hand(scores, true, seen, rank):
    found = ranking.ranks(np.array([scores]), np.array([true]), [np.array(seen)])
    assert found.dtype == np.int64
    assert found.tolist() == [rank]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_ranks_by_counting(seed, kind):
    rng = np.random.default_rng(seed)
    n, items, places = int(rng.integers(1, 9)), int(rng.integers(1, 13)), int(rng.integers(0, 6))
    scores = (rng.integers(0, 5, (n, items)) / 3).astype(kind)
    true = rng.integers(0, items, n).astype(np.int32)
    padded = rng.integers(-1, items, (n, places)).astype(np.int32)
    lists = [row[row >= 0] for row in padded]
    wanted = [rank_by_counting(*case) for case in zip(scores.tolist(), true, map(set, lists), strict=True)]
    before = scores.copy()
    assert ranking.ranks(scores, true, padded).tolist() == wanted
    assert ranking.ranks(scores, true, lists).tolist() == wanted
    unseen = [rank_by_counting(*case, set()) for case in zip(scores.tolist(), true, strict=True)]
    assert ranking.ranks(scores, true).tolist() == unseen
    assert (scores == before).all()


def test_no_case():
    none = ranking.ranks(np.zeros((0, 5)), np.zeros(0, int), [])
    assert (none.dtype, none.shape) == (np.int64, (0,))
    assert (ranking.hit_rate(none, 10), ranking.ndcg(none, 10), ranking.mrr(none)) == (None, None, None)


SCORED = [  # (name, ranks, k, hit rate, NDCG, MRR)
    ("first", [1], 1, 1.0, 1.0, 1.0),
    ("at k", [10], 10, 1.0, 1 / math.log2(11), 0.1),
    ("just below k", [11], 10, 0.0, 0.0, 1 / 11),
    ("several", [1, 2, 3, 20], 3, 0.75, (1 + 1 / math.log2(3) + 0.5) / 4, (1 + 1 / 2 + 1 / 3 + 1 / 20) / 4),
]


@pytest.mark.parametrize(("ranks", "k", "hits", "ndcg", "mrr"), [r[1:] for r in SCORED], ids=[r[0] for r in SCORED])
def test_scores_by_hand(ranks, k, hits, ndcg, mrr):
    ranks = np.array(ranks)
    assert ranking.hit_rate(ranks, k) == hits
    assert ranking.ndcg(ranks, k) == pytest.approx(ndcg)  # a mean of logarithms
    assert ranking.mrr(ranks) == pytest.approx(mrr)


def test_ndcg_agrees_with_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    scores, true = rng.normal(size=(50, 20)), rng.integers(0, 20, 50)
    ranks = ranking.ranks(scores, true)
    assert ranking.ndcg(ranks, 7) == pytest.approx(metrics.ndcg_score(np.eye(20)[true], scores, k=7))
    assert ranking.hit_rate(ranks, 7) == metrics.top_k_accuracy_score(true, scores, k=7, labels=range(20))
    assert ranking.mrr(ranks) == pytest.approx(metrics.label_ranking_average_precision_score(np.eye(20)[true], scores))


def test_popularity():
    counts = ranking.popularity(np.array([3, 0, 3], np.int32), 5)
    assert counts.dtype == np.float64
    assert counts.tolist() == [1, 0, 0, 2, 0]
    assert ranking.popularity(np.zeros(0, int), 2).tolist() == [0, 0]


SCORES, TRUE = np.zeros((2, 3)), np.array([0, 1])
REFUSED = [  # (name, call, error, words)
    ("true items missing", lambda: ranking.ranks(SCORES, TRUE[:1]), DataError, "scores (2, 3) and true items (1,)"),
    ("scores of one axis", lambda: ranking.ranks(SCORES[0], TRUE), DataError, "scores (3,)"),
    ("true item too large", lambda: ranking.ranks(SCORES, np.array([0, 3])), DataError, "place 1: 3"),
    ("true item negative", lambda: ranking.ranks(SCORES, np.array([-1, 0])), DataError, "expected 0 to 2"),
    ("true item of float", lambda: ranking.ranks(SCORES, np.array([0.0, 1.0])), DataError, "of type float64"),
    ("NaN", lambda: ranking.ranks(np.array([[0, 1], [0, np.nan]]), TRUE), DivergedError, "case 1"),
    ("infinite", lambda: ranking.ranks(np.array([[0, -np.inf], [0, 1]]), TRUE), DivergedError, "1 of 2 cases"),
    ("seen of fewer cases", lambda: ranking.ranks(SCORES, TRUE, [np.array([1])]), DataError, "seen items of 1 cases"),
    ("seen too large", lambda: ranking.ranks(SCORES, TRUE, np.array([[0], [3]])), DataError, "1 of 2 items are none"),
    ("seen below the padding", lambda: ranking.ranks(SCORES, TRUE, np.array([[0], [-2]])), DataError, "place 1: -2"),
    ("seen of float", lambda: ranking.ranks(SCORES, TRUE, [np.array([0.5]), np.array([])]), DataError, "float64"),
    ("popular but unknown", lambda: ranking.popularity(np.array([5]), 5), DataError, "expected 0 to 4"),
    ("hits at 0", lambda: ranking.hit_rate(np.array([1]), 0), ValueError, "k is 0"),
    ("NDCG at 0", lambda: ranking.ndcg(np.array([1]), 0), ValueError, "k is 0"),
    ("hits of ranks from 0", lambda: ranking.hit_rate(np.array([0]), 5), DataError, "a rank of 0"),
    ("MRR of ranks from 0", lambda: ranking.mrr(np.array([0, 1])), DataError, "a rank of 0"),
]


@pytest.mark.parametrize(("call", "error", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
