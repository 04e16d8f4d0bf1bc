"""What has settled is found from the bottom up, by how far it still comes; and what that saves."""

import math

import numpy as np
import pytest
from cases import make_case

from tljax.config import TransferConfig
from tljax.transfer import adaptive, boundary, phases
from tljax.transfer.floor import floor

NAMES = ("embeddings", "layer_0", "layer_1", "layer_2", "pooler", "head")
WITH_PARAMETERS = ("embeddings", "layer_0", "layer_1", "layer_2", "head")

# powers by which embeddings, layers and head grew; lowest stage now, limit -> lowest stage then
LOOKS = [
    ((0.1, 0.2, 0.3, 0.4, 0.5), 0, 0.25, 2),
    ((0.1, 0.2, 0.3, 0.4, 0.5), 0, 0.15, 1),
    ((0.1, 0.2, 0.3, 0.4, 0.5), 0, 0.1, 0),  # not less than the limit
    ((0.5, 0.1, 0.1, 0.1, 0.1), 0, 0.25, 0),  # the lowest still moves: no gap below it
    ((0.1, 0.5, 0.1, 0.5, 0.5), 0, 0.25, 1),  # layer_1 has settled, layer_0 has not
    ((0.1, 0.1, 0.1, 0.1, 0.1), 0, 0.25, 3),  # the top layer and the head go on
    ((0.1, -0.1, math.inf, 0.1, 0.1), 0, 0.25, 2),  # back towards where it was; from where it had not moved
    ((0.9, 0.9, 0.1, 0.3, 0.5), 2, 0.25, 3),  # what is frozen is asked no more
    ((0.1, 0.1, 0.1, 0.1, 0.1), 3, 0.25, 3),
]


@pytest.mark.parametrize(("powers", "at", "limit", "then"), LOOKS)
def test_what_goes_on(powers, at, limit, then):
    grew = {name: power for name, power in zip(WITH_PARAMETERS, powers, strict=True) if NAMES.index(name) >= at}
    assert adaptive.lowest(NAMES, grew, at, limit) == then


def test_a_stage_without_parameters_is_no_obstacle():
    assert adaptive.lowest(("embeddings", "pooler", "layer_0", "layer_1", "head"),
                           {"embeddings": 0.1, "layer_0": 0.1, "layer_1": 0.9, "head": 0.9}, 0, 0.25) == 3  # fmt: skip


def test_distances_are_by_stage():
    first = {"a/kernel": np.ones((2, 2), np.float32), "a/bias": np.zeros(1, np.float32), "b/kernel": np.ones(3),
             "c/kernel": np.ones(1)}  # fmt: skip
    now = {"a/kernel": np.full((2, 2), 3.0, np.float32), "a/bias": np.full(1, -3.0, np.float32), "b/kernel": np.ones(3)}
    assert adaptive.distances(now, first, lambda path: path[0]) == {"a": 5.0, "b": 0.0}


@pytest.mark.parametrize(
    ("way", "power"), [(lambda n: 0.3 * n, 1.0), (lambda n: 2 * n**0.5, 0.5), (lambda n: 7.0, 0.0)]
)
def test_growth_is_the_power_of_the_steps(way, power):
    for before, now in ((10, 20), (75, 100)):
        grew = adaptive.growth({"a": way(before), "b": 1.0}, {"a": way(now)}, now / before)
        assert grew == {"a": pytest.approx(power)}
    assert adaptive.growth({"a": 0.0}, {"a": 1.0}, 2.0) == {"a": math.inf}


@pytest.mark.parametrize("start", [0, 2])
def test_what_is_left_out(start):
    """Half of the examples are trained on above stage 2; a cache takes a pass through what lies below it."""
    case = make_case("bert", "full")
    full, above = case.plan, phases.above(case.backbone, TransferConfig(), 2)
    batch = boundary.inputs(case.backbone, 8)
    whole, less = (floor(case.backbone, plan, batch) for plan in (full, above))
    below = sum(work.forward for work in list(less.stages.values())[:start])
    expected = 50 * whole.total + 50 * (less.total - below) + 10 * below
    found = adaptive.left_out(case.backbone, 8, 10, [(full, 0, 50), (above, start, 50)])
    assert found == pytest.approx(1 - expected / (100 * whole.total))
    assert 0 < found < 0.5
    assert adaptive.left_out(case.backbone, 8, 10, [(full, 0, 50)]) == 0
