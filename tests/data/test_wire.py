"""Protocol buffers' wire format: known encodings, and what is cut short."""

import pytest

from tljax.data import wire

# each is an example of https://protobuf.dev/programming-guides/encoding, or follows from it
KNOWN = [
    ("a small number", b"\x08\x96\x01", [(1, 150)]),
    ("-1 as int32", b"\x08" + b"\xff" * 9 + b"\x01", [(1, -1)]),
    ("text", b"\x12\x07testing", [(2, b"testing")]),
    ("no bytes", b"\x12\x00", [(2, b"")]),
    ("a message in a message", b"\x1a\x03\x08\x96\x01", [(3, b"\x08\x96\x01")]),
    ("32 bits", b"\x15\x00\x00\x80\xbf", [(2, -1.0)]),
    ("64 bits", b"\x19\x00\x00\x00\x00\x00\x00\xf8\x3f", [(3, 1.5)]),
    ("a field of number 35", b"\x98\x02\x01", [(35, 1)]),
    ("one field twice", b"\x08\x01\x08\x02", [(1, 1), (1, 2)]),
    ("nothing", b"", []),
]
CUT = [
    ("in a number", b"\x08\x96", "no number"),
    ("a number of eleven bytes", b"\x08" + b"\xff" * 10 + b"\x01", "no number"),
    ("in a text", b"\x12\x07test", "7 bytes of field 2, 4 are there"),
    ("in 32 bits", b"\x15\x00", "4 bytes of field 2, 1 are there"),
    ("a group", b"\x0b", "kind 3"),
]


@pytest.mark.parametrize(("message", "expected"), [row[1:] for row in KNOWN], ids=[row[0] for row in KNOWN])
def test_known_encodings(message: bytes, expected: list[tuple[int, object]]) -> None:
    assert list(wire.fields(message)) == expected


@pytest.mark.parametrize(("message", "words"), [row[1:] for row in CUT], ids=[row[0] for row in CUT])
def test_cut_short(message: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(wire.fields(message))
