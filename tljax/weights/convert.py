"""Named tensors <-> parameters, with every name on both sides accounted for exactly once."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from tljax import trees
from tljax.errors import WeightsError
from tljax.weights import adapt as adapting
from tljax.weights import rules
from tljax.weights.adapt import Change
from tljax.weights.families import FAMILIES
from tljax.weights.tensors import READABLE, Weights, aligned

MAX_LISTED = 100  # problems in one message
LANGUAGE_HEAD = {"safetensors": "lm_head.weight", "flax": "lm_head/kernel"}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did besides copying.

    Attributes:
      reinitialised: parameters that the checkpoint does not give; the caller initialises them.
      dropped: tensors of the checkpoint that were not used.
      adapted: parameters that were changed to another image size, other channels or more words.
    """

    reinitialised: tuple[str, ...]
    dropped: tuple[str, ...]
    adapted: tuple[str, ...]


def convert(weights: Weights, family: str, target: Mapping[str, jax.ShapeDtypeStruct],
            reinitialise: Callable[[str], bool] = lambda path: False,
            adapt: Collection[str] = ()) -> tuple[trees.Flat, Report]:  # fmt: skip
    """Reads the parameters of a network from a checkpoint.

    Each tensor goes to the device before the next one is read, the largest first, so that the host holds
    the weights once.

    Args:
      weights: an opened checkpoint.
      family: the key in `FAMILIES`.
      target: path -> shape and dtype of every parameter of the network.
      reinitialise: the parameters to leave out; what the checkpoint has for them is dropped.
      adapt: what may have another shape than the checkpoint's, of adapt.KINDS.

    Returns:
      path -> jax array for all of `target` but the reinitialised ones, in sorted order; and the report.

    Raises:
      WeightsError: lists everything that is missing, unexpected, doubled, of another shape or dtype, not
        finite, or all zeros. Then nothing is loaded.
    """
    table = FAMILIES[family]
    problems: list[str] = []
    claims: dict[str, str] = {}
    plan: list[tuple[str, str, rules.Axes, Change | None]] = []
    reinitialised, dropped, adapted = [], [], []
    for path, want in target.items():
        candidates, axes = rules.sources(table, weights.format, path, len(want.shape))
        present = [name for name in candidates if name in weights.tensors]
        for name in present:
            if claims.setdefault(name, path) != path:
                problems.append(f"{name}: matched by two rules, for {claims[name]} and {path}")
        if reinitialise(path):
            reinitialised.append(path)
            dropped += present
        elif len(present) != 1:
            problems.append(f"{path}: missing, expected {candidates[0]} {_stored(want.shape, axes)}" if not present
                            else f"{path}: doubled, found {' and '.join(present)}")  # fmt: skip
        else:
            have = weights.tensors[present[0]]
            own = _turned(have.shape, axes)
            change = adapting.change(path, own, want.shape, table, adapt) if own != want.shape else None
            if have.dtype not in READABLE:
                problems.append(f"{present[0]}: dtype {have.dtype}, expected one of {', '.join(READABLE)}")
            if own != want.shape and change is None:
                problems.append(f"{present[0]}: shape {have.shape}, expected {_stored(want.shape, axes)}")
            elif have.dtype in READABLE:
                plan.append((path, present[0], axes, change))
                adapted += [path] if change else []
    for name in weights.tensors.keys() - claims.keys():
        kind = rules.fate(table, name)
        dropped += [name] if kind == "droppable" else []
        problems += [f"{name}: unexpected, no parameter has this name"] if kind == "unexpected" else []
    problems += _untied(weights, table, target, {path: name for path, name, *_ in plan})
    flat: trees.Flat = {}
    for path, name, axes, change in sorted(plan, key=lambda step: -math.prod(target[step[0]].shape)):
        zero_allowed = rules.may_be_zero(table, path)
        leaf, faults = _placed(weights, name, axes, target[path], zero_allowed, change)
        problems += faults
        if not problems:
            flat[path] = leaf
    if problems:
        found = f"{len(problems)} problem(s) with the weights, nothing was loaded"
        raise WeightsError(str(weights.folder), found, "sound tensors of the names and shapes that config.json says",
                           details=_short(sorted(problems)))  # fmt: skip
    return {path: flat[path] for path in sorted(flat)}, Report(*map(_sorted, (reinitialised, dropped, adapted)))


