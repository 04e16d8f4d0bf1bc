"""What makes a classifier's probabilities calibrated: fitted once, kept as JSON. n examples, C classes."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tljax.errors import DataError
from tljax.evaluate import calibration
from tljax.evaluate.metrics import SMALLEST

METHODS = ("temperature", "isotonic")
FILE = "calibration.json"  # in the workdir of a run


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrator:
    """One temperature, or a rising function of the probability of each class whose results are divided by their sum
    (Zadrozny & Elkan 2002); of two classes one function, of the second class.

    Attributes:
      method: of `METHODS`.
      classes: C.
      temperature: None for "isotonic".
      rising: C functions, or 1 where there are two classes; none for "temperature".
    """

    method: str
    classes: int
    temperature: float | None = None
    rising: tuple[calibration.Isotonic, ...] = ()

    def __call__(self, probs_nC: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float32 (n, C)."""
        if probs_nC.shape[1:] != (self.classes,):
            raise DataError("calibration", f"probabilities {probs_nC.shape}", f"(n, {self.classes})")
        if self.temperature is not None:
            return calibration.apply_temperature(_logits(probs_nC), self.temperature).astype(np.float32)
        if self.classes == 2:
            second_n = self.rising[0](probs_nC[:, 1])
            return np.stack([1 - second_n, second_n], axis=1).astype(np.float32)
        found_nC = np.stack([one(probs_nC[:, c]) for c, one in enumerate(self.rising)], axis=1)
        sums_n1 = found_nC.sum(1, keepdims=True)
        # where every function says 0 nothing is known but what the network said
        return np.where(sums_n1 > 0, found_nC / np.where(sums_n1 > 0, sums_n1, 1), probs_nC).astype(np.float32)

    def told(self) -> str:
        """In words: "temperature 1.43"."""
        return self.method if self.temperature is None else f"{self.method} {self.temperature:.3g}"

    def to_json(self) -> dict[str, Any]:
        knots = [{"scores": one.scores_m.tolist(), "probs": one.probs_m.tolist()} for one in self.rising]
        return {"method": self.method, "classes": self.classes, "temperature": self.temperature, "isotonic": knots}


def kept(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The calibration of a run, (n, C) -> (n, C); where `tljax calibrate` has made none, the identity.

    Raises:
      DataError: calibration.json is there and cannot be used.
    """
    file = path / FILE
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        rising = tuple(calibration.Isotonic(np.array(one["scores"], np.float64), np.array(one["probs"], np.float64))
                       for one in given["isotonic"])  # fmt: skip
        return Calibrator(given["method"], int(given["classes"]), given["temperature"], rising)
    except FileNotFoundError:
        return lambda probs_nC: probs_nC
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(str(file), f"cannot be read ({type(error).__name__})", "what tljax calibrate wrote",
                        "run tljax calibrate again, or remove it") from None  # fmt: skip


def fit(method: str, labels_n: np.ndarray, probs_nC: np.ndarray) -> Calibrator:
    """Fits to examples that the network did not learn from.

    Args:
      method: "temperature" needs few examples and changes no decision; "isotonic" mends any rising distortion, as the
        one that class weights make, and takes a thousand examples or more (Niculescu-Mizil & Caruana 2005).

    Raises:
      DataError: as `calibration.temperature` and `calibration.isotonic`.
    """
    C = probs_nC.shape[1]
    if method == "temperature":
        return Calibrator(method, C, calibration.temperature(_logits(probs_nC), labels_n))
    told = (1,) if C == 2 else range(C)
    return Calibrator(method, C, None, tuple(calibration.isotonic(probs_nC[:, c], labels_n == c) for c in told))


def _logits(probs_nC: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probs_nC.astype(np.float64), SMALLEST))  # a float32 softmax underflows to 0


def scored(labels_n: np.ndarray, probs_nC: np.ndarray) -> dict[str, float | None]:
    """How far probabilities are from what happened."""
    return {"calibration_error": calibration.expected_calibration_error(labels_n, probs_nC),
            "brier": calibration.brier(labels_n, probs_nC)}  # fmt: skip
