"""Sources: dispatch, joining, arrays, TFDS without TensorFlow, and questions about records as a whole."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tljax.config import DataConfig
from tljax.data.sources import Records, classes_of, duplicates, from_arrays, label_ids, overlap, read_records
from tljax.errors import DataError


def test_clinc150(testdata) -> None:
    file = testdata("clinc150") / "clinc150_data_full.json.gz"
    in_scope = [read_records(f"{file}#{s}", DataConfig(), "text") for s in ("train", "val", "test")]
    assert [len(records) for records in in_scope] == [15000, 3000, 4500]
    assert len(classes_of(in_scope[0])) == 150
    assert {classes_of(records) for records in in_scope} == {classes_of(in_scope[0])}
    both = f"{file}#test|{file}#oos_test"
    assert len(read_records(both, DataConfig(), "text")) == 5500
    scoped = read_records(both, DataConfig(exclude_labels="oos"), "text")
    assert (len(scoped), scoped.excluded) == (4500, 1000)
    ids = label_ids(in_scope[0], classes_of(in_scope[0]))
    assert np.bincount(ids).tolist() == [100] * 150


def test_joined_sources_keep_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\n,x\nb,y\n")
    (tmp_path / "b.json").write_text('[["c","x"],["d",""]]')
    records = read_records(f"{tmp_path}/a.csv | {tmp_path}/b.json", DataConfig(on_bad="skip"), "text")
    assert (records.inputs, records.labels) == (["a", "b", "c"], ["x", "y", "x"])
    assert [records.where(i).rpartition("/")[2] for i in range(3)] == ["a.csv, row 2", "a.csv, row 4", "b.json, item 1"]
    assert [bad["where"].rpartition("/")[2] for bad in records.bad] == ["a.csv, row 3", "b.json, item 2"]
    part = records.take([2, 0])
    assert (part.inputs, part.labels, part.bad) == (["c", "a"], ["x", "x"], [])
    assert [part.where(i).rpartition("/")[2] for i in range(2)] == ["b.json, item 1", "a.csv, row 2"]


@pytest.mark.parametrize(
    ("source", "task", "words"),
    [
        ("", "text", "an empty source"),
        ("{dir}/a.csv|", "text", "an empty source"),
        ("{dir}/tikcets.csv", "text", r"no such file; expected a file; did you mean tickets\.csv"),
        ("{dir}/no/tickets.csv", "text", "does not exist"),
        ("{dir}", "text", "found a folder"),
        ("{dir}/no", "image", "no such file"),
        ("{dir}/no.zip", "image", "no such file"),
        ("{dir}#..", "image", "leads out of the folder"),
        ("tfds:mnist", "image", "tfds:<name>/<split>"),
        ("tfds:huggingface:x/train", "text", "tfds:<name>/<split>"),
    ],
)
def test_faults(tmp_path: Path, source: str, task: str, words: str) -> None:
    (tmp_path / "tickets.csv").write_text("text,label\na,x\n")
    with pytest.raises(DataError, match=words):
        read_records(source.format(dir=tmp_path), DataConfig(), task)


def test_from_arrays() -> None:
    texts = from_arrays(["a", "b"], [3, "x"], "mine")
    assert (texts.inputs, texts.labels, texts.where(1)) == (["a", "b"], ["3", "x"], "mine, index 1")
    assert from_arrays(np.array(["a"]), None, "mine").inputs == ["a"]
    pictures = from_arrays(np.zeros((2, 4, 5), np.uint8), np.array([0, 1]), "mine")
    assert pictures.labels == ["0", "1"]
    assert pictures.inputs[1].read().shape == (4, 5)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("inputs", "labels", "words"),
    [
        (["a"], [1, 2], "1 inputs and 2 labels"),
        (["a", " "], [1, 2], "index 1: the text is nothing but white space"),
        (["a", "b"], [1, float("nan")], "index 1: the label is missing"),
        ([], [], "found 0 examples"),
        (np.zeros((2, 4, 5, 3), np.float32), None, "images of float32"),
        (np.zeros((2, 4, 5, 4), np.uint8), None, "images of uint8"),
    ],
)
def test_from_arrays_refuses(inputs: Any, labels: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_arrays(inputs, labels, "mine")


PICTURES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
DIGITS = {
    "x": PICTURES,
    "y": np.array([3, 0, 3, 1, 0]),
    "names": np.array(list("abaab")),
    "rgb": np.stack([PICTURES] * 3, -1),
    "floats": PICTURES / 255,
    "few": np.array([1, 2]),
    "objects": np.array([{}, 1], object),
}
NPZ = [
    # part, labelled, labels, shape of an image
    ("x,y", True, ["3", "0", "3", "1", "0"], (4, 3)),
    (" x , names", True, list("abaab"), (4, 3)),
    ("rgb,y", True, ["3", "0", "3", "1", "0"], (4, 3, 3)),
    ("x", False, None, (4, 3)),
    ("x,y", False, None, (4, 3)),  # a target of domain adaptation, whose labels are not looked at
]


@pytest.mark.parametrize(("part", "labelled", "labels", "shape"), NPZ)
def test_images_of_an_npz(tmp_path: Path, part: str, labelled: bool, labels: list[str] | None, shape: tuple) -> None:
    np.savez_compressed(tmp_path / "digits.npz", **DIGITS)
    found = read_records(f"{tmp_path}/digits.npz#{part}", DataConfig(), "image", labelled)
    assert (len(found), found.labels) == (5, labels)
    assert found.where(2) == f"{tmp_path}/digits.npz#{part}, index 2"
    pixels = [np.asarray(image.read()) for image in found.inputs]  # type: ignore[union-attr]
    assert {one.shape for one in pixels} == {shape}
    expected = DIGITS["rgb" if len(shape) == 3 else "x"]
    assert all(np.array_equal(one, image) for one, image in zip(pixels, expected, strict=True))


def test_several_npz_are_joined(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **DIGITS)
    found = read_records(f"{tmp_path}/a.npz#x,y|{tmp_path}/a.npz#rgb,names", DataConfig(exclude_labels="3"), "image")
    assert found.labels == ["0", "1", "0", *"abaab"]
    assert found.excluded == 2


ODD_NPZ = [
    ("digits.npz#x", "found the part 'x'; expected {dir}/digits.npz#images,labels, of x, y, names"),
    ("digits.npz", "found the part ''"),
    ("digits.npz#X,y", "found the part 'X,y'"),
    ("digits.npz#x,few", "5 inputs and 2 labels"),
    ("digits.npz#floats,y", "images of float64 (5, 4, 3); expected uint8"),
    ("digits.npz#y,y", "uint8"),
    ("digits.npz#objects,y", "cannot be read as .npz"),
    ("digts.npz#x,y", "there is no such file; expected a file; did you mean digits.npz"),
    ("cut.npz#x,y", "cannot be read as .npz"),
    ("text.npz#x,y", "cannot be read as .npz"),
    ("one.npz#x,y", "found a single array"),
    ("digits.npz#x,rgb", "index 0: the label is"),
]


@pytest.mark.parametrize(("source", "words"), ODD_NPZ)
def test_what_is_no_npz_of_images(tmp_path: Path, source: str, words: str) -> None:
    np.savez(tmp_path / "digits.npz", **DIGITS)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "digits.npz").read_bytes()[:900])
    (tmp_path / "text.npz").write_text("x,y")
    with open(tmp_path / "one.npz", "wb") as file:
        np.save(file, PICTURES)
    with pytest.raises(DataError) as caught:
        read_records(f"{tmp_path}/{source}", DataConfig(), "image")
    assert words.format(dir=tmp_path) in str(caught.value)


def test_label_ids() -> None:
    records = from_arrays(["a", "b", "c"], ["x", "z", "x"], "mine")
    ids = label_ids(records, ("z", "x"))
    assert (ids.tolist(), ids.dtype) == ([1, 0, 1], np.int32)


def test_unknown_classes_are_named_all_at_once() -> None:
    records = from_arrays(list("abcd"), ["billing", "biling", "-1", "biling"], "mine")
    with pytest.raises(DataError, match=r"mine, index 1: the class 'biling' is unknown \(2 unknown") as caught:
        label_ids(records, ("billing", "network"))
    assert "did you mean 'billing'" in str(caught.value)
    assert caught.value.details == (
        "'biling': 2 rows, first mine, index 1, nearest known class 'billing'",
        "'-1': 1 rows, first mine, index 2",
    )


def test_unlabelled_records_have_no_classes() -> None:
    records = from_arrays(["a"], None, "mine")
    for ask in (lambda: classes_of(records), lambda: label_ids(records, ("x",))):
        with pytest.raises(DataError, match="no labels"):
            ask()


def texts(*values: str) -> Records:
    return from_arrays(list(values), None, "mine")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(["a", "b"], ["c"], 0), (["a", "b"], ["b", "b", "c"], 2), (["a"], ["A"], 0), (["a\ud800"], ["a\ud800"], 1)],
)
def test_overlap(a: list[str], b: list[str], expected: int) -> None:
    assert overlap(texts(*a), texts(*b)) == expected


def test_overlap_and_duplicates_of_images() -> None:
    images = np.arange(4 * 12, dtype=np.uint8).reshape(4, 4, 3)
    a, b = (
        from_arrays(images, None, "a"),
        from_arrays(np.concatenate([images[1:2], images[1:2], images + 100]), None, "b"),
    )
    assert (overlap(a, b), duplicates(a), duplicates(b)) == (2, 0, 1)


BUILDER = """
import io
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]), "note": tfds.features.Text()}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), description="small")

    def _split_generators(self, manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(3)}

    def _generate_examples(self, n):
        for i in range(n):
            file = io.BytesIO()
            Image.fromarray(np.full((4, 5, 3), 10 * i, np.uint8)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "text": f"text {i} é", "label": i % 2, "note": "n"}
