"""All that a training run is at one step: split into what moves and what never does."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax import trees
from tljax.models.kernels import Quantised
from tljax.train import optim
from tljax.transfer import freeze


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Attributes:

    step: int32 (), optimizer steps taken.
    trainable: path -> float32 array; gradients and moments exist for these alone.
    frozen: path -> array in the compute dtype (statistics in float32), or Quantised; never differentiated.
    batch_stats: path -> float32 array; running statistics that training moves without a gradient.
    opt_state: optax's state over `trainable`.
    settled: path -> float32 array that trained in an earlier phase and is frozen since, for checkpoints and the end;
      what of it a step reads stands in `frozen`.
    key: a key that never changes; what is random at a step is folded from (key, step).
    """

    step: jax.Array
    trainable: trees.Flat
    frozen: trees.Flat
    batch_stats: trees.Flat
    opt_state: Any
    key: jax.Array
    settled: trees.Flat = dataclasses.field(default_factory=dict)


def create(params: Mapping[str, Any], plan: freeze.FreezePlan, optimizer: optax.GradientTransformation,
           key: jax.Array, dtype: Any = jnp.float32, reads: Callable[[str], bool] = lambda path: True,
           ) -> TrainState:  # fmt: skip
    """The state before the first step. What moves is copied, because steps donate it; what is frozen is not.

    `reads`: which frozen parameters the steps read; the others are left out.
    """
    trainable, rest = freeze.split(params, plan)
    moving, frozen = trees.partition(rest, plan.moves)
    trainable, moving = ({path: jnp.array(leaf, jnp.float32) for path, leaf in p.items()} for p in (trainable, moving))
    frozen = {
        path: leaf
        if isinstance(leaf, Quantised)
        else jnp.asarray(leaf, jnp.float32 if freeze.is_statistic(path) else dtype)
        for path, leaf in frozen.items()
        if reads(path)
    }
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, moving, optimizer.init(trainable), key)


def next_phase(before: TrainState, params: Mapping[str, Any], plan: freeze.FreezePlan,
               optimizer: optax.GradientTransformation, dtype: Any = jnp.float32,
               reads: Callable[[str], bool] = lambda path: True) -> TrainState:  # fmt: skip
    """The state with another plan: values as they are now, moments of what goes on training carried over by path.

    Args:
      params: the nested parameters that the run began with, for what has never trained.
      plan, optimizer, dtype, reads: of the phase that begins; as for `create`.
    """
    now = trees.flatten(params) | before.settled | before.trainable | before.batch_stats
    fresh = create(trees.unflatten(now), plan, optimizer, before.key, dtype, reads)
    ended = {path: leaf for path, leaf in (before.settled | before.trainable | before.batch_stats).items()
             if path not in fresh.trainable and path not in fresh.batch_stats}  # fmt: skip
    return dataclasses.replace(fresh, step=before.step, opt_state=optim.carried(before.opt_state, fresh.opt_state),
                               settled=ended)  # fmt: skip


def learned(state: TrainState) -> trees.Flat:
    """What has trained, as it is scored and exported: its running mean, where the optimizer keeps one."""
    return state.trainable | optim.mean_of(state.opt_state)


def params_of(state: TrainState) -> trees.Tree:
    """The whole nested parameter dict: `split` undone."""
    return trees.unflatten(trees.join(learned(state), state.frozen, state.batch_stats))
