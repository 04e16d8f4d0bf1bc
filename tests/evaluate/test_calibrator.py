"""What a run keeps of a calibration: as good as the function it was fitted by, and the same after it was written."""

import json

import numpy as np
import pytest

from tljax.errors import DataError
from tljax.evaluate import calibration, calibrator


def drawn(C: int, n: int = 3000, too_sure: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(labels, probabilities of a network that is too sure)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, C)) * 2
    labels = (logits + rng.gumbel(size=(n, C))).argmax(axis=1)
    return labels, calibration.apply_temperature(logits, 1 / too_sure).astype(np.float32)


@pytest.mark.parametrize("method", calibrator.METHODS)
@pytest.mark.parametrize("C", [2, 5])
def test_other_examples_are_calibrated(method, C):
    made = calibrator.fit(method, *drawn(C))
    labels, probs = drawn(C, seed=1)
    after = made(probs)
    assert (after.shape, after.dtype) == (probs.shape, np.float32)
    np.testing.assert_allclose(after.sum(1), 1, rtol=1e-5)
    before, found = calibrator.scored(labels, probs), calibrator.scored(labels, after)
    assert found["calibration_error"] < 0.04 < 0.08 < before["calibration_error"]
    assert found["brier"] < before["brier"]
    if method == "temperature":
        assert made.temperature == pytest.approx(3.0, rel=0.1)
        assert (after.argmax(1) == probs.argmax(1)).all()


@pytest.mark.parametrize("method", calibrator.METHODS)
@pytest.mark.parametrize("C", [2, 5])
def test_it_is_kept_as_it_is(method, C, tmp_path):
    labels, probs = drawn(C, 200)
    made = calibrator.fit(method, labels, probs)
    (tmp_path / calibrator.FILE).write_text(json.dumps(made.to_json()))
    np.testing.assert_array_equal(calibrator.kept(tmp_path)(probs), made(probs))


def test_without_one_probabilities_stay(tmp_path):
    probs = drawn(3, 10)[1]
    assert calibrator.kept(tmp_path)(probs) is probs


def test_isotonic_of_two_classes_is_one_function_of_the_second():
    labels, probs = drawn(2, 500)
    made = calibrator.fit("isotonic", labels, probs)
    expected = calibration.isotonic(probs[:, 1], labels)(probs[:, 1])
    np.testing.assert_allclose(made(probs)[:, 1], expected, rtol=1e-6)
    np.testing.assert_allclose(made(probs)[:, 0], 1 - expected, atol=1e-7)


def test_isotonic_keeps_what_the_network_said_where_it_knows_nothing():
    labels = np.array([0, 1, 2, 0, 1, 2])
    probs = np.eye(3)[labels] * 0.8 + 0.2 / 3
    made = calibrator.fit("isotonic", labels, probs)
    nothing = np.array([[1 / 3, 1 / 3, 1 / 3], [0.9, 0.05, 0.05]])
    low = np.minimum(nothing, probs.min())  # below every knot: each class says 0
    np.testing.assert_allclose(made(low), low.astype(np.float32))
    np.testing.assert_allclose(made(nothing)[1], [1, 0, 0])


def test_a_float32_softmax_that_underflowed():
    probs = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32)
    made = calibrator.fit("temperature", np.array([0, 1, 1, 0]), probs)
    found = made(probs)
    assert np.isfinite(found).all()
    assert 0.6 < found[0, 0] < 0.9


def test_probabilities_of_other_classes():
    made = calibrator.fit("temperature", *drawn(3, 50))
    with pytest.raises(DataError, match=r"probabilities \(5, 4\); expected \(n, 3\)"):
        made(np.full((5, 4), 0.25))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"method": "isotonic", "classes": 2, "temperature": null, '
                                  '"isotonic": [{"scores": "x"}]}'])  # fmt: skip
def test_a_file_that_is_none(text, tmp_path):
    (tmp_path / calibrator.FILE).write_text(text)
    with pytest.raises(DataError, match=r"calibration\.json.* cannot be read .*run tljax calibrate again"):
        calibrator.kept(tmp_path)
