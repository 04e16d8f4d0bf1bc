"""Checkpoints of other libraries as if Hugging Face had written them: their names and shapes, turned by a table.

A row says which of their tensors a pattern matches, what it is called here, and what is done to it. A tensor that
several rows match becomes several (timm keeps query, key and value in one); one that none matches keeps its name, so
that the conversion lists it as unexpected.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.errors import WeightsError, printable
from tljax.weights.tensors import Tensor, Weights

Change = Callable[[Any], Any]  # of an array or of its shape alone: slices and reshapes
Row = tuple[str, str, Change]  # pattern of their name, name here for re.Match.expand, what is done


def same(x: Any) -> Any:
    """The tensor as it is."""
    return x


def third(i: int) -> Change:
    """Of three that lie one after the other along the first axis, number i; ValueError where they are not three."""
    return lambda x: x.reshape(3, x.shape[0] // 3, *x.shape[1:])[i]


def outs_together(x: Any) -> Any:
    """(D, heads, width) -> (D, heads * width), and (heads, width) -> (heads * width,)."""
    return x.reshape(*x.shape[:-2], -1)


def ins_together(x: Any) -> Any:
    """(heads, width, D) -> (heads * width, D)."""
    return x.reshape(-1, x.shape[-1])


def matrix(x: Any) -> Any:
    """A convolution of one pixel, (out, in, 1, 1), as the affine map that it is."""
    return x.reshape(x.shape[:2])


def broadcast(x: Any) -> Any:
    """(C,) -> (1, 1, 1, C)."""
    return x.reshape(1, 1, 1, -1)


def translated(weights: Weights, rows: Iterable[Row], format: str) -> Weights:
    """The same tensors under Hugging Face's names; none is read.

    Args:
      weights: an opened checkpoint.
      rows: the table.
      format: "safetensors" or "flax": whose names and layout the table leads to.

    Raises:
      WeightsError: two tensors that come to the same name.
    """
    table = [(re.compile(pattern), name, change) for pattern, name, change in rows]
    tensors: dict[str, Tensor] = {}
    doubled: list[str] = []
    for name, tensor in weights.tensors.items():
        hits = [(match.expand(to), change) for pattern, to, change in table if (match := pattern.fullmatch(name))]
        for new, change in hits or [(name, same)]:
            doubled += [f"{printable(name)}: a second {printable(new)}"] if new in tensors else []
            tensors[new] = _changed(tensor, change)
    if doubled:
        raise WeightsError(str(weights.folder), f"{len(doubled)} tensor(s) of one name", details=doubled)
    return dataclasses.replace(weights, format=format, tensors=tensors)


def _changed(tensor: Tensor, change: Change) -> Tensor:
    if change is same:
        return tensor
    try:
        shape = jax.eval_shape(change, jax.ShapeDtypeStruct(tensor.shape, jnp.float32)).shape
    except (TypeError, ValueError, IndexError):
        return tensor  # of another rank than its name lets expect: the conversion says so
    return Tensor(tensor.dtype, tuple(shape), lambda: change(tensor.load()))


def shape_of(weights: Weights, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that tells a size of the network.

    Raises:
      WeightsError: it is not there, or has another rank.
    """
    tensor = weights.tensors.get(name)
    if tensor is None or len(tensor.shape) != rank or not all(tensor.shape):
        found = "is not there" if tensor is None else f"has shape {tensor.shape}"
        raise WeightsError(str(weights.folder), f"{name} {found}", f"a tensor of {rank} axes, which tells the sizes")
    return tensor.shape


def count(names: Mapping[str, Any], pattern: str) -> int:
    """How many numbers stand in place of the pattern's group: layers 0 to 11 are 12.

    >>> count({"blocks.0.w": 1, "blocks.1.w": 1, "blocks.1.v": 1}, r"blocks\\.(\\d+)\\..*")
    2
    """
    return len({match[1] for name in names if (match := re.fullmatch(pattern, name))})
