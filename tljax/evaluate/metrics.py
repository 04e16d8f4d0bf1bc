"""Class probabilities -> accuracy, F1, loss and a confusion matrix, where what is undefined is None and never 0.

N: examples, C: classes.
"""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tljax.errors import DataError, DivergedError, printable

NAMES = {"macro_f1": "macro-F1", "loss": "loss (nats)", "roc_auc": "ROC AUC", "average_precision": "average precision",
         "card_precision_100": "card precision@100", "ndcg_10": "NDCG@10", "hit_rate_10": "HR@10",
         "hit_rate_1": "HR@1", "mrr": "MRR"}  # fmt: skip
SMALLEST = float(np.finfo(np.float32).tiny)  # a float32 softmax underflows to 0, whose logarithm is not a number


class ClassScore(NamedTuple):
    """One class's row: None where a score is a division by zero."""

    name: str
    precision: float | None  # None: never predicted
    recall: float | None  # None: no example has it
    f1: float | None  # None: neither
    support: int  # examples that have it


@dataclasses.dataclass(frozen=True)
class Scores:
    """How the predictions on `n` examples compare with their labels; fields are None where `n` is 0."""

    accuracy: float | None
    macro_f1: float | None  # mean F1 of the classes that occur in labels or predictions
    loss: float | None  # mean cross-entropy, nats
    per_class: tuple[ClassScore, ...]  # in class order
    confusion: np.ndarray  # int64 (C, C): row = true class, column = predicted class
    n: int
    more: Mapping[str, float | None] = dataclasses.field(default_factory=dict)  # of one kind of task alone

    def summary(self) -> dict[str, float | int | None]:
        """The scores of the whole set, as a line of metrics.jsonl takes them."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "loss": self.loss, **self.more, "n": self.n}


def classification(labels: np.ndarray, probs: np.ndarray, classes: Sequence[str]) -> Scores:
    """Scores the most probable class of each example; of equally probable ones the first.

    macro-F1 is the mean over the classes that occur in the labels or in the predictions (scikit-learn's choice): a
    class that no example has and that is never predicted has no F1 and does not count. Probabilities below the
    smallest normal float32 count as that number in the loss, at most 87.3 nats an example.

    Args:
      labels: int (N,), indices into `classes`.
      probs: float (N, C), rows sum to 1.
      classes: the C class names.

    Raises:
      DataError: shapes that do not fit, labels outside 0 … C - 1, rows that are no probabilities.
      DivergedError: probabilities that are not finite.

    >>> scores = classification(np.array([0, 0, 1]), np.array([[.9, .1, 0], [.4, .6, 0], [.2, .8, 0]]), "abc")
    >>> scores.per_class[2]
    ClassScore(name='c', precision=None, recall=None, f1=None, support=0)
    >>> round(scores.macro_f1, 3), scores.n
    (0.667, 3)
    """
    labels, probs = np.asarray(labels), np.asarray(probs)
    _check(labels, probs, classes)
    n = len(labels)
    if n == 0:
        rows = tuple(ClassScore(name, None, None, None, 0) for name in classes)
        return Scores(None, None, None, rows, np.zeros((len(classes), len(classes)), np.int64), 0)

    predicted = probs.argmax(axis=1)
    confusion = np.bincount(labels.astype(np.int64) * len(classes) + predicted, minlength=len(classes) ** 2)
    confusion = confusion.reshape(len(classes), len(classes))
    right, support, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is not a number, and shown as undefined
        precision, recall, f1 = right / said, right / support, 2 * right / (support + said)
    true_probs = np.maximum(probs[np.arange(n), labels].astype(np.float64), SMALLEST)
    return Scores(
        accuracy=float(np.mean(predicted == labels)),
        macro_f1=float(np.nanmean(f1)),
        loss=float(-np.mean(np.log(true_probs))),
        per_class=tuple(
            ClassScore(name, _defined(p), _defined(r), _defined(f), int(s))
            for name, p, r, f, s in zip(classes, precision, recall, f1, support, strict=True)
        ),
        confusion=confusion,
        n=n,
    )


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _check(labels: np.ndarray, probs: np.ndarray, classes: Sequence[str]) -> None:
    where, shape = "evaluation", (len(labels), len(classes))
    if labels.ndim != 1 or probs.shape != shape:
        raise DataError(where, f"labels {labels.shape} and probabilities {probs.shape} for {len(classes)} classes",
                        f"({len(labels)},) and {shape}")  # fmt: skip
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(where, f"labels of type {labels.dtype}", "integer class indices")
    if bad := np.flatnonzero((labels < 0) | (labels >= len(classes))).tolist():
        details = [f"example {i}: label {labels[i]}" for i in bad[:20]]
        raise DataError(where, f"{len(bad)} of {len(labels)} labels name no class", f"0 to {len(classes) - 1}",
                        details=details)  # fmt: skip
    if not np.isfinite(probs).all():
        bad = np.flatnonzero(~np.isfinite(probs).all(axis=1)).tolist()
        raise DivergedError(where, f"the probabilities of {len(bad)} of {len(probs)} examples are not finite",
                            fix="lower --config.optim.learning_rate",
                            details=[f"example {i}" for i in bad[:20]])  # fmt: skip
    # 1e-2 and not 1e-6: a bfloat16 softmax over hundreds of classes is as far from 1 as that
    if bad := np.flatnonzero((probs < 0).any(axis=1) | (abs(probs.sum(axis=1, dtype=np.float64) - 1) > 1e-2)).tolist():
        details = [f"example {i}: the smallest is {probs[i].min():g}, the sum {probs[i].sum():g}" for i in bad[:20]]
        raise DataError(where, f"{len(bad)} of {len(probs)} rows are no probabilities", "at least 0, with the sum 1",
                        "hand over softmax(logits), not logits", details)  # fmt: skip


def interval(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson interval of a share of n independent examples: about 95 % at z = 1.96 (Wilson 1927, JASA 22).

    >>> tuple(round(bound, 3) for bound in interval(0.95, 100))
    (0.888, 0.978)
    """
    centre, spread = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)


