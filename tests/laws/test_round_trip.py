"""Law 9: what tljax exports, transformers opens with no missing and no unexpected key and equal logits; and back."""

import json

import jax
import numpy as np
import pytest
import tiny
from cases import STRATEGIES
from theirs import TOLERANCE, answers, opened

from tljax import trees
from tljax.transfer import freeze
from tljax.weights import export, files
from tljax.weights.load import load_pretrained

AUTO = {"bert": "AutoModelForSequenceClassification", "vit": "AutoModelForImageClassification"}
LABELS = ("cancel", "refund", "état")
RNG = np.random.default_rng(0)
INPUTS = {
    "bert": {"input_ids": RNG.integers(4, len(tiny.VOCABULARY), (3, 8)).astype(np.int32),
             "attention_mask": (np.arange(8) < np.array([[8], [5], [2]])).astype(np.int32),
             "token_type_ids": RNG.integers(0, 2, (3, 8)).astype(np.int32)},
    "vit": {"pixel_values": RNG.normal(size=(3, 3, 16, 16)).astype(np.float32)},
}  # fmt: skip


def moved(path, leaf):
    """Every parameter another random value, so that two in each other's place are seen."""
    noise = np.random.default_rng(list(path.encode())).normal(0, 0.1, leaf.shape).astype(np.float32)
    return leaf + jax.numpy.asarray(noise)


def logits(model, inputs):
    turned = {name: x.transpose(0, 2, 3, 1) if name == "pixel_values" else x for name, x in inputs.items()}
    return jax.jit(model.apply)(model.params, turned).logits


def tensors(folder):
    weights = files.open_weights(folder)
    return {name: weights.read(name) for name in weights.tensors}


def test_here_to_there_and_back(family, strategy, tmp_path, torch_side):
    """A checkpoint of which the strategy's share has moved, exported and opened on both sides."""
    model = load_pretrained(str(tiny.checkpoint(tmp_path / "in", family, LABELS)), scratch=strategy == "scratch")
    plan = freeze.plan(model.backbone, strategy, **STRATEGIES[strategy])
    trainable, frozen = freeze.split(model.params, plan)
    params = trees.join({path: moved(path, leaf) for path, leaf in trainable.items()}, frozen)
    export.export_hf(tmp_path / "out", params=params, config=model.config, labels=model.labels,
                     copy=export.companions(model.folder), pooling=model.pooling, card="")  # fmt: skip
    again = load_pretrained(str(tmp_path / "out"))
    assert trees.digests(trees.flatten(again.params)) == trees.digests(params)
    assert (again.labels, again.reinitialised, again.dropped) == (LABELS, (), ())
    theirs = opened(torch_side, AUTO[family], tmp_path / "out")
    assert theirs.config.id2label == dict(enumerate(LABELS))
    want = answers(torch_side, theirs, INPUTS[family])["logits"]
    np.testing.assert_allclose(logits(again, INPUTS[family]), want, **TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_there_to_here_and_back(family, dtype, tmp_path, torch_side):
    """What transformers saved, in each of the dtypes that it saves in."""
    config = torch_side.AutoConfig.from_pretrained(tiny.checkpoint(tmp_path / "in", family, LABELS))
    theirs = getattr(torch_side, AUTO[family]).from_config(config)
    with torch_side.torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter += torch_side.torch.from_numpy(np.array(moved(name, np.zeros(parameter.shape, np.float32))))
    theirs = theirs.to(getattr(torch_side.torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["dtype"] == dtype
    model = load_pretrained(str(tmp_path / "theirs"))
    assert (model.labels, model.reinitialised, model.dropped) == (LABELS, (), ())
    want = answers(torch_side, theirs.float(), INPUTS[family])["logits"]
    np.testing.assert_allclose(logits(model, INPUTS[family]), want, **TOLERANCE)
    export.export_hf(tmp_path / "out", params=trees.flatten(model.params), config=model.config, labels=model.labels,
                     copy=(), pooling=model.pooling, card="")  # fmt: skip
    wrote, read = tensors(tmp_path / "out"), tensors(tmp_path / "theirs")
    assert wrote.keys() == read.keys()
    for name, array in read.items():
        np.testing.assert_array_equal(wrote[name], array)
