"""The head that tells hidden words: at some places or at all, against transformers, and through an export and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from theirs import TOLERANCE, answers, opened

from tljax import models, trees
from tljax.errors import ConfigError, WeightsError
from tljax.weights import export, files
from tljax.weights.load import load_pretrained

TRUNK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WORDS = {"vocab_size": 60, "max_position_embeddings": 16}
TOKENS = {
    "input_ids": np.array([[2, 5, 7, 9, 11], [2, 9, 4, 1, 1]], np.int32),  # 1 is RoBERTa's padding
    "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32),
}
PLACES = np.array([[1, 4, 0], [2, 0, 0]], np.int32)  # repeated ones too, which fill a batch up
HEADS = {
    "bert": ("cls/predictions/bias", "cls/predictions/transform/LayerNorm/bias",
             "cls/predictions/transform/LayerNorm/scale", "cls/predictions/transform/dense/bias",
             "cls/predictions/transform/dense/kernel"),
    "roberta": ("lm_head/bias", "lm_head/dense/bias", "lm_head/dense/kernel", "lm_head/layer_norm/bias",
                "lm_head/layer_norm/scale"),
}  # fmt: skip
FAMILIES = list(HEADS)


def drawn(family):
    """(network, nested parameters) of random values."""
    network = models.build({"model_type": family, **WORDS, **TRUNK}, num_labels=0)
    rng = np.random.default_rng(1)
    flat = {path: jnp.asarray(rng.normal(0, 0.3, leaf.shape) + path.endswith("/scale"), leaf.dtype)
            for path, leaf in network.shapes().items()}  # fmt: skip
    return network, trees.unflatten(flat)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_words_at_some_places_are_those_of_all(family):
    network, params = drawn(family)
    everywhere = network.run(params, TOKENS)
    at = network.run(params, {**TOKENS, "predicted": PLACES})
    assert everywhere["logits"].shape == (2, 5, 60)
    assert at["logits"].shape == (2, 3, 60)
    assert at["logits"].dtype == jnp.float32
    expected = np.take_along_axis(np.asarray(everywhere["logits"]), PLACES[:, :, None], axis=1)
    np.testing.assert_allclose(at["logits"], expected, rtol=1e-5, atol=1e-5)  # products of other shapes
    np.testing.assert_array_equal(at["last_hidden_state"], everywhere["last_hidden_state"])


@pytest.mark.parametrize("family", FAMILIES)
def test_places_are_passed_on_from_stage_to_stage(family):
    network, params = drawn(family)
    given = {**TOKENS, "predicted": PLACES}
    whole = network.run(params, given)
    for k in range(len(network.stages) + 1):
        parts = network.run(params, network.run(params, given, 0, k), k)
        np.testing.assert_array_equal(parts["logits"], whole["logits"], err_msg=f"cut at {k}")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_owns_no_table_of_words(family):
    """It reads the trunk's, which then is no lookup: its gradient has two parts."""
    network, _ = drawn(family)
    assert tuple(sorted(path for path in network.shapes() if network.stage_of(path) == "head")) == HEADS[family]
    assert network.shapes()[HEADS[family][0]].shape == (60,)
    assert network.lookups == ()
    assert network.stage_names == ("embeddings", "layer_0", "layer_1", "head")


def saved(side, folder, family, kind="ForMaskedLM"):
    """A folder that transformers wrote, and its own model."""
    side.torch.manual_seed(0)
    name = {"bert": "Bert", "roberta": "Roberta"}[family]
    theirs = getattr(side, f"{name}{kind}")(getattr(side, f"{name}Config")(**WORDS, **TRUNK))
    with side.torch.no_grad():
        for key, parameter in theirs.named_parameters():  # it starts these as zeros, which would hide a mistake
            if key.endswith("bias"):
                parameter.normal_()
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(torch_side, tmp_path, family):
    theirs = saved(torch_side, tmp_path, family)
    model = load_pretrained(str(tmp_path), task="language")
    assert (model.reinitialised, model.dropped, model.adapted, model.labels) == ((), (), (), ())
    found = jax.jit(model.apply)(model.params, TOKENS)
    want = answers(torch_side, theirs, TOKENS)["logits"]
    real = TOKENS["attention_mask"] != 0
    np.testing.assert_allclose(np.asarray(found.logits)[real], want[real], **TOLERANCE)


