"""Cells: what columns become, and why a cell cannot be used."""

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from tljax.data import cells

NAN = float("nan")


@pytest.mark.parametrize(
    ("label", "column", "expected", "dtype"),
    [
        ("whole numbers as text", ["1", "-20", "0"], [1, -20, 0], "int64"),
        ("a zero before", ["1", "07"], ["1", "07"], "<U2"),
        ("a plus", ["1", "+7"], ["1", "+7"], "<U2"),
        ("spaces", ["1", " 7"], ["1", " 7"], "<U2"),
        ("underscores", ["1", "1_0"], ["1", "1_0"], "<U3"),
        ("other digits", ["1", "１"], ["1", "１"], "<U1"),
        ("fractions as text", ["1", "2.50"], ["1", "2.50"], "<U4"),
        ("a gap in text", ["1", ""], ["1", ""], "<U1"),
        ("beyond int64", ["1", str(2**63)], ["1", str(2**63)], "<U19"),
        ("int", [3, -1], [3, -1], "int64"),
        ("large int", [2**63, 1], [str(2**63), "1"], "<U19"),
        ("int and float", [3, 0.5], [3.0, 0.5], "float64"),
        ("gaps", [3, None, 0.5], [3.0, NAN, 0.5], "float64"),
        ("exact ids with gaps", [2**53 + 1, None], [str(2**53 + 1), ""], "<U16"),
        ("bool", [True, False], [1, 0], "uint8"),
        ("bool with gaps", [True, None], [1.0, NAN], "float64"),
        ("all gaps", [None, None], ["", ""], "<U1"),
        ("mixed", ["a", 3, 3.0, 0.5, True, Decimal("1.50")], ["a", "3", "3", "0.5", "1", "1.50"], "<U4"),
        ("mixed with gaps", ["a", None, NAN, float("inf")], ["a", "", "", "inf"], "<U3"),
        ("an array", np.array([1, 2], np.uint16), [1, 2], "uint16"),
        ("a bool array", np.array([True, False]), [1, 0], "uint8"),
        ("dates", np.array(["1970-01-02", "NaT"], "M8[D]"), [86400.0, NAN], "float64"),
        ("the longest text", ["x" * 256], ["x" * 256], "<U256"),
    ],
)  # fmt: skip
def test_plain(label: str, column: Any, expected: list[Any], dtype: str) -> None:
    values, reasons = cells.plain(column)
    assert reasons == []
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, np.array(expected))


@pytest.mark.parametrize(
    ("label", "column", "index", "words"),
    [
        ("a list", ["a", [1]], 1, "found [1], expected a number, or a text"),
        ("an object", ["a", {"b": 1}], 1, "found {'b': 1}"),
        ("bytes", [b"a"], 0, "found b'a'"),
        ("too long", ["a", "x" * 257], 1, "at most 256 characters"),
        ("NUL at the end", ["a\0"], 0, "found"),
        ("infinite", [1.0, float("inf")], 1, "found inf"),
        ("infinite in an array", np.array([1.0, -np.inf], np.float32), 1, "found -inf"),
    ],
)
def test_plain_faults(label: str, column: Any, index: int, words: str) -> None:
    _, reasons = cells.plain(column)
    assert [i for i, _ in reasons] == [index]
    assert words in reasons[0][1]


@pytest.mark.parametrize(
    ("label", "column", "expected"),
    [
        ("text", ["1", " 2.5 ", "-1e3", ""], [1.0, 2.5, -1000.0, NAN]),
        ("whole", ["1", "2"], [1.0, 2.0]),
        ("objects", [1, None, 2.5, True, NAN, "nan", Decimal("0.5")], [1.0, NAN, 2.5, 1.0, NAN, NAN, 0.5]),
        ("all gaps", [None, ""], [NAN, NAN]),
    ],
)
def test_numbers(label: str, column: Any, expected: list[float]) -> None:
    values, reasons = cells.numbers(column)
    assert reasons == []
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("cell", ["one", "1,5", "inf", [1], {}, 10**400, date(2024, 1, 1)])
def test_no_numbers(cell: Any) -> None:
    _, reasons = cells.numbers([1, cell])
    assert [i for i, _ in reasons] == [1]
    assert "expected a" in reasons[0][1]


@pytest.mark.parametrize(
    ("label", "column", "expected"),
    [
        ("seconds", ["0", "1.5", "-3"], [0.0, 1.5, -3.0]),
        ("numbers", [0, 1.5], [0.0, 1.5]),
        ("an array", np.array([7, 9], np.uint32), [7.0, 9.0]),
        ("dates", ["1970-01-01", "1970-01-02", "1969-12-31"], [0.0, 86400.0, -86400.0]),
        ("timestamps", ["1970-01-01T00:00:01", "1970-01-01 01:00:00.25", "1970-01-01T01Z"], [1.0, 3600.25, 3600.0]),
        ("zones", ["1970-01-01T02:00+02:00", "1970-01-01T00:00:00-01:00"], [0.0, 3600.0]),
        ("short", ["20240102T03", "20240102T030001"], [1704164400.0, 1704164401.0]),
        ("days", np.array(["1970-01-03"], "M8[D]"), [172800.0]),
        ("nanoseconds", np.array(["1970-01-01T00:00:00.5"], "M8[ns]"), [0.5]),
    ],
)
def test_times(label: str, column: Any, expected: list[float]) -> None:
    values, reasons = cells.times(column)
    assert reasons == []
    assert values.dtype == np.float64
    assert values.tolist() == expected


@pytest.mark.parametrize("entity", [["a", "", "nan", " NaN ", "\t", "nana"], [1.0, NAN, NAN, NAN, NAN, 2.0]])
def test_lacking(entity: list[Any]) -> None:
    assert [i for i, _ in cells.lacking(np.array(entity))] == [1, 2, 3, 4]