def shown(value: float | None, digits: int = 3) -> str:
    """A score for people.

    >>> shown(0.95678), shown(None)
    ('0.957', 'undefined')
    """
    return "undefined" if value is None else f"{value:.{digits}f}"


def worst(scores: Scores, most: int) -> tuple[ClassScore, ...]:
    """The `most` classes with the lowest F1, lowest first; of equals the one with more examples first."""
    return tuple(
        sorted(scores.per_class, key=lambda row: (row.f1 is None, row.f1 or 0.0, -row.support, row.name))[:most]
    )


def confused_pairs(scores: Scores, most: int) -> list[tuple[str, str, int, int]]:
    """(true class, predicted class, how often, examples of the true class), the most frequent confusions first."""
    errors = scores.confusion * (1 - np.eye(len(scores.confusion), dtype=np.int64))
    order = np.argsort(-errors, axis=None, kind="stable")[:most]
    pairs = [divmod(int(flat), len(errors)) for flat in order if errors.flat[flat]]
    name = [row.name for row in scores.per_class]
    return [(name[i], name[j], int(errors[i, j]), int(errors[i].sum() + scores.confusion[i, i])) for i, j in pairs]


def table(scores: Scores, most: int = 20, width: int = 100) -> str:
    """The per-class table for a terminal: all classes, or the `most` worst of them where there are more."""
    from rich import box, console, text
    from rich import table as rich_table

    rows = scores.per_class if len(scores.per_class) <= most else worst(scores, most)
    made = rich_table.Table("class", box=box.SIMPLE, pad_edge=False)
    for heading in ("precision", "recall", "F1", "examples"):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        figures = (shown(row.precision), shown(row.recall), shown(row.f1), f"{row.support:,}")
        made.add_row(text.Text(printable(row.name, 60)), *figures)  # Text: a name may hold "[bold]"
    lines = io.StringIO()
    screen = console.Console(file=lines, width=width, color_system=None, force_terminal=False)
    screen.print(made)
    hidden = len(scores.per_class) - len(rows)
    last = [f"the {len(rows)} classes with the lowest F1; {hidden} more are not shown"] if hidden else []
    whole = f"accuracy {shown(scores.accuracy)}   macro-F1 {shown(scores.macro_f1)}   loss {shown(scores.loss)}"
    body = "\n".join(line.rstrip() for line in lines.getvalue().splitlines() if line.strip())
    return "\n".join([body, *last, f"{whole}   n {scores.n:,}"])
