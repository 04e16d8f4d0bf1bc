"""The vocabulary of events: values to ids and scaled numbers, fitted on training events alone.

Legend: n events. Ids are the rows of an embedding: 0 is padding, 1 unknown or missing, the others from 2 on.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tljax.errors import ConfigError, DataError, WeightsError, printable

PADDING, UNKNOWN, FIRST = 0, 1, 2
MOST = 10_000_000  # values of one field, and entries of a file of them
SCALED = 5.0  # standard deviations at which scaled numbers are cut
NAME = re.compile(r"[A-Za-z0-9_]+")
TINY = 1e-9  # a standard deviation below is rounding, not spread


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of events, as fitted.

    Attributes:
      name: letters, digits and _.
      kind: one of KINDS.
      size: the number of ids, with padding and unknown.
      values: of a category, in the order of their ids; whole numbers as their digits, whatever dtype they come in.
      edges: of a number, rising; bin i holds edges[i - 1] <= x < edges[i].
      scale, mean, sd: of a number; its scaled value is (sign(x) log(1 + |x| / scale) - mean) / sd.
    """

    name: str
    kind: str
    size: int
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    scale: float = 1.0
    mean: float = 0.0
    sd: float = 1.0

    def encode(self, values_n: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(ids int32 (n,) in 1 to size - 1, scaled float32 (n,) in -5 to 5, 0 where missing; None of a category).

        Raises:
          DataError: text for a number, or an array that is neither numbers nor text.
        """
        return KINDS[self.kind].encode(self, values_n)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {value: i for i, value in enumerate(self.values, FIRST)}


def fit(name: str, kind: str, values_n: np.ndarray, *, bins: int = 32, least: int = 1, most: int = MOST) -> Field:
    """Fits a field to the values of training events.

    Args:
      name: letters, digits and _.
      kind: "category"; "number"; or "delta", a number too: the seconds since the entity's previous event, as
        `derived.since_last` has them.
      values_n: numbers or str (n,); NaN and "" are missing. A number is any finite one.
      bins: of a number, at most: as many events in each as can be, fewer bins where a value is very frequent.
      least, most: of a category: values seen less often are unknown, and all but the most frequent ones.

    Raises:
      ConfigError: a name or kind that cannot be one, or bins, least or most below 1 or above 10^7.
      DataError: no value at all, none seen often enough, text or infinite values for a number.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"field {printable(name, 60)!r}", "the name cannot be one of a field", "A-Z, a-z, 0-9 and _",
                          f"rename the column to {re.sub(r'[^A-Za-z0-9_]+', '_', name) or 'field'!r}")  # fmt: skip
    if kind not in KINDS:
        raise ConfigError(f"field {name!r}", f"found the kind {printable(kind, 60)!r}", f"one of {', '.join(KINDS)}")
    for what, number in (("bins", bins), ("least", least), ("most", most)):
        if not 1 <= number <= MOST:
            raise ConfigError(f"field {name!r}", f"found {what} = {number}", f"1 to {MOST}")
    return KINDS[kind].fit(name, kind, values_n, bins, least, most)


def _distinct(name: str, values_n: np.ndarray) -> tuple[list[str], np.ndarray]:
    """(the distinct values as text, "" where missing; which of them each event has, int64 (n,))."""
    if values_n.ndim != 1 or values_n.dtype.kind not in "biufU":
        raise DataError(f"field {name!r}", f"found {values_n.dtype} {values_n.shape}", "numbers or str of shape (n,)")
    values = values_n.astype(np.uint8) if values_n.dtype.kind == "b" else values_n
    distinct = np.unique(values)
    found = distinct.tolist()
    if values.dtype.kind == "f":  # 3.0 of a column with gaps is the 3 of one without
        found = ["" if math.isnan(x) else int(x) if math.isfinite(x) and x == int(x) else repr(x) for x in found]
    return list(map(str, found)), np.searchsorted(distinct, values)


