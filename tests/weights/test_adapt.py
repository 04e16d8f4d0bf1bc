"""Other image sizes, channels and vocabularies: each as the family's own code in transformers would have it."""

import json
import shutil

import checkpoints
import jax
import numpy as np
import pytest
from theirs import TOLERANCE

from tljax import trees
from tljax.errors import ConfigError, WeightsError
from tljax.weights import adapt, export
from tljax.weights.load import load_pretrained

SIZES = [(2, 4), (14, 24), (24, 14), (14, 1), (1, 3), (7, 7), (3, 5)]
FINER = ["deit", "deit-distilled", "dinov2", "dinov2_with_registers", "siglip", "vit"]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_positions_are_interpolated_as_torch_does(old, new, antialias):
    torch = pytest.importorskip("torch")
    positions = np.random.default_rng(0).normal(size=(1, 2 + old * old, 6)).astype(np.float32)
    grid = torch.from_numpy(positions[:, 2:]).reshape(1, old, old, 6).permute(0, 3, 1, 2).contiguous()
    options = {"mode": "bicubic", "align_corners": False, "antialias": antialias}
    want = torch.nn.functional.interpolate(grid, size=(new, new), **options)
    want = want.permute(0, 2, 3, 1).reshape(1, new * new, 6).numpy()
    have = adapt.resize_positions(positions, 2 + new * new, 2, antialias)
    np.testing.assert_allclose(have[:, 2:], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(have[:, :2], positions[:, :2])


@pytest.mark.parametrize("matrix", [adapt._bicubic, adapt._antialiased])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_interpolation_keeps_constants(old, new, matrix):
    np.testing.assert_allclose(matrix(old, new).sum(1), 1.0, atol=1e-12)
    if old == new:
        np.testing.assert_allclose(matrix(old, new), np.eye(old), atol=1e-12)


@pytest.mark.parametrize("size", [24, 12])
@pytest.mark.parametrize("name", FINER)
def test_another_image_size_gives_what_transformers_gives(name, size):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = getattr(transformers, checkpoints.CONFIGS[name]["architectures"][0]).from_pretrained(
        checkpoints.DATA / name, attn_implementation="eager"
    )
    pixels = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    options = {} if "dinov2" in name else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        want = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), **options).logits.numpy()
    model = checkpoints.load(name, image_size=size)
    assert len(model.adapted) == 1
    np.testing.assert_allclose(jax.jit(model.apply)(model.params, {"pixel_values": pixels}).logits, want, **TOLERANCE)


STEMS = ["convnext", "deit", "dinov2", "mobilenet_v2", "resnet", "siglip", "swin", "vit"]


@pytest.mark.parametrize("name", STEMS)
def test_grey_pictures_give_the_same_as_grey_in_three_channels(name):
    model, grey = checkpoints.load(name), checkpoints.load(name, num_channels=1)
    size = model.config["image_size"]
    pixels = np.random.default_rng(2).normal(size=(1, size, size, 1)).astype(np.float32)
    want = model.apply(model.params, {"pixel_values": np.repeat(pixels, 3, -1)}).logits
    np.testing.assert_allclose(grey.apply(grey.params, {"pixel_values": pixels}).logits, want, rtol=1e-4, atol=1e-4)
    assert len(grey.adapted) == 1
    six = checkpoints.load(name, num_channels=6)
    np.testing.assert_allclose(
        six.apply(six.params, {"pixel_values": np.repeat(pixels, 6, -1)}).logits, want, rtol=1e-4, atol=1e-4
    )
    assert len(grey.config["image_mean"]) == 1
    assert len(six.config["image_std"]) == 6


WORDS = [name for name in checkpoints.SETS if "vocab_size" in checkpoints.CONFIGS[name]]


@pytest.mark.parametrize("name", WORDS)
def test_new_words_start_as_the_mean_and_the_old_stay(name):
    model, (inputs, outputs) = checkpoints.load(name, vocab_size=43), checkpoints.given(name)
    assert 1 <= len(model.adapted) <= 2  # an untied head has as many words
    found = model.apply(model.params, inputs)
    np.testing.assert_allclose(found.last_hidden_state, outputs["last_hidden_state"], **TOLERANCE)
    if name in checkpoints.LANGUAGE:
        np.testing.assert_allclose(found.logits[..., :40], outputs["logits"], **TOLERANCE)
    new = model.apply(model.params, {**inputs, "input_ids": np.full_like(inputs["input_ids"], 42)})
    assert np.isfinite(new.last_hidden_state).all()
    assert model.config["vocab_size"] == 43


def test_fewer_words_are_refused():
    with pytest.raises(ConfigError, match="vocab_size: 39; expected 40 to"):
        checkpoints.load("bert", vocab_size=39)


def test_only_what_was_asked_for_may_differ(tmp_path):
    """The config says another image size than the file has; other channels do not excuse it."""
    folder = shutil.copytree(checkpoints.DATA / "vit", tmp_path / "vit")
    (folder / "config.json").write_text(json.dumps({**checkpoints.CONFIGS["vit"], "image_size": 24}))
    with pytest.raises(WeightsError, match="position_embeddings: shape"):
        load_pretrained(str(folder), num_channels=1)


def test_an_export_has_the_new_size(tmp_path):
    model = checkpoints.load("vit", image_size=24, num_channels=1)
    export.export_hf(tmp_path / "out", params=trees.flatten(model.params), config=model.config, labels=model.labels,
                     copy=(), pooling="pooler", card="")  # fmt: skip
    again = load_pretrained(str(tmp_path / "out"))
    assert (again.config["image_size"], again.config["num_channels"], again.adapted) == (24, 1, ())
    assert trees.digests(trees.flatten(again.params)) == trees.digests(trees.flatten(model.params))
