"""Ground truth for every family: what PyTorch computes with the tiny checkpoints that make.py wrote."""

import checkpoints
import jax
import numpy as np
import pytest
from theirs import TOLERANCE

from tljax.weights.hfconfig import ALIASES


def test_every_family_has_a_set():
    kinds = {config["model_type"] for config in checkpoints.CONFIGS.values()}
    assert kinds == {*checkpoints.THEIRS, *ALIASES}


@pytest.mark.parametrize("name", checkpoints.SETS)
def test_outputs_are_pytorchs(name):
    inputs, outputs = checkpoints.given(name)
    model = checkpoints.load(name)
    found = jax.jit(model.apply)(model.params, inputs)
    np.testing.assert_allclose(found.last_hidden_state, outputs["last_hidden_state"], **TOLERANCE)
    if "logits" in outputs:  # else the set is a trunk
        assert model.reinitialised == ()
        np.testing.assert_allclose(found.logits, outputs["logits"], **TOLERANCE)
