"""Ground truth: what transformers wrote, tljax opens with equal outputs; what tljax writes, transformers opens."""

import shutil

import jax
import numpy as np
import pytest
from theirs import TOLERANCE, answers, opened

from tljax import trees
from tljax.weights import export, files
from tljax.weights.load import load_pretrained

GOLDEN = [(f"flax/{name}", file) for name in ("bert", "gpt2", "resnet", "vit")
          for file in ("flax_model.msgpack", "model.safetensors")]  # fmt: skip
GOLDEN += [(f"torch/{name}", "model.safetensors")
           for name in ("bert", "convnext", "llama", "mobilenet_v2", "modernbert", "resnet-basic")]  # fmt: skip
# their files hold the last entry of hidden_states, which is what the stage of this name takes
BELOW = {"flax/vit": "layernorm", "torch/mobilenet_v2": "conv_1x1"}


def channels_last(array):
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def run(model, inputs):
    return jax.jit(model.apply)(model.params, {name: channels_last(array) for name, array in inputs.items()})


@pytest.mark.parametrize(("name", "file"), GOLDEN)
def test_outputs_are_transformers_outputs(testdata, tmp_path, name, file):
    source = testdata(f"golden/{name}")
    for wanted in ("config.json", file):
        shutil.copyfile(source / wanted, tmp_path / wanted)
    model = load_pretrained(str(tmp_path), task="language" if name == "flax/gpt2" else "classification")
    assert (model.reinitialised, model.dropped, model.adapted) == ((), (), ())
    inputs, outputs = (dict(np.load(source / f"{part}.npz", allow_pickle=False)) for part in ("inputs", "outputs"))
    inputs = {key: array.astype(np.int32) if array.dtype == np.int64 else array for key, array in inputs.items()}
    found = run(model, inputs)
    np.testing.assert_allclose(found.logits, outputs["logits"], **TOLERANCE)
    hidden, expected = found.last_hidden_state, channels_last(outputs["last_hidden_state"])
    if name in BELOW:
        top = model.backbone.index(BELOW[name])
        lower = {key: channels_last(array) for key, array in inputs.items()}
        below = model.backbone.run(model.params, lower, stop=top)
        above = model.backbone.run(model.params, {**below, "hidden": expected}, start=top, stop=top + 1)
        np.testing.assert_allclose(hidden, above["last_hidden_state"], **TOLERANCE)
        hidden = below["hidden"]
    if name == "torch/modernbert":  # padding whose window holds padding alone attends to nothing: to zeros or to all
        real = inputs["attention_mask"] != 0
        hidden, expected = np.asarray(hidden)[real], expected[real]
    np.testing.assert_allclose(hidden, expected, **TOLERANCE)


def test_both_formats_of_a_checkpoint_are_bit_identical(testdata, tmp_path):
    for name in ("bert", "vit"):
        digests = []
        for file in ("flax_model.msgpack", "model.safetensors"):
            folder = tmp_path / name / file
            folder.mkdir(parents=True)
            for wanted in ("config.json", file):
                shutil.copyfile(testdata(f"golden/flax/{name}") / wanted, folder / wanted)
            digests.append(trees.digests(trees.flatten(load_pretrained(str(folder)).params)))
        assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_an_export_has_the_tensors_that_transformers_4_wrote(testdata, tmp_path, name):
    source = testdata(f"golden/flax/{name}")
    theirs = files.open_weights(source)
    ours = files.open_weights(exported(load_pretrained(str(source)), tmp_path / "out"))
    assert ours.names == theirs.names
    for tensor in theirs.names:
        np.testing.assert_array_equal(ours.read(tensor), theirs.read(tensor))


TRUNK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PIXELS = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
TOKENS = {
    "input_ids": np.array([[2, 5, 7, 9, 11], [2, 9, 4, 0, 0]], np.int32),
    "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32),
    "token_type_ids": np.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], np.int32),
}


def tiny_bert(side, kind="BertForSequenceClassification", **fields):
    side.torch.manual_seed(0)
    config = side.BertConfig(vocab_size=60, max_position_embeddings=16, num_labels=4, **TRUNK, **fields)
    return getattr(side, kind)(config)


def tiny_vit(side, kind="ViTForImageClassification"):
    side.torch.manual_seed(0)
    model = getattr(side, kind)(side.ViTConfig(image_size=32, patch_size=8, num_labels=4, **TRUNK))
    with side.torch.no_grad():  # transformers draws these too small to tell one place from another
        for name, parameter in model.named_parameters():
            if "position_embeddings" in name or "cls_token" in name:
                parameter.normal_()
    return model


def test_bert_that_transformers_saved_now(torch_side, tmp_path):
    theirs = tiny_bert(torch_side)
    theirs.save_pretrained(tmp_path)
    model = load_pretrained(str(tmp_path))
    assert (model.reinitialised, model.dropped) == ((), ())
    want = answers(torch_side, theirs, TOKENS, output_hidden_states=False)
    np.testing.assert_allclose(run(model, TOKENS).logits, want["logits"], **TOLERANCE)


