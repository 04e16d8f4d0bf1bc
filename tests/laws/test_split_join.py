"""Law 1: join(split(params, labels)) is params, bit for bit."""

import random

import jax
import numpy as np
import pytest
from cases import make_case

from tljax import trees
from tljax.transfer import freeze


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_every_strategy(pair):
    row, strategy = pair
    case = make_case(row, strategy)
    trainable, frozen = freeze.split(case.params, case.plan)
    assert same(trees.unflatten(trees.join(trainable, frozen)), case.params)
    assert trainable.keys() == {path for path, label in case.plan.labels.items() if label != freeze.FROZEN}
    assert not trainable.keys() & frozen.keys()


@pytest.mark.parametrize("seed", range(20))
def test_random_trees_and_labels(seed):
    rng = random.Random(seed)

    def grow(depth):
        names = rng.sample(["a", "b", "kernel", "0", "1", "layer.2"], rng.randint(1, 4))
        return {
            n: grow(depth - 1)
            if depth and rng.random() < 0.6
            else np.random.default_rng(seed).random(rng.randint(0, 3))
            for n in names
        }

    tree = grow(4)
    labels = {path: rng.choice(["frozen", "body", "head"]) for path in trees.flatten(tree)}
    plan = freeze.FreezePlan(labels, {}, 0)
    assert same(trees.unflatten(trees.join(*freeze.split(tree, plan))), tree)


def test_a_name_in_two_parts_is_refused():
    with pytest.raises(ValueError, match="more than one part"):
        trees.join({"a": 1}, {"a": 2})
