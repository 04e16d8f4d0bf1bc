"""Recomputing what a stage needs on the way back changes no gradient, and keeps less."""

import dataclasses

import checkpoints
import jax
import numpy as np
import pytest

from tljax import models, trees
from tljax.config import OptimConfig
from tljax.train import optim, state, step
from tljax.transfer import freeze

DEEP = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4,
        "intermediate_size": 256, "vocab_size": 50, "max_position_embeddings": 64}  # fmt: skip


def gradient(backbone, params, inputs, strategy="full"):
    """The compiled gradient of a step, with what it is called with."""
    rows = len(next(iter(inputs.values())))
    batch = {"inputs": inputs, "labels": np.arange(rows, dtype=np.int32) % 3, "weights": np.ones(rows, np.float32)}
    plan = freeze.plan(backbone, strategy, k=1)
    settings = OptimConfig()
    optimizer = optim.make(settings, plan, 10)
    now = state.create(params, plan, optimizer, jax.random.key(0))
    run = step.make_train_step(backbone, plan, optimizer, optim.schedule(settings, 10))
    given = now.trainable, now.frozen, now.batch_stats, now.step, now.key, batch
    return run.gradient.lower(*given).compile(), given


@pytest.mark.parametrize("name", ["bert", "llama", "vit", "resnet"])
@pytest.mark.parametrize("strategy", ["full", "last_k"])
def test_gradients_and_statistics_stay(name, strategy):
    model, (inputs, _) = checkpoints.load(name, dropout=0.1), checkpoints.given(name)
    found = []
    for remat in (False, True):
        backbone = dataclasses.replace(model.backbone, remat=remat)
        compiled, given = gradient(backbone, model.params, inputs, strategy)
        found.append(compiled(*given))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * max(1.0, float(np.abs(one).max())))


def test_less_is_kept_for_the_way_back():
    """What the backward pass is handed, parameters not counted; XLA's CPU backend frees nothing of it earlier, so that
    its own count of memory shows nothing."""
    backbone = models.build(DEEP, num_labels=3)
    params = trees.unflatten(backbone.init(jax.random.key(0)))
    inputs = {"input_ids": jax.numpy.full((16, 64), 7), "attention_mask": jax.numpy.ones((16, 64), "int32")}
    kept, work = [], []
    for remat in (False, True):
        made = dataclasses.replace(backbone, remat=remat)

        def loss(params, made=made):
            return made.run(params, inputs, train=True, key=jax.random.key(0))["logits"].sum()

        _, back = jax.vjp(loss, params)
        own = {id(leaf) for leaf in jax.tree.leaves(params)}
        kept.append(sum(leaf.nbytes for leaf in jax.tree.leaves(back) if id(leaf) not in own))
        work.append(gradient(made, params, inputs)[0].cost_analysis()["flops"])
    assert kept[1] < kept[0] / 8
    assert 1.15 < work[1] / work[0] < 1.4
