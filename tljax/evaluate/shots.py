"""Verdicts at several numbers of examples a class: one table, what it says in words, and what to try."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from tljax.evaluate import columns
from tljax.evaluate.metrics import NAMES
from tljax.transfer.verdict import Verdict, curve_sentence


class Point(NamedTuple):
    """What was found with `shots` examples of each class.

    Attributes:
      shots: 0: all of them.
      examples: the most that a class has there.
      verdict: of `transferred` and `control`, the scores by seed.
    """

    shots: int
    examples: int
    verdict: Verdict
    transferred: tuple[float, ...]
    control: tuple[float, ...]


def render(points: Sequence[Point], strategy: str, tried: Collection[str] = ()) -> str:
    """The table, the curve in a sentence, and the advice.

    Args:
      points: by rising `examples`, at least one, all of one metric.
      strategy: how the pretrained network is trained.
      tried: as for `Verdict.advice`.
    """
    metric = points[0].verdict.unit
    heads = ["examples a class", f"{strategy}", "from scratch", "difference", "95 % interval", "seeds", "verdict"]
    rows = []
    for point in points:
        v = point.verdict
        interval = f"{v.low:+.3f} … {v.high:+.3f}" if np.isfinite(v.low) else "–"
        rows.append([label(point), _over(point.transferred), _over(point.control), f"{v.difference:+.3f}", interval,
                     str(v.seeds), v.words])  # fmt: skip
    if len(points) > 1:
        told = curve_sentence([(point.examples, point.verdict) for point in points])
    else:
        told = points[0].verdict.sentence()
    told = told[0].upper() + told[1:]
    lines = [*columns.aligned(heads, rows), "", f"scores: test {NAMES.get(metric, metric)}", told]
    return "\n".join([*lines, *advice(points, tried)])


def label(point: Point) -> str:
    """Of a row: "5", "all", "all (48)"."""
    return f"{point.shots:,}" if point.shots else f"all ({point.examples:,})" if point.examples > 1 else "all"


def advice(points: Sequence[Point], tried: Collection[str] = ()) -> list[str]:
    """What to try next, each advice once, with the numbers of examples that it is for where they differ."""
    found: dict[str, list[str]] = {}
    for number, point in enumerate(points):
        known = {*tried, *(["labels"] if number else [])}  # fewer labels were tried: they are the row above
        if text := point.verdict.advice(known):
            found.setdefault(text, []).append(label(point))
    if len(found) == 1 and len(next(iter(found.values()))) == len(points):
        return list(found)
    return [f"At {', '.join(names)}, to try: {text.removeprefix('To try: ')}" for text, names in found.items()]


def _over(scores: Sequence[float]) -> str:
    """The mean over seeds, and the smallest and largest."""
    spread = f" [{min(scores):.3f}…{max(scores):.3f}]" if len(scores) > 1 else ""
    return f"{np.mean(scores):.3f}{spread}"
