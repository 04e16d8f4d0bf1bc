"""Many small steps as one program: to hand a step over takes longer than to take it, where that is of a head alone.

K steps in a stack of batches (K, B, …), of which the first `steps` are taken.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tljax.train.state import TrainState
from tljax.train.step import Batch, Metrics, TrainStep

MOST_STEPS = 64
STACK_BYTES = 8 * 2**20
BATCH_BYTES = 2**20  # of a batch; what is larger takes longer to compute than to hand over


def length(batch: Batch) -> int:
    """How many batches like this one are taken at a time; 1: they are too large for that to pay."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    return 1 if size > BATCH_BYTES else max(min(MOST_STEPS, STACK_BYTES // size), 1)


def stacked(batch: Batch, steps: int) -> Batch:
    """The shapes of a stack of batches."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype), batch)


@dataclasses.dataclass(frozen=True)
class Stretch:
    """As `TrainStep`, for stacks of batches that say how many `steps` of them are to be taken.

    One program takes any number of steps, by a loop whose body is compiled once: where a run is cut into stretches
    changes no bit of what comes out.
    """

    step: TrainStep
    run: Any

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes batch["steps"] steps; each metric is (K,), of those that were taken. Donates as `TrainStep` does."""
        stack = {name: leaf for name, leaf in batch.items() if name != "steps"}
        moving = state.trainable, state.batch_stats, state.opt_state, state.step
        (trainable, stats, opt_state, count), metrics = self.run(moving, state.frozen, state.key, stack, batch["steps"])
        return TrainState(count, trainable, state.frozen, stats, opt_state, state.key, state.settled), metrics

    def compile(self, state: TrainState, stack: Batch) -> None:
        """Compiles for stacks of this shape; the steps then find the program."""
        moving = state.trainable, state.batch_stats, state.opt_state, state.step
        self.run.lower(moving, state.frozen, state.key, stack, jax.ShapeDtypeStruct((), jnp.int32)).compile()


def make_stretch(step: TrainStep) -> Stretch:
    """Many steps from one."""

    def taken(moving: Any, frozen: Any, key: jax.Array, batch: Batch) -> tuple[Any, Metrics]:
        trainable, stats, opt_state, count = moving
        found = step.gradient(trainable, frozen, stats, count, key, batch)
        *after, rate = step.update(*found, trainable, stats, opt_state, count)
        return tuple(after), found[1] | {"learning_rate": rate}

    def run(moving: Any, frozen: Any, key: jax.Array, stack: Batch, steps: jax.Array) -> tuple[Any, Metrics]:
        def one(index: jax.Array, carried: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            batch = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 0, False), stack)
            moving, metrics = taken(carried[0], frozen, key, batch)
            return moving, jax.tree.map(lambda all_K, own: all_K.at[index].set(own), carried[1], metrics)

        first = jax.tree.map(lambda leaf: leaf[0], stack)
        _, shapes = jax.eval_shape(taken, moving, frozen, key, first)
        blank = jax.tree.map(lambda s: jnp.zeros((len(stack["weights"]), *s.shape), s.dtype), shapes)
        return jax.lax.fori_loop(0, steps, one, (moving, blank))

    return Stretch(step, jax.jit(run, donate_argnums=0))
