"""Tables: CSV, TSV, JSON, JSON lines, Parquet and plain lists, read row by row with exact places for every fault."""

import codecs
import csv
import difflib
import gzip
import io
import json
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tljax.data.records import Row
from tljax.errors import ConfigError, DataError, printable

MAX_TABLE_BYTES = 8 * 2**30  # unpacked; a .gz of a few MB may hold far more than memory
SHOWN = 20  # names in one message
_FIELD_LIMIT = threading.Lock()  # csv's limit on the size of a field is one for the whole process


def kind_of(name: str) -> str:
    """The kind of table by file name, '' where it is none.

    >>> kind_of("a/Tickets.CSV.gz"), kind_of("photo.jpg")
    ('csv', '')
    """
    suffix = name.lower().removesuffix(".gz").rpartition(".")[2]
    return {"csv": "csv", "tsv": "tsv", "json": "json", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet",
            "txt": "txt"}.get(suffix, "")  # fmt: skip


UNITS = {"csv": "row", "tsv": "row", "json": "item", "jsonl": "line", "parquet": "row", "txt": "line"}


def read_table(
    name: str, content: bytes, wanted: Sequence[str], part: str = "", encoding: str = "utf-8", skip: bool = False
) -> Iterator[Row]:
    """The rows of a table, each with the values of the wanted columns.

    Args:
      name: the file name, which says the kind; '.gz' is unpacked.
      content: the bytes of the file.
      wanted: the input column and, if labels are wanted, the label column.
      part: the split of a JSON object of splits.
      encoding: of text files.
      skip: whether rows with bytes outside the encoding are handed on as bad rows instead of ending the reading.

    Raises:
      DataError: the file as a whole cannot be read; a single bad row is handed on with its problem.
    """
    kind = kind_of(name)
    if part and kind != "json":
        raise DataError(f"{name}#{part}", f"a {kind} file has no splits", f"{name} alone")
    if name.lower().endswith(".gz"):
        content = _unpack(name, content)
    if not content:
        raise DataError(name, "the file is empty (0 bytes)", "a table")
    reader: dict[str, Callable[..., Iterator[Row]]] = {"csv": _csv, "tsv": _csv, "jsonl": _jsonl, "txt": _txt}
    if kind == "parquet":
        return _parquet(name, content, wanted)
    if kind == "json":
        return _json(name, decode(name, content, encoding, False, kind), wanted, part)
    return reader[kind](name, decode(name, content, encoding, skip, kind), wanted)


