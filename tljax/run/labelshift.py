"""Predictions for inputs whose shares of the classes are not those of the training data (transfer/shift.py).

Legend: n rows, C classes.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tljax.config import Config
from tljax.data import sources
from tljax.data.records import Records
from tljax.errors import ConfigError, DataError, printable
from tljax.run.inputs import Tables
from tljax.transfer import shift

METHODS = ("em", "bbse")
MOST_TOLD = 8  # classes in a line


@dataclasses.dataclass(frozen=True)
class Shifted:
    """What was estimated: the shares that the network was trained with, those of the input, and the factors on its
    probabilities, float64 (C,) each."""

    before_C: np.ndarray
    after_C: np.ndarray
    weights_C: np.ndarray

    def told(self, method: str, classes: tuple[str, ...]) -> str:
        """In a line: the classes whose shares have moved the most."""
        order = np.argsort(-abs(self.after_C - self.before_C), kind="stable")[:MOST_TOLD]
        named = [f"{printable(classes[c], 40)} {self.after_C[c]:.3f} ({self.before_C[c]:.3f})" for c in order]
        more = f", and {len(classes) - len(order)} more" if len(classes) > len(order) else ""
        return f"class shares of the input by {method} (of training): {', '.join(named)}{more}"


def class_shares(tables: Tables) -> list[float]:
    """The shares of the classes among the training examples, for config.json; none where nothing is classified."""
    labels = tables.train.labels if isinstance(tables.train, Records) and tables.classes else None
    if not labels:
        return []
    counts = Counter(labels)
    return [counts[name] / len(labels) for name in tables.classes]


def check(method: str, labelled: str) -> None:
    """Raises ConfigError where the two do not go together."""
    if method and method not in METHODS:
        raise ConfigError("--label_shift", f"{method!r}", f"one of {', '.join(METHODS)}")
    if method == "bbse" and not labelled:
        raise ConfigError("--labelled", "empty with --label_shift=bbse", "a labelled file like the training data that "
                          "the model was not trained on")  # fmt: skip
    if labelled and not method:
        raise ConfigError("--labelled", "found without --label_shift", f"--label_shift={' or '.join(METHODS)}")


def estimate(method: str, probs_nC: np.ndarray, config: Config, resolved: Mapping[str, Any], classes: tuple[str, ...],
             labelled: Records | None, answer: Callable[[Records], np.ndarray]) -> Shifted:  # fmt: skip
    """The shares of the input, by its probabilities.

    Args:
      config, resolved: of the run: what the network was trained with is its `class_shares`, or, where the loss gave
        every class the same weight (optim.class_weights), the same for each.
      labelled: of the source, None: not given. `bbse` takes its confusions, and `em` its shares in place of those of
        the run.
      answer: gives the model's probabilities for records.

    Raises:
      ConfigError: `em`, and nothing says the shares of training.
      DataError: see `shift.em` and `shift.bbse`.
    """
    C, known = len(classes), resolved.get("class_shares") or []
    truth_m = None if labelled is None else np.asarray(sources.label_ids(labelled, classes))
    of_file_C = None if truth_m is None else np.bincount(truth_m, minlength=C) / len(truth_m)
    before_C = np.asarray(known, np.float64) if len(known) == C else None
    if config.optim.class_weights == "balanced":
        before_C = np.full(C, 1 / C)
    elif before_C is None or (method == "em" and of_file_C is not None):
        before_C = of_file_C
    if before_C is None:
        raise ConfigError("--label_shift", "em, and config.json of this run does not say the shares of the classes",
                          "--labelled=FILE with examples like those it was trained on, or another run")  # fmt: skip
    if method == "em":
        after_C = shift.em(before_C, probs_nC)
    elif labelled is None or truth_m is None or of_file_C is None:
        raise DataError("--labelled", "nothing", "a labelled file")
    else:
        after_C = shift.bbse(truth_m, answer(labelled), probs_nC, classes) * of_file_C
    return Shifted(before_C, after_C, after_C / before_C)
