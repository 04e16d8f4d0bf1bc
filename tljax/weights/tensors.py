"""Named tensors that are read one at a time, whatever kind of file holds them."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tljax import trees
from tljax.errors import WeightsError, printable
from tljax.weights.hfconfig import AGAIN, opened

READABLE = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
MAX_NAMES = 1_000_000  # tensors of one file
COLLECTIONS = ("params", "batch_stats")  # of Flax

Part = tuple[Path, int, int]  # file, first byte, number of bytes


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its dtype and shape are known, `load` reads its values in that dtype."""

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Bytes:
    """`Tensor.load` of a tensor that lies in files as it does in memory, in `parts` one after the other.

    No file is mapped: reading costs a tensor's size of memory, and a file that shrinks under the reader is an
    error rather than a signal.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def __call__(self) -> np.ndarray:
        array = aligned(self.shape, READABLE[self.dtype])
        view, start = memoryview(array.reshape(-1).view(np.uint8).data), 0
        for path, offset, size in self.parts:
            with opened(path) as stream:
                stream.seek(offset)
                if stream.readinto(view[start : start + size]) != size:
                    raise EOFError(str(path))
            start += size
        return array


def named(tree: object) -> dict[str, Tensor]:
    """The tensors of a nested dict by "a/b/c"; Flax's collections `params` and `batch_stats` come together.

    Raises:
      ValueError: anything but tensors in dicts.
    """
    parts: list[Any] = [tree]
    if isinstance(tree, dict) and tree and set(tree) <= set(COLLECTIONS):
        parts = [tree[name] for name in COLLECTIONS if name in tree]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError("an array where the names should be")
    found = trees.join(*map(trees.flatten, parts))
    if strange := next((name for name, leaf in found.items() if not isinstance(leaf, Tensor)), ""):
        raise ValueError(f"{printable(strange)} is no array")
    return found


def lying(dtype: str, shape: tuple[int, ...], *parts: Part) -> Tensor:
    """A tensor that lies in files as it does in memory."""
    return Tensor(dtype, shape, Bytes(dtype, shape, parts))


@dataclasses.dataclass(frozen=True)
class Weights:
    """An opened checkpoint: names and places, no values yet."""

    folder: Path
    format: str  # whose names and layout: "safetensors" (PyTorch's) or "flax"
    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]

    @property
    def names(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """name -> (shape, dtype)."""
        return {name: (tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32; float16 and bfloat16 are widened, which is exact. No other dtype is read."""
        tensor = self.tensors[name]
        if tensor.dtype not in READABLE:
            raise WeightsError(printable(name), f"dtype {tensor.dtype}", f"one of {', '.join(READABLE)}")
        try:
            array = tensor.load()
        except EOFError as error:
            raise WeightsError(str(error), f"ends within {printable(name)}", "a whole file", AGAIN) from None
        if tensor.dtype == "float32":
            return array
        wide = aligned(tensor.shape, np.dtype(np.float32))
        np.copyto(wide, array)
        return wide

    def digest(self) -> str:
        """SHA-256 of the weights file in hex; of several files, one over the digests of all."""
        parts = {}
        for path in self.files:
            with opened(path) as stream:
                name = path.relative_to(self.folder).as_posix()
                parts[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        return next(iter(parts.values())) if len(parts) == 1 else trees.combined(parts)

    def joined(self, other: "Weights", rename: Callable[[str], str]) -> "Weights":
        """These tensors and those of another file under new names."""
        added = {rename(name): tensor for name, tensor in other.tensors.items()}
        if doubled := added.keys() & self.tensors.keys():
            raise WeightsError(str(other.folder), "holds a second head", "one head", details=sorted(doubled))
        return dataclasses.replace(self, tensors={**self.tensors, **added}, files=self.files + other.files)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that starts at a multiple of 64 bytes: JAX on a CPU takes such memory over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
