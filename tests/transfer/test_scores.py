"""Transferability scores against their definitions, computed the long way, and against what they must not depend on."""

import math

import numpy as np
import pytest

from tljax.transfer import scores

CLASSES = 3
FROM_FEATURES = [scores.logme, scores.h_score, scores.transrate, scores.nearest_neighbours, scores.ridge_probe]
ALL = [*FROM_FEATURES, scores.leep, scores.nce]


def clouds(apart: float, n: int = 60, D: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes whose centres are so far apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    return rng.normal(size=(n, D)) + apart * np.eye(CLASSES, D)[labels], labels


@pytest.mark.parametrize("score", FROM_FEATURES)
def test_the_further_apart_the_higher(score):
    found = [np.mean([score(*clouds(apart, seed=seed), CLASSES) for seed in range(5)]) for apart in (0.0, 2.0, 6.0)]
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("score", FROM_FEATURES)
def test_neither_order_nor_rotation_matter(score):
    features, labels = clouds(1.5)
    rng = np.random.default_rng(1)
    order, (turn, _) = rng.permutation(len(labels)), np.linalg.qr(rng.normal(size=(5, 5)))
    assert score(features[order] @ turn, labels[order], CLASSES) == pytest.approx(score(features, labels, CLASSES))


@pytest.mark.parametrize(("n", "D"), [(40, 4), (12, 30)])
def test_logme_is_the_largest_evidence(n, D):
    """The density of y under N(0, FF'/alpha + 1/beta), at the best of a fine grid, is what the fixed point finds."""
    features, labels = clouds(1.5, n, D)
    best = []
    for c in range(CLASSES):
        y = (labels == c).astype(float)
        found = -math.inf
        values, vectors = np.linalg.eigh(features @ features.T)
        along = (vectors.T @ y) ** 2
        for alpha in np.logspace(-3, 6, 181):
            for beta in np.logspace(-1, 4, 101):
                variance = values.clip(0) / alpha + 1 / beta
                density = -(np.log(2 * np.pi * variance).sum() + (along / variance).sum()) / 2
                found = max(found, density / n)
        best.append(found)
    assert scores.logme(features, labels, CLASSES) == pytest.approx(np.mean(best), abs=2e-3)


def test_h_score_of_many_examples_is_the_plain_one():
    features, labels = clouds(2.0, 30_000)
    centred = features - features.mean(0)
    means = np.stack([centred[labels == c].mean(0) for c in range(CLASSES)])[labels]
    plain = np.trace(np.linalg.inv(centred.T @ centred / 30_000) @ (means.T @ means / 30_000))
    assert scores.h_score(features, labels, CLASSES) == pytest.approx(plain, rel=1e-2)


def test_the_shrunk_covariance_is_scikit_learns():
    covariance = pytest.importorskip("sklearn.covariance")
    features, _ = clouds(1.0, 20, 8)
    centred = features - features.mean(0)
    ours, alpha = scores._ledoit_wolf(centred, centred.T @ centred / len(centred))
    theirs, shrinkage = covariance.ledoit_wolf(features)
    np.testing.assert_allclose(ours, theirs, atol=1e-10)
    assert alpha == pytest.approx(shrinkage)


def test_transrate_by_its_definition():
    features, labels = clouds(1.0)
    Z = (features - features.mean(0)) / np.linalg.norm(features - features.mean(0))

    def rate(rows):
        return 0.5 * np.log(np.linalg.det(np.eye(5) + rows.T @ rows / (len(rows) * scores.DISTORTION)))

    wanted = rate(Z) - sum(rate(Z[labels == c]) for c in range(CLASSES)) / CLASSES
    assert scores.transrate(features, labels, CLASSES) == pytest.approx(wanted)


SOURCE = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
LABELS = np.array([0, 0, 1, 0])


def test_leep_by_hand():
    """P(y=1 | z) is the mass that examples of class 1 give to z, over all of it: 0.3 / 2.1 and 0.7 / 1.9."""
    one = np.array([0.3 / 2.1, 0.7 / 1.9])
    likelihood = [SOURCE[i] @ (one if y else 1 - one) for i, y in enumerate(LABELS)]
    assert scores.leep(SOURCE, LABELS, 2) == pytest.approx(np.log(likelihood).mean())


def test_nce_by_hand():
    """z = 0, 0, 1, 1: the second half is one of each class, a bit of entropy for half of the examples."""
    assert scores.nce(SOURCE, LABELS, 2) == pytest.approx(-0.5 * math.log(2))


def test_nearest_neighbours_by_hand():
    features = np.array([[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [0.1, 0.99], [0.7, 0.72]])
    labels = np.array([0, 0, 1, 1, 0])
    assert scores.nearest_neighbours(features, labels, 2, 1) == 0.8  # the last one's neighbour is of class 1
    assert scores.nearest_neighbours(np.tile(features, (300, 1)), np.tile(labels, 300), 2, 1) == 1.0  # its own copies


def test_ridge_leaves_each_out():
    """The closed form, against 30 fits without one example each."""
    features, labels = clouds(1.0, 30)
    scale, best = np.mean(np.linalg.svd(features - features.mean(0))[1] ** 2), 0
    for penalty in scale * np.logspace(-4, 4, 9):
        right = 0
        for i in range(30):
            rest = np.arange(30) != i
            mean, Y = features[rest].mean(0), np.eye(CLASSES)[labels[rest]]
            F = features[rest] - mean
            W = np.linalg.solve(F.T @ F + penalty * np.eye(5), F.T @ (Y - Y.mean(0)))
            right += ((features[i] - mean) @ W + Y.mean(0)).argmax() == labels[i]
        best = max(best, right / 30)
    assert scores.ridge_probe(features, labels, CLASSES) == pytest.approx(best)


@pytest.mark.parametrize("score", ALL)
@pytest.mark.parametrize("change", ["nan", "label", "shape"])
def test_what_is_refused(score, change):
    features, labels = clouds(1.0)
    features, labels = abs(features), labels.copy()
    if change == "nan":
        features[3, 2] = np.nan
    elif change == "label":
        labels[5] = CLASSES
    else:
        labels = labels[:-1]
    with pytest.raises(ValueError, match=r"finite|expected"):
        score(features, labels, CLASSES)


@pytest.mark.parametrize("score", FROM_FEATURES)
def test_a_class_without_examples_and_constant_features(score):
    features, labels = clouds(2.0)
    features[:, 4] = 1.0
    assert math.isfinite(score(features, labels, CLASSES + 1))
