"""Files of a checkpoint -> settings and named tensors; nothing in a file can run code or choose a path.

Safetensors and Flax's msgpack come down to the same thing: for each name a dtype, a shape and the bytes that hold
it. Opening reads names alone; `Weights.read` reads one tensor. No file is mapped, so that reading costs a
tensor's size of memory and a file that shrinks under the reader is an error rather than a signal.
"""

import dataclasses
import hashlib
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import msgpack
import numpy as np
import safetensors
import safetensors.numpy

from tljax import trees
from tljax.errors import WeightsError, WriteError, printable
from tljax.weights.hfconfig import AGAIN, PICKLE, opened, parse_json, read_json, sniff
from tljax.weights.hfconfig import read_config as read_config

SAFETENSORS, INDEX, FLAX = "model.safetensors", "model.safetensors.index.json", "flax_model.msgpack"
READABLE = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
MAX_NAMES, MAX_DEPTH, MAX_RANK = 1_000_000, 32, 16  # tensors, nested maps, axes


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `parts` are (file, first byte, number of bytes), in order."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[tuple[Path, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Weights:
    """An opened checkpoint: names and places, no values yet."""

    folder: Path
    format: str  # "safetensors" (PyTorch's names and layout) or "flax"
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
        array = aligned(tensor.shape, READABLE[tensor.dtype])
        view, start = memoryview(array.reshape(-1).view(np.uint8).data), 0
        for path, offset, size in tensor.parts:
            with opened(path) as stream:
                stream.seek(offset)
                if stream.readinto(view[start : start + size]) != size:
                    raise WeightsError(str(path), f"ends within {printable(name)}", "a whole file", AGAIN)
            start += size
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
                parts[path.relative_to(self.folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
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


def open_weights(folder: Path) -> Weights:
    """Opens model.safetensors, its shards, or flax_model.msgpack: the first of these that is there.

    Raises:
      WeightsError: no such file (pickle files are named but never opened), or a damaged one.
    """
    if (folder / SAFETENSORS).exists():
        return Weights(folder, "safetensors", _scan_safetensors(folder / SAFETENSORS), (folder / SAFETENSORS,))
    if (folder / INDEX).exists():
        tensors, files = _scan_shards(folder)
        return Weights(folder, "safetensors", tensors, files)
    if (folder / FLAX).exists():
        return Weights(folder, "flax", _scan_flax(folder / FLAX), (folder / FLAX,))
    expected = f"{SAFETENSORS}, {INDEX} or {FLAX}"
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if pickles := [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]:
        raise WeightsError(str(folder), f"tljax does not open pickle files, and finds {printable(pickles[0])} only",
                           expected, f"convert with transformers: {PICKLE}")  # fmt: skip
    raise WeightsError(str(folder), "no weights", expected, f"there is: {printable(', '.join(found)) or 'nothing'}")


def has_weights(folder: Path) -> bool:
    """Whether the folder has a file of weights that tljax opens."""
    return any((folder / name).exists() for name in (SAFETENSORS, INDEX, FLAX))


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as Hugging Face's classes expect them, and sees them to the disk."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}  # it writes memory as it lies
    try:
        safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    except (OSError, safetensors.SafetensorError) as error:
        raise WriteError(str(path), f"cannot write the weights ({error})", "a writable folder with room") from error


def _scan_safetensors(path: Path) -> dict[str, Tensor]:
    sniff(path)
    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks header, shapes, dtypes, overlaps, holes, length
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(str(path), f"not a whole safetensors file of {path.stat().st_size} bytes ({error})",
                           "a header and all its tensors", f"{AGAIN}; it may be truncated") from None  # fmt: skip
    with opened(path) as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = parse_json(stream.read(size), path)
    header.pop("__metadata__", None)
    if len(header) > MAX_NAMES:
        raise WeightsError(str(path), f"{len(header)} tensors", f"at most {MAX_NAMES}")
    dtypes = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        part = (path, 8 + size + start, stop - start)
        tensors[name] = Tensor(dtypes.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]), (part,))
    return tensors


def _scan_shards(folder: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    index = folder / INDEX
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise WeightsError(str(index), "no weight_map of tensor names to file names", fix=AGAIN)
    problems: list[str] = []
    tensors: dict[str, Tensor] = {}
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]  # the Hub's cache links
    files = sorted(set(placed.values()))
    for file in files:
        if not file.endswith(".safetensors") or any(character in file for character in "/\\\x00"):
            problems.append(f"{file}: not a plain .safetensors name inside the folder")
        elif not (folder / file).is_file():
            problems.append(f"{file}: missing; download it")
        elif (folder / file).resolve().parent not in homes:
            problems.append(f"{file}: a link out of the folder")
        else:
            for name, tensor in _scan_safetensors(folder / file).items():
                if name in tensors:
                    problems.append(f"{name}: doubled, in {tensors[name].parts[0][0].name} and {file}")
                elif placed.get(name) != file:
                    problems.append(f"{name}: in {file}, but the index says {placed.get(name, 'nothing of it')}")
                tensors[name] = tensor
    if not problems:
        problems = [f"{name}: not in {placed[name]}" for name in sorted(placed.keys() - tensors.keys())]
    if problems:
        raise WeightsError(str(index), f"{len(problems)} problem(s) with the shards", details=problems[:100])
    return tensors, tuple(folder / file for file in files)


