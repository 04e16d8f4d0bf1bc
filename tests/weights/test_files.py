"""Damaged, disguised and hostile files: each is refused with exit code 66 and a sentence, and none is run."""

import hashlib
import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest

from tljax.errors import WeightsError, WriteError
from tljax.weights import files
from tljax.weights.hfconfig import read_json


def entry(start: int, stop: int, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def packed(header: dict | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def flax_array(array: np.ndarray, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


ONE = json.dumps(entry(0, 8)).encode()
TWO = np.arange(2, dtype=np.float32)
PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip files


def deep(levels: int) -> bytes:
    return b"\x81\xa1a" * levels + b"\x01"


REFUSED = [  # name, file name, bytes, words of the message
    ("truncated", "model.safetensors", packed({"a": entry(0, 8)}, b"\0" * 4), "truncated"),
    ("cut in its header", "model.safetensors", packed({"a": entry(0, 8)})[:20], "not a whole safetensors file"),
    ("overlong header", "model.safetensors", struct.pack("<Q", 1 << 40) + b"{}", "header too large"),
    ("trailing bytes", "model.safetensors", packed({"a": entry(0, 8)}, b"\0" * 9), "not fully covered"),
    ("overlap", "model.safetensors", packed({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12), "invalid offset"),
    ("hole", "model.safetensors", packed({"a": entry(0, 8), "b": entry(12, 20)}, b"\0" * 20), "invalid offset"),
    ("doubled name", "model.safetensors", packed(b'{"a":%b,"a":%b}' % (ONE, ONE), b"\0" * 8), "a is there twice"),
    ("unknown dtype", "model.safetensors", packed({"a": entry(0, 8, dtype="Q9")}, b"\0" * 8), "Q9"),
    ("wrong length", "model.safetensors", packed({"a": entry(0, 8, (3,))}, b"\0" * 8), "invalid shape"),
    ("huge shape", "model.safetensors", packed({"a": entry(0, 8, (2**40, 2**40))}, b"\0" * 8), "overflow"),
    ("nested header", "model.safetensors", packed(b'{"a":' * 5000), "recursion limit"),
    ("empty", "model.safetensors", b"", "the file is empty"),
    ("git-lfs pointer", "model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    ("HTML page", "model.safetensors", b"\n<!DOCTYPE html><title>404</title>", "HTML page"),
    ("PyTorch zip renamed", "model.safetensors", b"PK\x03\x04" + b"\0" * 60, "does not open pickle files"),
    ("pickle renamed", "model.safetensors", PICKLE, "does not open pickle files"),
    ("pickle", "pytorch_model.bin", PICKLE, "does not open pickle files, and finds pytorch_model.bin only"),
    ("other pickle", "model.ckpt", PICKLE, "save_pretrained write safetensors"),
    ("TensorFlow only", "tf_model.h5", b"\x89HDF", "no weights; expected model.safetensors"),
    ("msgpack cut", "flax_model.msgpack", msgpack.packb({"a": flax_array(TWO)})[:-3], "truncated"),
    ("msgpack claims more", "flax_model.msgpack", b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "truncated"),
    ("msgpack trailing", "flax_model.msgpack", msgpack.packb({"a": flax_array(TWO)}) + b"\0", "1 bytes too many"),
    ("msgpack extension", "flax_model.msgpack", msgpack.packb({"a": flax_array(TWO, 3)}), "extension type 3"),
    ("msgpack complex", "flax_model.msgpack", msgpack.packb({"a": msgpack.ExtType(2, b"ab")}), "extension type 2"),
    ("msgpack deep", "flax_model.msgpack", deep(40), "nested deeper than 32"),
    ("msgpack text", "flax_model.msgpack", msgpack.packb({"a": "text"}), "expected maps and arrays only"),
    ("msgpack number", "flax_model.msgpack", msgpack.packb({"a": 7}), "a is no array"),
    ("msgpack doubled", "flax_model.msgpack",
     b"\x82" + 2 * (b"\xa1a" + msgpack.packb(flax_array(TWO))), "is there twice"),
    ("msgpack slash", "flax_model.msgpack", msgpack.packb({"a/b": flax_array(TWO)}), "a/b is no name"),
    ("msgpack objects", "flax_model.msgpack",
     msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((2,), "float32", b"1234")))}), "in 4 bytes"),
    ("msgpack no array", "flax_model.msgpack", msgpack.packb({"a": msgpack.ExtType(1, b"\xc0" * 9)}), "not a Flax"),
    ("msgpack lfs", "flax_model.msgpack", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "content", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_damaged_files_are_refused(tmp_path, file, content, words):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        files.open_weights(tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 66


def test_no_file_and_no_folder_are_named(tmp_path):
    with pytest.raises(WeightsError, match="no weights"):
        files.open_weights(tmp_path / "missing")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(WeightsError, match="cannot be opened"):
        files.open_weights(tmp_path)


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "flipped"])
def test_a_damaged_msgpack_opens_or_is_refused_and_nothing_else(tmp_path, cut):
    whole = msgpack.packb({"params": {"x": flax_array(np.ones((2, 3), np.float32)), "y": {"z": flax_array(TWO)}}})
    draw = random.Random(0)
    for position in range(len(whole) * (1 if cut else 4)):
        damaged = bytearray(whole[:position]) if cut else bytearray(whole)
        if not cut:
            damaged[position % len(whole)] ^= 1 << draw.randrange(8)
        (tmp_path / files.FLAX).write_bytes(damaged)
        try:
            weights = files.open_weights(tmp_path)
            for name, (_, dtype) in weights.names.items():
                if dtype in files.READABLE:
                    weights.read(name)
        except WeightsError:
            continue
        assert not cut


VALUES = np.array([[1.5, -2.0, 0.0], [3.0, 65504.0, -0.25]], np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["float32", "float16", "bfloat16"])
def test_values_are_widened_exactly(tmp_path, dtype):
    array = VALUES.astype(dtype)
    files.write_safetensors(tmp_path / files.SAFETENSORS, {"x": array, "turned": array.T, "scalar": np.ones((), dtype)})
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax" / files.FLAX).write_bytes(msgpack.packb({"params": {"x": flax_array(array)}}))
    for folder, format in ((tmp_path, "safetensors"), (tmp_path / "flax", "flax")):
        weights = files.open_weights(folder)
        assert weights.format == format
        assert weights.names["x"] == ((2, 3), np.dtype(dtype).name)
        read = weights.read("x")
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, array.astype(np.float32))
    np.testing.assert_array_equal(files.open_weights(tmp_path).read("turned"), array.T.astype(np.float32))
    assert files.open_weights(tmp_path).read("scalar").shape == ()


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.int8, np.bool_])
def test_other_dtypes_are_named_but_not_read(tmp_path, dtype):
    files.write_safetensors(tmp_path / files.SAFETENSORS, {"x": np.ones((2,), dtype)})
    weights = files.open_weights(tmp_path)
    with pytest.raises(WeightsError, match="expected one of float32, float16, bfloat16"):
        weights.read("x")


