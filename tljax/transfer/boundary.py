"""What crosses a stage boundary: which activations the stages above need, their shapes, and what computes them.

Legend: B rows in a batch, T tokens.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from tljax import models, trees
from tljax.models import Backbone

SHORT, LONG = 3, 5  # token counts that tell an axis of tokens from others


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of the activations of an example: `shape` of an example, or of one token where it is `ragged`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    ragged: bool

    def nbytes(self, examples: int, tokens: int) -> int:
        return (tokens if self.ragged else examples) * math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


@functools.lru_cache(maxsize=64)
def layout(backbone: Backbone, stage: int, dtype: str = "") -> tuple[Leaf, ...]:
    """The activations that stages `stage` to the head compute logits from, by name.

    What they do not read is left out: at the head that is everything but the pooled vector.

    Args:
      dtype: that floating-point activations are stored in; "": as they are.

    Raises:
      ValueError: they have an axis that belongs neither to the batch nor to tokens alone.
    """
    needed = _needed(backbone, stage)
    text = any(len(s.shape) == 2 for s in backbone.example().values())
    shapes = [_shapes(backbone, stage, tokens) for tokens in ((SHORT, LONG) if text else (SHORT, SHORT))]
    leaves = []
    for name in sorted(needed):
        short, long = (s[name].shape[1:] for s in shapes)
        ragged = short != long
        if ragged and (short[1:] != long[1:] or (short[0], long[0]) != (SHORT, LONG)):
            raise ValueError(f"{name} at {backbone.stage_names[stage]}: {short} for {SHORT} tokens, {long} for {LONG}")
        own = shapes[0][name].dtype
        stored = dtype if dtype and jnp.issubdtype(own, jnp.floating) else own
        leaves.append(Leaf(name, tuple(short[1:] if ragged else short), jnp.dtype(stored).name, ragged))
    return tuple(leaves)


def inputs(backbone: Backbone, tokens: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The smallest batch, with so many tokens where it is of text."""
    return {
        name: jax.ShapeDtypeStruct((s.shape[0], tokens) if len(s.shape) == 2 else s.shape, s.dtype)
        for name, s in backbone.example().items()
    }


def _shapes(backbone: Backbone, stage: int, tokens: int) -> dict[str, Any]:
    params = backbone.shapes()
    return jax.eval_shape(lambda p, x: backbone.run(trees.unflatten(p), x, 0, stage), params, inputs(backbone, tokens))


def largest(backbone: Backbone, tokens: int) -> int:
    """Bytes of one example's activations where they are most, of all that pass between two stages."""
    params = backbone.shapes()

    def all_of(p: trees.Flat, x: Any) -> list[Any]:
        passed = []
        for index in range(len(backbone.stages) - 1):
            x = backbone.run(trees.unflatten(p), x, index, index + 1)
            passed.append(x)
        return passed

    batch = inputs(backbone, tokens)
    rows = next(iter(batch.values())).shape[0]
    return max(trees.nbytes(x) // rows for x in jax.eval_shape(all_of, params, batch))


def _needed(backbone: Backbone, stage: int) -> set[str]:
    """The names of the activations that logits depend on; by JAX's own elimination of dead code."""
    x, params = _shapes(backbone, stage, SHORT), backbone.shapes()
    names = sorted(x)
    traced = jax.make_jaxpr(
        lambda values, p: backbone.run(trees.unflatten(p), dict(zip(names, values, strict=True)), stage)["logits"]
    )([x[name] for name in names], params)
    _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return {name for name, is_used in zip(names, used, strict=False) if is_used}


@functools.lru_cache(maxsize=8)
def make_trunk(backbone: Backbone, stages: tuple[int, ...], dtype: str = "") -> Callable[..., Any]:
    """Compiles (nested params, inputs) -> {stage: {name: activations (B, …)}} for rising `stages`, in one forward pass.

    Args:
      dtype: as for `layout`; "": as they are.
    """
    wanted = {stage: layout(backbone, stage, dtype) for stage in stages}

    @jax.jit
    def trunk(params: trees.Tree, inputs: dict[str, Any]) -> dict[int, dict[str, jax.Array]]:
        x, at, found = inputs, 0, {}
        for stage in stages:
            x, at = backbone.run(params, x, at, stage), stage
            found[stage] = {leaf.name: x[leaf.name].astype(leaf.dtype) for leaf in wanted[stage]}
        return found

    return trunk


def entering(backbone: Backbone, stage: int, x: Mapping[str, Any]) -> dict[str, Any]:
    """What enters at a stage, in the dtypes that the network has there; inputs (stage 0) as they are."""
    own = {leaf.name: leaf.dtype for leaf in layout(backbone, stage, "")} if stage else {}
    return {name: array.astype(own[name]) if name in own else array for name, array in x.items()}


def below(backbone: Backbone, flat: Mapping[str, Any], stage: int) -> trees.Flat:
    """The parameters that stages 0 to `stage` (exclusive) read."""
    read = [s.places for s in backbone.stages[:stage]] + [s.reads for s in backbone.stages[:stage]]
    return _under(flat, [place for places in read for _, place in places])


def above(backbone: Backbone, flat: Mapping[str, Any], stage: int) -> trees.Flat:
    """The parameters that stages `stage` to the head read."""
    read = [s.places for s in backbone.stages[stage:]] + [s.reads for s in backbone.stages[stage:]]
    return _under(flat, [place for places in read for _, place in places])


def _under(flat: Mapping[str, Any], places: Sequence[str]) -> trees.Flat:
    return {p: leaf for p, leaf in flat.items() if any(p == place or p.startswith(f"{place}/") for place in places)}


def identity(backbone: Backbone, digests: Mapping[str, str], stage: int) -> str:
    """SHA-256 of all that the activations at `stage` depend on, besides the inputs: weights, networks and code.

    `digests`: of each parameter, by path.

    The modules' own fields tell networks apart that have equal weights (another activation function, another number of
    heads); the source of tljax/models stands for what no field says.
    """
    mark = hashlib.sha256(trees.combined(below(backbone, digests, stage)).encode())
    for one in backbone.stages[:stage]:
        mark.update(repr((one.name, one.places, one.reads, one.module)).encode())
    mark.update(_code().encode() + jax.__version__.encode() + jax.default_backend().encode())
    return mark.hexdigest()


@functools.lru_cache(maxsize=1)
def _code() -> str:
    """SHA-256 over the source of the networks."""
    mark = hashlib.sha256()
    for path in sorted(Path(str(models.__file__)).parent.glob("*.py")):
        mark.update(path.name.encode() + path.read_bytes())
    return mark.hexdigest()
