"""Calibration against scikit-learn, against a fine grid, and against what it must not change."""

import itertools

import numpy as np
import pytest

from tljax.errors import DataError, DivergedError
from tljax.evaluate import calibration


def examples(seed: int, too_sure: float, n: int = 400, C: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `too_sure` times what the labels were drawn by."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, C)) * 2
    labels = (logits + rng.gumbel(size=(n, C))).argmax(axis=1)
    return logits * too_sure, labels


def loss(logits: np.ndarray, labels: np.ndarray, T: float) -> float:
    z = logits / T
    return float((np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), labels]).mean())


@pytest.mark.parametrize("too_sure", [0.02, 0.5, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("seed", range(4))
def test_temperature_is_the_best_of_a_fine_grid(too_sure, seed):
    logits, labels = examples(seed, too_sure)
    T = calibration.temperature(logits, labels)
    assert too_sure * 0.8 < T < too_sure * 1.25  # what the sample leaves open
    least = loss(logits, labels, T)
    assert all(least <= loss(logits, labels, T * factor) for factor in (0.999, 1.001))
    assert all(least <= loss(logits, labels, other) for other in np.logspace(-3, 3, 200))


@pytest.mark.parametrize("seed", range(10))
def test_temperature_of_few_examples(seed):
    """Where the best one may be anywhere, or nowhere."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    logits, labels = rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-1, 2), rng.integers(0, 3, n)
    T = calibration.temperature(logits, labels)
    assert calibration.LOWEST * 0.999 <= T <= calibration.HIGHEST * 1.001
    least = loss(logits, labels, T)
    assert all(least <= loss(logits, labels, other) + 1e-12 for other in np.logspace(-3, 3, 400))


def test_temperature_does_not_depend_on_scale_shift_or_kind():
    logits, labels = examples(0, 2.0)
    T = calibration.temperature(logits, labels)
    assert calibration.temperature(logits * 7, labels) == pytest.approx(7 * T, rel=1e-9)
    shifted = logits + np.arange(len(logits))[:, None]
    assert calibration.temperature(shifted, labels) == pytest.approx(T, rel=1e-9)
    log_probs = np.log(calibration.apply_temperature(logits, 1.0))
    assert calibration.temperature(log_probs, labels) == pytest.approx(T, rel=1e-9)
    assert calibration.temperature(logits.astype(np.float32), labels) == pytest.approx(T, rel=1e-5)  # rounded logits


EXTREME = [  # (name, logits, labels, T)
    ("all wrong", [[3.0, 0.0], [0.0, 3.0]], [1, 0], calibration.HIGHEST),
    ("nothing is said", [[1.0, 1.0], [2.0, 2.0]], [0, 1], 1.0),
    ("one class", [[5.0], [2.0]], [0, 0], 1.0),
    ("sure beyond float64, and right", [[9e3, 0.0]], [0], 1.0),
]


@pytest.mark.parametrize(("logits", "labels", "T"), [row[1:] for row in EXTREME], ids=[row[0] for row in EXTREME])
def test_temperature_where_none_is_best(logits, labels, T):
    assert calibration.temperature(np.array(logits), np.array(labels)) == pytest.approx(
        T, rel=1e-9
    )  # comes close to it


@pytest.mark.parametrize("apart", [1e-6, 1e-3, 0.1, 3.0, 700.0])
def test_temperature_where_all_are_right(apart):
    logits, labels = np.eye(3) * apart, np.arange(3)
    T = calibration.temperature(logits, labels)
    assert abs(T - calibration.LOWEST) < 1e-12 or loss(logits, labels, T) == 0


@pytest.mark.parametrize("T", [0.03, 0.7, 1.0, 20.0])
def test_apply_temperature_keeps_the_order_of_classes(T):
    logits, labels = examples(1, 1.5)
    probs = calibration.apply_temperature(logits, T)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-14)  # rounding of a sum
    assert (probs.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert -np.log(probs[np.arange(400), labels]).mean() == pytest.approx(loss(logits, labels, T), rel=1e-12)


def test_a_fitted_temperature_lowers_the_error():
    logits, labels = examples(2, 4.0, n=4000)
    T = calibration.temperature(logits[:2000], labels[:2000])
    before, after = (
        calibration.expected_calibration_error(labels[2000:], calibration.apply_temperature(logits[2000:], by))
        for by in (1.0, T)
    )
    assert before > 0.15
    assert after < 0.04


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties and without, and labels that go with them more or less."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    scores = rng.normal(size=n) if seed % 2 else rng.integers(0, 12, n) / 3
    return scores, (scores + rng.normal(size=n) * 2 > 1).astype(int)


@pytest.mark.parametrize("seed", range(60))
def test_isotonic_agrees_with_scikit_learn(seed):
    from sklearn.isotonic import IsotonicRegression

    scores, labels = drawn(seed)
    fitted = calibration.isotonic(scores, labels)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, labels)
    asked = np.concatenate([scores, np.linspace(scores.min() - 1, scores.max() + 1, 200)])
    found = fitted(asked)
    np.testing.assert_allclose(found, theirs.predict(asked), atol=1e-12)  # theirs are weighted means of means
    assert (np.diff(fitted.scores_m) > 0).all()
    assert (np.diff(fitted.probs_m) >= 0).all()
    assert (np.diff(found[np.argsort(asked, kind="stable")]) >= -1e-15).all()  # rounding between knots


KNOTS = [  # (name, scores, labels, knots: (score, probability))
    ("in order", [1, 2, 3], [0, 0, 1], [(1, 0), (2, 0), (3, 1)]),
    ("in the wrong order", [3, 2, 1], [0, 0, 1], [(1, 1 / 3), (3, 1 / 3)]),
    ("equal scores are one point", [1, 1, 2, 2], [0, 1, 1, 1], [(1, 1 / 2), (2, 1)]),
    ("one in the middle", [1, 2, 3, 4], [0, 1, 0, 1], [(1, 0), (2, 1 / 2), (3, 1 / 2), (4, 1)]),
    ("one class", [1, 2], [0, 0], [(1, 0), (2, 0)]),
    ("one example", [5], [1], [(5, 1)]),
]


@pytest.mark.parametrize(("scores", "labels", "knots"), [row[1:] for row in KNOTS], ids=[row[0] for row in KNOTS])
def test_knots(scores, labels, knots):
    fitted = calibration.isotonic(np.array(scores), np.array(labels))
    assert list(zip(fitted.scores_m, fitted.probs_m, strict=True)) == knots


def test_isotonic_is_linear_between_knots_and_clipped_beyond():
    fitted = calibration.isotonic(np.array([1.0, 3.0]), np.array([0, 1]))
    assert fitted(np.array([[-9.0, 1.0], [2.5, 9.0]])).tolist() == [[0.0, 0.0], [0.75, 1.0]]


@pytest.mark.parametrize("bins", [1, 7, 15])
@pytest.mark.parametrize("seed", range(8))
def test_expected_calibration_error_by_its_definition(bins, seed):
    logits, labels = examples(seed, 2.0, n=150, C=3)
    probs = calibration.apply_temperature(logits, 1.0)
    probs[:40] = np.round(probs[:40] * 15) / 15  # on the edges of bins
    probs[:40, 2] = 1 - probs[:40, 0] - probs[:40, 1]
    probs = probs.clip(0, 1)
    edges, wanted = np.linspace(0, 1, bins + 1), 0.0
    top, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    for low, high in itertools.pairwise(edges):
        of = (top > low) & (top <= high)
        if of.any():
            wanted += of.mean() * abs(right[of].mean() - top[of].mean())
    assert calibration.expected_calibration_error(labels, probs, bins) == pytest.approx(wanted, rel=1e-12)


ERRORS = [  # (name, labels, probability of class 1, bins, error)
    ("sure and right", [1, 0], [1.0, 0.0], 15, 0.0),
    ("sure and wrong", [0, 1], [1.0, 0.0], 15, 1.0),
    ("right as often as it says", [1, 1, 1, 0], [0.75] * 4, 15, 0.0),
    ("too sure and too modest cancel in one bin", [1, 0], [0.625, 0.875], 1, 0.25),
    ("and not in two", [1, 0], [0.625, 0.875], 4, 0.625),
    ("of equal probabilities the first class", [1, 0], [0.5, 0.5], 15, 0.0),
    ("class 0 has a confidence too", [0, 0], [0.25, 0.25], 15, 0.25),
    ("an edge belongs to the bin below", [1, 0], [0.75, 0.875], 4, 0.5625),
]


@pytest.mark.parametrize(("labels", "ones", "bins", "error"), [r[1:] for r in ERRORS], ids=[r[0] for r in ERRORS])
def test_expected_calibration_error_by_hand(labels, ones, bins, error):
    probs = np.stack([1 - np.array(ones), np.array(ones)], axis=1)
    assert calibration.expected_calibration_error(np.array(labels), probs, bins) == error


def test_brier_agrees_with_scikit_learn():
    from sklearn import metrics

    logits, labels = examples(3, 1.0)
    probs = calibration.apply_temperature(logits, 1.0)
    wanted = metrics.brier_score_loss(labels, probs, labels=range(5), scale_by_half=False)
    assert calibration.brier(labels, probs) == pytest.approx(wanted)
    wanted = metrics.brier_score_loss(labels == 2, probs[:, 2])
    assert calibration.brier(labels == 2, probs[:, 2]) == pytest.approx(wanted)
    both = np.stack([1 - probs[:, 2], probs[:, 2]], axis=1)
    assert calibration.brier((labels == 2).astype(int), both) == pytest.approx(2 * wanted)


def test_no_examples():
    none = np.zeros(0, int)
    assert calibration.expected_calibration_error(none, np.zeros((0, 3))) is None
    assert calibration.brier(none, np.zeros((0, 3))) is None
    assert calibration.brier(none, np.zeros(0)) is None


LOGITS, PROBS, LABELS = np.zeros((2, 3)), np.full((2, 3), 1 / 3), np.array([0, 2])
NAN = np.array([[0.0, 1.0], [np.nan, 0.0]])
REFUSED = [  # (name, call, error, words)
    ("temperature, labels", lambda: calibration.temperature(LOGITS, np.array([0, 3])), DataError, "example 1: label 3"),
    ("temperature, shapes", lambda: calibration.temperature(LOGITS, LABELS[:1]), DataError, "integers (2,)"),
    ("temperature, floats", lambda: calibration.temperature(LOGITS, LABELS * 1.0), DataError, "of type float64"),
    ("temperature, one axis", lambda: calibration.temperature(LOGITS[0], LABELS), DataError, "logits (3,)"),
    ("temperature, nothing", lambda: calibration.temperature(LOGITS[:0], LABELS[:0]), DataError, "no examples"),
    ("temperature, NaN", lambda: calibration.temperature(NAN, LABELS), DivergedError, "1 of 4 numbers"),
    ("temperature of 0", lambda: calibration.apply_temperature(LOGITS, 0.0), ValueError, "temperature of 0.0"),
    ("apply, NaN", lambda: calibration.apply_temperature(NAN, 1.0), DivergedError, "1 of 4 numbers"),
    ("isotonic, labels", lambda: calibration.isotonic(np.zeros(2), LABELS), DataError, "neither 0 nor 1"),
    ("isotonic, nothing", lambda: calibration.isotonic(np.zeros(0), LABELS[:0]), DataError, "no examples"),
    ("isotonic, NaN", lambda: calibration.isotonic(NAN[1], np.array([0, 1])), DivergedError, "not finite"),
    ("isotonic, asked NaN", lambda: calibration.isotonic(np.zeros(1), np.array([1]))(NAN), DivergedError, "1 of 4"),
    ("ECE, logits", lambda: calibration.expected_calibration_error(LABELS, PROBS * 3.5), DataError, "not logits"),
    ("ECE, sums", lambda: calibration.expected_calibration_error(LABELS, PROBS * 0.5), DataError, "sum 1"),
    ("ECE, one axis", lambda: calibration.expected_calibration_error(LABELS, PROBS[0]), DataError, "(3,)"),
    ("ECE, labels", lambda: calibration.expected_calibration_error(LABELS - 1, PROBS), DataError, "label -1"),
    ("ECE, bins", lambda: calibration.expected_calibration_error(LABELS, PROBS, 0), ValueError, "0 bins"),
    ("ECE, NaN", lambda: calibration.expected_calibration_error(LABELS, NAN), DivergedError, "not finite"),
    ("Brier, logits", lambda: calibration.brier(np.array([0, 1]), np.array([2.0, 0.5])), DataError, "not logits"),
    ("Brier, labels", lambda: calibration.brier(LABELS, np.array([0.5, 0.5])), DataError, "neither 0 nor 1"),
    ("Brier, classes", lambda: calibration.brier(LABELS + 1, PROBS), DataError, "expected 0 to 2"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
