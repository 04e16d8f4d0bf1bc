"""Image folders, list files and zip archives."""

import io
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tljax.config import DataConfig
from tljax.data.sources import ImageRef, Records, read_records
from tljax.errors import DataError


def png(value: int = 0, size: tuple[int, int] = (3, 2)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return file.getvalue()


FILES = {
    "dog/b.png": png(3),
    "dog/a.PNG": png(2),
    "cat/deep/er/c.png": png(1),
    "cat/.hidden.png": b"x",
    "cat/notes.txt": b"x",
    ".git/d.png": b"x",
    "__MACOSX/cat/._c.png": b"x",
}
KEYS = ["cat/deep/er/c.png", "dog/a.PNG", "dog/b.png"]


def folder(root: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def archive(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return str(path)


def read(source: str, labelled: bool = True, **data: str) -> Records:
    return read_records(source, DataConfig(**data), "image", labelled)  # type: ignore[arg-type]


def keys(records: Records) -> list[str]:
    return [ref.key for ref in records.inputs if isinstance(ref, ImageRef)]


def values(records: Records) -> list[int]:
    """The grey value of each image."""
    found = []
    for ref in records.inputs:
        assert isinstance(ref, ImageRef)
        content = ref.read()
        assert isinstance(content, bytes)
        found.append(int(np.asarray(Image.open(io.BytesIO(content)))[0, 0, 0]))
    return found


@pytest.mark.parametrize("kind", ["folder", "folder#part", "zip", "zip#part"])
def test_image_folder(tmp_path: Path, kind: str) -> None:
    part = kind.endswith("#part")
    files = {("in/train/" if part else "") + name: content for name, content in FILES.items()}
    path = folder(tmp_path / "x", files) if kind.startswith("folder") else archive(tmp_path / "x.zip", files)
    records = read(path + ("#in/train" if part else ""))
    prefix = "in/train/" if kind == "zip#part" else ""
    assert keys(records) == [prefix + key for key in KEYS]
    assert records.labels == ["cat", "dog", "dog"]
    assert values(records) == [1, 2, 3]
    assert records.where(1).endswith("dog/a.PNG")


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder(tmp_path / "x", {"cat/1.png": png()})
    folder(tmp_path / "y", {"1.png": png()})
    (tmp_path / "x" / "dog").symlink_to(tmp_path / "y")
    (tmp_path / "x" / "cat" / "loop").symlink_to(tmp_path / "x")
    assert read(str(tmp_path / "x")).labels == ["cat", "dog"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["lists/l.txt", "lists/l.csv", "lists/l.jsonl"])
def test_lists(tmp_path: Path, packed: bool, name: str) -> None:
    content = {
        "lists/l.txt": "../dog/b.png, 1, 9\n\na.png, 0, 9\n" if not packed else "b.png, 1, 9\n\na.png, 0, 9\n",
        "lists/l.csv": "n,image,label\n1,b.png,1\n2,a.png,0\n",
        "lists/l.jsonl": '{"image":"b.png","label":1}\n{"image":"a.png","label":0}\n',
    }[name]
    files = {name: content.encode(), "lists/b.png": png(5), "lists/a.png": png(6), "dog/b.png": png(5)}
    source = archive(tmp_path / "x.zip", files) + f"#{name}" if packed else folder(tmp_path / "x", files) + f"/{name}"
    records = read(source)
    assert records.labels == ["1", "0"]
    assert values(records) == [5, 6]
    places = {
        "lists/l.txt": ["line 1", "line 3"],
        "lists/l.csv": ["row 2", "row 3"],
        "lists/l.jsonl": ["line 1", "line 2"],
    }
    assert [records.where(i) for i in range(2)] == [f"{source}, {place}" for place in places[name]]


def test_unlabelled(tmp_path: Path) -> None:
    root = folder(tmp_path, {"x/1.png": png(), "2.png": png(), "l.txt": b"2.png\nx/1.png, 0, 0\n"})
    assert (read(root, labelled=False).labels, keys(read(root, labelled=False))) == (None, ["2.png", "x/1.png"])
    assert len(read(f"{root}/l.txt", labelled=False)) == 2


def test_absolute_paths_in_a_list_on_disk(tmp_path: Path) -> None:
    folder(tmp_path, {"far/1.png": png(7), "near/l.txt": f"{tmp_path}/far/1.png, x".encode()})
    assert values(read(f"{tmp_path}/near/l.txt")) == [7]


FAULTS: list[tuple[str, dict[str, bytes], str, list[str]]] = [
    ("outside_classes", {"1.png": png(), "cat/2.png": png()}, "", ["1.png", "outside every class folder"]),
    ("no_image", {"cat/1.gif": b"x"}, "", ["no image"]),
    ("no_part", {"cat/1.png": png()}, "#dog", ["no such"]),
    ("no_file", {"l.txt": b"1.png, x\n2.png, x\n", "1.png": png()}, "#l.txt", ["line 2", "there is no image", "2.png"]),
    ("one_field", {"l.txt": b"1.png\n", "1.png": png()}, "#l.txt", ["line 1", "expected 'path, label'"]),
    ("nul", {"l.txt": b"1\0.png, x\n"}, "#l.txt", ["line 1", "NUL"]),
    ("header_damaged", {"cat/1.png": png(), "cat/2.png": b"nothing"}, "", ["cat/2.png", "no image can be recognised"]),
    ("zero_bytes", {"cat/2.png": b""}, "", ["cat/2.png", "0 bytes"]),
]


@pytest.mark.parametrize(("name", "files", "part", "words"), FAULTS, ids=[row[0] for row in FAULTS])
@pytest.mark.parametrize("packed", [False, True])
def test_faults(tmp_path: Path, name: str, files: dict[str, bytes], part: str, words: list[str], packed: bool) -> None:
    source = archive(tmp_path / "x.zip", files) if packed else folder(tmp_path / "x", files)
    if part.endswith(".txt") and not packed:
        part = "/" + part[1:]
    with pytest.raises(DataError) as caught:
        read(source + part)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("path", ["../1.png", "/etc/1.png", "a/../../1.png", "..\\1.png"])
def test_a_list_in_an_archive_stays_inside(tmp_path: Path, path: str) -> None:
    source = archive(tmp_path / "x.zip", {"in/l.txt": f"{path}, x\n".encode(), "1.png": png(), "in/1.png": png()})
    with pytest.raises(DataError, match=r"line 1: the path .* leads out of the archive"):
        read(source + "#in/l.txt")


@pytest.mark.parametrize("member", ["../cat/1.png", "/cat/1.png", "cat/../../1.png"])
def test_members_that_lead_out_are_refused(tmp_path: Path, member: str) -> None:
    with pytest.raises(DataError, match="lead out of the archive"):
        read(archive(tmp_path / "x.zip", {"cat/2.png": png(), member: png()}))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["x.zip"]


def test_damaged_archives(tmp_path: Path) -> None:
    path = Path(archive(tmp_path / "x.zip", {"l.txt": b"cat/1.png, x\n", "cat/1.png": png(1)}))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(DataError, match="cannot be opened as a zip archive"):
        read(str(path))
    at = whole.index(b"cat/1.png", 60) + 14
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    with pytest.raises(DataError, match=r"cat/1\.png: cannot be read \(the archive is damaged"):
        read(str(path) + "#l.txt")


def test_an_archive_is_read_from_many_threads(tmp_path: Path) -> None:
    records = read(archive(tmp_path / "x.zip", {f"c/{i:03}.png": png(i) for i in range(200)}))
    wrong: list[int] = []

    def work() -> None:
        if values(records) != list(range(200)):
            wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_text_in_an_archive(tmp_path: Path) -> None:
    source = archive(tmp_path / "x.zip", {"a/t.csv": b"text,label\na,x\n", "s.json": b'{"train": [["b", "y"]]}'})
    assert read_records(f"{source}#a/t.csv", DataConfig(), "text").inputs == ["a"]
    assert read_records(f"{source}#s.json#train", DataConfig(), "text").inputs == ["b"]
    with pytest.raises(DataError, match=r"one of a/t\.csv, s\.json"):
        read_records(source, DataConfig(), "text")


def test_skipped_images_are_decoded_up_front(tmp_path: Path) -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(noise, "JPEG")
    root = folder(tmp_path, {"c/1.png": png(1), "c/2.jpg": noise.getvalue()[:2000], "c/3.png": png(3), "c/4.png": b"x"})
    with pytest.raises(DataError, match=r"4\.png"):  # the header of 2.jpg is whole: it is found when it is decoded
        read(root)
    records = read(root, on_bad="skip")
    assert values(records) == [1, 3]
    assert [bad["where"].rpartition("/")[2] for bad in records.bad] == ["2.jpg", "4.png"]
    assert "damaged or cut off" in records.bad[0]["reason"]


def test_grocery_store(testdata) -> None:
    source = str(testdata("grocery_store") / "grocery_short128.zip")
    splits = [read(f"{source}#{name}.txt") for name in ("train", "val", "test")]
    assert [len(split) for split in splits] == [2640, 296, 2485]
    assert [len(set(split.labels or ())) for split in splits] == [81, 60, 81]
    assert splits[0].where(3) == f"{source}#train.txt, line 4"
    joined = read(f"{source}#train.txt | {source}#val.txt")
    assert len(joined) == 2936
    assert joined.where(2640) == f"{source}#val.txt, line 1"
