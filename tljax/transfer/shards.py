"""Activations on disk: shards that exist wholly or not at all, read through memory maps.

<folder>/<key>/entry.json           what the key stands for, examples, shards, bytes; written when all shards are there
<folder>/<key>/<number>/<name>.bin  the rows of one array, one after another
<folder>/<key>/<number>/shard.json  dtype, shape and CRC-32 of each array; written before the folder gets its name
"""

import contextlib
import dataclasses
import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tljax.errors import WriteError

FORMAT = 1
ENTRY, SHARD = "entry.json", "shard.json"
STALE_S = 24 * 3600  # a draft of that age belongs to nobody any more
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
    """The shards of one key in `folder`; more of them may be there than verify."""

    folder: Path

    @property
    def whole(self) -> bool:
        return (self.folder / ENTRY).is_file()

    def write(self, number: int, arrays: Arrays) -> None:
        """Writes one shard, or leaves it to who was faster.

        Nothing is flushed to the disk: what a power cut leaves does not verify, and is computed again.

        Raises:
          WriteError: no room, no permission.
        """
        place = self.folder / str(number)
        draft = self.folder / f".{number}.{os.getpid()}"
        said: dict[str, Any] = {}
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            for name, array in arrays.items():
                content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                (draft / f"{name}.bin").write_bytes(content)
                said[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "crc32": zlib.crc32(content)}
            (draft / SHARD).write_text(json.dumps({"format": FORMAT, "arrays": said}), encoding="utf-8")
            if place.exists() and self.read(number) is None:
                shutil.rmtree(place, ignore_errors=True)
            if not place.exists():
                draft.rename(place)
        except OSError as error:
            if place.exists():  # another process wrote it meanwhile
                return
            needed = sum(array.nbytes for array in arrays.values())
            raise WriteError(str(place), f"cannot be written ({error.strerror or error})", f"{needed:,} bytes",
                             "make room, or take --config.cache.mode=memory") from None  # fmt: skip
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def read(self, number: int) -> dict[str, np.ndarray] | None:
        """The arrays of one shard as read-only maps; None where it is missing or not what was written."""
        place = self.folder / str(number)
        try:
            said = json.loads((place / SHARD).read_text(encoding="utf-8"))
            if said["format"] != FORMAT or not said["arrays"]:
                return None
            arrays = {name: _mapped(place / f"{name}.bin", of) for name, of in said["arrays"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return None if any(array is None for array in arrays.values()) else arrays  # type: ignore[return-value]

    def finish(self, said: Mapping[str, Any]) -> None:
        """Marks the entry as whole.

        Raises:
          WriteError: no room, no permission.
        """
        partial = self.folder / f".{ENTRY}.{os.getpid()}"
        text = json.dumps({"format": FORMAT, **said}, indent=1)
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self.folder / ENTRY)
        except OSError as error:
            found = f"cannot be written ({error.strerror or error})"
            fix = "make room, or take --config.cache.mode=memory"
            raise WriteError(str(self.folder / ENTRY), found, f"{len(text):,} bytes", fix) from None

    def touch(self) -> None:
        """Remembers that the entry was used now, where that may be said: it can belong to another user, or go."""
        with contextlib.suppress(OSError):
            if self.whole:
                os.utime(self.folder / ENTRY)


def _mapped(path: Path, said: Mapping[str, Any]) -> np.ndarray | None:
    """The array in a file, verified; None where its bytes are not what was written."""
    dtype, shape = np.dtype(getattr(ml_dtypes, said["dtype"], said["dtype"])), tuple(said["shape"])
    size = int(np.prod(shape)) * dtype.itemsize
    if path.stat().st_size != size:
        return None
    if size == 0:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    raw = np.memmap(path, np.uint8, "r")
    return raw.view(np.ndarray).view(dtype).reshape(shape) if zlib.crc32(raw.data) == said["crc32"] else None


def used(folder: Path) -> int:
    """Bytes of all entries below a cache folder."""
    return sum(_bytes(place) for place in _entries(folder))


def make_room(folder: Path, needed: int, limit: int, keep: frozenset[str]) -> list[str]:
    """Deletes the entries that were not used for longest until `needed` more bytes fit into `limit`; their names.

    Args:
      keep: keys that stay. An entry that another process reads goes on to be readable there.
    """
    gone = []
    _sweep(folder)
    by_age = sorted((place for place in _entries(folder) if place.name not in keep), key=_last_use)
    taken = used(folder)
    for place in by_age:
        if taken + needed <= limit:
            break
        taken -= _bytes(place)
        (place / ENTRY).unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        gone.append(place.name)
    return gone


def _entries(folder: Path) -> list[Path]:
    return [place for place in folder.iterdir() if place.is_dir()] if folder.is_dir() else []


def _bytes(place: Path) -> int:
    total = 0
    for path in place.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # another process deletes it
            continue
    return total


def _last_use(place: Path) -> float:
    """An entry that is not whole may be in the making: it counts as old as its newest shard."""
    try:
        return (place / ENTRY if (place / ENTRY).exists() else place).stat().st_mtime
    except OSError:
        return time.time()


def _sweep(folder: Path) -> None:
    """Removes what killed processes left half written."""
    for draft in folder.glob("*/.*"):
        try:
            if time.time() - draft.stat().st_mtime > STALE_S:
                shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)
        except OSError:
            continue
