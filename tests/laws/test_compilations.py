"""Law 10: compilations are at most bucket shapes x {train, eval}; the backward pass ends where training begins."""

import jax
import numpy as np
import pytest
from cases import batch_of, make_case
from jax.extend.core import jaxprs_in_params

from tljax import trees
from tljax.train.step import make_eval_step


def lowered(case, rows: int = 8):
    now = case.state()
    return case.step().gradient.lower(
        now.trainable, now.frozen, now.batch_stats, now.step, now.key, batch_of("bert", rows)
    )


def flops(case) -> float:
    return lowered(case).compile().cost_analysis()["flops"]


def matrix_products(jaxpr) -> int:
    """How many matrix products run, those of a function as often as it is called."""
    inner = sum(matrix_products(part) for equation in jaxpr.eqns for part in jaxprs_in_params(equation.params))
    return inner + sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)


def test_one_compilation_a_shape(strategy):
    case = make_case("bert", strategy)
    step, evaluate, now = case.step(), make_eval_step(case.backbone), case.state()
    for shared in (step.gradient, evaluate):  # with equal networks before
        shared.clear_cache()
    lengths = (4, 8, 12)
    for i in range(9):
        batch = batch_of("bert", 4, seed=i, length=lengths[i % 3])
        now, _ = step(now, batch)
        evaluate(trees.unflatten(trees.join(now.trainable, now.frozen)), batch["inputs"])
    assert step.gradient._cache_size() == len(lengths)
    assert step.update._cache_size() == 1  # it knows no shape of a batch
    assert evaluate._cache_size() == len(lengths)


def test_a_frozen_trunk_has_no_backward_pass():
    """The matrix products of a step, counted in its jaxpr: 3 for each one that trains, 1 for each below."""

    def products(strategy: str) -> int:
        case = make_case("bert", strategy, dropout=0.0)
        now = case.state()
        arguments = now.trainable, now.frozen, now.batch_stats, now.step, now.key, batch_of("bert", 8)
        return matrix_products(jax.make_jaxpr(case.step().gradient)(*arguments).jaxpr)

    # A layer has 6 parameter products (query, key, value, output, two of the block) and 2 of attention.
    layer, pooler_and_head = 8, 2
    head = 3 * layer + 1 + 2  # forward everywhere; the head's input is frozen, so its gradient is for weights alone
    assert products("feature_extraction") == head
    full = products("full")
    assert 3 * (3 * layer + pooler_and_head) - 1 <= full <= 3 * (3 * layer + pooler_and_head)
    # last_2: layer_0 forward only; in layer_1 the gradient to its input is not taken.
    assert products("last_k") < full - 2 * layer + 2


@pytest.mark.parametrize(("cheaper", "dearer"), [("feature_extraction", "last_k"), ("last_k", "embeddings_frozen")])
def test_fewer_flops_the_more_is_frozen(cheaper, dearer):
    assert flops(make_case("bert", cheaper)) < 0.9 * flops(make_case("bert", dearer))


def test_buckets_bound_the_shapes():
    from tljax.data import batching

    lengths = np.random.default_rng(0).integers(3, 60, 1000)
    for most in (1, 3, 6):
        edges = batching.buckets(lengths, most)
        shapes = {p.length for epoch in range(3) for p in batching.plan(0, epoch, 1000, lengths, 32, edges)}
        assert len(shapes) <= len(edges) <= most