def _placed(weights: Weights, name: str, axes: rules.Axes, want: jax.ShapeDtypeStruct, zero_allowed: bool,
            change: Change | None) -> tuple[jax.Array | None, list[str]]:  # fmt: skip
    """One tensor on the device, in the parameter's layout; or what is wrong with it.

    On a CPU the array that was read becomes the parameter, without another copy, because it is aligned.
    """
    array = weights.read(name)
    if faults := _unsound(name, array, zero_allowed):
        return None, faults
    turned = np.transpose(array, axes) if axes else array
    if axes or change:
        array = aligned(want.shape, array.dtype)
        np.copyto(array, change(turned) if change else turned)
    return jax.device_put(array.astype(want.dtype, copy=False)).block_until_ready(), []


def to_safetensors(flat: Mapping[str, Any], family: str, trunk_only: bool = False) -> dict[str, np.ndarray]:
    """Parameters under the names and in the layout that transformers writes, as contiguous float32.

    Args:
      flat: path -> array.
      family: the key in `FAMILIES`.
      trunk_only: leave out the head, and the base's prefix of every name, as the class without a head has it.
    """
    table = FAMILIES[family]
    tensors = {}
    for path, array in _arrays(flat, table, trunk_only):
        (name, *_), axes = rules.lookup(table, path, array.ndim)
        array = np.transpose(array, np.argsort(axes)) if axes else array
        tensors[name.removeprefix(f"{table.base}.") if trunk_only else name] = np.asarray(array, order="C")
        if name.endswith(".running_var"):  # PyTorch counts the batches, and misses the count where there is none
            tensors[name.replace(".running_var", ".num_batches_tracked")] = np.zeros((), np.int64)
    return tensors


def to_flax(flat: Mapping[str, Any], family: str, trunk_only: bool = False) -> trees.Tree:
    """The same as the tree that Hugging Face's Flax classes wrote, batch statistics in a collection of their own."""
    table = FAMILIES[family]
    named: dict[str, trees.Flat] = {"params": {}, "batch_stats": {}}
    for path, array in _arrays(flat, table, trunk_only):
        _, axes = rules.sources(table, "flax", path, array.ndim)
        array = np.transpose(array, np.argsort(axes)) if axes else array
        where = named["batch_stats" if path.endswith(("/mean", "/var")) else "params"]
        where[path.removeprefix(f"{table.base}/") if trunk_only else path] = np.asarray(array, order="C")
    if not named["batch_stats"]:
        return trees.unflatten(named["params"])
    return {collection: trees.unflatten(leaves) for collection, leaves in named.items()}


def _arrays(flat: Mapping[str, Any], table: rules.Family, trunk_only: bool) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in flat.items():
        if not (trunk_only and table.in_head(path)):
            yield path, np.asarray(leaf, np.float32)


def _turned(shape: tuple[int, ...], axes: rules.Axes) -> tuple[int, ...]:
    """The shape here of a tensor of `shape` in the checkpoint; of another rank, the shape as it is."""
    return tuple(shape[i] for i in axes) if axes and len(axes) == len(shape) else tuple(shape)


def _untied(weights: Weights, table: rules.Family, target: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """What is wrong where the head is tied to a table and yet has a matrix of its own: transformers reads that one."""
    own = LANGUAGE_HEAD[weights.format]
    has_head = any(path.startswith("lm_head/") or table.in_head(path) for path in target)
    if has_head or own not in weights.tensors or table.tied not in names:
        return []
    if weights.tensors[own].dtype not in READABLE:
        return [f"{own}: dtype {weights.tensors[own].dtype}, expected one of {', '.join(READABLE)}"]
    head = weights.read(own)
    same = np.array_equal(head if weights.format == "safetensors" else head.T, weights.read(names[table.tied]))
    return [] if same else [f"{own}: another matrix than {names[table.tied]}, to which config.json ties it"]


def _stored(shape: tuple[int, ...], axes: rules.Axes) -> tuple[int, ...]:
    """The shape in the checkpoint of a parameter of `shape`."""
    return tuple(shape[i] for i in np.argsort(axes)) if axes else tuple(shape)


def _unsound(name: str, array: np.ndarray, zero_allowed: bool) -> list[str]:
    if not (finite := np.isfinite(array)).all():
        return [f"{name}: {array.size - int(finite.sum())} of {array.size} values are NaN or infinite"]
    if name.endswith(("running_var", "/var")) and (array < 0).any():
        return [f"{name}: {int((array < 0).sum())} of {array.size} variances are below 0"]
    if array.ndim >= 2 and array.size and not zero_allowed and not array.any():
        return [f"{name}: all {array.size} values are zero"]
    return []


def _short(problems: list[str]) -> list[str]:
    more = len(problems) - MAX_LISTED
    return problems if more <= 0 else [*problems[:MAX_LISTED], f"and {more} more"]


def _sorted(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
