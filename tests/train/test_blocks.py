"""Losses and ranks a block of places at a time, against all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.train import blocks
from tljax.train.objectives import cross_entropy

B, T, D, V = 4, 6, 8, 50
ONE_PLACE, ALL = 4 * B * V, 4 * B * V * T


@pytest.fixture
def drawn():
    """(hidden, table, bias), labels, weights, of which some are 0."""
    rng = np.random.default_rng(0)
    shapes = (B, T, D), (V, D), (V,)
    scored = tuple(jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for shape in shapes)
    labels = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    return scored, labels, jnp.asarray(rng.choice([0.0, 0.5, 2.0], (B, T)), jnp.float32)


def whole(hidden, table, bias, labels, weights):
    return (cross_entropy(hidden @ table.T + bias[None, None], labels) * weights).sum()


@pytest.mark.parametrize(("room", "turns"), [(1, 6), (ONE_PLACE, 6), (2 * ONE_PLACE, 3), (5 * ONE_PLACE, 2), (ALL, 1)])
def test_loss_and_gradient_are_those_of_all_logits(drawn, room, turns, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", room)
    scored, labels, weights = drawn
    assert len(blocks._cut(V, labels)[0]) == turns
    by = jax.value_and_grad(lambda *own: 3.0 * blocks.summed_cross_entropy(*own, labels, weights), argnums=(0, 1, 2))
    expected = jax.value_and_grad(lambda *own: 3.0 * whole(*own, labels, weights), argnums=(0, 1, 2))(*scored)
    for run in (by, jax.jit(by)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), run(*scored), expected)
    np.testing.assert_allclose(blocks.summed_cross_entropy(*scored, labels, weights) * 3.0, expected[0], rtol=1e-5)


def test_a_gradient_in_half_precision_has_its_dtype(drawn):
    (hidden, table, bias), labels, weights = drawn
    own = hidden.astype(jnp.bfloat16), table, bias
    found = jax.grad(blocks.summed_cross_entropy, argnums=(0, 1, 2))(*own, labels, weights)
    assert [a.dtype for a in found] == [a.dtype for a in own]
    expected = jax.grad(whole, argnums=1)(own[0].astype(jnp.float32), table, bias, labels, weights)
    np.testing.assert_allclose(found[1], expected, atol=0.02 * float(abs(expected).max()))


@pytest.mark.parametrize("room", [ONE_PLACE, ALL])
def test_logits_never_stand_in_memory_whole(drawn, room, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", room)
    scored, labels, weights = drawn
    take = jax.jit(jax.value_and_grad(blocks.summed_cross_entropy, argnums=(0, 1, 2)))
    taken = take.lower(*scored, labels, weights).compile().memory_analysis().temp_size_in_bytes
    assert (taken < ALL) == (room < ALL)


@pytest.mark.parametrize("room", [ONE_PLACE, ALL])
def test_ranks_are_those_of_all_logits(drawn, room, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", room)
    (hidden, table, bias), labels, _ = drawn
    labels = labels.at[:, 2:4].set(0)  # places where nothing is asked
    scores = np.asarray(hidden @ table.T) + np.asarray(bias)
    own = np.take_along_axis(scores, np.asarray(labels)[..., None], -1)
    expected = np.where(labels < 2, V - 2, (scores[..., 2:] >= own).sum(-1))
    found = np.asarray(blocks.ranks(hidden, table, bias, labels, 2))
    assert found.tolist() == expected.tolist()
    bad = np.asarray(blocks.ranks(hidden.at[1, 2, 0].set(jnp.nan).at[1, 4, 0].set(jnp.nan), table, bias, labels, 2))
    assert np.isnan(bad[1, 4])
    if room == ONE_PLACE:
        assert not np.isnan(bad[:, 2]).any()  # passed over
