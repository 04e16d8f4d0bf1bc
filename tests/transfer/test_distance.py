"""Distances of domains against sums written out, and on domains whose distance is known."""

import itertools
import time

import numpy as np
import pytest

from tljax.errors import DataError
from tljax.transfer import distance


def domains(apart: float, n: int = 300, m: int = 300, D: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normal features, the target's moved along the first axis."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, D)), rng.normal(size=(m, D)) + apart * np.eye(1, D)


def plain_mmd(source: np.ndarray, target: np.ndarray, h: float) -> float:
    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([np.exp(-((x - y) ** 2).sum() / (f * h)) for f in (0.25, 0.5, 1, 2, 4)]))

    def within(rows: np.ndarray) -> float:
        return float(np.mean([k(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]))

    return within(source) + within(target) - 2 * float(np.mean([k(x, y) for x in source for y in target]))


def test_mmd_by_its_definition():
    source, target = domains(1.0, 12, 17, 3)
    both = np.concatenate([source, target])
    h = np.median([((x - y) ** 2).sum() for i, x in enumerate(both) for y in both[:i]])
    assert distance.mmd(source, target)[0] == pytest.approx(plain_mmd(source, target, float(h)))


def test_the_p_value_is_the_share_of_assignments_with_an_mmd_as_large(monkeypatch):
    """All 1001 ways to choose 10 of 14 rows are tried here, and 499 of them drawn there."""
    source, target = domains(1.4, 10, 4, 2)
    both = np.concatenate([source, target])
    apart = ((both[:, None] - both[None]) ** 2).sum(2)
    h = np.median(apart[np.tri(14, k=-1, dtype=bool)])
    kernel = np.mean([np.exp(-apart / (f * h)) for f in (0.25, 0.5, 1, 2, 4)], axis=0) - np.eye(14)
    found = []
    for chosen in itertools.combinations(range(14), 10):
        s, t = np.array(chosen), np.setdiff1d(np.arange(14), chosen)
        within = kernel[np.ix_(s, s)].sum() / 90 + kernel[np.ix_(t, t)].sum() / 12
        found.append(within - 2 * kernel[np.ix_(s, t)].mean())
    share = np.mean(np.array(found) >= found[0] - 1e-12)  # the first choice is rows 0 to 9
    assert 0.02 < share < 0.5  # or the next lines say little
    monkeypatch.setattr(distance, "LEAST", 4)
    value, p = distance.mmd(source, target)
    assert value == pytest.approx(found[0])
    assert p == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 500))  # standard errors; the seed is fixed


def test_the_least_p_value_is_one_of_500():
    assert distance.mmd(*domains(3.0, 50, 50))[1] == 1 / 500


def test_p_values_of_equal_domains_are_uniform():
    found = np.array([distance.mmd(*domains(0.0, 15, 10, 2, seed), seed)[1] for seed in range(100)])
    assert abs(found.mean() - 0.5) < 0.1  # standard error 0.029
    assert (found <= 0.1).mean() < 0.2
    assert found.min() > 0


KNOWN = [  # (how far apart, the error of the best rule, Φ(-apart / 2))
    (0.0, 0.5),
    (1.0, 0.3085),
    (2.0, 0.1587),
    (8.0, 0.0),
]


@pytest.mark.parametrize(("apart", "error"), KNOWN)
def test_the_proxy_a_distance_of_normal_domains_is_known(apart, error):
    source, target = domains(apart, 1500, 1500)
    wanted = 2 * (1 - 2 * error)
    assert distance.proxy_a_distance(source, target) == pytest.approx(wanted, abs=0.1)  # 4 standard errors are 0.15


def test_it_does_not_matter_to_it_that_one_domain_has_more_rows():
    """An error that counts all rows alike would be 1 in 21 for a rule that says 'source' always, a distance of 1.8."""
    found = [distance.proxy_a_distance(*domains(0.0, 1000, 50, seed=seed)) for seed in range(5)]
    assert np.mean(found) < 0.3
    assert distance.proxy_a_distance(*domains(3.0, 1000, 50)) == pytest.approx(2 * (1 - 2 * 0.0668), abs=0.3)


