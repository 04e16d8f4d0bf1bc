"""Flax's msgpack: the names and places of a file's tensors, of which no byte is unpacked; and writing them."""

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from tljax.errors import WeightsError, WriteError, printable
from tljax.weights.hfconfig import AGAIN, opened, sniff
from tljax.weights.tensors import MAX_NAMES, READABLE, Bytes, Tensor, lying, named

MAX_DEPTH, MAX_RANK = 32, 16  # nested maps, axes
MAX_NAME = 1 << 20  # bytes of one name
CHUNK = 1 << 30  # bytes; flax.serialization cuts larger arrays into such pieces


def scan(path: Path) -> dict[str, Tensor]:
    """The tensors of a tree of maps and arrays as flax.serialization writes it, by "a/b/c".

    Raises:
      WeightsError: truncated, trailing bytes, doubled names, nested too deep, or anything but maps and arrays.
    """
    sniff(path)
    size = path.stat().st_size
    try:
        with opened(path) as stream, opened(path) as ahead:
            reader = _Reader(stream, size)
            tree = _node(reader, ahead, path, MAX_DEPTH)
            if reader.tell() != size:
                raise ValueError(f"{size - reader.tell()} bytes too many at the end")
        return named(tree)
    except msgpack.OutOfData:
        raise WeightsError(str(path), f"truncated at byte {size}", "a whole Flax msgpack file", AGAIN) from None
    except (ValueError, TypeError, IndexError, struct.error, msgpack.UnpackException) as error:
        raise WeightsError(str(path), f"not a Flax msgpack file ({error})", "maps of arrays", AGAIN) from None


def write(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes a tree of maps and arrays as flax.serialization does, one array at a time, and sees it to the disk."""
    packer = msgpack.Packer(autoreset=True)

    def put(stream: BinaryIO, node: Any) -> None:
        if isinstance(node, Mapping):
            stream.write(packer.pack_map_header(len(node)))
            for name, value in node.items():
                stream.write(packer.pack(name))
                put(stream, value)
        elif isinstance(node, np.ndarray) and node.nbytes > CHUNK:
            put(stream, _cut(node))
        elif isinstance(node, np.ndarray):
            stream.write(packer.pack(msgpack.ExtType(1, packer.pack((node.shape, node.dtype.name, node.tobytes())))))
        else:
            stream.write(packer.pack(node))

    try:
        with path.open("wb") as stream:
            put(stream, tree)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise WriteError(str(path), f"cannot write the weights ({error})", "a writable folder with room") from error


def _cut(array: np.ndarray) -> dict[str, Any]:
    """A large array as the map of flat pieces that `_chunked` reads."""
    flat, count = array.reshape(-1), max(1, CHUNK // array.dtype.itemsize)
    pieces = [flat[start : start + count] for start in range(0, flat.size, count)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(array.shape)},
        "chunks": {str(i): piece for i, piece in enumerate(pieces)},
    }


class _Reader:
    """An unpacker that goes past an array without reading it: its own `skip` takes an array's size of memory."""

    def __init__(self, stream: BinaryIO, size: int):
        self.stream, self.size = stream, size
        self.seek(0)

    def seek(self, place: int) -> None:
        if place > self.size:
            raise msgpack.OutOfData
        self.stream.seek(place)
        self.start = place
        self.unpacker = msgpack.Unpacker(self.stream, max_buffer_size=MAX_NAME, strict_map_key=True)

    def tell(self) -> int:
        return int(self.start + self.unpacker.tell())


def _node(reader: _Reader, ahead: BinaryIO, path: Path, depth: int) -> Any:
    """The next value: a dict of nodes, a Tensor, a whole number, or True (the marks of a chunked array)."""
    ahead.seek(reader.tell())
    head = ahead.read(8)
    kind = head[0] if head else 0xC1
    if 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF):
        if depth == 0:
            raise ValueError(f"maps nested deeper than {MAX_DEPTH}")
        node: dict[str, Any] = {}
        for _ in range(reader.unpacker.read_map_header()):
            key = reader.unpacker.unpack()
            if not isinstance(key, str) or "/" in key or key in node or len(node) >= MAX_NAMES:
                raise ValueError(f"{printable(key)} is no name, is there twice, or is one of more than {MAX_NAMES}")
            node[key] = _node(reader, ahead, path, depth - 1)
        return _chunked(node) if "__msgpack_chunked_array__" in node else node
    if 0xD4 <= kind <= 0xD8:
        code, length, skip = head[1], 1 << (kind - 0xD4), 2
    elif 0xC7 <= kind <= 0xC9:
        width = 1 << (kind - 0xC7)
        code, length, skip = head[1 + width], int.from_bytes(head[1 : 1 + width], "big"), 2 + width
    elif kind <= 0x7F or 0xCC <= kind <= 0xCF or kind == 0xC3:
        return reader.unpacker.unpack()
    else:
        raise ValueError(f"a value of msgpack type 0x{kind:02x}, expected maps and arrays only")
    if code != 1:
        raise ValueError(f"extension type {code}, expected 1 (array)")
    place = reader.tell() + skip
    reader.seek(place + length)
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
    return lying(dtype, tuple(shape), (path, place + start + 1 + width, size))


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
    places = [part.load.parts for part in parts if isinstance(part.load, Bytes)]
    return lying(parts[0].dtype, tuple(sizes), *(place for several in places for place in several))
