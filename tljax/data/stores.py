"""Where images lie: a folder, a zip archive, arrays in memory, or a TFDS table; read by key, from any thread."""

import dataclasses
import hashlib
import io
import os
import threading
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol

import numpy as np

MAX_FILE_BYTES = 256 * 2**20  # of one encoded image; a zip member may claim far more than it takes


class Store(Protocol):
    """A place that holds images by key. All methods may be called from several threads at once."""

    def name(self, key: Any) -> str:
        """How messages call the image."""

    def open(self, key: Any) -> "BinaryIO | np.ndarray":
        """The encoded file, or its pixels as uint8 (H, W), (H, W, 1) or (H, W, 3). OSError if it is not there."""

    def stamp(self, key: Any) -> str:
        """Changes when the image changes; the same on every machine; does not read the image where it is a file."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ImageRef:
    """An image that is read when it is needed."""

    store: Store
    key: Any

    @property
    def name(self) -> str:
        return self.store.name(self.key)

    def open(self) -> "BinaryIO | np.ndarray":
        return self.store.open(self.key)

    def read(self) -> "bytes | np.ndarray":
        """The encoded file whole, or the pixels. OSError where that fails."""
        content = self.open()
        if isinstance(content, np.ndarray):
            return content
        with content as file:
            return _damage_as_os_error(file.read)


class FolderStore:
    """Files below a folder, by relative path."""

    def __init__(self, root: str):
        self.root = root

    def name(self, key: str) -> str:
        return os.path.join(self.root, key)

    def open(self, key: str) -> BinaryIO:
        file = open(self.name(key), "rb")  # noqa: SIM115 - the caller closes it
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            file.close()
            raise OSError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB")
        return file

    def stamp(self, key: str) -> str:
        return f"{key} {os.path.getsize(self.name(key))}"


class ZipStore:
    """Members of a zip archive, by name. Nothing is ever extracted: each thread reads through a ZipFile of its own,
    because threads that share one wait for its lock at every read."""

    def __init__(self, path: str):
        self.path = path
        self._local = threading.local()

    @property
    def archive(self) -> zipfile.ZipFile:
        if not hasattr(self._local, "archive"):
            self._local.archive = _damage_as_os_error(lambda: zipfile.ZipFile(self.path))
        return self._local.archive

    def name(self, key: str) -> str:
        return f"{self.path}#{key}"

    def open(self, key: str) -> BinaryIO:
        if not is_plain(key):
            raise OSError("the name leads out of the archive")
        try:
            info = self.archive.getinfo(key)
        except KeyError:
            raise FileNotFoundError("no such member in the archive") from None
        if info.file_size > MAX_FILE_BYTES:
            raise OSError(f"the member is larger than {MAX_FILE_BYTES >> 20} MiB")
        return io.BytesIO(_damage_as_os_error(lambda: self.archive.read(info)))

    def stamp(self, key: str) -> str:
        return f"{key} {self.archive.getinfo(key).CRC:08x}"


class ArrayStore:
    """Images in memory: uint8 (n, H, W) or (n, H, W, 1 or 3), by index."""

    def __init__(self, title: str, images: np.ndarray):
        self.title, self.images = title, images

    def name(self, key: int) -> str:
        return f"{self.title}[{key}]"

    def open(self, key: int) -> np.ndarray:
        return self.images[key]

    def stamp(self, key: int) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.images[key]).tobytes()).hexdigest()


class RowStore:
    """Images in the rows of a table with random access (a TFDS data source), still encoded."""

    def __init__(self, title: str, rows: Sequence[Any], column: str):
        self.title, self.rows, self.column = title, rows, column

    def name(self, key: int) -> str:
        return f"{self.title}, example {key}"

    def open(self, key: int) -> "BinaryIO | np.ndarray":
        value = self.rows[key][self.column]
        return io.BytesIO(value) if isinstance(value, bytes) else np.asarray(value)

    def stamp(self, key: int) -> str:
        return self.name(key)


def is_plain(name: str) -> bool:
    """Whether a member's name stays inside its archive: relative, without '..', backslash or NUL."""
    return bool(name) and not name.startswith("/") and not {"\\", "\0"} & set(name) and ".." not in name.split("/")


def _damage_as_os_error(read: Any) -> Any:
    """Damage in an archive (bad CRC, broken deflate, encryption) as an OSError that says so."""
    try:
        return read()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise OSError(f"the archive is damaged or encrypted ({error})") from None