def exported(model, folder):
    export.export_hf(folder, params=trees.flatten(model.params), config=model.config, labels=model.labels,
                     copy=export.companions(model.folder), pooling=model.pooling, card="", head="language")  # fmt: skip
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_an_export_and_so_does_tljax(torch_side, tmp_path, family):
    saved(torch_side, tmp_path / "in", family)
    model = load_pretrained(str(tmp_path / "in"), task="language")
    folder = exported(model, tmp_path / "out")
    auto = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM"}[family]
    assert json.loads((folder / "config.json").read_text())["architectures"] == [auto]
    theirs = opened(torch_side, auto, folder)
    real = TOKENS["attention_mask"] != 0
    found, want = model.apply(model.params, TOKENS).logits, answers(torch_side, theirs, TOKENS)["logits"]
    np.testing.assert_allclose(np.asarray(found)[real], want[real], **TOLERANCE)


def checkpoint(folder, family, without=lambda path: False):
    """An export of random parameters, of which some are left out."""
    config = {"model_type": family, **WORDS, **TRUNK}
    flat = trees.flatten(drawn(family)[1])
    export.export_hf(folder, params=flat, config=config, labels=(), copy=(), pooling="pooler", card="",
                     head="language")  # fmt: skip
    weights = files.open_weights(folder)
    kept = {name: weights.read(name) for name in weights.tensors if not without(name)}
    files.write_safetensors(folder / files.SAFETENSORS, kept)
    return folder, flat


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_opens_again_with_everything(tmp_path, family):
    folder, flat = checkpoint(tmp_path / "out", family)
    again = load_pretrained(str(folder), task="language")
    assert (again.reinitialised, again.dropped) == ((), ())
    assert trees.digests(trees.flatten(again.params)) == trees.digests(flat)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_such_a_head_gets_a_random_one_and_says_so(tmp_path, family):
    start = HEADS[family][0].split("/")[0]
    folder, flat = checkpoint(tmp_path / "out", family, lambda name: name.startswith(start))
    model, other = (load_pretrained(str(folder), task="language", seed=seed) for seed in (0, 1))
    assert model.reinitialised == HEADS[family]
    own = trees.flatten(model.params)
    assert all(np.array_equal(own[path], flat[path]) for path in flat if path not in HEADS[family])
    kernel = next(path for path in HEADS[family] if path.endswith("kernel"))
    assert np.asarray(own[kernel]).std() > 0.005
    assert not np.array_equal(own[kernel], trees.flatten(other.params)[kernel])


def test_half_a_head_is_none(tmp_path):
    folder, _ = checkpoint(tmp_path / "out", "bert", lambda name: "transform.dense" in name)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(str(folder), task="language")
    assert [line.split(":")[0] for line in caught.value.details] == [
        "cls/predictions/transform/dense/bias", "cls/predictions/transform/dense/kernel"]  # fmt: skip


def test_a_classifiers_checkpoint_is_one_for_words_too(tmp_path):
    folder = tiny.checkpoint(tmp_path / "bert", "bert")
    model = load_pretrained(str(folder), task="language")
    assert model.reinitialised == HEADS["bert"]
    assert model.dropped == ("bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias",
                             "classifier.weight")  # fmt: skip
    assert model.apply(model.params, TOKENS).logits.shape == (2, 5, len(tiny.VOCABULARY))


def test_a_masked_checkpoint_is_one_for_classes_too(tmp_path):
    folder, flat = checkpoint(tmp_path / "out", "bert")
    model = load_pretrained(str(folder), labels=("a", "b"))
    assert model.reinitialised == ("classifier/bias", "classifier/kernel")
    assert model.pooling == "mean"  # it has no pooler
    own = trees.flatten(model.params)
    assert all(np.array_equal(own[path], flat[path]) for path in own if path.startswith("bert/"))


def test_a_family_without_such_a_head(tmp_path):
    with pytest.raises(ConfigError, match="a family that has a head for words; this is vit"):
        load_pretrained(str(tiny.checkpoint(tmp_path / "vit", "vit")), task="language")
