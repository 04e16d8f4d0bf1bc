"""Records: inputs and their class names, the place each one came from, and what was left out."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tljax.config import DataConfig
from tljax.data.stores import ImageRef
from tljax.errors import DataError, printable

LISTED = 50  # problems shown in one error; bad_rows.jsonl has them all
SKIP_SHARE, SKIP_FLOOR = 0.001, 10  # on_bad=skip gives up above max(floor, share of the rows): the file is broken then


class Row(NamedTuple):
    """One row of a table, before any check of its values."""

    number: int  # as a person counts: the header is row 1
    line: int  # where the row begins in a text editor; 0 where that is its number
    values: Sequence[Any]  # the input and, if wanted, the label
    problem: str = ""  # why the row cannot be read at all


@dataclasses.dataclass
class Records:
    """n inputs and their class names.

    Attributes:
      name: the source, for messages.
      inputs: n texts, or n image references.
      labels: n class names; None for unlabelled data.
      files: (file, unit of counting) that `spots` points into; without a unit the input's own name is the place.
      spots: int64 (n, 3): index into files, row number, line number (0: the same as the row number).
      bad: rows left out because they cannot be used: {"where", "reason"}.
      excluded: how many rows were left out because of their class.
    """

    name: str
    inputs: list[str] | list[ImageRef]
    labels: list[str] | None
    files: list[tuple[str, str]]
    spots: np.ndarray
    bad: list[dict[str, str]] = dataclasses.field(default_factory=list)
    excluded: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def where(self, i: int) -> str:
        """The place of record i as a person finds it: "tickets.csv, row 7"."""
        file, number, line = (int(v) for v in self.spots[i])
        return place(*self.files[file], number, line, self.inputs[i])

    def take(self, indices: Iterable[int]) -> "Records":
        """The records at these indices, in this order; what was left out stays with the original."""
        order = np.asarray(list(indices), np.int64)
        labels = None if self.labels is None else [self.labels[i] for i in order]
        inputs: Any = [self.inputs[i] for i in order]
        return dataclasses.replace(self, inputs=inputs, labels=labels, spots=self.spots[order], bad=[], excluded=0)


def place(file: str, unit: str, number: int, line: int, name: Any) -> str:
    if not unit:
        return printable(getattr(name, "name", name))
    return f"{printable(file)}, {unit} {number}" + (f" (line {line})" if line else "")


def join(parts: Sequence[Records]) -> Records:
    """Several sources as one. An empty result is an error that says how many rows there were."""
    files: list[tuple[str, str]] = []
    spots: list[np.ndarray] = []
    for part in parts:
        spots.append(part.spots + np.array([len(files), 0, 0]))
        files += part.files
    labels = None if any(p.labels is None for p in parts) else [x for p in parts for x in p.labels or ()]
    inputs: Any = [x for p in parts for x in p.inputs]
    bad = [b for p in parts for b in p.bad]
    excluded = sum(p.excluded for p in parts)
    name = " | ".join(p.name for p in parts)
    if not inputs:
        rows = f"{len(bad) + excluded} rows: {len(bad)} unusable, {excluded} of excluded classes"
        raise DataError(name, f"found 0 examples ({rows})", "at least 1")
    return Records(name, inputs, labels, files, np.concatenate(spots), bad, excluded)


def class_name(value: Any) -> str:
    """The class a label cell names: text without the space around it, or a whole number in digits.

    Raises:
      ValueError: a missing label (nothing, blank, NaN), or a value that names no class.

    >>> class_name(" billing "), class_name(3), class_name(3.0), class_name(True)
    ('billing', '3', '3', 'true')
    """
    if value is None:
        raise ValueError("the label is missing")
    if isinstance(value, str):
        if not value.strip() or value.strip().lower() == "nan":
            raise ValueError(f"the label is missing (found {value!r})")
        return value.strip()
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            raise ValueError("the label is missing (found NaN)")
        if math.isfinite(value) and value == int(value):
            return str(int(value))
    raise ValueError(f"the label is {printable(repr(value), 60)}, expected a class name or a whole number")


def text_input(value: Any) -> str:
    """A text cell, unchanged. Raises ValueError where it is missing, no text, or blank."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("the text is missing")
    if not isinstance(value, str):
        raise ValueError(f"found {printable(repr(value), 60)} ({type(value).__name__}), expected text")
    if not value.strip():
        raise ValueError("the text is empty" if not value else "the text is nothing but white space")
    return value


def collect(
    name: str,
    unit: str,
    rows: Iterable[Row],
    to_input: Callable[[Any], Any],
    data: DataConfig,
    labelled: bool,
    probe: Callable[[list[Any]], list[str]] | None = None,
) -> Records:
    """Checks every row and makes records of the good ones.

    Args:
      name, unit: the file and what its rows are called ("row", "item", "line"), for messages.
      rows: values are (input, label) or, unlabelled, (input,).
      to_input: input cell -> input; a ValueError says why it cannot be used.
      data: exclude_labels and on_bad count here.
      labelled: whether rows carry a label.
      probe: a further look at all inputs together: the reason for each, empty where it is fine.

    Raises:
      DataError: on_bad=stop and any bad row, all of them in its details; or too many of them to skip.
    """
    excluded_names = {label.strip() for label in data.exclude_labels.split("|") if label.strip()}
    inputs: list[Any] = []
    labels: list[str] = []
    spots: list[tuple[int, int, int]] = []
    bad: list[dict[str, str]] = []
    excluded = total = 0
    for row in rows:
        total += 1
        try:
            if row.problem:
                raise ValueError(row.problem)
            label = class_name(row.values[1]) if labelled else ""
            if labelled and label in excluded_names:
                excluded += 1
                continue
            value = to_input(row.values[0])
        except ValueError as error:
            cell = row.values[0] if row.values else ""
            bad.append({"where": place(name, unit, row.number, row.line, cell), "reason": str(error)})
            continue
        inputs.append(value)
        labels.append(label)
        spots.append((0, row.number, row.line))
    if probe is not None and inputs:
        reasons = probe(inputs)
        keep = [i for i, reason in enumerate(reasons) if not reason]
        bad += [{"where": place(name, unit, *spots[i][1:], inputs[i]), "reason": reasons[i]}
                for i in range(len(inputs)) if reasons[i]]  # fmt: skip
        inputs, labels, spots = [inputs[i] for i in keep], [labels[i] for i in keep], [spots[i] for i in keep]
    _judge(name, bad, total, data.on_bad)
    return Records(printable(name), inputs, labels if labelled else None, [(name, unit)],
                   np.array(spots, np.int64).reshape(-1, 3), bad, excluded)  # fmt: skip


def _judge(name: str, bad: list[dict[str, str]], total: int, on_bad: str) -> None:
    if not bad:
        return
    details = [f"{b['where']}: {b['reason']}" for b in bad[:LISTED]]
    if len(bad) > LISTED:
        details.append(f"and {len(bad) - LISTED} more")
    if on_bad == "stop":
        more = f" (the first of {len(bad)} unusable among {total})" if len(bad) > 1 else ""
        raise DataError(bad[0]["where"], bad[0]["reason"] + more,
                        fix="mend it, or leave such rows out with --config.data.on_bad=skip",
                        details=details if len(bad) > 1 else ())  # fmt: skip
    allowed = max(SKIP_FLOOR, int(SKIP_SHARE * total))
    if len(bad) > allowed:
        raise DataError(printable(name), f"{len(bad)} of {total} rows cannot be used",
                        f"at most {allowed} to skip", "mend the file", details)  # fmt: skip
