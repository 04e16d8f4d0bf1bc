"""A table of events as columns, sorted by entity and time.

Legend: n events, E entities.
"""

import dataclasses
import difflib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tljax.data import cells, tables
from tljax.data.records import LISTED, Row, place
from tljax.errors import ConfigError, DataError, printable


@dataclasses.dataclass(frozen=True, eq=False)
class Ledger:
    """n events of E entities; those of one entity stand together, by time, and at the same time as in the file.

    Attributes:
      name: the file, for messages.
      columns: name -> (n,), numbers of any real dtype or str; the time is float64 seconds since 1970, UTC.
      entity: the column that says whose event it is.
      time: the column of the time; "": the file is in the order of time, and its row numbers are the times.
      rows: int64 (n,), which event of the file each one is, from 0: `x[rows]` sorts what stands as in the file.
      offsets: int64 (E + 1,); the events of entity i are offsets[i]:offsets[i + 1], at least one.
      entities: (E,) distinct values of the entity column, rising.
    """

    name: str
    columns: dict[str, np.ndarray]
    entity: str
    time: str
    rows: np.ndarray
    offsets: np.ndarray
    entities: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def times(self) -> np.ndarray:
        """float64 (n,): seconds since 1970, or row numbers where the ledger has no time."""
        return self.columns[self.time] if self.time else self.rows.astype(np.float64)


class _Table(NamedTuple):
    """What a file holds before its cells are looked at."""

    columns: dict[str, cells.Cells]
    unit: str  # of counting, for messages
    spot: Callable[[int], tuple[int, int]]  # event -> (row number, line number or 0)
    faults: "list[_Fault]"


class _Fault(NamedTuple):
    number: int
    line: int
    column: str
    reason: str


def read(path: str, entity: str, time: str, columns: Sequence[str], *, numbers: Sequence[str] = (),
         encoding: str = "utf-8") -> Ledger:  # fmt: skip
    """Reads the events of a file.

    Args:
      path: .npz (its members are columns), .parquet, .csv, .tsv, .jsonl, .json; or .txt with the fields of an event
        separated by white space, no header, and `columns` as the names of all fields in their order. Each but .npz
        and .parquet also as .gz.
      entity: the column that says whose event it is.
      time: the column of the time: numbers, which are seconds, or ISO 8601 dates, which are UTC where they name no
        zone. "": the file is in the order of time.
      columns: the others to read; entity and time may stand among them.
      numbers: columns that have to hold numbers, NaN where a cell is empty; of text they become float64. The others
        are what .npz, .parquet and JSON say they are. Their text stays text, but for columns that are all whole
        numbers as Python writes them: they become int64, which loses nothing ("07" would).
      encoding: of text files.

    Raises:
      DataError: anything that cannot be read, all unusable rows at once.
      ConfigError: no entity, one column as both, or an encoding that does not exist.
    """
    if not entity or entity == time:
        raise ConfigError("entity", f"found {entity!r}, and {time!r} as the time", "the column of who or what acts")
    wanted = list(dict.fromkeys([entity, *([time] if time else []), *columns, *numbers]))
    kind = "npz" if path.lower().endswith(".npz") else tables.kind_of(path)
    if not kind:
        raise DataError(printable(path), "found a file of unknown kind", ".npz, .parquet, .csv, .jsonl or .txt")
    content = _content(path)
    try:
        if kind in _BINARY:
            table = _BINARY[kind](path, wanted)
        else:
            table = _text_table(path, content, kind, wanted, columns, encoding)
    except DataError as error:
        # The settings that `tables` sends to are those of texts and images, not the ones that name these columns.
        fix = error.fix.partition("set --config.data.")[0].rstrip("; ")
        raise DataError(error.where, error.found, error.expected, fix, error.details) from None
    made = {}
    for name, column in table.columns.items():
        convert = cells.times if name == time else cells.numbers if name in numbers else cells.plain
        made[name], reasons = convert(column)
        if name == entity and not reasons:
            reasons = cells.lacking(made[name])
        table.faults.extend(_Fault(*table.spot(i), name, reason) for i, reason in reasons)
    _judge(path, table)
    entities, whose = np.unique(made[entity], return_inverse=True)
    rows = np.lexsort((made[time], whose)) if time else np.argsort(whose, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(whose))]).astype(np.int64)
    return Ledger(path, {name: x[rows] for name, x in made.items()}, entity, time, rows.astype(np.int64), offsets,
                  entities)  # fmt: skip


def _content(path: str) -> bytes:
    """The bytes of the file; none of a binary one, which its own library reads."""
    try:
        with open(path, "rb") as file:
            return b"" if path.lower().endswith((".npz", ".parquet")) else file.read()
    except OSError as error:
        folder, name = os.path.split(path)
        there = sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
        near = difflib.get_close_matches(name, there, 3) if isinstance(error, FileNotFoundError) else []
        raise DataError(printable(path), f"cannot be read ({error.strerror})", "a table of events",
                        f"did you mean {', '.join(map(printable, near))}?" if near else "") from None  # fmt: skip


