"""Adaptive freezing: from the bottom up, what has settled stops training.

The idea is AutoFreeze's (Liu et al. 2021) and Egeria's (Wang et al. 2023). AutoFreeze asks how the gradient norms
change. Here the weights are asked, for on CLINC150 the gradients of a MiniLM's lower layers are a third larger after
two epochs of three than in the first steps, while the weights hardly get any farther: each step undoes the last.
A stage has settled when its distance from where it began grows by a low power of the number of steps.

Measured there, 3 epochs and 3 seeds (everything: accuracy 0.966, 0.966 to 0.967): at a power of 0.1 a tenth of the
products is left out and nothing is lost; at 0.25 a quarter, for 0.964 (0.962 to 0.965); at 0.35 a third, for 0.964 too
(benchmarks/results/compare.jsonl). AutoFreeze's rule, the half of the stages whose gradient norms change least: 0.962.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax import trees
from tljax.models import Backbone
from tljax.transfer import boundary
from tljax.transfer.floor import floor
from tljax.transfer.freeze import FreezePlan


def distances(now: Mapping[str, Any], first: Mapping[str, Any], stage_of: Callable[[str], str]) -> dict[str, float]:
    """Stage -> Euclidean distance of its parameters from what they were.

    Args:
      now: path -> array.
      first: the same paths, and others.
    """
    squares = jax.device_get(_squares(dict(now), {path: first[path] for path in now}))
    found: dict[str, float] = {}
    for path in sorted(squares):
        found[stage_of(path)] = found.get(stage_of(path), 0.0) + float(squares[path])
    return {stage: math.sqrt(total) for stage, total in found.items()}


@jax.jit
def _squares(now: trees.Flat, first: trees.Flat) -> trees.Flat:
    return {path: jnp.square(now[path] - first[path]).sum() for path in now}


def growth(before: Mapping[str, float], now: Mapping[str, float], steps: float) -> dict[str, float]:
    """Stage -> the power of the number of steps by which its distance grew: 1 on a straight way, 0.5 on a random walk,
    0 where it stands still.

    Args:
      before, now: distances.
      steps: how many times as many steps had been taken.
    """
    return {stage: math.log(now[stage] / distance) / math.log(steps) if distance > 0 else math.inf
            for stage, distance in before.items() if stage in now}  # fmt: skip


def lowest(names: Sequence[str], grew: Mapping[str, float], at: int, limit: float) -> int:
    """The lowest stage that goes on training.

    Stages settle from the bottom, without a gap, as long as they grow by a lower power than `limit`. The top layer and
    all above it go on.

    Args:
      names: of all stages, bottom to top.
      grew: stage -> power, of those that have parameters.
      at: the lowest stage that trains now.
    """
    training = [number for number, name in enumerate(names) if number >= at and name in grew]
    top = max(training[:-1], default=at)  # below the head
    while at < top and (names[at] not in grew or grew[names[at]] < limit):
        at += 1
    return at


def left_out(backbone: Backbone, tokens: int, examples: int, phases: Sequence[tuple[FreezePlan, int, int]]) -> float:
    """The share of the products of training everything that was never computed.

    Args:
      tokens: of an example.
      examples: that a pass through what is frozen takes; it counts as computed.
      phases: plan, stage that batches enter at, and how many examples were trained on, of each phase; the first trains
        everything.
    """
    batch = boundary.inputs(backbone, tokens)
    done, last = 0, 0
    for plan, start, trained in phases:
        stages = list(floor(backbone, plan, batch).stages.values())
        below = sum(work.forward for work in stages[:start])
        done += trained * (sum(work.total for work in stages) - below)
        if start > last:
            done += examples * below
        last = start
    whole = floor(backbone, phases[0][0], batch).total
    return 1 - done / (whole * sum(trained for _, _, trained in phases))
