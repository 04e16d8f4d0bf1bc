"""Sources: from what a user writes (`--config.data.train=tickets.csv`) to records, whatever the format."""

import difflib
import os
import posixpath
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tljax.config import DataConfig
from tljax.data import folders, pixels, tables
from tljax.data.checks import classes_of, duplicates, label_ids, overlap
from tljax.data.records import Records, Row, collect, join, text_input
from tljax.data.stores import ArrayStore, FolderStore, ImageRef, RowStore, Store
from tljax.errors import DataError, printable

__all__ = ["ImageRef", "Records", "classes_of", "duplicates", "from_arrays", "label_ids", "overlap", "read_records"]


def read_records(source: str, data: DataConfig, task: str, labelled: bool = True) -> Records:
    """Reads a source.

    Args:
      source: one of the following, or several joined by '|'.
        tickets.csv, .tsv, .jsonl, .parquet, .json, each but Parquet also as .gz: columns by name (`text_column`,
        `image_column`, `label_column`); JSON may also be a list of [input, label] pairs;
        splits.json#train: one split of an object of such lists;
        photos/: an image folder <class>/…/*.jpg; photos/#train the folder below it;
        list.txt: lines 'path, label', image paths relative to the list file, as in every table of images;
        photos.zip, photos.zip#folder, photos.zip#list.txt, tickets.zip#file.csv: the same inside an archive;
        digits.npz#x_train,y_train: two arrays of a .npz: uint8 images (n, H, W[, 1 or 3]), and labels;
        tfds:<name>/<split>: a prepared TFDS data set in the array_record format.
      data: columns, encoding, exclude_labels, on_bad, threads.
      task: "text" or "image".
      labelled: False: labels are neither needed nor read.

    Raises:
      DataError: anything that cannot be read, with the place; on_bad=stop: all unusable rows at once.
      ConfigError: an encoding that does not exist.
    """
    names = [name.strip() for name in source.split("|")]
    if not all(names):
        raise DataError(repr(printable(source)), "an empty source", "files joined by '|'")
    return join([_read_one(name, data, task, labelled) for name in names])


def _read_one(source: str, data: DataConfig, task: str, labelled: bool) -> Records:
    if source.startswith("tfds:"):
        return _tfds(source, data, task, labelled)
    path, part = _split(source)
    if os.path.isdir(path) and task == "image":
        if part and ".." in part.split("/"):
            raise DataError(printable(source), "the part leads out of the folder", "a folder below it")
        rows, store = folders.folder_source(os.path.join(path, part) if part else path, labelled)
        return _images(source, "", rows, lambda key: ImageRef(store, key), data, labelled)
    if path.lower().endswith(".zip"):
        return _archive(path, part, data, task, labelled)
    if path.lower().endswith(".npz") and task == "image":
        return _arrays(path, part, data, labelled)
    content = _read_file(path)
    here, name = os.path.split(path)
    return _table(path, name, part, content, FolderStore(here), lambda k: os.path.isfile(os.path.join(here, k)),
                  data, task, labelled)  # fmt: skip


def _split(source: str) -> tuple[str, str]:
    """'file#part' -> (file, part); a name that holds '#' itself is taken whole if there is such a file."""
    if os.path.exists(source):
        return source, ""
    path, _, part = source.partition("#")
    return path, part


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        folder, name = os.path.split(path)
        there = sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
        near = difflib.get_close_matches(name, there, 3)
        fix = f"did you mean {', '.join(map(printable, near))}?" if near else ""
        expected = "a file" if there else f"a file; the folder {folder!r} does not exist or is empty"
        raise DataError(printable(path), "there is no such file", expected, fix) from None
    except IsADirectoryError:
        raise DataError(printable(path), "found a folder", "a table of texts") from None
    except OSError as error:
        raise DataError(printable(path), f"cannot be read ({error.strerror})") from None


