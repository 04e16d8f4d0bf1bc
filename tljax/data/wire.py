"""The fields of a message in protocol buffers' wire format, without their library, whose releases exclude each other.

https://protobuf.dev/programming-guides/encoding
"""

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(number, value) in the order of the file; a varint is a signed int, 64 bits and 32 bits are floats.

    Raises:
      ValueError: cut short, or of a kind that is not in use any more.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value - (1 << 64) if value >> 63 else value
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"kind {kind} of field at byte {at}")
        part = message[at : at + size]
        if len(part) < size:
            raise ValueError(f"{size} bytes of field {number}, {len(part)} are there")
        at += size
        yield number, part if kind == BYTES else struct.unpack("<d" if kind == FIXED64 else "<f", part)[0]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """(value, place after it) of seven bits a byte, the lowest first, at most ten bytes."""
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value & (1 << 64) - 1, at + i + 1
    raise ValueError(f"no number at byte {at}")