"""
SCRIPT = """
import sys
import numpy as np
from photos.tiny import TinyPhotos
builder = TinyPhotos(file_format="array_record")
builder.download_and_prepare()

from tljax.config import DataConfig
from tljax.data.images import ImageExamples, Preprocess
from tljax.data.sources import label_ids, read_records
from tljax.errors import DataError

texts = read_records("tfds:tiny_photos/train", DataConfig(), "text")
assert sorted(zip(texts.inputs, texts.labels)) == [(f"text {i} é", ["cat", "dog"][i % 2]) for i in range(6)]
assert texts.where(2) == "tfds:tiny_photos/train, example 2", texts.where(2)
assert read_records("tfds:tiny_photos/test", DataConfig(label_column="note"), "text").labels == ["n"] * 3
assert len(read_records("tfds:tiny_photos/train[:50%]", DataConfig(), "text")) == 3
assert read_records("tfds:tiny_photos/test", DataConfig(), "text", labelled=False).labels is None

images = read_records("tfds:tiny_photos/train", DataConfig(on_bad="skip"), "image")
examples = ImageExamples(images.inputs, label_ids(images, ("cat", "dog")), images.where, Preprocess(2))
pixels = examples.gather(np.arange(6))["pixel_values"]
assert pixels.shape == (6, 2, 2, 3)
assert sorted(zip(pixels[:, 0, 0, 0].tolist(), examples.labels.tolist())) == [(10 * i, i % 2) for i in range(6)]