def test_chunked_arrays_are_put_together(tmp_path):
    rows = np.arange(12, dtype=np.float32)
    chunks = {str(i): flax_array(part) for i, part in enumerate(np.split(rows, [5, 10]))}
    node = {"__msgpack_chunked_array__": True, "shape": {"0": 3, "1": 4}, "chunks": chunks}
    (tmp_path / files.FLAX).write_bytes(msgpack.packb({"big": node}))
    np.testing.assert_array_equal(files.open_weights(tmp_path).read("big"), rows.reshape(3, 4))
    (tmp_path / files.FLAX).write_bytes(msgpack.packb({"big": {**node, "shape": {"0": 3, "1": 5}}}))
    with pytest.raises(WeightsError, match="do not make up its shape"):
        files.open_weights(tmp_path)


def test_flax_itself_writes_what_is_read(tmp_path):
    serialization = pytest.importorskip("flax.serialization")
    tree = {"a": {"b": VALUES, "c": VALUES.astype(ml_dtypes.bfloat16)}, "d": np.ones((), np.float32)}
    (tmp_path / files.FLAX).write_bytes(serialization.msgpack_serialize(tree))
    weights = files.open_weights(tmp_path)
    assert set(weights.names) == {"a/b", "a/c", "d"}
    np.testing.assert_array_equal(weights.read("a/b"), VALUES)
    np.testing.assert_array_equal(weights.read("a/c"), VALUES.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_file_that_shrinks_under_the_reader_is_an_error(tmp_path):
    path = tmp_path / files.SAFETENSORS
    files.write_safetensors(path, {"x": np.ones(64, np.float32)})
    weights = files.open_weights(tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="ends within x"):
        weights.read("x")


def test_hostile_names_are_data(tmp_path):
    names = ["../../x", "a\x00b", "line\nbreak", "n" * 10_000, "/etc/passwd"]
    tensors = {name: np.full(1, i, np.float32) for i, name in enumerate(names)}
    files.write_safetensors(tmp_path / files.SAFETENSORS, tensors)
    weights = files.open_weights(tmp_path)
    assert [float(weights.read(name)[0]) for name in names] == [0, 1, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == [files.SAFETENSORS]


def sharded(folder: Path, weight_map: dict[str, str], held: dict[str, list[str]]) -> None:
    for file, names in held.items():
        files.write_safetensors(folder / file, {name: np.full(2, len(name), np.float32) for name in names})
    (folder / f"{files.SAFETENSORS}{files.INDEX}").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_shards_are_one_checkpoint(tmp_path):
    sharded(tmp_path, {"x": A, "yy": B}, {A: ["x"], B: ["yy"]})
    weights = files.open_weights(tmp_path)
    assert {name: weights.read(name).tolist() for name in weights.names} == {"x": [1, 1], "yy": [2, 2]}
    first = weights.digest()
    files.write_safetensors(tmp_path / B, {"yy": np.full(2, 3, np.float32)})
    assert files.open_weights(tmp_path).digest() != first


@pytest.mark.parametrize(
    ("weight_map", "held", "words"),
    [
        ({"x": "../x.safetensors"}, {}, "not a plain .safetensors name"),
        ({"x": "/etc/x.safetensors"}, {}, "not a plain .safetensors name"),
        ({"x": "..\\x.safetensors"}, {}, "not a plain .safetensors name"),
        ({"x": "pytorch_model.bin"}, {}, "not a plain .safetensors name"),
        ({"x": A}, {}, f"{A}: missing"),
        ({"x": A, "y": B}, {A: ["x"], B: ["x", "y"]}, "x: doubled"),
        ({"x": A, "y": A}, {A: ["x"]}, f"y: not in {A}"),
        ({"x": A}, {A: ["x", "y"]}, "the index says nothing of it"),
        ({"x": 3}, {}, "no weight_map"),
        ({}, {}, "no weight_map"),
    ],
)
def test_bad_shards_are_refused(tmp_path, weight_map, held, words):
    sharded(tmp_path, weight_map, held)
    with pytest.raises(WeightsError) as caught:
        files.open_weights(tmp_path)
    assert words in str(caught.value)


def test_a_shard_that_links_out_is_refused_but_the_hubs_cache_is_not(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "c0ffee", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    sharded(snapshot, {"x": A}, {A: ["x"]})
    (snapshot / A).rename(blobs / "1234")
    (snapshot / A).symlink_to(blobs / "1234")
    assert set(files.open_weights(snapshot).names) == {"x"}
    (blobs / "1234").rename(tmp_path / "elsewhere")
    (snapshot / A).unlink()
    (snapshot / A).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="a link out of the folder"):
        files.open_weights(snapshot)


def test_the_digest_is_the_files_own(tmp_path):
    path = tmp_path / files.SAFETENSORS
    files.write_safetensors(path, {"x": np.ones(2, np.float32)})
    assert files.open_weights(tmp_path).digest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_first_format_wins(tmp_path):
    files.write_safetensors(tmp_path / files.SAFETENSORS, {"x": np.ones(2, np.float32)})
    (tmp_path / files.FLAX).write_bytes(b"not read")
    assert files.open_weights(tmp_path).format == "safetensors"


def test_what_cannot_be_written_is_a_write_error(tmp_path):
    with pytest.raises(WriteError, match="cannot write the weights"):
        files.write_safetensors(tmp_path / "missing" / "x.safetensors", {"x": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "no valid JSON"),
        (b"[1]", "JSON of type list"),
        (b'{"a": 1, "a": 2}', "a is there twice"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": "\xff"}', "no valid JSON"),
        (b'{"a":' * 100_000, "no valid JSON"),
        (b"<html>", "HTML page"),
    ],
)
def test_json_is_refused(tmp_path, content, words):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_json(tmp_path / "x.json")
    assert words in str(caught.value)


MEASURE = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from tljax.weights import convert, files
target = {"bert/pooler/dense/kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
small = convert.convert(files.open_weights(Path(sys.argv[1])), "bert", target)  # everything is imported and warm
names = [f"bert/encoder/layer/{i}/output/dense/kernel" for i in range(8)]
target = dict.fromkeys(names, jax.ShapeDtypeStruct((4096, 1024), jnp.float32))
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = status("VmRSS")
flat, _ = convert.convert(files.open_weights(Path(sys.argv[2])), "bert", target)
jax.block_until_ready(flat)
print((status("VmHWM") - before) / sum(leaf.nbytes for leaf in flat.values()))
"""


@pytest.mark.parametrize("format", ["safetensors", "flax"])
def test_a_load_holds_the_weights_once(tmp_path, format):
    """Eight kernels of 16 MiB: peak RSS over what was there before is 1.12 times the weights, and 1.02 from Flax."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    kernels = [f"encoder.layer.{i}.output.dense" for i in range(8)]
    for folder, names, shape in (("small", ["pooler.dense"], (64, 64)), ("large", kernels, (4096, 1024))):
        (tmp_path / folder).mkdir()
        if format == "safetensors":
            tensors = {f"{name}.weight": np.ones(shape[::-1], np.float32) for name in names}
            files.write_safetensors(tmp_path / folder / files.SAFETENSORS, tensors)
        else:
            tree: dict = {}
            for name in names:
                node = tree
                for key in name.split("."):
                    node = node.setdefault(key, {})
                node["kernel"] = flax_array(np.ones(shape, np.float32))
            (tmp_path / folder / files.FLAX).write_bytes(msgpack.packb(tree))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ratio = float(done.stdout)
    print(f"peak / weights: {ratio:.3f}")
    assert 0.9 < ratio < 1.3
