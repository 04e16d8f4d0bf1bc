"""Frozen kernels as int8: a quarter of float32's bytes, for a network that trains only what stands beside them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax import trees
from tljax.errors import ConfigError
from tljax.models.kernels import Quantised

LEAST = 4096  # numbers in a kernel that is worth a scale for each output
LARGEST = 127  # and not 128, so that the range is as wide below zero as above


@dataclasses.dataclass(frozen=True)
class Saved:
    """What `quantise` did: the paths that are int8 now, and the bytes of everything before and after."""

    paths: tuple[str, ...]
    before: int
    after: int


def quantise(frozen: Mapping[str, Any], head: tuple[str, ...] = (), least: int = LEAST) -> tuple[trees.Flat, Saved]:
    """Frozen parameters with `Quantised` kernels, for `TrainState.frozen`.

    Each output channel is divided by a scale of its own, its largest absolute value / 127, and rounded (symmetric, as
    LLM.int8 has it for rows, Dettmers et al. 2022): a weight moves by at most half a scale.

    Args:
      frozen: path -> array. Only kernels are taken, of affine maps and of convolutions; not the tables of embeddings,
        whose rows are read and not multiplied, and nothing with a single axis.
      head: paths to leave as they are, or beginnings of such paths: a head computes in float32.
      least: numbers that a kernel has to have.

    Returns:
      path -> array or Quantised, in the same order; and what that saved.

    Raises:
      ConfigError: a kernel with values that are not finite, or nothing to quantise.
    """
    chosen = kernels(frozen, head, least)
    if not chosen:
        found = f"none of {len(frozen)} frozen parameters is a kernel of {least} numbers or more"
        raise ConfigError("quantise", found, "a frozen trunk", "take a strategy that freezes it, such as lora")
    if bad := [path for path in chosen if not bool(jnp.isfinite(frozen[path]).all())]:
        raise ConfigError("quantise", f"{len(bad)} kernels are not finite", "finite weights", details=bad)
    packed = {path: quantised(leaf) if path in set(chosen) else leaf for path, leaf in frozen.items()}
    return packed, Saved(tuple(chosen), nbytes(frozen), nbytes(packed))


def kernels(frozen: Mapping[str, Any], head: tuple[str, ...] = (), least: int = LEAST) -> list[str]:
    """The paths that `quantise` takes, of arrays or shapes."""
    return [path for path, leaf in frozen.items()
            if path.endswith("/kernel") and not isinstance(leaf, Quantised) and leaf.ndim in (2, 4)
            and leaf.size >= least and not path.startswith(head)]  # fmt: skip


@jax.jit
def quantised(kernel: jax.Array) -> Quantised:
    """One kernel (…, F), with a scale for each of the F outputs; an output of zeros has scale 1."""
    wide = kernel.astype(jnp.float32)
    most_F = jnp.abs(wide).reshape(-1, wide.shape[-1]).max(0)
    scale_F = jnp.where(most_F > 0, most_F / LARGEST, 1.0)
    values = jnp.round(wide / scale_F.reshape(*(1,) * (wide.ndim - 1), -1))
    return Quantised(jnp.clip(values, -LARGEST, LARGEST).astype(jnp.int8), scale_F)


def nbytes(flat: Mapping[str, Any]) -> int:
    """How many bytes the leaves take together, scales included."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(dict(flat)))
