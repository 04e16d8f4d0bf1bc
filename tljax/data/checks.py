"""Questions about records as a whole: which classes there are, their ids, and inputs that occur twice."""

import difflib
from collections.abc import Iterator, Sequence
from hashlib import sha256

import numpy as np

from tljax.data.records import LISTED, Records
from tljax.errors import DataError, printable


def classes_of(records: Records) -> tuple[str, ...]:
    """The class names that occur, sorted as text.

    Raises:
      DataError: the records carry no labels.
    """
    if records.labels is None:
        raise DataError(records.name, "the records have no labels", "labelled data")
    return tuple(sorted(set(records.labels)))


def label_ids(records: Records, classes: Sequence[str]) -> np.ndarray:
    """The index of each record's class in `classes`: int32 (n,), every one in range.

    Raises:
      DataError: classes that are not among them, each with its rows and the nearest known class.
    """
    if records.labels is None:
        raise DataError(records.name, "the records have no labels", "labelled data")
    index = {name: i for i, name in enumerate(classes)}
    unknown: dict[str, list[int]] = {}
    for i, label in enumerate(records.labels):
        if label not in index:
            unknown.setdefault(label, []).append(i)
    if unknown:
        details = []
        for label, rows in list(unknown.items())[:LISTED]:
            near = difflib.get_close_matches(label, classes, 1)
            hint = f", nearest known class {near[0]!r}" if near else ""
            details.append(f"{label!r}: {len(rows)} rows, first {records.where(rows[0])}{hint}")
        first, rows = next(iter(unknown.items()))
        near = difflib.get_close_matches(first, classes, 1)
        fix = f"did you mean {printable(near[0])!r}? " if near else ""
        more = f" ({len(unknown)} unknown classes in all)" if len(unknown) > 1 else ""
        raise DataError(
            records.where(rows[0]),
            f"the class {printable(first)!r} is unknown{more}",
            f"one of the {len(classes)} classes of training",
            f"{fix}correct the label, or leave it out with --config.data.exclude_labels",
            details,
        )
    return np.array([index[label] for label in records.labels], np.int32)


def _marks(records: Records) -> Iterator[bytes]:
    for value in records.inputs:
        if isinstance(value, str):
            yield sha256(value.encode("utf-8", "surrogatepass")).digest()
        else:
            content = value.read()
            plain = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
            yield sha256(plain).digest()


def overlap(a: Records, b: Records) -> int:
    """How many records of `b` have an input that is also in `a`, byte for byte (images: of the file)."""
    known = set(_marks(a))
    return sum(mark in known for mark in _marks(b))


def duplicates(records: Records) -> int:
    """How many records repeat the input of an earlier one, byte for byte."""
    return len(records) - len(set(_marks(records)))
