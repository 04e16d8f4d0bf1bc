"""Scores -> probabilities that can be taken at their word, and how far they are from it.

Legend: n examples, C classes, m knots. All in float64.
"""

import dataclasses

import numpy as np

from tljax.errors import DataError, DivergedError
from tljax.evaluate.detection import checked

LOWEST, HIGHEST = 1e-3, 1e3  # of the temperature: beyond, the probabilities are one-hot or uniform for any usual logits
NARROW = 1.1  # ratio of a bracket within which Newton's step is trusted: from afar it creeps in the exponential tail
TURNS = 100  # 8 to narrow the bracket and 3 of Newton's are usual; 40 to reach LOWEST or HIGHEST


def temperature(logits_nC: np.ndarray, labels_n: np.ndarray) -> float:
    """The T at which softmax(logits / T) has the least cross-entropy (Guo et al. 2017, temperature scaling).

    The loss is convex in a = 1 / T; its slope E_p[z] - z_y rises with a, by the variance of z under p. The root is
    bracketed by bisection in log a and then found by Newton's method. To be fitted on examples that nothing was
    trained on.

    Args:
      logits_nC: float; or log-probabilities, which give the same T.
      labels_n: int, 0 to C - 1.

    Returns:
      Where the loss falls without end, as it does when every example is right: LOWEST, or a T from which on it is 0.
      Where chance is better: HIGHEST. Where T changes nothing: 1.0.

    Raises:
      DataError: shapes that do not fit, labels that name no class, no examples.
      DivergedError: logits that are not finite, as the logarithm of a probability of 0 is.
    """
    z, labels = _logits(logits_nC), np.asarray(labels_n)
    _check_labels(labels, z)
    if len(labels) == 0:
        raise DataError("calibration", "no examples", "at least one to fit the temperature to")
    true_n = z[np.arange(len(labels)), labels]
    low, high, a = 1 / HIGHEST, 1 / LOWEST, 1.0
    for _ in range(TURNS):
        p = _softmax(a * z)
        mean_n = (p * z).sum(axis=1)
        slope = float((mean_n - true_n).mean())
        if slope == 0:
            break
        low, high = (a, high) if slope < 0 else (low, a)
        variance = float((p * (z - mean_n[:, None]) ** 2).sum(axis=1).mean())
        newton = a - slope / variance if variance > 0 and high < NARROW * low else 0.0
        step = newton if low < newton < high else float(np.sqrt(low * high))
        a, moved = step, abs(step - a)
        if moved <= 1e-10 * a:
            break
    return 1 / a


def apply_temperature(logits_nC: np.ndarray, T: float) -> np.ndarray:
    """softmax(logits / T), float64 (n, C). A larger class stays the larger one: accuracy does not change.

    Raises:
      DataError: logits of another shape.
      DivergedError: logits that are not finite.

    >>> apply_temperature(np.log([[0.8, 0.2]]), 0.5).round(3)
    array([[0.941, 0.059]])
    """
    if not 0 < T < np.inf:
        raise ValueError(f"a temperature of {T}, expected a positive number")
    return _softmax(_logits(logits_nC) / T)