def _scan_flax(path: Path) -> dict[str, Tensor]:
    """Names and places in a msgpack tree of maps and arrays as flax.serialization writes it."""
    sniff(path)
    size = path.stat().st_size
    try:
        with opened(path) as stream, opened(path) as ahead:
            unpacker = msgpack.Unpacker(stream, max_buffer_size=size, strict_map_key=True)
            tree = _node(unpacker, ahead, path, MAX_DEPTH)
            if unpacker.tell() != size:
                raise ValueError(f"{size - unpacker.tell()} bytes too many at the end")
        collections = ("params", "batch_stats")
        parts = [tree]
        if isinstance(tree, dict) and "params" in tree and set(tree) <= set(collections):
            parts = [tree[name] for name in collections if name in tree]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("an array where the names should be")
        named: dict[str, Tensor] = {}
        for name, leaf in trees.join(*map(trees.flatten, parts)).items():
            if not isinstance(leaf, Tensor):
                raise ValueError(f"{printable(name)} is no array")
            named[name] = leaf
    except msgpack.OutOfData:
        raise WeightsError(str(path), f"truncated at byte {size}", "a whole Flax msgpack file", AGAIN) from None
    except (ValueError, TypeError, IndexError, struct.error, msgpack.UnpackException) as error:
        raise WeightsError(str(path), f"not a Flax msgpack file ({error})", "maps of arrays", AGAIN) from None
    return named


def _node(unpacker: Any, ahead: BinaryIO, path: Path, depth: int) -> Any:
    """The next value: a dict of nodes, a Tensor, a whole number, or True (the marks of a chunked array)."""
    ahead.seek(unpacker.tell())
    head = ahead.read(8)
    kind = head[0] if head else 0xC1
    if 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF):
        if depth == 0:
            raise ValueError(f"maps nested deeper than {MAX_DEPTH}")
        node: dict[str, Any] = {}
        for _ in range(unpacker.read_map_header()):
            key = unpacker.unpack()
            if not isinstance(key, str) or "/" in key or key in node or len(node) >= MAX_NAMES:
                raise ValueError(f"{printable(key)} is no name, is there twice, or is one of more than {MAX_NAMES}")
            node[key] = _node(unpacker, ahead, path, depth - 1)
        return _chunked(node) if "__msgpack_chunked_array__" in node else node
    if 0xD4 <= kind <= 0xD8:
        code, length, skip = head[1], 1 << (kind - 0xD4), 2
    elif 0xC7 <= kind <= 0xC9:
        width = 1 << (kind - 0xC7)
        code, length, skip = head[1 + width], int.from_bytes(head[1 : 1 + width], "big"), 2 + width
    elif kind <= 0x7F or 0xCC <= kind <= 0xCF or kind == 0xC3:
        return unpacker.unpack()
    else:
        raise ValueError(f"a value of msgpack type 0x{kind:02x}, expected maps and arrays only")
    if code != 1:
        raise ValueError(f"extension type {code}, expected 1 (array)")
    place = unpacker.tell() + skip
    unpacker.skip()
    return _array(ahead, place, length, path)


def _array(ahead: BinaryIO, place: int, length: int, path: Path) -> Tensor:
    """The array in `length` bytes at `place`: (shape, name of dtype, bytes), of which the last is not read."""
    ahead.seek(place)
    inner = msgpack.Unpacker(max_buffer_size=4096)
    inner.feed(ahead.read(min(length, 512)))
    if inner.read_array_header() != 3:
        raise ValueError("an array that is not (shape, dtype, bytes)")
    shape, dtype, start = inner.unpack(), inner.unpack(), inner.tell()
    ahead.seek(place + start)
    kind, size = struct.unpack("B4s", ahead.read(5))
    if not 0xC4 <= kind <= 0xC6:
        raise ValueError("an array without bytes")
    width = 1 << (kind - 0xC4)
    size = int.from_bytes(size[:width], "big")
    sound = isinstance(shape, list) and len(shape) <= MAX_RANK and all(type(n) is int and n >= 0 for n in shape)
    if not sound or not isinstance(dtype, str) or start + 1 + width + size != length:
        raise ValueError("an array whose shape, dtype and length do not agree")
    if dtype in READABLE and math.prod(shape) * READABLE[dtype].itemsize != size:
        raise ValueError(f"an array of shape {tuple(shape)} and dtype {dtype} in {size} bytes")
    return Tensor(dtype, tuple(shape), ((path, place + start + 1 + width, size),))


def _chunked(node: dict[str, Any]) -> Tensor:
    """Flax cuts arrays of more than 1 GiB into flat chunks: {"shape": {"0": n, …}, "chunks": {"0": array, …}}."""
    shape, chunks = (node.get(key) for key in ("shape", "chunks"))
    if not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
        raise ValueError("a chunked array without shape or chunks")
    sizes: list[Any] = [shape.get(str(i)) for i in range(len(shape))]
    parts: list[Any] = [chunks.get(str(i)) for i in range(len(chunks))]
    if not all(type(n) is int and n >= 0 for n in sizes) or not all(isinstance(part, Tensor) for part in parts):
        raise ValueError("a chunked array whose shape or chunks are something else")
    if len({part.dtype for part in parts}) != 1 or sum(math.prod(part.shape) for part in parts) != math.prod(sizes):
        raise ValueError("a chunked array whose chunks do not make up its shape")
    return Tensor(parts[0].dtype, tuple(sizes), tuple(place for part in parts for place in part.parts))