for source, columns, words in [
    ("tfds:tiny_photos/valid", {}, "Unknown split"),
    ("tfds:tiny_nothing/train", {}, "no such data set"),
    ("tfds:mnist/train", {}, "not prepared"),
    ("tfds:tiny_photos/train", {"text_column": "txt"}, "did you mean 'text'"),
]:
    try:
        read_records(source, DataConfig(**columns), "text")
    except DataError as error:
        assert words in str(error), error
    else:
        raise AssertionError(source)
found = sorted(name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch", "transformers"))
assert not found, found
print("all well")
"""


def test_tfds_without_tensorflow(tmp_path: Path) -> None:
    """In a process of its own: it must never import TensorFlow, and the data lies in a folder of its own."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "__init__.py").touch()
    (tmp_path / "photos" / "tiny.py").write_text(BUILDER)
    repository = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path / "data"), "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": os.pathsep.join([str(tmp_path), str(repository)])}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("all well\n")


def test_importing_the_data_room_is_quick_and_light() -> None:
    """Slow libraries are imported where they are used."""
    script = ("import sys, tljax.data.sources, tljax.data.text, tljax.data.images, tljax.data.pipeline; "
              "slow = {'grain', 'transformers', 'tokenizers', 'tensorflow_datasets', 'pyarrow', 'sklearn'}; "
              "assert not slow & set(sys.modules), slow & set(sys.modules)")  # fmt: skip
    repository = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
