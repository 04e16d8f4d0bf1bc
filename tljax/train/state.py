"""All that a training run is at one step: split into what moves and what never does."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax import trees
from tljax.transfer import freeze


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Attributes:

    step: int32 (), optimizer steps taken.
    trainable: path -> float32 array; gradients and moments exist for these alone.
    frozen: path -> array in the compute dtype (statistics in float32); never differentiated.
    batch_stats: path -> float32 array; running statistics that training moves without a gradient.
    opt_state: optax's state over `trainable`.
    key: a key that never changes; what is random at a step is folded from (key, step).
    """

    step: jax.Array
    trainable: trees.Flat
    frozen: trees.Flat
    batch_stats: trees.Flat
    opt_state: Any
    key: jax.Array


def create(params: Mapping[str, Any], plan: freeze.FreezePlan, optimizer: optax.GradientTransformation,
           key: jax.Array, dtype: Any = jnp.float32) -> TrainState:  # fmt: skip
    """The state before the first step. What moves is copied, because steps donate it; what is frozen is not."""
    trainable, rest = freeze.split(params, plan)
    moving, frozen = trees.partition(rest, plan.moves)
    trainable, moving = ({path: jnp.array(leaf, jnp.float32) for path, leaf in p.items()} for p in (trainable, moving))
    frozen = {
        path: jnp.asarray(leaf, jnp.float32 if freeze.is_statistic(path) else dtype) for path, leaf in frozen.items()
    }
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, moving, optimizer.init(trainable), key)


def params_of(state: TrainState) -> trees.Tree:
    """The whole nested parameter dict: `split` undone."""
    return trees.unflatten(trees.join(state.trainable, state.frozen, state.batch_stats))
