"""Exports: opened again with equal logits, whole or absent, and never over something that no export wrote."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tljax import trees
from tljax.config import DataConfig
from tljax.data.images import Preprocess, normalise
from tljax.errors import WriteError
from tljax.weights import export, files
from tljax.weights.load import load_pretrained

LABELS = ["cancel", "refund", "état"]
BATCHES = {
    "bert": {"input_ids": np.array([[2, 5, 7, 0], [2, 9, 0, 0]], np.int32),
             "attention_mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32)},
    "vit": {"pixel_values": np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)},
}  # fmt: skip


def exported(model, folder: Path, **changes) -> Path:
    arguments = {"params": trees.flatten(model.params), "config": model.config, "labels": model.labels,
                 "copy": export.companions(model.folder), "pooling": model.pooling, "card": "# A model\n"}  # fmt: skip
    export.export_hf(folder, **{**arguments, **changes})
    return folder


@pytest.mark.parametrize(("family", "pooling"), [("bert", "pooler"), ("bert", "mean"), ("vit", "auto")])
def test_an_export_opens_again_with_everything(tiny, tmp_path, family, pooling):
    source = tiny(family)
    if family == "bert":
        (source / "vocab.txt").write_text("[PAD]\n")
        (source / "secret.txt").write_text("not taken along")
    model = load_pretrained(str(source), labels=LABELS, pooling=pooling)
    folder = exported(model, tmp_path / "out" / "model")
    again = load_pretrained(str(folder))
    assert again.labels == tuple(LABELS)
    assert again.pooling == model.pooling
    assert (again.reinitialised, again.dropped) == ((), ())
    assert trees.digests(trees.flatten(again.params)) == trees.digests(trees.flatten(model.params))
    batch = BATCHES[family]
    np.testing.assert_array_equal(model.apply(model.params, batch).logits, again.apply(again.params, batch).logits)
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {"README.md", "config.json", "model.safetensors"} | (
        {"preprocessor_config.json"} if family == "vit" else {"vocab.txt"}
    ) | ({"modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
         if pooling == "mean" else set())  # fmt: skip
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_config_says_what_transformers_wants(tiny, tmp_path):
    model = load_pretrained(str(tiny("bert")), labels=LABELS)
    config = json.loads((exported(model, tmp_path / "out") / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "cancel", "1": "refund", "2": "état"}
    assert config["label2id"] == {"cancel": 0, "refund": 1, "état": 2}
    assert (config["model_type"], config["num_labels"], config["vocab_size"]) == ("bert", 3, 20)


def test_mean_pooling_is_said_as_sentence_transformers_says_it(tiny, tmp_path):
    model = load_pretrained(str(tiny("bert")), labels=LABELS, pooling="mean")
    folder = exported(model, tmp_path / "out")
    modules = json.loads((folder / "modules.json").read_text())
    assert [(m["path"], m["type"].rsplit(".", 1)[1]) for m in modules] == [
        ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]  # fmt: skip
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True
    assert json.loads((folder / "2_Dense" / "config.json").read_text()) == {
        "in_features": 8, "out_features": 3, "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
    head, trunk = files.open_weights(folder / "2_Dense"), files.open_weights(folder)
    assert head.names == {"linear.weight": ((3, 8), "float32"), "linear.bias": ((3,), "float32")}
    assert "embeddings.word_embeddings.weight" in trunk.names
    assert not any(name.startswith(("bert.", "classifier", "pooler")) for name in trunk.names)


OF_A_CHECKPOINT = [
    {"size": 8},
    {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875, "size": {"shortest_edge": 8}},
    {"image_processor_type": "MobileNetV2ImageProcessor", "do_center_crop": True, "size": {"shortest_edge": 10},
     "crop_size": {"height": 8, "width": 8}},
]  # fmt: skip


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("values", OF_A_CHECKPOINT, ids=lambda values: values.get("image_processor_type", "plain"))
def test_the_image_processor_does_what_tljax_does(tiny, tmp_path, values, resize):
    import transformers

    source = tiny("vit")
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3}
    (source / "preprocessor_config.json").write_text(json.dumps({**values, **colours}))
    model = load_pretrained(str(source), image_size=16)
    folder = exported(model, tmp_path / "out", resize=resize)
    config = json.loads((folder / "config.json").read_text())
    assert config["image_size"] == 16
    assert "image_mean" not in config
    ours = Preprocess.from_folder(folder, data=DataConfig(resize=resize))
    assert ours == Preprocess.from_folder(source, 16, DataConfig(resize=resize))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 32, 3)).astype(np.uint8))
    found = transformers.AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="np")["pixel_values"][0]
    expected = normalise(ours.to_square(picture), ours.mean, ours.std)
    np.testing.assert_allclose(found.transpose(1, 2, 0), expected, atol=1e-6)


def test_an_earlier_export_is_replaced(tiny, tmp_path):
    source = tiny("bert")
    exported(load_pretrained(str(source), labels=LABELS, pooling="mean"), tmp_path / "out")
    folder = exported(load_pretrained(str(source)), tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("there", ["thesis.txt", "sub/x"])
def test_other_things_are_never_replaced(tiny, tmp_path, there):
    path = tmp_path / "out" / there
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(WriteError, match="which no export wrote") as caught:
        exported(load_pretrained(str(tiny("bert"))), tmp_path / "out")
    assert caught.value.exit_code == 74
    assert path.read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "below a file", "link"])
def test_a_place_that_cannot_be_a_folder_is_refused(tiny, tmp_path, kind):
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    place = {"file": "taken", "below a file": "taken/out", "link": "link"}[kind]
    with pytest.raises(WriteError):
        exported(load_pretrained(str(tiny("bert"))), tmp_path / place)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("failing", ["write_safetensors", "_sync", "_json"])
def test_a_failure_leaves_the_earlier_export_as_it_was(tiny, tmp_path, monkeypatch, failing):
    model = load_pretrained(str(tiny("bert")))
    folder = exported(model, tmp_path / "out" / "model")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files if failing == "write_safetensors" else export, failing, fail)
    with pytest.raises(WriteError, match="No space left on device"):
        exported(model, folder, card="another")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_failed_exchange_is_undone(tiny, tmp_path, monkeypatch):
    model = load_pretrained(str(tiny("bert")))
    folder = exported(model, tmp_path / "out" / "model")
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".draft"):
            raise OSError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(WriteError, match="Permission denied"):
        exported(model, folder, card="another")
    assert (folder / "README.md").read_text() == "# A model\n"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_parameters_may_be_of_any_device_array(tiny, tmp_path):
    model = load_pretrained(str(tiny("bert")))
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), model.params)
    folder = exported(model, tmp_path / "out", params=trees.flatten(half))
    assert {dtype for _, dtype in files.open_weights(folder).names.values()} == {"float32"}


def test_whoever_may_read_the_folder_may_read_the_weights(tmp_path):
    files.write_safetensors(tmp_path / "x.safetensors", {"x": np.ones(2, np.float32)})
    (tmp_path / "y").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "y").stat().st_mode
