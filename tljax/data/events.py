"""Windows of event sequences: which events stand together in a row, and what is asked about which of them.

Legend: n events of a ledger, sorted by entity and time; m windows, B in a batch; T events in a row; F fields.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping

import numpy as np

from tljax.data.batching import Targets
from tljax.data.ledger import Ledger
from tljax.errors import ConfigError, printable


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """A part of a ledger.

    Attributes:
      name: the source, for messages.
      ledger: all events; those before the part are what is known when it begins.
      asked: bool (n,), the events of the part.
      columns: input of the network -> (n,): ids int32, numbers float32 (fields.py).
      labels: int32 (n,), the class of each event; None for unlabelled data.
    """

    name: str
    ledger: Ledger
    asked: np.ndarray
    columns: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None
    bad: tuple[dict[str, str], ...] = ()  # a ledger leaves no row out: it is read whole or not at all

    def __len__(self) -> int:
        return int(self.asked.sum())


def windows(offsets: np.ndarray, asked: np.ndarray, length: int, context: int) -> np.ndarray:
    """Rows that hold every event that is asked about exactly once, with what came before it.

    Args:
      offsets: int64 (E + 1,), as `Ledger.offsets`.
      asked: bool (n,).
      length: events in a window at most.
      context: events before one that is asked about that are in its window too, where there are so many.

    Returns int64 (m, 3): a window's first event, the first that may be asked about in it, and the end.

    >>> windows(np.array([0, 6]), np.array([0, 1, 0, 1, 1, 1], bool), 3, 1).tolist()
    [[0, 1, 2], [2, 3, 5], [4, 5, 6]]
    """
    if context >= length:
        raise ConfigError("--config.events.context", f"{context}", f"less than --config.data.max_length={length}")
    places = np.flatnonzero(asked)
    entity = np.searchsorted(offsets, places, side="right") - 1
    bounds = np.searchsorted(places, offsets[np.unique(entity)])
    made = []
    for low, high in zip(bounds, np.append(bounds, len(places))[1:], strict=True):
        begin = int(offsets[entity[low]])
        while low < high:
            start = max(begin, int(places[low]) - context)
            end = low + int(np.searchsorted(places[low:high], start + length))
            made.append((start, int(places[low]), int(places[end - 1]) + 1))
            low = end
    return np.array(made, np.int64).reshape(-1, 3)


class EventExamples:
    """m windows of events that are asked about.

    Args:
      histories: whose events.
      kind: what is asked, as `answers` of models/events.py: "each": the class of each event; "last": the class of the
        last one of an entity's; "next": the fields `asked_for` of each event, seen from the one before it; "item": the
        one field there is.
      asked_for: names of columns, for "next" and "item".
      length, context: as for `windows`.
      drawn: bool (n,), which of the events' answers are used; None: all.
    """

    def __init__(self, histories: Histories, kind: str, asked_for: tuple[str, ...], length: int, context: int,
                 drawn: np.ndarray | None = None):  # fmt: skip
        self.histories, self.kind, self.asked_for = histories, kind, asked_for
        self.query = _queries(histories, kind) if drawn is None else _queries(histories, kind) & _before(drawn, kind)
        self.windows = windows(histories.ledger.offsets, self.query, length, context)
        self.lengths = (self.windows[:, 2] - self.windows[:, 0]).astype(np.int32)
        self._number = np.cumsum(self.query) - 1  # of a query among all

    def __len__(self) -> int:
        return len(self.windows)

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, np.ndarray]:
        """Every column (B, T) with T = length, zeros after the last event; and "attention_mask" int32 (B, T)."""
        at, real = self._at(indices, length)
        made = {name: np.where(real, column[at], column.dtype.type(0))
                for name, column in self.histories.columns.items()}  # fmt: skip
        return {**made, "attention_mask": real.astype(np.int32)}

    def targets(self, indices: np.ndarray, length: int, seed: int | None = None) -> Targets:
        """Labels: int32 (B, T), of "last" (B,), of "next" (B, T, F); weights (B, T) or (B,)."""
        at, asked = self._asked(indices, length)
        return Targets(np.where(asked.reshape(*asked.shape, *[1] * (self._labels.ndim - 1)), self._labels[at], 0),
                       asked.astype(np.float32))  # fmt: skip

    @property
    def truth(self) -> np.ndarray:
        """int32 (N,), of "next" (N, F)."""
        return self._labels[self.places]

    @property
    def places(self) -> np.ndarray:
        """At which event of the ledger each answer is given, int64 (N,); of "next" and "item" the one before."""
        return np.flatnonzero(self.query)

    def spots(self, indices: np.ndarray, length: int) -> np.ndarray:
        at, asked = self._asked(indices, length)
        return np.where(asked, self._number[at], -1)

    def where(self, i: int) -> str:
        """The place of window i as a person finds it."""
        ledger, (start, _, stop) = self.histories.ledger, self.windows[i]
        entity = int(np.searchsorted(ledger.offsets, start, side="right")) - 1
        first = int(start - ledger.offsets[entity])
        return (f"{printable(self.histories.name)}, {ledger.entity} {printable(str(ledger.entities[entity]), 60)}, "
                f"events {first + 1} to {first + int(stop - start)}")  # fmt: skip

    def content(self) -> str:
        """SHA-256 over all that a network sees."""
        mark = hashlib.sha256(self.windows[:, [0, 2]].tobytes())
        for name, column in sorted(self.histories.columns.items()):
            mark.update(name.encode() + np.ascontiguousarray(column).tobytes())
        return mark.hexdigest()

    def digest(self) -> str:
        """SHA-256 over inputs, questions and answers."""
        mark = hashlib.sha256(self.content().encode() + self.windows.tobytes() + self.query.tobytes())
        mark.update(np.ascontiguousarray(self.truth).tobytes())
        return mark.hexdigest()

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        """The answer at each event, int32 (n,) or (n, F)."""
        own = self.histories
        if self.kind in ("each", "last"):
            return np.zeros(len(own.ledger), np.int32) if own.labels is None else own.labels.astype(np.int32)
        after = np.stack([np.append(own.columns[name][1:], 0) for name in self.asked_for], axis=-1).astype(np.int32)
        return after if self.kind == "next" else after[:, 0]

    def _at(self, indices: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Events (B, T), and which are real."""
        column = np.arange(length)[None, :]
        real = column < self.lengths[indices][:, None]
        return np.where(real, self.windows[indices, 0][:, None] + column, 0), real

    def _asked(self, indices: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        if self.kind == "last":
            return self.windows[indices, 2] - 1, np.ones(len(indices), bool)
        at, real = self._at(indices, length)
        return at, real & self.query[at] & (at >= self.windows[indices, 1][:, None])


def _before(asked: np.ndarray, kind: str) -> np.ndarray:
    """Where the answer to a question about an event is given: at the event, or at the one before it."""
    return np.append(asked[1:], False) if kind in ("next", "item") else asked


def _queries(own: Histories, kind: str) -> np.ndarray:
    """Events at which an answer is given, bool (n,)."""
    starts, ends = own.ledger.offsets[:-1], own.ledger.offsets[1:] - 1
    if kind in ("next", "item"):
        query = _before(own.asked, kind)
        query[ends] = False  # what follows is another entity's
        return query
    if kind == "each":
        return own.asked.copy()
    places = np.where(own.asked, np.arange(len(own.asked)), -1)
    last = np.maximum.reduceat(places, starts)
    query = np.zeros(len(own.asked), bool)
    query[last[last >= 0]] = True
    return query
