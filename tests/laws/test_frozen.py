"""Law 3: frozen parameters stay bit-identical, own no optimizer memory, and influence no clip, norm, decay or log."""

import functools

import jax
import numpy as np
import optax
import pytest
from cases import batch_of, make_case

from tljax import trees
from tljax.transfer.freeze import FROZEN


def apply(optimizer: optax.GradientTransformation, grads, trainable):
    """One update, compiled as a whole."""

    @jax.jit
    def move(grads, trainable):
        with jax.numpy_dtype_promotion("standard"):  # optax raises float decay rates to int32 counts
            updates, _ = optimizer.update(grads, optimizer.init(trainable), trainable)
        return optax.apply_updates(trainable, updates)

    return move(grads, trainable)


def test_frozen_is_frozen_and_the_rest_moves(pair):
    row, strategy = pair
    only_the_trainable_moves(make_case(row, strategy))


@pytest.mark.parametrize("rule", ["sgd", "lion", "adafactor"])
def test_under_every_optimizer(row, rule):
    only_the_trainable_moves(make_case(row, "custom", name=rule))


def only_the_trainable_moves(case):
    now, step = case.state(), case.step()
    before = trees.digests(trees.flatten(case.params))
    for i in range(3):
        now, metrics = step(now, batch_of(case.family, 4, seed=i))
        assert bool(metrics["finite"])
    after = trees.digests(trees.join(now.trainable, now.frozen))
    moved = {path for path in before if before[path] != after[path]}
    # A position or word that no example holds, and a key's bias (softmax ignores it), need not move.
    assert moved <= {path for path, label in case.plan.labels.items() if label != FROZEN}
    for path, label in case.plan.labels.items():
        if label != FROZEN and path.endswith("/kernel"):
            assert path in moved, path


@pytest.mark.parametrize("strategy", ["feature_extraction", "last_k", "custom", "embeddings_frozen"])
def test_stages_below_the_lowest_trainable_one_run_in_eval_mode(row, strategy):
    """The loss of a step is that of the lower stages without dropout and of the upper ones with it."""
    case = make_case(row, strategy, dropout=0.5)
    now, batch = case.state(), batch_of(row, 4)
    _, metrics, _ = case.step().gradient(now.trainable, now.frozen, now.batch_stats, now.step, now.key, batch)

    @functools.partial(jax.jit, static_argnames="train")
    def loss(train: bool):
        key = jax.random.fold_in(now.key, now.step)
        below = case.backbone.run(case.params, batch["inputs"], 0, case.plan.lowest, train, key)
        x = case.backbone.run(case.params, below, case.plan.lowest, None, True, key)
        return case.objective.loss(x, batch, now.step) / batch["weights"].sum()

    assert case.plan.lowest > 0
    assert float(metrics["loss"]) == pytest.approx(float(loss(train=False)), rel=1e-5)
    assert float(metrics["loss"]) != pytest.approx(float(loss(train=True)), rel=1e-3)  # else this test shows nothing


def test_no_optimizer_memory_for_frozen_leaves(pair):
    row, strategy = pair
    case = make_case(row, strategy)
    trainable = sum(leaf.size for leaf in case.state().trainable.values())
    moments = [leaf for leaf in jax.tree.leaves(case.state().opt_state) if leaf.ndim]
    assert sum(leaf.nbytes for leaf in moments) == 2 * 4 * trainable


def test_frozen_gradients_influence_neither_clip_nor_norm(pair):
    """The update equals the one from a gradient that was never taken for the frozen part."""
    row, strategy = pair
    case = make_case(row, strategy, name="sgd", dropout=0.0, clip_norm=0.01)  # Adam would divide by rounding noise
    batch = batch_of(row, 4)
    now = case.state()

    def loss(trainable):
        return case.loss(trees.unflatten(trees.join(trainable, now.frozen)), batch)

    grads = jax.jit(jax.grad(loss))(now.trainable)
    norm = float(optax.tree.norm(grads))
    trainable, frozen = dict(now.trainable), dict(now.frozen)
    expected = apply(case.optimizer(), grads, trainable)
    after, metrics = case.step()(case.state(), batch)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)  # another order of summation
    for path, leaf in expected.items():
        np.testing.assert_allclose(after.trainable[path], leaf, atol=1e-7)
    assert all(np.array_equal(after.frozen[path], leaf) for path, leaf in frozen.items())


def test_decay_does_not_touch_frozen_nor_biases_nor_norms(row):
    case = make_case(row, "last_k", learning_rate=0.1, weight_decay=0.5, dropout=0.0)
    trainable = case.state().trainable
    after = apply(case.optimizer(), jax.tree.map(np.zeros_like, trainable), trainable)
    for path, leaf in trainable.items():
        kept = 1 - 0.1 * 0.5 if leaf.ndim >= 2 else 1.0
        np.testing.assert_allclose(after[path], kept * np.asarray(leaf), rtol=1e-6)
