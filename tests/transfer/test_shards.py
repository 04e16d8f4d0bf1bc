"""Shards on disk: read back bit for bit or not at all, swept when nobody owns them, deleted by last use."""

import errno
import json
import os
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tljax.errors import WriteError
from tljax.transfer import shards
from tljax.transfer.shards import ENTRY, SHARD, STALE_S, Entry

ODD = np.array([np.nan, -np.nan, np.inf, -0.0, 1e-45, 1.0], np.float32)
ARRAYS = {
    "hidden": np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32),
    "odd": ODD,
    "half": ODD.astype(ml_dtypes.bfloat16).reshape(2, 3),
    "ids": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "offsets": np.array([0, 3, 7], np.int64),
    "empty": np.zeros((0, 64), np.float32),
    "scalar": np.array(3.5, np.float32),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
}


def same(found, arrays=ARRAYS) -> bool:
    return found is not None and found.keys() == arrays.keys() and all(
        (found[name].dtype, found[name].shape, found[name].tobytes()) == (a.dtype, a.shape, a.tobytes())
        for name, a in arrays.items())  # fmt: skip


@pytest.fixture
def entry(tmp_path) -> Entry:
    return Entry(tmp_path / "cache" / "key")


@pytest.fixture
def written(entry) -> Entry:
    entry.write(0, ARRAYS)
    return entry


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))


def test_what_is_written_is_read_back_bit_for_bit(written):
    found = written.read(0)
    assert same(found)
    assert not any(array.flags.writeable for name, array in found.items() if name != "empty")
    assert written.read(1) is None
    assert sorted(p.name for p in written.folder.iterdir()) == ["0"]  # no draft is left