def test_chance_is_as_the_docstring_says():
    found = [distance.proxy_a_distance(*domains(0.0, 50, 50, seed=seed), seed) for seed in range(60)]
    assert np.mean(np.array(found) > 4 / np.sqrt(100)) <= 0.12
    assert min(found) == 0  # and not below


def test_more_features_than_rows_are_not_learnt_by_heart():
    found = [distance.proxy_a_distance(*domains(0.0, 60, 60, 500, seed)) for seed in range(10)]
    assert np.mean(found) < 0.3
    source, target = domains(0.0, 60, 60, 500)
    assert distance.proxy_a_distance(source, target + 0.5) > 1.8


@pytest.mark.parametrize("D", [3, 40])
@pytest.mark.parametrize("penalties", [[1e-3], [1.0], np.logspace(-2, 2, 401)], ids=["small", "one", "many"])
def test_ridge_leaves_each_out(monkeypatch, D, penalties):
    """The slope in closed form, at the penalty that is best over the fits without one row each."""
    rng = np.random.default_rng(D)
    w = rng.uniform(0.5, 1.5, 20)
    w /= w.sum()
    x, y = rng.normal(size=(20, D)), np.where(np.arange(20) < 9, 1.0, -1.0)
    y = y + 0.5 * x[:, 0]
    x, y = x - w @ x, y - w @ y
    monkeypatch.setattr(distance, "PENALTIES", np.array(penalties))
    monkeypatch.setattr(distance, "COMPONENTS", 40)
    values = np.linalg.svd(np.sqrt(w)[:, None] * x)[1] ** 2
    scale = values[values > 1e-10].mean()

    def fit(rows: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
        share = w[rows] / w[rows].sum()
        mean, middle = share @ x[rows], share @ y[rows]
        X, v = x[rows] - mean, w[rows][:, None]
        slope = np.linalg.solve(X.T @ (v * X) + penalty * scale * np.eye(D), X.T @ (w[rows] * (y[rows] - middle)))
        return slope, middle - mean @ slope

    def left_out(penalty: float) -> float:
        total = 0.0
        for i in range(20):
            slope, offset = fit(np.arange(20) != i, penalty)
            total += w[i] * (y[i] - x[i] @ slope - offset) ** 2
        return total

    best = min(penalties, key=left_out)
    np.testing.assert_allclose(distance._ridge(x, y, w), fit(np.ones(20, bool), best)[0], atol=1e-10)


def test_only_the_first_components_count(monkeypatch):
    """Along the small component the domains are apart, and one component does not show it."""
    rng = np.random.default_rng(0)
    side = np.repeat([1.0, -1.0], 200)
    wide = rng.normal(size=400)
    # Each of three features is the wide direction and a little noise; the fourth, alone, tells the domains apart.
    features = np.stack([wide, wide, wide, side], axis=1) + 0.1 * rng.normal(size=(400, 4))
    assert distance.proxy_a_distance(features[:200], features[200:]) == 2
    monkeypatch.setattr(distance, "COMPONENTS", 1)
    assert distance.proxy_a_distance(features[:200], features[200:]) < 0.6


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_neither_unit_nor_place_nor_direction_matters(apart):
    source, target = domains(apart, 200, 150)
    found = distance.between(source, target)
    for other in (
        distance.between(source * 50 + 7, target * 50 + 7),
        distance.between(source[:, ::-1], target[:, ::-1]),
    ):
        assert other.proxy_a == pytest.approx(found.proxy_a)
        assert other.mmd == pytest.approx(found.mmd, abs=1e-12)
        assert other.p == found.p
    assert distance.mmd(target, source)[0] == pytest.approx(found.mmd, abs=1e-12)
    units = np.logspace(-3, 3, 8)
    assert distance.proxy_a_distance(source * units, target * units) == pytest.approx(found.proxy_a)


def test_constant_features_tell_nothing():
    same, other = np.full((20, 3), 0.1), np.full((30, 3), 0.1)
    assert distance.between(same, other) == distance.Distance(0.0, pytest.approx(0), 1.0)
    assert distance.proxy_a_distance(same, other + 1) == 2
    assert distance.mmd(same, other + 1)[0] == pytest.approx(plain_mmd(same, other + 1, 3 * 600 / (50 * 49 / 2)))
    assert distance.proxy_a_distance(np.full((20, 1), 1.0), np.full((30, 1), 1 + 1e-13)) == 0  # by rounding
    source, target = domains(8.0, 100, 100)
    source[:, 3] = target[:, 3] = 0.1
    assert distance.proxy_a_distance(source, target) > 1.9


@pytest.mark.parametrize("seed", range(5))
def test_the_rounding_of_copies_is_no_bandwidth(seed):
    """The distances of copies are not all 0 as computed; where they are most, the mean is taken for the median."""
    rng = np.random.default_rng(seed)
    rows = np.tile(1e4 + 1e3 * rng.normal(size=(1, 333)), (30, 1))
    assert distance.mmd(rows[:15], rows[15:]) == (pytest.approx(0), 1.0)
    rows[:2] += 500 * rng.normal(size=(2, 333))
    mean = np.mean([((x - y) ** 2).sum() for i, x in enumerate(rows) for y in rows[:i]])
    assert distance.mmd(rows[:15], rows[15:])[0] == pytest.approx(plain_mmd(rows[:15], rows[15:], float(mean)))


def test_the_same_rows_on_both_sides_are_no_distance():
    source, _ = domains(0.0, 200)
    found = distance.between(source, source)
    assert found.proxy_a < 0.5
    assert found.mmd < 0
    assert found.p > 0.5


def test_rows_are_drawn_by_the_seed_where_there_are_many():
    source, target = domains(0.5, 500, 400)
    for measure in (distance.mmd, distance.proxy_a_distance):
        assert measure(source, target, 1, 100) == measure(source, target, 1, 100)
        assert measure(source, target, 1, 100) != measure(source, target, 2, 100)
    whole = [distance.mmd(source, target, seed, 500)[0] for seed in (1, 2)]
    assert whole[0] == pytest.approx(whole[1], rel=1e-9)
    assert distance.mmd(source, target, 1, 100)[0] != pytest.approx(whole[0], rel=1e-2)


def test_seconds_are_enough():
    source, target = domains(0.5, 5000, 5000, 512)
    begun = time.perf_counter()
    distance.between(source.astype(np.float32), target.astype(np.float32))
    assert time.perf_counter() - begun < 60  # 2 on two cores that do nothing else


SENTENCES = [
    ((1.84, 0.1234, 0.002), "proxy A-distance 1.84 of 2, MMD² 0.12 (p < 0.01): a classifier tells the domains apart "
                            "almost always; expect accuracy on the source to say little about accuracy on the target"),
    ((1.0, 0.05, 0.01), "proxy A-distance 1.00 of 2, MMD² 0.05 (p = 0.01): a classifier mostly tells"),
    ((0.5, 0.0123, 0.03), "proxy A-distance 0.50 of 2, MMD² 0.012 (p = 0.03): a classifier tells the domains apart "
                          "more often than chance; expect to lose a little on the target"),
    ((0.0, -0.0002, 0.8), "proxy A-distance 0.00 of 2, MMD² -0.0002 (p = 0.80): a classifier hardly tells"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "words"), SENTENCES)
def test_the_sentence(values, words):
    found = distance.Distance(*values).sentence()
    assert found.startswith(words)
    assert "\n" not in found


def broken(place: tuple[int, int]) -> np.ndarray:
    features = domains(0.0)[0]
    features[place] = np.inf
    return features


GOOD = domains(0.0)[0]
REFUSED = [  # (name, source, target, words)
    ("few rows", GOOD, GOOD[:9], "the target domain: 9 rows; expected at least 10"),
    ("other features", GOOD, GOOD[:, 1:], "(300, 8) and (300, 7)"),
    ("one axis", GOOD[0], GOOD, "expected (rows, D)"),
    ("not finite", broken((17, 2)), GOOD, "the source domain, row 17: features that are not finite in 1 of 300 rows"),
]


@pytest.mark.parametrize("measure", [distance.mmd, distance.proxy_a_distance, distance.between])
@pytest.mark.parametrize(("source", "target", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(measure, source, target, words):
    with pytest.raises(DataError) as caught:
        measure(source, target)
    assert words in str(caught.value)
