"""What has settled is found from the bottom up, in comparison with what else trains."""

import math

import pytest

from tljax.transfer import adaptive

NAMES = ("embeddings", "layer_0", "layer_1", "layer_2", "pooler", "head")
BEFORE = dict.fromkeys(("embeddings", "layer_0", "layer_1", "layer_2", "head"), 1.0)

# relative changes of embeddings, layers and head; lowest stage now, percentile -> lowest stage then
LOOKS = [
    ((0.1, 0.2, 0.3, 0.4, 0.5), 0, 50, 2),  # the two below the median
    ((0.1, 0.2, 0.3, 0.4, 0.5), 0, 25, 1),
    ((0.1, 0.2, 0.3, 0.4, 0.5), 0, 0, 0),  # nothing is less than the least
    ((0.5, 0.1, 0.1, 0.1, 0.1), 0, 50, 0),  # the lowest still moves: no gap below it
    ((0.1, 0.5, 0.1, 0.5, 0.5), 0, 50, 1),  # layer_1 has settled, layer_0 has not
    ((0.1, 0.1, 0.1, 0.1, 9.0), 0, 100, 3),  # the top layer and the head go on
    ((0.1, 0.2, 0.3, 0.4, 0.5), 2, 50, 3),  # layer_1 changes less than half of layer_1, layer_2 and head
    ((0.1, 0.2, 0.3, 0.4, 0.5), 3, 100, 3),  # two are too few to compare
]


@pytest.mark.parametrize(("moved", "at", "percentile", "then"), LOOKS)
def test_what_goes_on(moved, at, percentile, then):
    signs = (1, -1, 1, -1, 1)  # more or less: both are changes
    trains = [name for name in BEFORE if NAMES.index(name) >= at]
    before = {name: BEFORE[name] for name in trains}
    now = {name: 1 + sign * change for (name, change), sign in zip(zip(BEFORE, moved, strict=True), signs, strict=True)
           if name in trains}  # fmt: skip
    assert adaptive.lowest(NAMES, before, now, at, percentile) == then


def test_norms_are_by_stage_and_step():
    squares = {"a/kernel": 27.0, "a/bias": 9.0, "b/kernel": 4.0}
    assert adaptive.norms(squares, lambda path: path[0], 4) == {"a": 3.0, "b": 1.0}


def test_a_norm_that_was_zero_has_not_settled():
    assert adaptive.changes({"a": 0.0, "b": 2.0}, {"a": 1.0, "b": 1.0}) == {"a": math.inf, "b": 0.5}
