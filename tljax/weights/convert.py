"""Named tensors <-> parameters, with every name on both sides accounted for exactly once."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tljax import trees
from tljax.errors import WeightsError
from tljax.weights import rules
from tljax.weights.families import FAMILIES
from tljax.weights.files import READABLE, Weights, aligned

MAX_LISTED = 100  # problems in one message


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did besides copying.

    Attributes:
      reinitialised: parameters that the checkpoint does not give; the caller initialises them.
      dropped: tensors of the checkpoint that were not used.
      resized: parameters that were interpolated to another image size.
    """

    reinitialised: tuple[str, ...]
    dropped: tuple[str, ...]
    resized: tuple[str, ...]


def convert(weights: Weights, family: str, target: Mapping[str, jax.ShapeDtypeStruct],
            reinitialise: Callable[[str], bool] = lambda path: False,
            resize: bool = False) -> tuple[trees.Flat, Report]:  # fmt: skip
    """Reads the parameters of a network from a checkpoint.

    Each tensor goes to the device before the next one is read, the largest first, so that the host holds
    the weights once.

    Args:
      weights: an opened checkpoint.
      family: the key in `FAMILIES`.
      target: path -> shape and dtype of every parameter of the network.
      reinitialise: the parameters to leave out; what the checkpoint has for them is dropped.
      resize: whether position embeddings may be interpolated.

    Returns:
      path -> jax array for all of `target` but the reinitialised ones, in sorted order; and the report.

    Raises:
      WeightsError: lists everything that is missing, unexpected, doubled, of another shape or dtype, not
        finite, or all zeros. Then nothing is loaded.
    """
    table = FAMILIES[family]
    problems: list[str] = []
    claims: dict[str, str] = {}
    plan: list[tuple[str, str, rules.Axes]] = []
    reinitialised, dropped, resized = [], [], []
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
            resizing = resize and path in table.resizable and _resizable(have.shape, want.shape)
            if have.dtype not in READABLE:
                problems.append(f"{present[0]}: dtype {have.dtype}, expected one of {', '.join(READABLE)}")
            if have.shape != _stored(want.shape, axes) and not resizing:
                problems.append(f"{present[0]}: shape {have.shape}, expected {_stored(want.shape, axes)}")
            elif have.dtype in READABLE:
                plan.append((path, present[0], axes))
                resized += [path] if have.shape != _stored(want.shape, axes) else []
    for name in weights.tensors.keys() - claims.keys():
        kind = rules.fate(table, name)
        dropped += [name] if kind == "droppable" else []
        problems += [f"{name}: unexpected, no parameter has this name"] if kind == "unexpected" else []
    flat: trees.Flat = {}
    for path, name, axes in sorted(plan, key=lambda step: -math.prod(target[step[0]].shape)):
        zero_allowed = rules.may_be_zero(table, path)
        leaf, faults = _placed(weights, name, axes, target[path], zero_allowed, path in resized)
        problems += faults
        if not problems:
            flat[path] = leaf
    if problems:
        found = f"{len(problems)} problem(s) with the weights, nothing was loaded"
        raise WeightsError(str(weights.folder), found, "sound tensors of the names and shapes that config.json says",
                           details=_short(sorted(problems)))  # fmt: skip
    return {path: flat[path] for path in sorted(flat)}, Report(*map(_sorted, (reinitialised, dropped, resized)))


def _placed(weights: Weights, name: str, axes: rules.Axes, want: jax.ShapeDtypeStruct, zero_allowed: bool,
            resize: bool) -> tuple[jax.Array | None, list[str]]:  # fmt: skip
    """One tensor on the device, in the parameter's layout; or what is wrong with it.

    On a CPU the array that was read becomes the parameter, without another copy, because it is aligned.
    """
    array = weights.read(name)
    if faults := _unsound(name, array, zero_allowed):
        return None, faults
    if resize:
        array = resize_positions(array, want.shape[1])
    if axes:
        turned = aligned(want.shape, array.dtype)
        np.copyto(turned, np.transpose(array, axes))
        array = turned
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
    for path, leaf in flat.items():
        if trunk_only and table.in_head(path):
            continue
        array = np.asarray(leaf, np.float32)
        (name, *_), axes = rules.lookup(table, path, array.ndim)
        array = np.transpose(array, np.argsort(axes)) if axes else array
        tensors[name.removeprefix(f"{table.base}.") if trunk_only else name] = np.asarray(array, order="C")
        if name.endswith(".running_var"):  # PyTorch counts the batches, and misses the count where there is none
            tensors[name.replace(".running_var", ".num_batches_tracked")] = np.zeros((), np.int64)
    return tensors


def resize_positions(positions: np.ndarray, tokens: int) -> np.ndarray:
    """Position embeddings (1, 1 + n^2, D) for another grid (1, tokens, D); the class token keeps its own.

    Bicubic as torch.nn.functional.interpolate(mode="bicubic", align_corners=False) computes it, which is what
    transformers' `interpolate_pos_encoding` uses: kernel of Keys with a = -0.75, clamped border, no antialiasing.
    """
    old, new = math.isqrt(positions.shape[1] - 1), math.isqrt(tokens - 1)
    grid = positions[0, 1:].reshape(old, old, -1)
    matrix = _bicubic(old, new)
    grid = np.einsum("oi,pj,ijd->opd", matrix, matrix, grid, optimize=True)
    return np.concatenate([positions[0, :1], grid.reshape(new * new, -1)])[None].astype(positions.dtype)


def _bicubic(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix that resamples one axis."""
    a, matrix = -0.75, np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        first = math.floor(centre)
        for tap in range(first - 1, first + 3):
            x = abs(centre - tap)
            near = ((a + 2) * x - (a + 3)) * x * x + 1
            far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
            matrix[row, min(max(tap, 0), old - 1)] += near if x <= 1 else far
    return matrix


def _stored(shape: tuple[int, ...], axes: rules.Axes) -> tuple[int, ...]:
    """The shape in the checkpoint of a parameter of `shape`."""
    return tuple(shape[i] for i in np.argsort(axes)) if axes else tuple(shape)


def _resizable(have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    square = all(len(s) == 3 and s[1] > 1 and math.isqrt(s[1] - 1) ** 2 == s[1] - 1 for s in (have, want))
    return square and have[0] == want[0] and have[2] == want[2]


def _unsound(name: str, array: np.ndarray, zero_allowed: bool) -> list[str]:
    if not (finite := np.isfinite(array)).all():
        return [f"{name}: {array.size - int(finite.sum())} of {array.size} values are NaN or infinite"]
    if array.ndim >= 2 and array.size and not zero_allowed and not array.any():
        return [f"{name}: all {array.size} values are zero"]
    return []


def _short(problems: list[str]) -> list[str]:
    more = len(problems) - MAX_LISTED
    return problems if more <= 0 else [*problems[:MAX_LISTED], f"and {more} more"]


def _sorted(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
