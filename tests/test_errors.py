"""One message shape, and one exit code for each kind."""

import pytest

from tljax import errors
from tljax.errors import TljaxError, printable

CODES = [("ConfigError", 64), ("DataError", 65), ("WeightsError", 66), ("LostError", 69), ("DivergedError", 70),
         ("WriteError", 74), ("StoppedError", 75), ("TljaxError", 1)]  # fmt: skip


@pytest.mark.parametrize(("name", "code"), CODES)
def test_exit_codes(name, code):
    kind = getattr(errors, name)
    assert kind.exit_code == code
    assert isinstance(kind("where", "found"), TljaxError)


def test_every_kind_is_in_the_table():
    kinds = {n for n, k in vars(errors).items() if isinstance(k, type) and issubclass(k, TljaxError)}
    assert kinds == {name for name, _ in CODES}


SENTENCES = [
    ("two parts", ("a.csv, row 7", "no label"), {}, "a.csv, row 7: no label."),
    ("expected", ("x", "1"), {"expected": "2"}, "x: 1; expected 2."),
    ("fix alone", ("x", "1"), {"fix": "do this"}, "x: 1; do this."),
    ("all", ("x", "1", "2", "do this"), {}, "x: 1; expected 2; do this."),
    ("details, one a line", ("x", "1"), {"details": ["a", "b"]}, "x: 1.\n  a\n  b"),
    ("details are escaped", ("x", "1"), {"details": iter(["a\nb\x1b[31m"])}, "x: 1.\n  a\\nb\\x1b[31m"),
]


@pytest.mark.parametrize(("args", "kwargs", "text"), [row[1:] for row in SENTENCES], ids=[row[0] for row in SENTENCES])
def test_sentences(args, kwargs, text):
    assert str(TljaxError(*args, **kwargs)) == text


def test_the_parts_can_be_read():
    error = errors.DataError("x", "1", "2", "3", ["4"])
    assert (error.where, error.found, error.expected, error.fix, error.details) == ("x", "1", "2", "3", ("4",))


SHOWN = [
    ("plain", "abc", "abc"),
    ("umlaut, ideogram, emoji", "ä 漢 🙂", "ä 漢 🙂"),
    ("tab, newline, NUL", "a\tb\nc\x00", "a\\tb\\nc\\x00"),
    ("escape sequence of a terminal", "\x1b[2J", "\\x1b[2J"),
    ("text that runs right to left on", "a\u202eb", "a\\u202eb"),
    ("lone surrogate", "\ud800", "\\ud800"),
    ("line separator", "a\u2028b", "a\\u2028b"),
    ("no string", 12, "12"),
    ("as long as may be", "x" * 200, "x" * 200),
    ("longer", "x" * 201, "x" * 200 + "… (201 characters)"),
]


@pytest.mark.parametrize(("text", "expected"), [row[1:] for row in SHOWN], ids=[row[0] for row in SHOWN])
def test_printable(text, expected):
    assert printable(text) == expected
    assert printable(text).encode("utf-8")  # never raises, unlike a lone surrogate


def test_printable_cuts_where_it_is_told():
    assert printable("abcdef", limit=3) == "abc… (6 characters)"
