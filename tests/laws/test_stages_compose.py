"""Law 2: running 0..k and then k..n is running 0..n, bit for bit in eval mode, compiled or not."""

import jax
import numpy as np
import pytest
from cases import batch_of, make_case


@pytest.mark.parametrize("compiled", [False, True])
def test_cut_at_every_stage(row, compiled):
    case = make_case(row, "full")
    run = jax.jit(case.backbone.run, static_argnums=(2, 3)) if compiled else case.backbone.run
    inputs = batch_of(row, 3)["inputs"]
    count = len(case.backbone.stages)
    whole = run(case.params, inputs, 0, None)
    for k in range(count + 1):
        parts = run(case.params, run(case.params, inputs, 0, k), k, None)
        assert parts.keys() == whole.keys()
        for name in whole:
            assert np.array_equal(parts[name], whole[name]), f"cut at {k}: {name}"


def test_every_parameter_belongs_to_one_stage(row):
    backbone = make_case(row, "full").backbone
    for path in backbone.shapes():
        owners = [s.name for s in backbone.stages if s.owns(path)]
        assert owners == [backbone.stage_of(path)]


def test_a_stage_draws_the_same_dropout_wherever_the_run_starts(row):
    case = make_case(row, "full", dropout=0.5)
    inputs = batch_of(row, 3)["inputs"]
    key = jax.random.key(0)
    whole = case.backbone.run(case.params, inputs, 0, None, True, key)["logits"]
    lower = case.backbone.run(case.params, inputs, 0, 2, True, key)
    assert np.array_equal(case.backbone.run(case.params, lower, 2, None, True, key)["logits"], whole)
    assert not np.array_equal(case.backbone.run(case.params, inputs)["logits"], whole)