def _text_table(path: str, content: bytes, kind: str, wanted: list[str], columns: Sequence[str],
                encoding: str) -> _Table:  # fmt: skip
    names = wanted
    if kind == "txt":
        names = list(columns)
        tables.locate(path, names, wanted)
        rows = _fields(tables.read_table(path, content, ["line"], encoding=encoding), names)
    else:
        rows = tables.read_table(path, content, wanted, encoding=encoding)
    values: list[Sequence[Any]] = []
    spots: list[tuple[int, int]] = []
    faults: list[_Fault] = []
    for row in rows:
        if row.problem:
            faults.append(_Fault(row.number, row.line, "", row.problem))
        else:
            values.append(row.values)
            spots.append((row.number, row.line))
    made = [list(column) for column in zip(*values, strict=True)] or [[] for _ in names]
    return _Table(dict(zip(names, made, strict=True)), tables.UNITS[kind], spots.__getitem__, faults)


def _fields(rows: Iterator[Row], names: list[str]) -> Iterator[Row]:
    for row in rows:
        fields = row.values[0].split()
        found = f"{len(fields)} fields, expected {len(names)} ({', '.join(names)})" if len(fields) != len(names) else ""
        yield row._replace(values=fields, problem=row.problem or found)


def _npz(path: str, wanted: list[str]) -> _Table:
    columns: dict[str, cells.Cells] = {}
    try:
        with open(path, "rb") as file:  # np.load would leave a damaged one open
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile) or archive.zip is None:
                raise DataError(printable(path), "found a single array", "an .npz file with an array for each column")
            tables.locate(path, archive.files, wanted)
            if sum(info.file_size for info in archive.zip.infolist()) > tables.MAX_TABLE_BYTES:
                raise DataError(printable(path), f"more than {tables.MAX_TABLE_BYTES >> 30} GiB unpacked")
            for name in wanted:
                array = np.asarray(archive[name])
                if array.ndim != 1 or array.dtype.kind not in "biufMU":
                    raise DataError(f"{printable(path)}, column {name!r}", f"found {array.dtype} {array.shape}",
                                    "numbers, dates or str of shape (n,)")  # fmt: skip
                columns[name] = array.tolist() if array.dtype.kind == "U" else array
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            printable(path), f"cannot be read as .npz ({printable(error)})", "what np.savez wrote"
        ) from None
    lengths = {name: len(column) for name, column in columns.items()}
    if odd := [name for name in wanted if lengths[name] != lengths[wanted[0]]]:
        raise DataError(f"{printable(path)}, column {odd[0]!r}", f"found {lengths[odd[0]]} events",
                        f"{lengths[wanted[0]]}, as in {wanted[0]!r}")  # fmt: skip
    return _Table(columns, "index", lambda i: (i, 0), [])


def _parquet(path: str, wanted: list[str]) -> _Table:
    import pyarrow  # late: 0.2 s, and only this format needs it
    import pyarrow.parquet

    columns: dict[str, cells.Cells] = {}
    try:
        file = pyarrow.parquet.ParquetFile(path)
        tables.locate(path, file.schema_arrow.names, wanted)
        for name in wanted:
            column = file.read(columns=[name]).column(name)
            dated = pyarrow.types.is_timestamp(column.type) or pyarrow.types.is_date(column.type)
            plain = pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)
            # Whole numbers with gaps would come as float64, in which large ids are no longer exact.
            columns[name] = column.to_numpy() if dated or (plain and not column.null_count) else column.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(printable(path), f"cannot be read as Parquet ({printable(error)})", "a Parquet file") from None
    return _Table(columns, "row", lambda i: (i + 1, 0), [])


_BINARY: dict[str, Callable[[str, list[str]], _Table]] = {"npz": _npz, "parquet": _parquet}


def _judge(path: str, table: _Table) -> None:
    faults, total = sorted(table.faults), len(next(iter(table.columns.values())))
    if not faults and not total:
        raise DataError(printable(path), "found 0 events", "at least 1")
    if not faults:
        return
    wheres = [
        place(path, table.unit, fault.number, fault.line, "")
        + (f", column {printable(fault.column, 60)!r}" if fault.column else "")
        for fault in faults[:LISTED]
    ]
    details = [f"{where}: {fault.reason}" for where, fault in zip(wheres, faults, strict=False)]
    if len(faults) > LISTED:
        details.append(f"and {len(faults) - LISTED} more")
    more = f" (the first of {len(faults)} faults)" if len(faults) > 1 else ""
    raise DataError(wheres[0], faults[0].reason + more, fix="mend the file, or leave such rows out",
                    details=details if len(faults) > 1 else ())  # fmt: skip