@dataclasses.dataclass(frozen=True, eq=False)
class Isotonic:
    """A rising function of scores: linear between knots, and constant beyond the first and the last.

    Attributes:
      scores_m: float64, strictly rising. probs_m: float64, rising, 0 to 1.
    """

    scores_m: np.ndarray
    probs_m: np.ndarray

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities, float64, in the shape of the scores.

        Raises:
          DivergedError: scores that are not finite.
        """
        return np.interp(_finite(scores), self.scores_m, self.probs_m)


def isotonic(scores_n: np.ndarray, labels_n: np.ndarray) -> Isotonic:
    """The rising function of the scores with the least squared error to the labels (Zadrozny & Elkan 2002), by pooling
    adjacent violators (Ayer et al. 1955).

    A block of scores gets the share of ones in it; its first and last score are knots. Equal scores are one point.

    Args:
      labels_n: 0 or 1.

    Raises:
      DataError: as `detection.checked`; no examples.
      DivergedError: scores that are not finite.
    """
    labels, scores = checked(labels_n, scores_n)
    if len(labels) == 0:
        raise DataError("calibration", "no examples", "at least one to fit the probabilities to")
    distinct, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    blocks: list[tuple[int, int, int]] = []  # ones, examples, first place; integers, so that equal shares are equal
    for first, (ones, of) in enumerate(zip(np.bincount(group[labels], minlength=len(distinct)).tolist(),
                                           counts.tolist(), strict=True)):  # fmt: skip
        while blocks and blocks[-1][0] * of >= ones * blocks[-1][1]:
            before, many, first = blocks.pop()
            ones, of = ones + before, of + many
        blocks.append((ones, of, first))
    firsts = np.array([first for _, _, first in blocks])
    lasts = np.append(firsts[1:], len(distinct)) - 1
    shares = np.array([ones / of for ones, of, _ in blocks])
    knots, chosen = np.unique(np.stack([firsts, lasts], axis=1), return_index=True)  # a block of one score has one knot
    return Isotonic(distinct[knots], np.repeat(shares, 2)[chosen])


def expected_calibration_error(labels_n: np.ndarray, probs_nC: np.ndarray, bins: int = 15) -> float | None:
    """Mean distance between confidence and accuracy over bins of equal width, each weighted by its examples (Naeini et
    al. 2015; Guo et al. 2017).

    The confidence is the largest probability; bin b holds those above b / bins and up to (b + 1) / bins.

    Returns:
      0 to 1; None without examples.

    Raises:
      DataError: shapes that do not fit, labels that name no class, rows that are no probabilities.
      DivergedError: probabilities that are not finite.
    """
    if bins < 1:
        raise ValueError(f"{bins} bins, expected at least 1")
    labels, probs = np.asarray(labels_n), _probabilities(probs_nC)
    _check_labels(labels, probs)
    if len(labels) == 0:
        return None
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    which = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    return float(abs(np.bincount(which, right - confidence)).sum()) / len(labels)


def brier(labels_n: np.ndarray, probs: np.ndarray) -> float | None:
    """Mean squared distance between probabilities and what happened (Brier 1950).

    Args:
      labels_n: int. probs: float (n,), the probability of label 1: the squared error, 0 to 1; or (n, C): the sum of
        squared errors over the classes, 0 to 2, as Brier has it. For two classes that is twice the first.

    Returns:
      None without examples.

    Raises:
      DataError: shapes that do not fit, labels that name no class, rows that are no probabilities.
      DivergedError: probabilities that are not finite.

    >>> labels = np.array([1, 0])
    >>> brier(labels, np.array([0.5, 0.5])), brier(labels, np.full((2, 2), 0.5))
    (0.25, 0.5)
    """
    if np.ndim(probs) == 1:
        happened, wide = checked(labels_n, probs)
        wide = _shares(wide)
        return float(((wide - happened) ** 2).mean()) if len(happened) else None
    labels, wide = np.asarray(labels_n), _probabilities(probs)
    _check_labels(labels, wide)
    return float(((wide - np.eye(wide.shape[1])[labels]) ** 2).sum(axis=1).mean()) if len(labels) else None


def _softmax(z_nC: np.ndarray) -> np.ndarray:
    """Of rows whose largest number is 0, as `_logits` makes them."""
    e_nC = np.exp(z_nC)
    return e_nC / e_nC.sum(axis=1, keepdims=True)


def _finite(values: np.ndarray) -> np.ndarray:
    wide = np.asarray(values).astype(np.float64)
    if bad := int((~np.isfinite(wide)).sum()):
        raise DivergedError("calibration", f"{bad} of {wide.size} numbers are not finite",
                            fix="lower --config.optim.learning_rate")  # fmt: skip
    return wide


def _shares(values: np.ndarray) -> np.ndarray:
    if bad := int(((values < 0) | (values > 1)).sum()):
        raise DataError("calibration", f"{bad} of {values.size} numbers are no probabilities", "0 to 1",
                        "hand over probabilities, not logits")  # fmt: skip
    return values


def _logits(logits_nC: np.ndarray) -> np.ndarray:
    """Less the largest of each row, which changes no softmax."""
    z = _finite(logits_nC)
    if z.ndim != 2 or z.shape[1] == 0:
        raise DataError("calibration", f"logits {z.shape}", "(n, classes)")
    return z - z.max(axis=1, keepdims=True)


def _probabilities(probs_nC: np.ndarray) -> np.ndarray:
    probs = _shares(_finite(probs_nC))
    # 1e-2: a bfloat16 softmax over hundreds of classes is as far from 1 as that
    if probs.ndim != 2 or (abs(probs.sum(axis=1) - 1) > 1e-2).any():
        raise DataError("calibration", f"probabilities {probs.shape} with rows of another sum than 1"
                        if probs.ndim == 2 else f"probabilities {probs.shape}", "(n, classes), with the sum 1",
                        "hand over softmax(logits)")  # fmt: skip
    return probs


def _check_labels(labels: np.ndarray, of_nC: np.ndarray) -> None:
    n, classes = of_nC.shape
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError("calibration", f"labels {labels.shape} of type {labels.dtype}", f"integers ({n},)")
    if bad := np.flatnonzero((labels < 0) | (labels >= classes)).tolist():
        raise DataError("calibration", f"{len(bad)} of {n} labels name no class", f"0 to {classes - 1}",
                        details=[f"example {i}: label {labels[i]}" for i in bad[:20]])  # fmt: skip