def test_vit_that_transformers_saved_now(torch_side, tmp_path):
    theirs = tiny_vit(torch_side)
    theirs.save_pretrained(tmp_path)
    model = load_pretrained(str(tmp_path))
    found = run(model, {"pixel_values": PIXELS})
    np.testing.assert_allclose(
        found.logits, answers(torch_side, theirs, {"pixel_values": PIXELS})["logits"], **TOLERANCE
    )
    trunk = answers(torch_side, theirs.vit, {"pixel_values": PIXELS})["last_hidden_state"]
    np.testing.assert_allclose(found.last_hidden_state, trunk, **TOLERANCE)


def test_trunks_and_other_heads_that_transformers_saved_now(torch_side, tmp_path):
    head = ("classifier/bias", "classifier/kernel")
    for name, theirs, dropped in (
        ("trunk", tiny_bert(torch_side, "BertModel"), set()),
        ("masked", tiny_bert(torch_side, "BertForMaskedLM"), {"cls.predictions.bias"}),
        ("vit", tiny_vit(torch_side, "ViTModel"), {"pooler.dense.bias", "pooler.dense.weight"}),
    ):
        theirs.save_pretrained(tmp_path / name)
        model = load_pretrained(str(tmp_path / name), labels=["a", "b"])
        assert model.reinitialised == head
        assert dropped <= set(model.dropped)
        inputs = {"pixel_values": PIXELS} if name == "vit" else TOKENS
        base = getattr(theirs, "bert", theirs)
        want = answers(torch_side, base, inputs)["last_hidden_state"]
        np.testing.assert_allclose(run(model, inputs).last_hidden_state, want, **TOLERANCE)


def test_interpolated_positions_give_transformers_logits(torch_side, tmp_path):
    theirs = tiny_vit(torch_side)
    theirs.save_pretrained(tmp_path)
    pixels = np.random.default_rng(1).normal(size=(2, 3, 48, 48)).astype(np.float32)
    model = load_pretrained(str(tmp_path), image_size=48)
    assert model.adapted == ("vit/embeddings/position_embeddings",)
    want = answers(torch_side, theirs, {"pixel_values": pixels}, interpolate_pos_encoding=True)["logits"]
    np.testing.assert_allclose(run(model, {"pixel_values": pixels}).logits, want, **TOLERANCE)


def exported(model, folder):
    export.export_hf(folder, params=trees.flatten(model.params), config=model.config, labels=model.labels,
                     copy=export.companions(model.folder), pooling=model.pooling, card="# A model\n")  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("name", "auto", "labels"),
    [
        ("flax/bert", "AutoModelForSequenceClassification", None),
        ("flax/bert", "AutoModelForSequenceClassification", ["cancel", "refund", "état"]),
        ("flax/vit", "AutoModelForImageClassification", None),
        ("flax/vit", "AutoModelForImageClassification", ["apple", "pear"]),
    ],
)
def test_transformers_opens_an_export(testdata, torch_side, tmp_path, name, auto, labels):
    source = testdata(f"golden/{name}")
    model = load_pretrained(str(source), labels=labels)
    theirs = opened(torch_side, auto, exported(model, tmp_path / "out"))
    assert tuple(theirs.config.id2label.values()) == model.labels
    assert theirs.config.label2id == {label: i for i, label in enumerate(model.labels)}
    inputs = dict(np.load(source / "inputs.npz", allow_pickle=False))
    np.testing.assert_allclose(run(model, inputs).logits, answers(torch_side, theirs, inputs)["logits"], **TOLERANCE)


def test_transformers_opens_the_trunk_of_a_mean_pooled_export(torch_side, tmp_path):
    tiny_bert(torch_side).save_pretrained(tmp_path / "in")
    model = load_pretrained(str(tmp_path / "in"), labels=["a", "b"], pooling="mean")
    folder = exported(model, tmp_path / "out")
    trunk = opened(torch_side, "AutoModel", folder, add_pooling_layer=False)
    hidden = answers(torch_side, trunk, TOKENS)["last_hidden_state"]
    found = run(model, TOKENS)
    np.testing.assert_allclose(found.last_hidden_state, hidden, **TOLERANCE)
    # what sentence-transformers computes from such a folder: the mean over the mask, then 2_Dense
    mask = TOKENS["attention_mask"][:, :, None].astype(np.float32)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    head = jax.tree.map(np.asarray, model.params["classifier"])
    np.testing.assert_allclose(found.logits, pooled @ head["kernel"] + head["bias"][None], **TOLERANCE)


def test_a_real_vit_loads_and_exports(testdata, torch_side, tmp_path):
    model = load_pretrained(str(testdata("vit_tiny_tinyimagenet")))
    assert (len(model.labels), model.reinitialised, model.dropped) == (200, (), ())
    theirs = opened(torch_side, "AutoModelForImageClassification", exported(model, tmp_path / "out"))
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    want = answers(torch_side, theirs, {"pixel_values": pixels})["logits"]
    scale = np.abs(want).max()
    np.testing.assert_allclose(run(model, {"pixel_values": pixels}).logits / scale, want / scale, atol=1e-5)


def test_the_real_bert_computes_what_transformers_computes(minilm, torch_side):
    model = load_pretrained(str(minilm), labels=["a", "b"])
    theirs = torch_side.AutoModel.from_pretrained(minilm)
    want = answers(torch_side, theirs, TOKENS)["last_hidden_state"]
    np.testing.assert_allclose(run(model, TOKENS).last_hidden_state, want, **TOLERANCE)
