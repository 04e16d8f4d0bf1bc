"""Label shift that is simulated, so that the target's shares are known; and least squares against SciPy's."""

import numpy as np
import pytest

from tljax.errors import DataError
from tljax.transfer import shift

PRIOR = np.array([0.5, 0.3, 0.2])
SHIFTED = np.array([0.1, 0.2, 0.7])
ABSENT = np.array([0.4, 0.6, 0.0])
CENTRES = 1.5 * np.eye(3)  # of three normal clouds, of which 83 % are told right


def drawn(shares: np.ndarray, n: int, seed: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(labels, probabilities): those of Bayes' rule under PRIOR, or less sure ones at a higher temperature."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), np.round(shares * n).astype(int))
    x = CENTRES[labels] * 1.5 + rng.normal(size=(len(labels), 3))
    logits = (1.5 * x @ CENTRES + np.log(PRIOR)) / temperature
    joint = np.exp(logits - logits.max(1, keepdims=True))
    return labels, joint / joint.sum(1, keepdims=True)


TARGETS = [("as before", PRIOR), ("shifted", SHIFTED), ("one class absent", ABSENT)]
SHARES = pytest.mark.parametrize("shares", [row[1] for row in TARGETS], ids=[row[0] for row in TARGETS])


@SHARES
@pytest.mark.parametrize("seed", range(3))
def test_em_finds_the_shares(shares, seed):
    _, probs = drawn(shares, 4000, seed)
    found = shift.em(PRIOR, probs)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, shares, atol=0.02)  # sampling: about 0.5 / sqrt(4000) = 0.008


@SHARES
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_bbse_finds_the_weights(shares, seed, temperature):
    """Of predictions that are not calibrated too."""
    labels, probs = drawn(PRIOR, 4000, seed, temperature)
    weights = shift.bbse(labels, probs, drawn(shares, 4000, 100 + seed, temperature)[1])
    assert weights @ PRIOR == pytest.approx(1)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights * PRIOR, shares, atol=0.03)  # sampling, twice, and spread by M's inverse


def test_em_needs_calibrated_probabilities():
    """As the module says: the same rows at a temperature of 3, and the shares are far off."""
    assert abs(shift.em(PRIOR, drawn(SHIFTED, 4000, 0, 3.0)[1]) - SHIFTED).max() > 0.05


@pytest.mark.parametrize("way", ["em", "bbse"])
@pytest.mark.parametrize("shares", [SHIFTED, ABSENT], ids=["shifted", "one class absent"])
def test_corrected_predictions_are_right_more_often(way, shares):
    labels, probs = drawn(shares, 4000, 7)
    weights = shift.em(PRIOR, probs) / PRIOR if way == "em" else shift.bbse(*drawn(PRIOR, 4000, 8), probs)
    before, after = ((p.argmax(1) == labels).mean() for p in (probs, shift.reweighted(probs, weights)))
    assert after > before + 0.02


@pytest.mark.parametrize("way", ["em", "bbse"])
def test_without_a_shift_predictions_stay_almost_as_they_are(way):
    _, probs = drawn(PRIOR, 4000, 7)
    weights = shift.em(PRIOR, probs) / PRIOR if way == "em" else shift.bbse(*drawn(PRIOR, 4000, 8), probs)
    np.testing.assert_allclose(weights, 1, atol=0.1)
    assert (shift.reweighted(probs, weights).argmax(1) == probs.argmax(1)).mean() > 0.98


def test_without_any_shift_nothing_changes():
    """The target is the validation set itself, and M q = mean is met by its own shares."""
    labels, probs = drawn(PRIOR, 1000, 0)
    np.testing.assert_allclose(shift.bbse(labels, probs, probs), 1, atol=1e-10)
    np.testing.assert_allclose(shift.reweighted(probs, np.ones(3)), probs, rtol=1e-12)


def test_em_is_where_the_likelihood_is_greatest():
    _, probs = drawn(SHIFTED, 300, 0)
    found = shift.em(PRIOR, probs)

    def likelihood(q: np.ndarray) -> float:
        return float(np.log(probs @ (q / PRIOR)).sum())

    rng = np.random.default_rng(0)
    others = [0.95 * found + 0.05 * rng.dirichlet(np.ones(3)) for _ in range(200)]
    assert likelihood(found) > max(map(likelihood, others))
    again = (probs * found / PRIOR / (probs @ (found / PRIOR))[:, None]).mean(0)
    assert abs(again - found).max() < 1e-8


def test_em_of_predictions_that_know_nothing_is_the_prior():
    np.testing.assert_allclose(shift.em(PRIOR, np.tile(PRIOR, (50, 1))), PRIOR, rtol=1e-12)


def test_bbse_by_hand():
    """Half of class 0 is called 1; a quarter of the target is called 0, so half of it is of class 0."""
    labels, probs = np.array([0, 0, 1, 1, 1, 1]), np.eye(2)[[0, 1, 1, 1, 1, 1]]
    weights = shift.bbse(np.repeat(labels, 50), np.repeat(probs, 50, 0), np.eye(2)[[0, 1, 1, 1]])
    np.testing.assert_allclose(weights, [0.5 / (1 / 3), 0.5 / (2 / 3)])


