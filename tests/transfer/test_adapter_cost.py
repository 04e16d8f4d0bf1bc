"""Law 10 with adapters: a step's products are the forward pass and the gradients to inputs, and within 5 % no more."""

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tljax import models
from tljax.config import OptimConfig
from tljax.train import optim, state, step
from tljax.transfer import adapters, freeze

LAYERS, D, WIDE, B, T, LABELS = 4, 256, 1024, 4, 64, 10
CONFIG = {"model_type": "bert", "vocab_size": 800, "hidden_size": D, "num_hidden_layers": LAYERS,
          "intermediate_size": WIDE, "num_attention_heads": 4, "max_position_embeddings": T}  # fmt: skip


def products(jaxpr):
    """Multiplications and additions of all products of matrices in a program."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (axes, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * int(np.prod(eqn.outvars[0].aval.shape)) * int(np.prod([shape[axis] for axis in axes]))
        total += sum(products(inner) for inner in jaxprs_in_params(eqn.params))
    return total


def floor(top, queries):
    """Forward through all layers, back through `top` of them; in the lowest of those not to the input of query, key and
    value, below which nothing trains, nor, where `queries` are not adapted, to these. Attention has two products, and
    four on the way back."""
    maps, scores = 2 * B * T * (4 * D * D + 2 * D * WIDE), 2 * B * T * T * D
    forward = LAYERS * (maps + 2 * scores) + 2 * B * D * (D + LABELS)
    back = top * (maps + 4 * scores) - 2 * B * T * 3 * D * D + 2 * B * D * (D + 2 * LABELS)
    return forward + back - (not queries) * scores


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "ia3"])
def test_a_step_costs_the_floor_and_rank_work(kind, layers):
    plain = models.build(CONFIG, num_labels=LABELS, dropout=0.0)
    net = adapters.adapted(plain, adapters.Adapter(kind, rank=8, layers=layers), "bert")
    plan = freeze.plan(net, kind)
    params = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in net.shapes().items()}
    optimizer = optim.make(OptimConfig(), plan, 10)
    now = state.create(params, plan, optimizer, jax.random.key(0))
    ids = np.zeros((B, T), np.int32)
    batch = {"inputs": {"input_ids": ids, "attention_mask": ids + 1}, "labels": np.zeros(B, np.int32),
             "weights": np.ones(B, np.float32)}  # fmt: skip
    run = step.make_train_step(net, plan, optimizer, optim.schedule(OptimConfig(), 10))
    program = jax.make_jaxpr(run.gradient)(now.trainable, now.frozen, now.batch_stats, now.step, now.key, batch)
    ratio = products(program.jaxpr) / floor(layers or LAYERS, kind != "ia3")
    assert 0.999 < ratio < 1.05