def test_an_entry_is_whole_when_it_says_so(written):
    assert not written.whole
    written.finish({"examples": 7})
    assert written.whole
    assert json.loads((written.folder / ENTRY).read_text()) == {"format": shards.FORMAT, "examples": 7}
    assert sorted(p.name for p in written.folder.iterdir()) == ["0", ENTRY]


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "empty"])
def test_a_flipped_bit_of_an_array_is_no_shard(written, name):
    path = written.folder / "0" / f"{name}.bin"
    whole = path.read_bytes()
    for place, bit in ((0, 0), (len(whole) // 2, 3), (len(whole) - 1, 7)):
        flip(path, place, bit)
        assert written.read(0) is None, (place, bit)
        path.write_bytes(whole)
    assert same(written.read(0))


def test_any_flipped_bit_of_the_description_is_no_shard(entry):
    """Every bit: what is still read has the values that were written."""
    arrays = {name: ARRAYS[name] for name in ("hidden", "half", "ids")}
    entry.write(0, arrays)
    path = entry.folder / "0" / SHARD
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        for bit in range(8):
            flip(path, place, bit)
            found = entry.read(0)
            refused += found is None
            assert found is None or same(found, arrays), (place, bit)
            path.write_bytes(whole)
    assert refused > 0.9 * 8 * len(whole)  # a space may become another kind of space


DAMAGES = {
    "an array cut": lambda place: _cut(place / "hidden.bin", -1),
    "an array longer": lambda place: (place / "hidden.bin").write_bytes((place / "hidden.bin").read_bytes() + b"\0"),
    "an array empty": lambda place: _cut(place / "hidden.bin", 0),
    "an empty array that is none": lambda place: (place / "empty.bin").write_bytes(b"\0"),
    "an array missing": lambda place: (place / "ids.bin").unlink(),
    "an array that is a folder": lambda place: _folder(place / "ids.bin"),
    "no description": lambda place: (place / SHARD).unlink(),
    "the description cut": lambda place: _cut(place / SHARD, -9),
    **{f"a description of {text!r}": lambda place, text=text: (place / SHARD).write_text(text) for text in (
        "", "{", "[]", "null", "3", "{}", '{"format": 1}', '{"format": 2, "arrays": {}}', '{"format": 1, "arrays": []}',
        '{"format": 1, "arrays": {}}', '{"format": 1, "arrays": {"ids": {}}}', '{"format": 1, "arrays": {"ids": null}}',
        '{"format": 1, "arrays": {"ids": {"dtype": "object", "shape": [1], "crc32": 0}}}',
        '{"format": 1, "arrays": {"ids": {"dtype": "finfo", "shape": [1], "crc32": 0}}}',
        '{"format": 1, "arrays": {"ids": {"dtype": "int32", "shape": [-1, -2], "crc32": 0}}}',
        '{"format": 1, "arrays": {"ids": {"dtype": "int32", "shape": "12", "crc32": 0}}}',
        '{"format": 1, "arrays": {"ids": {"dtype": 5, "shape": [2], "crc32": 0}}}',
        '{"format": 1, "arrays": {"\\u0000": {"dtype": "int32", "shape": [2], "crc32": 0}}}',
    )},
    "a description of no text": lambda place: (place / SHARD).write_bytes(b"\xff\xfe\x00"),
}  # fmt: skip


def _cut(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[:at])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_shard_is_none_and_is_written_anew(written, damage):
    DAMAGES[damage](written.folder / "0")
    assert written.read(0) is None
    written.write(0, ARRAYS)
    assert same(written.read(0))


def test_of_two_writers_the_faster_one_stays(entry, monkeypatch):
    """The other process renames its draft while this one is about to."""
    rename, other = Path.rename, {"ids": ARRAYS["ids"]}

    def late(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            Entry(entry.folder).write(0, other)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    entry.write(0, ARRAYS)
    assert same(entry.read(0), other)
    assert sorted(p.name for p in entry.folder.iterdir()) == ["0"]


def test_what_is_there_is_not_written_again(written):
    before = (written.folder / "0" / SHARD).stat().st_mtime_ns
    written.write(0, ARRAYS)
    assert (written.folder / "0" / SHARD).stat().st_mtime_ns == before


def no_room(*of, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*of, **options):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize(("method", "fault", "words"), [
    ("write_bytes", no_room, "No space left on device"), ("write_text", no_room, "No space left on device"),
    ("mkdir", read_only, "Permission denied"), ("rename", no_room, "No space left on device"),
])  # fmt: skip
def test_what_cannot_be_written_is_said_with_place_and_bytes(entry, monkeypatch, method, fault, words):
    with monkeypatch.context() as patch:
        patch.setattr(Path, method, fault)
        with pytest.raises(WriteError) as caught:
            entry.write(3, ARRAYS)
    assert caught.value.exit_code == 74
    assert caught.value.where == str(entry.folder / "3")
    assert words in caught.value.found
    assert caught.value.expected == f"{sum(a.nbytes for a in ARRAYS.values()):,} bytes"
    assert "--config.cache.mode=memory" in caught.value.fix
    assert not entry.folder.exists() or not list(entry.folder.iterdir())  # no draft is left
    entry.write(3, ARRAYS)
    assert same(entry.read(3))


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(WriteError, match="cache/key/0: cannot be written"):
        Entry(tmp_path / "cache" / "key").write(0, ARRAYS)


@pytest.mark.parametrize("fault", [no_room, read_only])
def test_an_entry_that_cannot_be_finished_is_said(written, monkeypatch, fault):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fault)
        with pytest.raises(WriteError, match=str(written.folder)):
            written.finish({})
    assert not written.whole
    assert same(written.read(0))


def test_an_entry_of_somebody_else_may_be_read_only_or_vanish(written, monkeypatch):
    """Any number of runs share a folder: what one cannot mark as used is used all the same."""
    written.finish({})
    for fault in (read_only, lambda *of: (_ for _ in ()).throw(FileNotFoundError())):
        monkeypatch.setattr(os, "utime", fault)
        written.touch()


def made(folder: Path, name: str, nbytes: int, age: float, whole: bool = True) -> Entry:
    """An entry of one array of so many bytes that was used `age` seconds ago."""
    entry = Entry(folder / name)
    entry.write(0, {"x": np.zeros(nbytes, np.uint8)})
    if whole:
        entry.finish({})
    at = time.time() - age
    os.utime(entry.folder / ENTRY if whole else entry.folder, (at, at))
    return entry


def size(folder: Path, name: str) -> int:
    return sum(p.stat().st_size for p in (folder / name).rglob("*") if p.is_file())


def test_bytes_in_use(tmp_path):
    assert shards.used(tmp_path / "none") == 0
    for name in ("a", "b"):
        made(tmp_path, name, 5000, 10)
    assert shards.used(tmp_path) == size(tmp_path, "a") + size(tmp_path, "b") > 10_000


# by last use: c (oldest), a, d, b; each a little more than 1000 bytes
AGES = {"a": 300.0, "b": 10.0, "c": 400.0, "d": 200.0}


@pytest.mark.parametrize(("needed", "limit", "keep", "gone"), [
    (0, 10_000, (), []), (1000, 10_000, (), []), (5500, 10_000, (), ["c", "a"]), (5500, 10_000, ("c",), ["a", "d"]),
    (5500, 10_000, ("a", "c", "x"), ["d", "b"]), (99_999, 10_000, (), ["c", "a", "d", "b"]),
    (0, 1, (), ["c", "a", "d", "b"]),
    (99_999, 10_000, ("a", "b", "c", "d"), []), (4000, 10_000, (), ["c"]), (4000, 10_000, ("c",), ["a"]),
])  # fmt: skip
def test_what_was_not_used_for_longest_goes_first(tmp_path, needed, limit, keep, gone):
    for name, age in AGES.items():
        made(tmp_path, name, 1700, age)
    assert 4 * 1700 < shards.used(tmp_path) < 8000
    assert shards.make_room(tmp_path, needed, limit, frozenset(keep)) == gone
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(AGES.keys() - set(gone))


def test_exactly_enough_is_enough(tmp_path):
    made(tmp_path, "a", 1000, 10)
    used = shards.used(tmp_path)
    assert shards.make_room(tmp_path, 500, used + 500, frozenset()) == []
    assert shards.make_room(tmp_path, 501, used + 500, frozenset()) == ["a"]


def test_reading_is_use(tmp_path):
    for name, age in AGES.items():
        made(tmp_path, name, 1000, age)
    Entry(tmp_path / "c").touch()
    assert shards.make_room(tmp_path, 0, 1, frozenset()) == ["a", "d", "b", "c"]


def test_an_entry_in_the_making_counts_by_its_newest_shard(tmp_path):
    made(tmp_path, "old", 1000, 100)
    made(tmp_path, "begun", 1000, 50, whole=False)
    made(tmp_path, "new", 1000, 10)
    assert shards.make_room(tmp_path, 0, 1, frozenset()) == ["old", "begun", "new"]


def test_no_folder_has_room(tmp_path):
    assert shards.make_room(tmp_path / "none", 5, 1, frozenset()) == []


def test_what_is_mapped_stays_readable_after_its_deletion(written, tmp_path):
    found = written.read(0)
    assert shards.make_room(tmp_path / "cache", 0, 1, frozenset()) == ["key"]
    assert not written.folder.exists()
    assert same(found)


@pytest.mark.parametrize(("age", "stays"), [(0, True), (STALE_S - 60, True), (STALE_S + 60, False)])
def test_drafts_of_killed_processes_are_swept_when_they_are_old(written, tmp_path, age, stays):
    drafts = [written.folder / ".1.4242", written.folder / f".{ENTRY}.4242"]
    drafts[0].mkdir()
    (drafts[0] / "hidden.bin").write_bytes(b"half")
    drafts[1].write_text("{")
    for draft in drafts:
        os.utime(draft, (time.time() - age, time.time() - age))
    assert shards.make_room(tmp_path / "cache", 0, 10**9, frozenset()) == []
    assert [draft.exists() for draft in drafts] == [stays, stays]
    assert same(written.read(0))
