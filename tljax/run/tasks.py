"""What a run learns: the objective of its steps, and how the answers of an evaluation are scored."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tljax.config import Config
from tljax.data.batching import Examples
from tljax.data.events import EventExamples
from tljax.evaluate import answers, metrics
from tljax.run import ledgers, rare
from tljax.train.objectives import Adaptation, Classification, Objective, Prediction, Ranking


class Scores(Protocol):
    """What any evaluation comes to."""

    @property
    def n(self) -> int: ...
    def summary(self) -> dict[str, float | int | None]: ...


@dataclasses.dataclass(frozen=True)
class Task:
    """Attributes:

    objective: what steps minimise and evaluations keep.
    score: (examples, outputs (N, K)) -> scores.
    """

    objective: Objective
    score: Callable[[Examples, np.ndarray], Scores]


def of(c: Config, model_config: Mapping[str, Any], classes: Sequence[str], train: Examples | None = None) -> Task:
    """The task of a run.

    Args:
      model_config: the fields of config.json: of an event model, its fields.
      classes: of a classification.
      train: the training examples, whose classes are counted where they are to weigh the same.
    """
    if c.adapt.target and train is not None:
        steps = -(-len(train) // c.train.batch_size) * c.train.epochs
        return Task(Adaptation(c.adapt.method, c.adapt.weight, steps, c.optim.label_smoothing),
                    lambda examples, found: metrics.classification(examples.truth, found, classes))  # fmt: skip
    if c.objective == "classes":
        weights = None
        if c.optim.class_weights == "balanced" and train is not None:
            weights = class_weights(train.truth, len(classes))
        shares = None
        if isinstance(train, EventExamples) and c.events.negatives < 1:
            few = ledgers.commonest(train.histories)
            shares = tuple(c.events.negatives if i == few else 1.0 for i in range(len(classes)))
        objective = Classification(c.optim.label_smoothing, weights, shares)
        if isinstance(train, EventExamples) and train.kind == "each" and len(classes) == 2:
            return Task(objective, functools.partial(_rare, train, classes, c.events.known_left_out))
        return Task(objective, lambda examples, found: metrics.classification(examples.truth, found, classes))
    if c.objective == "item":
        return Task(Ranking(), lambda examples, found: answers.ranks(found))
    sizes = {"words": int(model_config.get("vocab_size", 0))}
    if c.task == "events":
        known = {name: int(size) for name, size, _ in model_config["fields"]}
        sizes = {name: known[name] for name in model_config["foretold"]}
    return Task(Prediction(tuple(sizes.values())), lambda examples, found: answers.likelihood(found, tuple(sizes)))


def _rare(train: EventExamples, classes: Sequence[str], leave_out: bool, examples: Any, found: np.ndarray) -> Scores:
    of = getattr(examples, "of", examples)  # of kept activations, the events
    return rare.scores(train, of, found, classes, leave_out)


def class_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """n / (classes * n_c) for each class, so that the answers of each class weigh the same together."""
    counts = np.bincount(labels, minlength=classes)
    return tuple((len(labels) / (classes * np.maximum(counts, 1))).tolist())


def shown(scores: Scores) -> str:
    """Scores in words: "accuracy 0.950, macro-F1 0.948, loss 0.210"."""
    named = {name: value for name, value in scores.summary().items() if name != "n"}
    return ", ".join(f"{metrics.NAMES.get(name, name).removesuffix(' (nats)')} {metrics.shown(value)}"
                     for name, value in named.items())  # fmt: skip
