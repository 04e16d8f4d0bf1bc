"""Nearest neighbours of items against the dense matrices that they stand for."""

import numpy as np
import pytest

from tljax.errors import DataError
from tljax.evaluate import neighbours, ranking
from tljax.evaluate.neighbours import item_knn


def events(seed: int, users: int = 30, items: int = 20, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Events of which the first items have most, with repetitions, in no order."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, users, n).astype(np.int32), (items * rng.random(n) ** 2).astype(np.int32)


def dense(user: np.ndarray, item: np.ndarray, users: int, items: int, k: int, shrink: float) -> np.ndarray:
    """Similarities (I, I): row i holds those of item i's neighbours, 0 elsewhere."""
    R = np.zeros((users, items))
    R[user, item] = 1
    together = R.T @ R
    similar = together / np.maximum(np.sqrt(np.outer(np.diag(together), np.diag(together))) + shrink, 1e-300)
    np.fill_diagonal(similar, 0)
    kept = np.zeros_like(similar)
    for i in range(items):
        nearest = sorted(range(items), key=lambda j: (-similar[i, j], j))[:k]
        kept[i, nearest] = similar[i, nearest]
    return kept


def matrix(model: neighbours.Neighbours) -> np.ndarray:
    found = np.zeros((model.items, model.items))
    found[model.targets, np.repeat(np.arange(model.items), np.diff(model.starts))] = model.similarities
    return found


@pytest.mark.parametrize("pairs", [1, 40, 1 << 22])  # an item at a time, some, all at once
@pytest.mark.parametrize(("k", "shrink"), [(1, 0.0), (3, 0.0), (3, 2.5), (100, 10.0)])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_dense_matrices(monkeypatch, pairs, k, shrink, seed):
    monkeypatch.setattr(neighbours, "PAIRS", pairs)
    user, item = events(seed)
    model = item_knn(user, item, 30, 20, k, shrink)
    wanted = dense(user, item, 30, 20, k, shrink)
    assert (matrix(model) == wanted).all()
    assert len(model.targets) == (wanted > 0).sum()  # zeros are not kept
    rng = np.random.default_rng(seed)
    histories = [rng.permutation(20)[: rng.integers(0, 8)] for _ in range(7)]
    scores = model.score(histories)
    assert (scores.shape, scores.dtype) == ((7, 20), np.float64)
    for history, row in zip(histories, scores, strict=True):
        np.testing.assert_allclose(row, wanted[:, history].sum(axis=1), rtol=1e-14)  # sums in another order


def test_by_hand():
    """Users have 0 and 1; 0 and 1; 0 and 2. Item 2 is nearer to 0 than 1 is by nothing but its own rarity."""
    user, item = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 2])
    model = item_knn(user, item, 3, 3, k=1, shrink=0.0)
    wanted = np.zeros((3, 3))
    wanted[0, 1] = wanted[1, 0] = 2 / np.sqrt(6)
    wanted[2, 0] = 1 / np.sqrt(3)
    assert (matrix(model) == wanted).all()
    assert model.score([np.array([0])]).tolist() == [[0, 2 / np.sqrt(6), 1 / np.sqrt(3)]]


def test_the_order_and_the_number_of_events_do_not_matter():
    user, item = events(0)
    order = np.random.default_rng(1).permutation(400) % 200
    once, twice = item_knn(user, item, 30, 20, 5), item_knn(user[order], item[order], 30, 20, 5)
    assert (matrix(once) == matrix(twice)).all()


def test_histories_as_lists_or_padded_with_repetitions_or_without():
    model = item_knn(*events(0), 30, 20)
    lists = [np.array([3, 1]), np.array([], int), np.array([7])]
    wanted = model.score(lists)
    assert wanted[0].any()
    assert not wanted[1].any()
    assert (model.score(np.array([[3, 1, -1], [-1, -1, -1], [-1, 7, -1]])) == wanted).all()
    assert (model.score([np.array([3, 1, 3, 3]), *lists[1:]]) == wanted).all()
    assert (model.score([np.array([1, 3]), *lists[1:]]) == wanted).all()


def test_nothing_to_learn_from():
    none = np.zeros(0, int)
    model = item_knn(none, none, 0, 4)
    assert model.score([np.array([1])]).tolist() == [[0, 0, 0, 0]]
    assert item_knn(np.array([0, 1]), np.array([2, 3]), 2, 4).score(np.array([[2]])).tolist() == [[0, 0, 0, 0]]
    assert model.score([]).shape == (0, 4)


REFUSED = [  # (name, call, error, words)
    ("user too large", lambda: item_knn(np.array([3]), np.array([0]), 3, 3), DataError, "users are none of the 3"),
    ("item too large", lambda: item_knn(np.array([0]), np.array([3]), 3, 3), DataError, "items are none of the 3"),
    ("fewer items", lambda: item_knn(np.array([0, 1]), np.array([0]), 3, 3), DataError, "2 users and 1 items"),
    ("no neighbours", lambda: item_knn(np.array([0]), np.array([0]), 3, 3, k=0), ValueError, "k is 0"),
    ("shrink below 0", lambda: item_knn(np.array([0]), np.array([0]), 3, 3, shrink=-1), ValueError, "shrink -1"),
    ("unknown item in a history", lambda: item_knn(*events(0), 30, 20).score([np.array([20])]), DataError, "place 0"),
]


@pytest.mark.parametrize(("call", "error", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


def test_a_shop_of_real_size_beats_popularity(testdata):
    """SASRec's Video events: 31,013 users and 23,715 items, the last event of every tenth user to be found."""
    import gzip

    with gzip.open(testdata("sasrec_video") / "Video.txt.gz") as file:
        user, item = np.loadtxt(file, dtype=np.int64).T - 1
    users, items = int(user.max()) + 1, int(item.max()) + 1
    assert (users, items) == (31_013, 23_715)
    last = np.append(user[1:] != user[:-1], True)
    model = item_knn(user[~last], item[~last], users, items)
    chosen = np.arange(0, users, 10)
    bounds = np.searchsorted(user, np.arange(users + 1))
    histories = [item[bounds[u] : bounds[u + 1] - 1] for u in chosen]
    true = item[bounds[chosen + 1] - 1]
    found = [ranking.ranks(model.score(histories[at : at + 500]), true[at : at + 500], histories[at : at + 500])
             for at in range(0, len(chosen), 500)]  # fmt: skip
    popular = np.tile(ranking.popularity(item[~last], items), (500, 1))
    often = [ranking.ranks(popular[: len(true[at : at + 500])], true[at : at + 500], histories[at : at + 500])
             for at in range(0, len(chosen), 500)]  # fmt: skip
    ours, theirs = (ranking.ndcg(np.concatenate(ranks), 10) for ranks in (found, often))
    assert ours > 3 * theirs  # measured: 0.041 and 0.011