def _unpack(name: str, content: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            unpacked = file.read(MAX_TABLE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(name, f"the gzip file is damaged or cut off ({error})", fix="fetch it again") from None
    if len(unpacked) > MAX_TABLE_BYTES:
        raise DataError(name, f"more than {MAX_TABLE_BYTES >> 30} GiB unpacked", fix="split the file")
    return unpacked


def decode(name: str, content: bytes, encoding: str, skip: bool, kind: str) -> str:
    """The text of a file, without a byte order mark. Bytes outside the encoding are an error that names row and
    byte offset; with `skip` they become lone surrogates, which no valid text holds, so their rows can be told."""
    try:
        codec = codecs.lookup(encoding).name
    except LookupError:
        raise ConfigError("--config.data.encoding", f"unknown encoding {encoding!r}", "for example utf-8") from None
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        start, wrong = error.start, content[error.start : error.start + 1].hex().upper()
        found = f"byte 0x{wrong} at byte offset {start} is not {codec}"
        utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        fix = "it looks like utf-16" if utf16 else "save it as utf-8, or name its encoding"
        if skip and not utf16 and codec in ("utf-8", "ascii"):
            return content.decode(encoding, "surrogateescape").removeprefix("\ufeff")
        row = _row_at(content[:start].decode(encoding, "replace"), kind)
        unit = "row" if kind in ("csv", "tsv") else "line"
        raise DataError(f"{printable(name)}, {unit} {row}", found, codec,
                        f"{fix} with --config.data.encoding=…") from None  # fmt: skip


def _row_at(before: str, kind: str) -> int:
    """The row in which the text after `before` stands, counted as the reader of that kind counts."""
    if kind in ("csv", "tsv"):
        try:
            # One more character, so that text that ends with a line break counts the row that begins there.
            return sum(1 for _ in csv.reader(io.StringIO(before + "x", newline=""), delimiter=_DELIMITERS[kind]))
        except csv.Error:
            pass  # damage before the byte; its line is the best there is to say
    return before.count("\n") + 1


_DELIMITERS = {"csv": ",", "tsv": "\t"}


def escaped(text: str) -> bool:
    """Whether `decode` met bytes outside the encoding in this text."""
    return not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text)


def locate(name: str, columns: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The index of each wanted column. A missing or doubled one is an error that names what there is."""
    if missing := [w for w in wanted if w not in columns]:
        near = [n for w in missing for n in difflib.get_close_matches(w.lower(), [c.lower() for c in columns], 1)]
        shown = ", ".join(repr(printable(c, 60)) for c in columns[:SHOWN])
        shown += f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
        real = next((c for c in columns if near and c.lower() == near[0]), "")
        fix = f"did you mean {real!r}? " if real else ""
        if len(columns) == 1 and (wrong := [d for d in ";\t|" if d in columns[0]]):
            fix = f"the columns seem to be separated by {wrong[0]!r}; save the file with commas; "
        setting = "text_column, image_column or label_column"
        raise DataError(printable(name), f"no column {', '.join(map(repr, missing))}", f"one of {shown or 'none'}",
                        f"{fix}set --config.data.{setting}")  # fmt: skip
    if doubled := [w for w in wanted if list(columns).count(w) > 1]:
        raise DataError(f"{printable(name)}, row 1", f"the column {doubled[0]!r} stands there twice",
                        "each column once", "rename one of them")  # fmt: skip
    return [list(columns).index(w) for w in wanted]


def _csv(name: str, text: str, wanted: Sequence[str]) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_DELIMITERS[kind_of(name)], strict=True)
    header: list[str] | None = None
    at: list[int] = []
    number = begins = 0
    with _FIELD_LIMIT:
        before = csv.field_size_limit(sys.maxsize)
        try:
            while True:
                number, begins = number + 1, reader.line_num + 1
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    found = f"broken quotes ({error}) in the row that begins at line {begins}"
                    raise DataError(
                        f"{printable(name)}, row {number}", found, 'quotes inside quotes doubled: ""'
                    ) from None
                if fields is None:
                    break
                if not fields:
                    continue  # a blank line counts as a row, as it does in a spreadsheet, and holds nothing
                if header is None:
                    header, at = fields, locate(name, fields, wanted)
                    continue
                line = begins if begins != number else 0
                if len(fields) != len(header):
                    problem = f"{len(fields)} fields, expected {len(header)} as in the header"
                    yield Row(number, line, (), problem)
                    continue
                values = [fields[i] for i in at]
                broken = any(escaped(field) for field in fields)
                yield Row(number, line, values, "bytes outside the encoding" if broken else "")
        finally:
            csv.field_size_limit(before)
    if header is None:
        raise DataError(printable(name), "the file holds no header", "column names in row 1")


def _pick(value: Any, wanted: Sequence[str]) -> tuple[Sequence[Any], str]:
    """The wanted values of an object or of an [input, label] pair, or the reason why there are none."""
    if isinstance(value, dict):
        return [value.get(w) for w in wanted], ""
    if isinstance(value, list) and len(value) >= len(wanted) and len(value) <= 2:
        return value[: len(wanted)], ""
    if isinstance(value, str) and len(wanted) == 1:
        return [value], ""
    pair = "an object or a [input, label] pair" if len(wanted) == 2 else "an object or a text"
    return (), f"found {printable(json.dumps(value), 60)}, expected {pair}"


def _objects(name: str, values: list[tuple[int, Any, str]], wanted: Sequence[str]) -> Iterator[Row]:
    """Rows of (number, JSON value, problem). A column that no object has is an error of the whole file."""
    keys = list(dict.fromkeys(key for _, value, _ in values if isinstance(value, dict) for key in value))
    if keys:
        locate(name, keys, wanted)
    for number, value, problem in values:
        picked, reason = _pick(value, wanted) if not problem else ((), problem)
        yield Row(number, 0, picked, reason)


def _json(name: str, text: str, wanted: Sequence[str], part: str) -> Iterator[Row]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{printable(name)}, line {error.lineno}, column {error.colno}"
        raise DataError(place, f"no JSON here ({error.msg})", "a list of rows") from None
    except (ValueError, RecursionError) as error:
        raise DataError(printable(name), f"cannot be read as JSON ({printable(error)})", "a list of rows") from None
    if isinstance(value, dict):
        splits = [key for key, rows in value.items() if isinstance(rows, list)]
        if part not in splits:
            near = difflib.get_close_matches(part, splits, 1) or splits[:1] or ["train"]
            found = f"there is no split {part!r}" if part else "the file is an object of splits"
            raise DataError(printable(name), found, f"one of {printable(', '.join(splits) or 'none')}",
                            f"write {printable(name)}#{printable(near[0])}")  # fmt: skip
        value = value[part]
    elif part:
        raise DataError(f"{printable(name)}#{part}", "the file is one list and has no splits", f"{name} alone")
    if not isinstance(value, list):
        raise DataError(printable(name), f"found a {type(value).__name__}", "a list of rows")
    return _objects(name, [(i, item, "") for i, item in enumerate(value, 1)], wanted)


def _jsonl(name: str, text: str, wanted: Sequence[str]) -> Iterator[Row]:
    values: list[tuple[int, Any, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if escaped(line):
            values.append((number, None, "bytes outside the encoding"))
            continue
        try:
            values.append((number, json.loads(line), ""))
        except (ValueError, RecursionError) as error:
            values.append((number, None, f"no JSON ({printable(error)})"))
    return _objects(name, values, wanted)


def _txt(name: str, text: str, wanted: Sequence[str]) -> Iterator[Row]:
    """Lines 'input, label[, …]' without a header; unlabelled, the whole line is the input."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")] if len(wanted) > 1 else [line.strip()]
        problem = "bytes outside the encoding" if escaped(line) else ""
        if len(fields) < len(wanted):
            problem = f"found {printable(line, 60)!r}, expected 'path, label'"
        yield Row(number, 0, fields[: len(wanted)], problem)


def _parquet(name: str, content: bytes, wanted: Sequence[str]) -> Iterator[Row]:
    import pyarrow  # late: 0.2 s, and only this format needs it
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        locate(name, file.schema_arrow.names, wanted)
        number = 0
        for batch in file.iter_batches(columns=list(wanted)):
            columns = [batch.column(w).to_pylist() for w in wanted]
            for values in zip(*columns, strict=True):
                number += 1
                yield Row(number, 0, values)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(printable(name), f"cannot be read as Parquet ({printable(error)})", "a Parquet file") from None