def _fit_category(name: str, kind: str, values_n: np.ndarray, bins: int, least: int, most: int) -> Field:
    texts, which = _distinct(name, values_n)
    counts = np.bincount(which, minlength=len(texts)).tolist()
    seen = sorted((-count, text) for text, count in zip(texts, counts, strict=True) if text and count >= least)
    if not seen:
        found = f"none of {sum(map(bool, texts))} values is seen {least} times in {len(values_n)} training events"
        raise DataError(f"field {name!r}", found, "at least one", "lower least, or leave the field out")
    values = tuple(text for _, text in seen[:most])
    return Field(name, kind, FIRST + len(values), values)


def _encode_category(field: Field, values_n: np.ndarray) -> tuple[np.ndarray, None]:
    texts, which = _distinct(field.name, values_n)
    return np.array([field._ids.get(text, UNKNOWN) for text in texts], np.int32)[which], None


def _numbers(name: str, values_n: np.ndarray) -> np.ndarray:
    if values_n.ndim != 1 or values_n.dtype.kind not in "biuf":
        example = f", for example {printable(str(values_n[0]), 60)!r}" if values_n.ndim == 1 and len(values_n) else ""
        raise DataError(f"field {name!r}", f"found {values_n.dtype} {values_n.shape}{example}", "numbers of shape (n,)",
                        "read the column as a number, or make it a category")  # fmt: skip
    return values_n.astype(np.float64)


