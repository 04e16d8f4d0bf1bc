"""Scores of what is no classification: how likely the right values were, and how high the right item stood.

N answers, F fields.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tljax.errors import DivergedError
from tljax.evaluate import ranking


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How well values are foretold.

    Attributes:
      loss: mean over answers of -log p, summed over the fields, in nats; None where there are none.
      accuracy: mean over fields of the share whose most probable value was right.
      fields: name -> (loss, accuracy) of each.
    """

    loss: float | None
    accuracy: float | None
    fields: dict[str, tuple[float, float]]
    n: int

    def summary(self) -> dict[str, float | int | None]:
        perplexity = None if self.loss is None else math.exp(min(self.loss / max(len(self.fields), 1), 700.0))
        return {"loss": self.loss, "perplexity": perplexity, "accuracy": self.accuracy, "n": self.n}


@dataclasses.dataclass(frozen=True)
class Ranks:
    """How high the right item stood among all: shares of answers in the first k places, and what they gain."""

    hit_rate_1: float | None
    hit_rate_10: float | None
    ndcg_10: float | None
    mrr: float | None
    n: int

    def summary(self) -> dict[str, float | int | None]:
        return dataclasses.asdict(self)


def likelihood(outputs: np.ndarray, names: Sequence[str]) -> Likelihood:
    """Scores from (N, 2 F): losses in nats, then whether each was right (train/objectives.py, `Prediction`)."""
    if not len(outputs):
        return Likelihood(None, None, {}, 0)
    _check(outputs)
    means, F = outputs.astype(np.float64).mean(0), len(names)
    fields = {name: (float(means[i]), float(means[F + i])) for i, name in enumerate(names)}
    return Likelihood(float(means[:F].sum()), float(means[F:].mean()), fields, len(outputs))


def ranks(outputs: np.ndarray) -> Ranks:
    """Scores from (N, 1): the rank of the right item, from 1."""
    _check(outputs)
    found = outputs[:, 0].astype(np.int64)
    hits = (ranking.hit_rate(found, 1), ranking.hit_rate(found, 10))
    return Ranks(*hits, ranking.ndcg(found, 10), ranking.mrr(found), len(found))


def _check(outputs: np.ndarray) -> None:
    if len(bad := np.flatnonzero(~np.isfinite(outputs).all(axis=1))):
        raise DivergedError("evaluation", f"{len(bad)} of {len(outputs)} answers are not finite",
                            fix="lower --config.optim.learning_rate")  # fmt: skip