def _archive(path: str, part: str, data: DataConfig, task: str, labelled: bool) -> Records:
    if not os.path.isfile(path):
        _read_file(path)  # says why
    archive = folders.Archive(path)
    member, _, split = part.partition("#")
    if member in archive.members and tables.kind_of(member):
        members = set(archive.members)
        return _table(f"{path}#{member}", posixpath.basename(member), split, archive.read(member), archive.store,
                      members.__contains__, data, task, labelled, posixpath.dirname(member))  # fmt: skip
    if task == "text":
        there = ", ".join(printable(name, 60) for name in archive.members if tables.kind_of(name))
        raise DataError(printable(f"{path}#{part}" if part else path), "no table of that name in the archive",
                        f"one of {there[:400] or 'none'}", f"write {printable(path)}#<table>")  # fmt: skip
    rows = archive.class_rows(part, labelled)
    return _images(
        f"{path}#{part}" if part else path, "", rows, lambda key: ImageRef(archive.store, key), data, labelled
    )


def _arrays(path: str, part: str, data: DataConfig, labelled: bool) -> Records:
    names = [name.strip() for name in part.split(",")]
    wanted = names[: 1 + labelled]
    try:
        with open(path, "rb") as file:  # np.load would leave a damaged one open
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(printable(path), "found a single array", "an .npz file with arrays by name")
            if len(wanted) != 1 + labelled or not set(wanted) <= set(archive.files):
                raise DataError(printable(path), f"found the part {printable(part)!r}", f"{printable(path)}#images"
                                f"{',labels' * labelled}, of {', '.join(map(printable, archive.files))}")  # fmt: skip
            found = [np.asarray(archive[name]) for name in wanted]
    except FileNotFoundError:
        _read_file(path)  # says why
        raise
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(printable(path), f"cannot be read as .npz ({printable(error)})", "what np.savez wrote"
                        ) from None  # fmt: skip
    return from_arrays(found[0], found[1].tolist() if labelled else None, f"{path}#{part}", data)


def _table(path: str, name: str, part: str, content: bytes, store: Store, exists: Callable[[str], bool],
           data: DataConfig, task: str, labelled: bool, folder: str = "") -> Records:  # fmt: skip
    kind = tables.kind_of(name)
    if not kind or (kind == "txt" and task == "text" and labelled):
        need = (
            "labels need columns: .csv, .jsonl or .parquet"
            if kind
            else ".csv, .tsv, .json, .jsonl, .parquet, .txt, .zip"
        )
        raise DataError(printable(path), f"found a {name.rpartition('.')[2] if '.' in name else 'file without ending'}",
                        f"{need}{'' if kind else ' or an image folder'}")  # fmt: skip
    column = data.text_column if task == "text" else data.image_column
    wanted = [column, data.label_column] if labelled else [column]
    rows = tables.read_table(name, content, wanted, part, data.encoding, data.on_bad == "skip")
    title, unit = f"{path}#{part}" if part else path, tables.UNITS[kind]
    if task == "text":
        return collect(title, unit, rows, text_input, data, labelled)
    resolve = folders.path_resolver(store, folder, exists)
    if kind == "txt" and not labelled:
        rows = (row._replace(values=(row.values[0].split(",")[0],)) for row in rows)
    return _images(title, unit, rows, resolve, data, labelled)


def _images(title: str, unit: str, rows: Iterator[Row], resolve: Callable[[Any], ImageRef], data: DataConfig,
            labelled: bool) -> Records:  # fmt: skip
    """Records of images whose headers have all been looked at; with on_bad=skip each is decoded once, so that
    the ones left out are known before the first epoch and the order of the rest never changes."""

    def look(ref: ImageRef) -> str:
        reason = pixels.probe(ref, whole=data.on_bad == "skip")
        return f"image {printable(ref.name)}: {reason}" if reason and unit else reason  # else the place is its name

    def probe(refs: list[ImageRef]) -> list[str]:
        with ThreadPoolExecutor(data.threads) as threads:
            return list(threads.map(look, refs))

    return collect(title, unit, rows, resolve, data, labelled, probe)


