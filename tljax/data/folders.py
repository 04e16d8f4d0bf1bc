"""Images with class names: folders of classes and lists of paths, on disk or inside a zip archive."""

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tljax.data.records import Row
from tljax.data.stores import FolderStore, ImageRef, Store, ZipStore, is_plain
from tljax.errors import DataError, printable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def is_image(path: str) -> bool:
    """Whether a relative path with '/' names an image file that is not hidden.

    >>> is_image("cat/1.JPG"), is_image("cat/._1.jpg"), is_image("__MACOSX/1.jpg"), is_image("cat/notes.txt")
    (True, False, False, False)
    """
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
    return path.lower().endswith(SUFFIXES) and not hidden


def walk(root: str) -> Iterator[str]:
    """The image files below a folder, relative, in any order; follows links to folders, each folder once."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()  # a link back to a folder above would be walked again and again
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for file in files:
            path = os.path.relpath(os.path.join(folder, file), root).replace(os.sep, "/")
            if is_image(path):
                yield path


def class_rows(paths: Iterable[str], labelled: bool) -> Iterator[Row]:
    """A row (path, class) for each path, sorted; the class is the first folder.

    >>> [row.values for row in class_rows(["dog/x/2.png", "cat/1.png"], True)]
    [('cat/1.png', 'cat'), ('dog/x/2.png', 'dog')]
    """
    for path in sorted(paths):
        label, slash, _ = path.partition("/")
        problem = "the image lies outside every class folder" if labelled and not slash else ""
        yield Row(0, 0, (path, label) if labelled else (path,), problem)


def folder_source(path: str, labelled: bool) -> tuple[Iterator[Row], Store]:
    """The rows of an image folder <class>/…/*.jpg and the store that their keys belong to."""
    if not os.path.isdir(path):
        raise DataError(printable(path), "there is no such folder", "<class>/*.jpg")
    paths = list(walk(path))
    if not paths:
        raise DataError(printable(path), "no image in the folder", f"<class>/*{{{','.join(SUFFIXES)}}}")
    return class_rows(paths, labelled), FolderStore(path)


class Archive:
    """A zip archive as a source: its members, read and never extracted."""

    def __init__(self, path: str):
        self.path = path
        self.store = ZipStore(path)
        try:
            infos = self.store.archive.infolist()
        except OSError as error:
            raise DataError(printable(path), f"cannot be opened as a zip archive ({printable(error)})") from None
        self.members = sorted({info.filename for info in infos if not info.is_dir()})
        if astray := [name for name in self.members if not is_plain(name)]:
            raise DataError(printable(path), f"{len(astray)} member names lead out of the archive",
                            "relative names without '..'", "do not use this archive", astray[:20])  # fmt: skip

    def read(self, member: str) -> bytes:
        try:
            return self.store.archive.read(member)
        except (OSError, RuntimeError, EOFError, NotImplementedError) as error:
            raise DataError(printable(self.store.name(member)), f"cannot be read ({printable(error)})") from None

    def class_rows(self, folder: str, labelled: bool) -> Iterator[Row]:
        """The image folder inside the archive, below `folder` ('' for all of it); keys are full member names."""
        prefix = folder.strip("/") + "/" if folder.strip("/") else ""
        paths = [name.removeprefix(prefix) for name in self.members if name.startswith(prefix)]
        paths = [path for path in paths if is_image(path)]
        if not paths:
            others = ", ".join(printable(name, 60) for name in self.members if not is_image(name))
            where = printable(f"{self.path}#{folder}" if folder else self.path)
            fix = f"members that are no images: {others[:400] or 'none'}"
            raise DataError(where, "no such member and no image", "a list or a folder of images", fix)
        for row in class_rows(paths, labelled):
            yield row._replace(values=(prefix + row.values[0], *row.values[1:]))


def path_resolver(store: Store, folder: str, exists: Callable[[str], bool]) -> Callable[[Any], ImageRef]:
    """Path cell of a list -> image, relative to the folder of the list; a ValueError says what is wrong with it."""

    def resolve(value: Any) -> ImageRef:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"the image path is {printable(repr(value), 60)}, expected a path")
        path = value.strip().replace("\\", "/")
        if "\0" in path:
            raise ValueError(f"the image path {printable(path)!r} holds a NUL")
        key = posixpath.join(folder, path)
        if isinstance(store, ZipStore):
            if not is_plain(path):
                raise ValueError(f"the path {printable(path)!r} leads out of the archive")
            key = posixpath.normpath(key)
        if not exists(key):
            raise ValueError(f"there is no image {printable(store.name(key))!r}")
        return ImageRef(store, key)

    return resolve
