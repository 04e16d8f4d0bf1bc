"""Parts of a ledger: by time, by place in each entity's sequence, by entity, and the latest events alone.

Legend: n events, E entities.
"""

import dataclasses
import hashlib
import math

import numpy as np

from tljax.data import cells, derived
from tljax.data.ledger import Ledger
from tljax.errors import ConfigError, DataError, printable


def part_of(own: Ledger, text: str, where: str) -> np.ndarray:
    """Which events a part names, bool (n,).

    Args:
      text: "from..to", half open, ISO 8601 or days since 1970; "from:to", by place in each entity's sequence, as
        Python's slices; "" for all.
    """
    if not text:
        return np.ones(len(own), bool)
    if ".." in text:
        if not own.time:
            raise ConfigError("--config.events.time", f"none, and {printable(where)} is a part by time", "its column")
        low, high = (_moment(end, where) for end in text.split("..", 1))
        return (own.times >= (-math.inf if low is None else low)) & (own.times < (math.inf if high is None else high))
    try:
        low, high = (int(end) if end else None for end in text.split(":"))
    except ValueError:
        raise DataError(printable(where), f"the part {printable(text)!r} is none",
                        "file#from..to by time, or file#from:to by place, as #:-2") from None  # fmt: skip
    sizes = np.diff(own.offsets)
    place = np.arange(len(own)) - np.repeat(own.offsets[:-1], sizes)
    whole = np.repeat(sizes, sizes)

    def at(end: int | None, otherwise: np.ndarray) -> np.ndarray:
        return otherwise if end is None else np.clip(end + (whole if end < 0 else 0), 0, whole)

    return (place >= at(low, np.zeros_like(whole))) & (place < at(high, whole))


def of_share(own: Ledger, purpose: str, low: float, high: float) -> np.ndarray:
    """Events of the entities whose names fall into a share of [0, 1), bool (n,); each purpose deals them out anew."""
    marks = [hashlib.sha256(f"{purpose} {name}".encode()).digest() for name in own.entities.tolist()]
    place = np.array([int.from_bytes(mark[:8], "big") / 2**64 for mark in marks])
    return np.repeat((place >= low) & (place < high), np.diff(own.offsets))


def latest(own: Ledger, most: int) -> tuple[Ledger, np.ndarray]:
    """The latest events of each entity alone, at most so many; and which of all they are, bool (n,)."""
    sizes = np.diff(own.offsets)
    keep = np.arange(len(own)) >= np.repeat(np.maximum(own.offsets[1:] - most, own.offsets[:-1]), sizes)
    cut = dataclasses.replace(own, columns={name: x[keep] for name, x in own.columns.items()}, rows=own.rows[keep],
                              offsets=np.concatenate([[0], np.cumsum(np.minimum(sizes, most))]))  # fmt: skip
    return cut, keep


def _moment(text: str, where: str) -> float | None:
    """Seconds since 1970 of a bound of a part."""
    text = text.strip()
    if not text:
        return None
    try:
        return float(text) * derived.DAY
    except ValueError:
        pass
    found, reasons = cells.times([text])
    if reasons:
        raise DataError(printable(where), f"{printable(text)!r} is no time", "ISO 8601, or days since 1970")
    return float(found[0])