def _tfds(source: str, data: DataConfig, task: str, labelled: bool) -> Records:
    """'tfds:<name>/<split>' by random access to array_record files: without TensorFlow, and nothing is downloaded.
    Where TFDS itself knows the set it imports its own module for it; a prepared set needs no such module."""
    name, slash, split = source.removeprefix("tfds:").rpartition("/")
    if not slash or not name or not split or ":" in name.split("/")[0]:
        raise DataError(printable(source), "cannot be read as a TFDS name", "tfds:<name>/<split>")
    import tensorflow_datasets as tfds  # late: 1.5 s

    prepare = f"prepare it with tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
    try:
        builder = tfds.builder(name, file_format="array_record")
        splits = list(builder.info.splits or ())
    except (ValueError, OSError, ImportError) as error:
        raise DataError(printable(source), f"TFDS finds no such data set ({printable(str(error).splitlines()[0])})",
                        "a prepared data set in TFDS_DATA_DIR", prepare) from None  # fmt: skip
    if not splits:
        raise DataError(printable(source), "the data set is known but not prepared", "array_record files", prepare)
    features = builder.info.features
    column = data.text_column if task == "text" else data.image_column
    tables.locate(source, list(features), [column, data.label_column] if labelled else [column])
    decoders = {column: tfds.decode.SkipDecoding()} if task == "image" else {}
    try:
        table: Any = builder.as_data_source(split=split, decoders=decoders)
    except ValueError as error:
        raise DataError(printable(source), printable(error), f"a split of {', '.join(splits)}") from None
    except NotImplementedError as error:
        raise DataError(printable(source), f"no random access ({printable(error)})", "array_record", prepare) from None

    named = getattr(features[data.label_column], "int2str", None) if labelled else None

    def label(value: Any) -> Any:
        if named is not None:
            return named(int(value)) if int(value) >= 0 else None
        return value.decode() if isinstance(value, bytes) else value

    store = RowStore(source, table, column)
    rows = (Row(i, 0, ((row[column] if task == "text" else i), *([label(row[data.label_column])] if labelled else [])))
            for i, row in enumerate(table))  # fmt: skip
    if task == "text":
        rows = (row._replace(values=(_utf8(row.values[0]), *row.values[1:])) for row in rows)
        return collect(source, "example", rows, text_input, data, labelled)
    return _images(source, "example", rows, lambda key: ImageRef(store, key), data, labelled)


def _utf8(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def from_arrays(
    inputs: Sequence[str] | np.ndarray,
    labels: Sequence[Any] | np.ndarray | None,
    name: str,
    data: DataConfig | None = None,
) -> Records:
    """Records from memory.

    Args:
      inputs: n texts, or images as uint8 (n, H, W) or (n, H, W, 1 or 3).
      labels: n class names or whole numbers; None: unlabelled.
      name: how messages call them; places are indices from 0.
      data: exclude_labels and on_bad; the defaults otherwise.

    Raises:
      DataError: unequal lengths, another dtype or shape, or a row that cannot be used.
    """
    data = data or DataConfig()
    if labels is not None and len(labels) != len(inputs):
        raise DataError(name, f"{len(inputs)} inputs and {len(labels)} labels", "as many of both")
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind not in "OUST":
        if (
            inputs.dtype != np.uint8
            or inputs.ndim not in (3, 4)
            or (inputs.ndim == 4 and inputs.shape[3] not in (1, 3))
        ):
            raise DataError(name, f"images of {inputs.dtype} {inputs.shape}", "uint8 (n, H, W) or (n, H, W, 1 or 3)")
        store = ArrayStore(name, inputs)
        cells: Sequence[Any] = range(len(inputs))
        to_input: Callable[[Any], Any] = lambda key: ImageRef(store, key)  # noqa: E731
    else:
        cells, to_input = [str(x) if isinstance(x, np.str_) else x for x in inputs], text_input
    rows = (Row(i, 0, (cell,) if labels is None else (cell, labels[i])) for i, cell in enumerate(cells))
    return join([collect(name, "index", rows, to_input, data, labels is not None)])
