"""Adaptive freezing: from the bottom up, what has settled stops training (AutoFreeze, Liu et al. 2021).

Training is looked at several times an epoch. A stage's gradient norm over the steps since the last look is compared
with that over the steps before: where it has changed by little, as the stages go, the stage has settled.
AutoFreeze compares accumulated gradients; here it is the root of their mean square, which needs no copy of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def norms(squares: Mapping[str, float], stage_of: Callable[[str], str], steps: int) -> dict[str, float]:
    """Path -> sum of the squared gradient norm over so many steps, to stage -> root mean square."""
    found: dict[str, float] = {}
    for path, square in squares.items():
        found[stage_of(path)] = found.get(stage_of(path), 0.0) + square
    return {stage: math.sqrt(total / max(steps, 1)) for stage, total in found.items()}


def changes(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Stage -> relative change of its norm; infinite where there was none."""
    return {stage: abs(now[stage] - norm) / norm if norm > 0 else math.inf
            for stage, norm in before.items() if stage in now}  # fmt: skip


def lowest(names: Sequence[str], before: Mapping[str, float], now: Mapping[str, float], at: int,
           percentile: float) -> int:  # fmt: skip
    """The lowest stage that goes on training.

    Stages settle from the bottom, without a gap, as long as their change is below the percentile of those that train.
    The top layer and all above it go on.

    Args:
      names: of all stages, bottom to top.
      before, now: norms of the two last intervals.
      at: the lowest stage that trains now.
    """
    moved = changes(before, now)
    training = [name for name in names[at:] if name in moved]
    if len(training) < 3:
        return at
    limit = float(np.percentile([moved[name] for name in training], percentile))
    top = max(names.index(name) for name in training[:-1])  # below the head
    while at < top and (names[at] not in moved or moved[names[at]] < limit):
        at += 1
    return at
