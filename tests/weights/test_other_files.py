"""Damaged and hostile archives, Orbax folders and shards of msgpack: refused with exit code 66, and none is run."""

import gc
import io
import json
import pickle
import random
import zipfile

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tljax.errors import WeightsError
from tljax.weights import files

# Orbax leaves an event loop open where it cannot read, and that is said when it is collected: before this file ends
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ONE = np.arange(6, dtype=np.float32).reshape(2, 3)
TRAP = "/tmp/tljax-was-here"


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (open, (TRAP, "w"))


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def packed(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


HEADER = b"\x93NUMPY\x01\x00"
REFUSED = [
    ("empty", b"", "the file is empty"),
    ("pointer", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    ("no archive", b"\x93NUMPY" + b"\0" * 40, "no zip archive"),
    ("PyTorch", packed([("archive/data.pkl", pickle.dumps(1))]), "archive/data.pkl is no .npy file"),
    ("cut", packed([("a.npy", npy(ONE))])[:-30], "not a whole .npz archive"),
    ("objects", packed([("a.npy", npy(np.array([Bomb(), 1], dtype=object)))]), "does not open pickles"),
    ("later version", packed([("a.npy", b"\x93NUMPY\x07\x00" + b"\0" * 40)]), "version (7, 0)"),
    ("header that is code", packed([("a.npy", HEADER + b"\x16\x00__import__('os').fork()")]), "not a whole .npz"),
    ("no header", packed([("a.npy", b"")]), "not a whole .npz archive"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("content", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_damaged_archives_are_refused(tmp_path, content, words):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        files.open_weights(tmp_path / "x.npz")
    assert words in str(caught.value)
    assert caught.value.exit_code == 66


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_doubled_name_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(packed([("a.npy", npy(ONE)), ("a.npy", npy(ONE))]))
    with pytest.raises(WeightsError, match="some of one name"):
        files.open_weights(tmp_path)


def test_an_array_that_claims_more_than_is_there_is_refused(tmp_path):
    """Before memory for it is taken."""
    claim = io.BytesIO()
    np.lib.format.write_array_header_1_0(claim, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
    for content, words in ((npy(ONE)[:-4], "in 20 bytes"), (claim.getvalue(), "in 0 bytes")):
        (tmp_path / "x.npz").write_bytes(packed([("a.npy", content)]))
        with pytest.raises(WeightsError, match=words):
            files.open_weights(tmp_path)


def test_a_damaged_archive_opens_or_is_refused_and_nothing_else(tmp_path):
    whole, draw = packed([("a/b.npy", npy(ONE)), ("c.npy", npy(ONE))]), random.Random(0)
    for position in range(len(whole) * 2):
        damaged = bytearray(whole)
        damaged[position % len(whole)] ^= 1 << draw.randrange(8)
        (tmp_path / "x.npz").write_bytes(damaged)
        try:
            weights = files.open_weights(tmp_path)
            for name, (_, dtype) in weights.names.items():
                if dtype in files.READABLE:
                    weights.read(name)
        except WeightsError:
            continue


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_any_order_and_width_are_read(tmp_path, save):
    wide = {"c": ONE, "f": np.asfortranarray(ONE), "big": ONE.astype(">f4"), "half": ONE.astype(np.float16),
            "a/b": ONE.astype(ml_dtypes.bfloat16), "count": np.ones((), np.int64)}  # fmt: skip
    save(tmp_path / "x.npz", **wide)
    weights = files.open_weights(tmp_path)
    for name in ("c", "f", "big", "half", "a/b"):
        found = weights.read(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, ONE)
    assert weights.names["a/b"] == ((2, 3), "bfloat16")
    with pytest.raises(WeightsError, match="count: dtype int64"):
        weights.read("count")


def orbax(folder, tree):
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder.absolute(), tree)


def test_orbax_folders_are_read_and_damage_is_refused(tmp_path):
    orbax(tmp_path / "params", {"params": {"a": {"kernel": ONE, "half": ONE.astype(ml_dtypes.bfloat16)}}})
    weights = files.open_weights(tmp_path)
    assert weights.names == {"a/kernel": ((2, 3), "float32"), "a/half": ((2, 3), "bfloat16")}
    for name in weights.tensors:
        np.testing.assert_array_equal(weights.read(name), ONE)
    for part in (tmp_path / "params").rglob("*"):
        if part.is_file() and part.parent.name == "d":
            part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.read("a/kernel")
    with pytest.raises(WeightsError, match="not a whole Orbax checkpoint"):
        files.open_weights(tmp_path)
    (tmp_path / "params" / "_METADATA").write_text("{")
    with pytest.raises(WeightsError, match="not a whole Orbax checkpoint"):
        files.open_weights(tmp_path)
    gc.collect()


def test_links_inside_an_orbax_folder_are_refused(tmp_path):
    orbax(tmp_path / "params", {"a": ONE})
    (tmp_path / "params" / "d" / "link").symlink_to("/etc/passwd")
    with pytest.raises(WeightsError, match="a link inside"):
        files.open_weights(tmp_path)


def test_shards_of_msgpack_are_held_to_their_index(tmp_path):
    index = tmp_path / f"{files.FLAX}{files.INDEX}"
    for file, tree in (("a.msgpack", {"params": {"x": ONE}}), ("b.msgpack", {"batch_stats": {"y": {"z": ONE}}})):
        files.write_msgpack(tmp_path / file, tree)
    index.write_text(json.dumps({"weight_map": {"params/x": "a.msgpack", "batch_stats/y/z": "b.msgpack"}}))
    weights = files.open_weights(tmp_path)
    assert {name: weights.read(name).tolist() for name in weights.tensors} == dict.fromkeys(("x", "y/z"), ONE.tolist())
    wrong = ({"x": "../a.msgpack"}, {"x": "a.msgpack", "w": "b.msgpack"}, {"x": "c.msgpack"})
    for placed, words in zip(wrong, ("not a plain .msgpack", "y/z", "c.msgpack: missing"), strict=True):
        index.write_text(json.dumps({"weight_map": placed}))
        with pytest.raises(WeightsError, match=words):
            files.open_weights(tmp_path)


def test_large_arrays_are_cut_as_flax_cuts_them(tmp_path, monkeypatch):
    from flax import serialization

    from tljax.weights import msgpack_file

    monkeypatch.setattr(msgpack_file, "CHUNK", 16)
    files.write_msgpack(tmp_path / files.FLAX, {"a": {"kernel": ONE}, "b": ONE[0]})
    np.testing.assert_array_equal(files.open_weights(tmp_path).read("a/kernel"), ONE)
    theirs = serialization.msgpack_restore((tmp_path / files.FLAX).read_bytes())
    np.testing.assert_array_equal(theirs["a"]["kernel"], ONE)
    np.testing.assert_array_equal(theirs["b"], ONE[0])
