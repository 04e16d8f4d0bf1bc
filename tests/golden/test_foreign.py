"""Ground truth for the files of other libraries: what timm computes with the checkpoints that make_timm.py wrote."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from theirs import TOLERANCE

from tljax import trees
from tljax.errors import WeightsError
from tljax.weights import files
from tljax.weights.load import load_pretrained

DATA = Path(__file__).parent / "data_timm"
TIMM = sorted(folder.name for folder in DATA.iterdir() if folder.name != "augreg")
NPZ = DATA / "augreg" / "vit.npz"


def logits_of(model, arrays):
    return jax.jit(model.apply)(model.params, {"pixel_values": arrays["pixel_values"].transpose(0, 2, 3, 1)}).logits


@pytest.mark.parametrize("name", TIMM)
def test_logits_are_timms(name):
    arrays = np.load(DATA / name / "golden.npz", allow_pickle=False)
    model = load_pretrained(str(DATA / name), image_size=32)
    assert (model.reinitialised, model.dropped, model.adapted) == ((), (), ())
    assert len(model.labels) == 5
    np.testing.assert_allclose(logits_of(model, arrays), arrays["logits"], **TOLERANCE)


@pytest.mark.parametrize("place", [NPZ, NPZ.parent], ids=["file", "folder"])
def test_logits_of_an_npz_are_timms(place):
    arrays = np.load(DATA / "augreg" / "golden" / "golden.npz", allow_pickle=False)
    model = load_pretrained(str(place))
    assert (model.config["num_attention_heads"], model.config["image_size"]) == (3, 32)
    assert (model.reinitialised, model.dropped, model.adapted) == ((), (), ())
    np.testing.assert_allclose(logits_of(model, arrays), arrays["logits"], **TOLERANCE)


def test_big_visions_names_are_the_same_network(tmp_path):
    """big_vision adds positions before the class token joins: the same as position 0 for it."""
    old = dict(np.load(NPZ, allow_pickle=False))
    positions = old["Transformer/posembed_input/pos_embedding"]
    positions[:, 0] = 0
    np.savez(tmp_path / "old.npz", **old)
    new = {"params/pos_embedding": positions[:, 1:]}
    for name, array in old.items():
        for theirs, ours in (("LayerNorm_2", "LayerNorm_1"), ("Attention_1", "Attention_0"), ("Block_3", "Block_0")):
            name = name.replace(theirs, ours)
        new |= {f"params/{name}": array} if "posembed" not in name else {}
    np.savez(tmp_path / "new.npz", **new)
    first, second = (load_pretrained(str(tmp_path / f"{name}.npz")) for name in ("old", "new"))
    assert trees.digests(trees.flatten(first.params)) == trees.digests(trees.flatten(second.params))


def test_a_head_above_a_hidden_layer_is_dropped(tmp_path):
    arrays = dict(np.load(NPZ, allow_pickle=False)) | {"pre_logits/kernel": np.ones((24, 24), np.float32),
                                                      "pre_logits/bias": np.ones(24, np.float32)}  # fmt: skip
    np.savez(tmp_path / "vit.npz", **arrays)
    model = load_pretrained(str(tmp_path / "vit.npz"), num_labels=2)
    assert model.dropped == ("head/bias", "head/kernel", "pre_logits/bias", "pre_logits/kernel")
    assert model.reinitialised == ("classifier/bias", "classifier/kernel")


def edited(tmp_path, name, **fields):
    folder = Path(shutil.copytree(DATA / name, tmp_path / name))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("resnet", {"architecture": "resnetaa50"}, "architecture resnetaa50 of timm"),
        ("vit", {"architecture": "vit_base_patch16_gap_224"}, "architecture vit_base_patch16_gap_224"),
        ("vit", {"global_pool": "avg"}, "global_pool 'avg'"),
        ("convnext", {"model_args": {"stem_type": "overlap"}}, "model_args stem_type"),
        ("vit", {"model_args": {"num_heads": 5}}, "hidden_size: 24 is no multiple of num_attention_heads 5"),
        ("resnet", {"auto_map": {}, "model_type": "mystery"}, "'mystery' is no family"),
        ("vit", {"architecture": "resnet50", "model_args": {}}, "conv1.weight is not there"),
    ],
)
def test_what_differs_in_more_than_names_is_refused(tmp_path, name, fields, words):
    with pytest.raises(WeightsError, match=words):
        load_pretrained(edited(tmp_path, name, **fields))


def test_fused_maps_that_are_not_three_are_no_map(tmp_path):
    """A row too many of query, key and value, which thirds in whole numbers would pass over."""
    folder = edited(tmp_path, "vit")
    weights = files.open_weights(Path(folder))
    tensors = {name: weights.read(name) for name in weights.tensors}
    tensors["blocks.0.attn.qkv.weight"] = np.ones((73, 24), np.float32)
    files.write_safetensors(Path(folder) / files.SAFETENSORS, tensors)
    with pytest.raises(WeightsError, match=r"query.weight: shape \(73, 24\), expected \(24, 24\)"):
        load_pretrained(folder)


def test_transformers_wrapper_around_timm_is_opened(tmp_path):
    folder = edited(tmp_path, "vit", model_type="timm_wrapper")
    weights = files.open_weights(Path(folder))
    wrapped = {f"timm_model.{name}": weights.read(name) for name in weights.tensors}
    files.write_safetensors(Path(folder) / files.SAFETENSORS, wrapped)
    found, plain = (load_pretrained(place).params for place in (folder, str(DATA / "vit")))
    assert trees.digests(trees.flatten(found)) == trees.digests(trees.flatten(plain))


def test_labels_and_normalisation_are_timms(tmp_path):
    config = json.loads((DATA / "resnet" / "config.json").read_text())
    model = load_pretrained(edited(tmp_path, "resnet", label_names=list("abcde")))
    assert model.labels == tuple("abcde")
    assert model.config["image_mean"] == config["pretrained_cfg"]["mean"] != [0.5] * 3
    assert model.config["image_size"] == 224
