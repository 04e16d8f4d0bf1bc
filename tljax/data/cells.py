"""The cells of a column as one array of times, numbers or text, with the reason for each that is none.

Legend: n cells.
"""

import math
from datetime import UTC, datetime
from types import NoneType
from typing import Any

import numpy as np

from tljax.errors import printable

LONGEST = 256  # characters of a text: every cell of a column takes the room of its longest
LATEST = 253_402_300_800.0  # seconds at the start of the year 10000; times in milliseconds lie beyond it
EXACT = 2**53  # whole numbers up to here are exact in float64
Cells = np.ndarray | list[Any]  # (n,) as a file has them
Reasons = list[tuple[int, str]]  # (index, why the cell cannot be used)


def _seconds(dates: np.ndarray) -> np.ndarray:
    """datetime64 -> float64 seconds since 1970, NaN for NaT."""
    return np.where(np.isnat(dates), np.nan, (dates - np.datetime64(0, "s")) / np.timedelta64(1, "s"))


def times(cells: Cells) -> tuple[np.ndarray, Reasons]:
    """float64 seconds since 1970."""
    reasons: Reasons = []
    dated = np.zeros(len(cells), bool)
    if isinstance(cells, np.ndarray):
        values = _seconds(cells) if cells.dtype.kind == "M" else cells.astype(np.float64)
    else:
        made = []
        for i, cell in enumerate(cells):
            try:
                made.append(_number(cell))
            except ValueError as error:
                date = _date(cell)
                dated[i] = date is not None
                made.append(0.0 if date is None else date)
                reasons += [(i, f"{error}, of seconds, or an ISO 8601 date")] if date is None else []
        values = np.array(made, np.float64)
    known = np.isfinite(values) & (np.abs(values) < LATEST)
    for i in np.flatnonzero(~known).tolist():
        if math.isnan(values[i]):
            reasons.append((i, "the time is missing"))
        elif math.isinf(values[i]):
            reasons.append((i, f"found {values[i]}, expected a finite time"))
        else:
            reasons.append((i, f"found {values[i]:.15g}, expected seconds since 1970; milliseconds divided by 1000"))
    if dated.any():  # "20240102" among dates is one, and would be read as seconds
        mixed = np.setdiff1d(np.flatnonzero(known & ~dated), [i for i, _ in reasons])
        reasons += [
            (i, f"found {printable(repr(cells[i]), 60)} among dates, expected dates alone") for i in mixed.tolist()
        ]
    return values, reasons


def _date(cell: Any) -> float | None:
    try:
        date = datetime.fromisoformat(cell.strip())
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, AttributeError, OverflowError):
        return None


def _number(cell: Any) -> float:
    """The number in a cell, NaN where it is empty. Raises ValueError for text."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan
    try:
        return float(cell)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"found {printable(repr(cell), 60)}, expected a number") from None


def numbers(cells: Cells) -> tuple[np.ndarray, Reasons]:
    """Numbers, as they are in an array and else as float64."""
    if isinstance(cells, np.ndarray):
        return plain(cells)
    made, reasons = [], []
    for i, cell in enumerate(cells):
        try:
            made.append(_number(cell))
        except ValueError as error:
            made.append(math.nan)
            reasons.append((i, str(error)))
    values, infinite = plain(np.array(made, np.float64))
    return values, reasons + infinite


def plain(cells: Cells) -> tuple[np.ndarray, Reasons]:
    """Numbers or text, whichever the cells are."""
    values, reasons = (cells, []) if isinstance(cells, np.ndarray) else _array(cells)
    if values.dtype.kind == "M":
        values = _seconds(values)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.dtype.kind == "f":
        reasons += [
            (i, f"found {values[i]}, expected a finite number") for i in np.flatnonzero(np.isinf(values)).tolist()
        ]
    return values, reasons


def _array(cells: list[Any]) -> tuple[np.ndarray, Reasons]:
    kinds = set(map(type, cells))
    try:
        if kinds == {int} or (kinds == {str} and list(map(str, map(int, cells))) == cells):
            return np.array(list(map(int, cells)), np.int64), []
    except (ValueError, OverflowError):
        pass  # not whole numbers, or longer ones: text then
    if kinds == {bool}:
        return np.array(cells), []
    if kinds - {NoneType} and kinds <= {bool, int, float, NoneType}:
        if not any(type(cell) is int and abs(cell) > EXACT for cell in cells):
            return np.array([math.nan if cell is None else cell for cell in cells], np.float64), []
    made, reasons = [], []
    for i, cell in enumerate(cells):
        text = cell if isinstance(cell, str) else _text(cell)
        if text is None or len(text) > LONGEST or text.endswith("\0"):  # arrays of text lose a NUL at the end
            expected = f"a number, or a text of at most {LONGEST} characters"
            reasons.append((i, f"found {printable(repr(cell), 60)}, expected {expected}"))
        made.append("" if text is None else text[:LONGEST])
    return np.array(made, np.str_), reasons


def _text(cell: Any) -> str | None:
    """A cell that is no text as text, "" where it is missing; None: it is neither text nor number."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() else repr(cell)
    return None if isinstance(cell, list | dict | bytes) else str(int(cell) if isinstance(cell, bool) else cell)


def lacking(entity: np.ndarray) -> Reasons:
    if entity.dtype.kind == "U":
        void = np.isin(np.strings.lower(np.strings.strip(entity)), ["", "nan"])
    else:
        void = np.isnan(entity)
    return [(i, "the entity is missing") for i in np.flatnonzero(void).tolist()]
