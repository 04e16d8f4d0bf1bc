"""int8 kernels: what is taken, how far it moves, and that a train state with them trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import batch_of, make_case

from tljax import trees
from tljax.errors import ConfigError
from tljax.models.kernels import Quantised
from tljax.train import optim, state, step
from tljax.transfer import adapters, freeze, quantise

SHAPES = {"a/kernel": (64, 64), "a/bias": (64,), "b/kernel": (8, 8), "words/embedding": (100, 64),
          "conv/kernel": (3, 3, 16, 32), "head/kernel": (64, 64)}  # fmt: skip


def flat():
    rng = np.random.default_rng(0)
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()}


def test_which_kernels_and_how_many_bytes():
    packed, saved = quantise.quantise(flat(), head=("head/",))
    assert saved.paths == ("a/kernel", "conv/kernel")
    assert list(packed) == list(SHAPES)
    assert saved.before == 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert saved.before - saved.after == 3 * (64 * 64 + 9 * 16 * 32) - 4 * (64 + 32)
    assert all(isinstance(packed[path], Quantised) == (path in saved.paths) for path in packed)


def test_a_weight_moves_by_at_most_half_a_scale():
    kernel = flat()["conv/kernel"]
    packed = quantise.quantised(kernel)
    assert packed.values.dtype == jnp.int8
    assert int(jnp.abs(packed.values).reshape(-1, 32).max(0).min()) == 127  # every channel uses its whole range
    away = np.abs(np.asarray(packed) - np.asarray(kernel)).reshape(-1, 32)
    assert (away <= np.asarray(packed.scale) * 0.5 * (1 + 1e-5)).all()


def test_zeros_stay_zeros():
    packed = quantise.quantised(jnp.zeros((64, 64)).at[:, 1].set(2.0))
    assert np.array_equal(np.asarray(packed)[:, 0], np.zeros(64))
    np.testing.assert_allclose(np.asarray(packed)[:, 1], 2.0, rtol=1e-6)


@pytest.mark.parametrize(("params", "words"), [
    ({"a/bias": jnp.ones(64)}, "none of 1 frozen"),
    ({"a/kernel": jnp.full((64, 64), jnp.nan)}, "a/kernel"),
], ids=["nothing", "not finite"])  # fmt: skip
def test_what_makes_no_sense_is_refused(params, words):
    with pytest.raises(ConfigError, match=words):
        quantise.quantise(params)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_a_lora_step_over_an_int8_trunk(family):
    """The step over int8 is the step over the float kernels that the int8 ones stand for."""
    case = make_case(family, "full", dropout=0.0)
    net = adapters.adapted(case.backbone, adapters.Adapter("lora", rank=4), family)
    params = adapters.start(net, case.params, jax.random.key(0))
    plan = freeze.plan(net, "lora")
    optimizer = optim.make(case.optim, plan, 10)
    run = step.make_train_step(net, plan, optimizer, optim.schedule(case.optim, 10))
    now = state.create(params, plan, optimizer, jax.random.key(7))
    packed, saved = quantise.quantise(now.frozen, least=1)
    assert len(saved.paths) >= 18
    rounded = {path: jnp.asarray(np.asarray(leaf)) if isinstance(leaf, Quantised) else leaf
               for path, leaf in packed.items()}  # fmt: skip
    losses, moved = {}, {}
    for name, frozen in (("int8", packed), ("float", rounded)):
        fresh = dataclasses.replace(jax.tree.map(lambda leaf: leaf.copy(), now), frozen=frozen)  # steps donate
        for _ in range(2):
            fresh, metrics = run(fresh, batch_of(family, 4))
        losses[name], moved[name] = float(metrics["loss"]), fresh.trainable
        assert jax.tree.structure(fresh.frozen) == jax.tree.structure(frozen)
    np.testing.assert_allclose(losses["int8"], losses["float"], rtol=1e-5)
    for path, leaf in moved["int8"].items():
        np.testing.assert_allclose(leaf, moved["float"][path], rtol=1e-2, atol=2e-4, err_msg=path)
    assert trees.count(moved["int8"]) == trees.count(moved["float"])