def test_least_squares_are_scipys():
    """Where most have shares that a plain inverse makes negative, and some such that they come back in the end."""
    optimize = pytest.importorskip("scipy.optimize")
    bounded = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        C = 2 + seed % 20
        M, b = np.eye(C) * 0.2 + 0.8 * rng.dirichlet(np.ones(C), C).T, rng.dirichlet(np.full(C, 0.2))
        np.testing.assert_allclose(shift._nonnegative(M, b), optimize.nnls(M, b)[0], atol=1e-10)
        bounded += np.linalg.solve(M, b).min() < -1e-6
    assert bounded >= 30


REWEIGHTED = [  # (name, probabilities, weights, expected)
    ("alike", [0.2, 0.8], [3.0, 3.0], [0.2, 0.8]),
    ("turned over", [0.4, 0.6], [3.0, 1.0], [1.2 / 1.8, 0.6 / 1.8]),
    ("absent", [0.4, 0.6], [0.0, 1.0], [0.0, 1.0]),
    ("nothing is left", [1.0, 0.0], [0.0, 2.0], [1.0, 0.0]),
]


@pytest.mark.parametrize(("probs", "weights", "expected"), [r[1:] for r in REWEIGHTED], ids=[r[0] for r in REWEIGHTED])
def test_reweighted(probs, weights, expected):
    np.testing.assert_allclose(shift.reweighted(np.array([probs]), np.array(weights)), [expected], rtol=1e-12)


def chance(C: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.arange(n) % C, rng.dirichlet(np.ones(C), n)


@pytest.mark.parametrize(("C", "n"), [(2, 100), (2, 5000), (10, 500), (10, 20_000)])
@pytest.mark.parametrize("seed", range(3))
def test_predictions_by_chance_are_refused(C, n, seed):
    """However many rows there are: the condition number alone grows with them and has no bound that fits all."""
    labels, probs = chance(C, n, seed)
    with pytest.raises(DataError, match="condition number"):
        shift.bbse(labels, probs, probs)


def test_classes_that_differ_by_a_trifle_are_refused_without_any_noise_too():
    labels = np.arange(100) % 2
    for apart, refused in ((1e-2, False), (1e-4, True)):
        probs = np.array([[0.5, 0.5], [0.5 - apart, 0.5 + apart]])[labels]
        if refused:
            with pytest.raises(DataError, match="at most 1e\\+03 with 100 validation rows"):
                shift.bbse(labels, probs, probs)
        else:
            np.testing.assert_allclose(shift.bbse(labels, probs, probs), 1, atol=1e-10)


def test_classes_that_are_confused_are_named():
    labels, probs = drawn(PRIOR, 2000, 0)
    blurred = probs.copy()
    blurred[:, 1:] = probs[:, 1:].mean(1, keepdims=True)  # 1 and 2 get the same probability always
    with pytest.raises(DataError) as caught:
        shift.bbse(labels, blurred, blurred, ["ant", "bee", "cow"])
    found = str(caught.value)
    assert "do not tell the classes apart (condition number infinite)" in found
    assert "merge classes: 'bee' and 'cow'" in found
    assert "with 2000 validation rows" in found


def test_bfloat16_probabilities_are_taken():
    labels, probs = drawn(PRIOR, 1000, 0)
    import ml_dtypes

    rounded = probs.astype(ml_dtypes.bfloat16).astype(np.float32)
    found = shift.bbse(labels, rounded, rounded)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, 1, atol=1e-10)


LABELS, PROBS = drawn(PRIOR, 100, 0)
REFUSED = [  # (name, call, words)
    ("no labels of a class", lambda: shift.bbse(LABELS[:80], PROBS[:80], PROBS, "abc"),
     "no validation rows of 1 of 3 classes; expected at least 1 of each.\n  c"),
    ("a label too large", lambda: shift.bbse(LABELS + 1, PROBS, PROBS), "labels 1 to 3; expected 0 to 2"),
    ("an unlabelled row", lambda: shift.bbse(LABELS - 1, PROBS, PROBS), "labels -1 to 1; expected 0 to 2"),
    ("labels missing", lambda: shift.bbse(LABELS[1:], PROBS, PROBS), "labels (99,)"),
    ("other classes", lambda: shift.bbse(LABELS, PROBS, np.eye(2)), "(100, 3) and (2, 2)"),
    ("other names", lambda: shift.bbse(LABELS, PROBS, PROBS, "ab"), "2 names"),
    ("logits for validation", lambda: shift.bbse(LABELS, PROBS * 9, PROBS), "label shift, validation row 0"),
    ("logits for the target", lambda: shift.em(PRIOR, np.log(PROBS)), "100 of 100 rows are no probabilities"),
    ("not a number", lambda: shift.em(PRIOR, np.where(PROBS[5] == PROBS, np.nan, PROBS)), "label shift, target row 5"),
    ("no rows", lambda: shift.em(PRIOR, PROBS[:0]), "(0, 3)"),
    ("a prior of 0", lambda: shift.em(ABSENT, PROBS), "a prior (3,) from 0"),
    ("a prior of counts", lambda: shift.em(PRIOR * 100, PROBS), "with the sum 100"),
    ("a prior of two", lambda: shift.em(PRIOR[:2] * 1.25, PROBS), "a prior (2,)"),
    ("negative weights", lambda: shift.reweighted(PROBS, np.array([1, -1, 1.0])), "weights (3,) from -1"),
    ("two weights", lambda: shift.reweighted(PROBS, np.ones(2)), "weights (2,)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(call, words):
    with pytest.raises(DataError) as caught:
        call()
    assert words in str(caught.value)
