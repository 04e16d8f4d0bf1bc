"""What a compiled train step costs: FLOPs and memory, as the compiler says."""

import dataclasses
from typing import Any

import jax

from tljax import mesh
from tljax.errors import ConfigError
from tljax.train.state import TrainState
from tljax.train.step import Batch, TrainStep


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one program.

    Attributes:
      flops: additions and multiplications, of elements too; exp, tanh, erf and their kin are not among them.
      argument_bytes, output_bytes: what goes in and comes out.
      temp_bytes: the most that it takes besides.
      bytes_accessed: read and written by its kernels, in all.
    """

    flops: float
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    bytes_accessed: float = 0.0


def compiled(step: TrainStep, state: TrainState, batch: Batch) -> jax.stages.Compiled:
    """The part of a step that knows the network: loss and gradient (`TrainStep.gradient`).

    Args:
      state, batch: arrays or jax.ShapeDtypeStruct.
    """
    lowered = step.gradient.lower(state.trainable, state.frozen, state.batch_stats, state.step, state.key, batch)
    return lowered.compile()


def cost(program: jax.stages.Compiled) -> Cost:
    """What a program costs on one device.

    Raises:
      ConfigError: a platform whose compiler does not say.
    """
    found: Any = program.cost_analysis()
    memory: Any = program.memory_analysis()
    if not found or "flops" not in found or memory is None:
        raise ConfigError("the cost of a program", f"no analysis on {jax.default_backend()}", "flops and bytes",
                          "count on a CPU: JAX_PLATFORMS=cpu")  # fmt: skip
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return Cost(float(found["flops"]), *sizes, float(found.get("bytes accessed", 0.0)))


def flops(program: jax.stages.Compiled, least: float) -> float:
    """FLOPs of a step on one device: as the compiler counts them, but at least those of its products, `least`
    (transfer/floor.py): the body of a loop, over micro-batches or over blocks of a loss, it counts once.
    """
    return max(cost(program).flops, least)


def peak_bytes(gradient: jax.stages.Compiled, update: jax.stages.Compiled, state: TrainState) -> int:
    """The most that a step takes on one device: parameters, gradients, moments, activations, as they stand at once."""
    frozen, moments = mesh.local_bytes(state.frozen), mesh.local_bytes(state.opt_state)
    first, second = cost(gradient), cost(update)
    aliased: Any = update.memory_analysis()
    while_gradient = first.argument_bytes + first.temp_bytes + first.output_bytes + moments
    while_update = (
        second.argument_bytes + second.temp_bytes + second.output_bytes - aliased.alias_size_in_bytes + frozen
    )
    return max(while_gradient, while_update)