def _log(x: np.ndarray, scale: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.sign(x) * np.log1p(np.minimum(np.abs(x) / scale, np.finfo(np.float64).max))


def _fit_number(name: str, kind: str, values_n: np.ndarray, bins: int, least: int, most: int) -> Field:
    x = _numbers(name, values_n)
    x = x[~np.isnan(x)]
    if not len(x) or np.isinf(x).any():
        found = f"{np.isinf(x).sum()} infinite values" if len(x) else "no number"
        raise DataError(f"field {name!r}", f"found {found} in {len(values_n)} training events", "finite numbers",
                        "mend the column, or leave the field out")  # fmt: skip
    # Edges are values that occur, above the least one: so no bin is empty, which would be an id that is never trained.
    x = np.sort(x)
    edges = _edges(x, bins)
    sizes = np.abs(x[x != 0])
    scale = (
        float(np.quantile(sizes, 0.5, method="inverted_cdf")) if len(sizes) else 1.0
    )  # so that the unit of the column does not matter
    logs = _log(x, scale)
    # A rate that is almost always 0 has next to no spread, and all that is not 0 would be cut off as one value.
    sd = max(float(logs.std()), float(np.ptp(logs)) / (2 * SCALED))
    return Field(name, kind, FIRST + len(edges) + 1, (), tuple(edges.tolist()), scale, float(logs.mean()),
                 sd if sd > TINY else 1.0)  # fmt: skip


def _edges(x: np.ndarray, bins: int) -> np.ndarray:
    """Where bins of rising x begin, but for the lowest: a value as frequent as a whole bin is one by itself, and the
    others are quantiles of the rest, so that of a number that is 0 nine times in ten the tenth is told apart.

    Edges are values that occur, above the least one: no bin is empty, which would be an id that is never trained.
    """
    values, counts = np.unique(x, return_counts=True)
    alone = counts > len(x) / bins
    begins = [values[alone], values[1:][alone[:-1]]]
    rest = x[np.isin(x, values[~alone])]
    left = bins - 2 * int(alone.sum())  # beside each there is a bin above it
    if left < 1:
        begins, rest, left = [], x, bins
    if len(rest) and left > 1:
        begins.append(rest[np.arange(1, left) * len(rest) // left])
    edges = np.unique(np.concatenate(begins or [x[:0]]))
    return edges[edges > values[0]]


def _encode_number(field: Field, values_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = _numbers(field.name, values_n)
    missing = np.isnan(x)
    ids = np.searchsorted(np.array(field.edges, np.float64), x, "right") + FIRST
    with np.errstate(over="ignore"):
        scaled = ((_log(x, field.scale) - field.mean) / field.sd).clip(-SCALED, SCALED)
    return np.where(missing, UNKNOWN, ids).astype(np.int32), np.where(missing, 0.0, scaled).astype(np.float32)


def _entries(value: Any, key: str, fits: Callable[[Any], bool], what: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > MOST:
        found = f"{len(value)} entries" if isinstance(value, list) else f"a {type(value).__name__}"
        raise ValueError(f"{key} is {found}, expected a list of at most {MOST}")
    if odd := [x for x in value if not fits(x)]:
        raise ValueError(f"{key} holds {printable(repr(odd[0]), 60)}, expected {what}")
    return tuple(value)


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _load_category(data: dict[str, Any]) -> Field:
    values = _entries(data["values"], "values", lambda x: isinstance(x, str) and bool(x), "texts")
    if len(set(values)) != len(values):
        raise ValueError("a value stands there twice")
    return Field(data["name"], data["kind"], FIRST + len(values), values)


def _load_number(data: dict[str, Any]) -> Field:
    edges = _entries(data["edges"], "edges", _finite, "finite numbers")
    if any(a >= b for a, b in itertools.pairwise(edges)):
        raise ValueError("the edges do not rise")
    for key in ("scale", "mean", "sd"):
        if not _finite(data[key]) or (key != "mean" and data[key] <= 0):
            expected = "a finite number" if key == "mean" else "a finite number above 0"
            raise ValueError(f"{key} is {printable(repr(data[key]), 60)}, expected {expected}")
    return Field(data["name"], data["kind"], FIRST + len(edges) + 1, (), edges, data["scale"], data["mean"], data["sd"])


class _Kind(NamedTuple):
    fit: Callable[[str, str, np.ndarray, int, int, int], Field]
    encode: Callable[[Field, np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    keys: tuple[str, ...]  # that a file has beside name, kind and size
    load: Callable[[dict[str, Any]], Field]


_NUMBER = _Kind(_fit_number, _encode_number, ("edges", "scale", "mean", "sd"), _load_number)
KINDS = {
    "category": _Kind(_fit_category, _encode_category, ("values",), _load_category),
    "number": _NUMBER,
    "delta": _NUMBER,
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The fields of events, in order, each name once."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if doubled := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"field {doubled[0]!r}", "the name stands there twice", "each field once")

    def to_json(self) -> str:
        """JSON text that `from_json` makes the same vocabulary of: floats are written exactly."""
        plain = [{key: getattr(field, key) for key in ("name", "kind", "size", *KINDS[field.kind].keys)}
                 for field in self.fields]  # fmt: skip
        return json.dumps({"fields": plain}, allow_nan=False)

    @staticmethod
    def from_json(text: str, where: str) -> "Vocabulary":
        """The vocabulary in the text of a file.

        Args:
          where: the file, for messages.

        Raises:
          WeightsError: text that `to_json` did not write, with the field and what is odd about it.
        """
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or data.keys() != {"fields"} or not isinstance(data["fields"], list):
                raise ValueError("found no list of fields")
            fields = tuple(_field(i, value) for i, value in enumerate(data["fields"]))
            if len({field.name for field in fields}) != len(fields):
                raise ValueError("the name of a field stands there twice")
            if (entries := sum(len(field.values) + len(field.edges) for field in fields)) > MOST:
                raise ValueError(f"found {entries} entries, expected at most {MOST}")
        except (ValueError, RecursionError) as error:
            found = f"cannot be read as a vocabulary ({printable(error)})"
            raise WeightsError(printable(where), found, "what was written with the weights") from None
        return Vocabulary(fields)

    def digest(self) -> str:
        """SHA-256 over all that encoding depends on."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _field(index: int, data: Any) -> Field:
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"field {index} is of an unknown kind, {printable(repr(kind), 60)}")
    if data.keys() != {"name", "kind", "size", *KINDS[kind].keys}:
        raise ValueError(f"field {index} has {printable(', '.join(data), 120)}, not what a {kind} has")
    if not isinstance(data["name"], str) or not NAME.fullmatch(data["name"]):
        raise ValueError(f"field {index} is called {printable(repr(data['name']), 60)}, expected A-Z, a-z, 0-9 and _")
    field = KINDS[kind].load(data)
    if type(data["size"]) is not int or data["size"] != field.size:
        raise ValueError(f"field {data['name']} has size {printable(repr(data['size']), 60)}, expected {field.size}")
    return field
