"""Random configs of every family there and back: bit-identical parameters, and PyTorch's logits with PyTorch's own."""

import json

import checkpoints
import jax
import ml_dtypes
import numpy as np
import pytest
import random_configs
from theirs import TOLERANCE, answers

from tljax import models, trees
from tljax.weights import convert, files
from tljax.weights.families import FAMILIES
from tljax.weights.load import load_pretrained

WORDS = [family for family, architecture in models.FAMILIES.items() if architecture.decoder or architecture.masked]
EVENTS = {"tljax_events": {"float16": "next", "sharded": "item"}}  # what a head without labels answers
TASKS = [*((family, "classification") for family in checkpoints.THEIRS), *((family, "language") for family in WORDS)]


def whole(folder, tensors):
    files.write_safetensors(folder / files.SAFETENSORS, tensors)


def sharded(folder, tensors):
    """Every other tensor in another file."""
    places = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        part = {name: array for name, array in tensors.items() if places[name] == file}
        files.write_safetensors(folder / file, part)
    (folder / f"{files.SAFETENSORS}{files.INDEX}").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def stored_as(dtype):
    def write(folder, tensors):
        whole(folder, {name: x.astype(dtype) if x.dtype == np.float32 else x for name, x in tensors.items()})

    return write


WRITERS = {"whole": whole, "sharded": sharded, "float16": stored_as(np.float16),
           "bfloat16": stored_as(ml_dtypes.bfloat16), "trunk": whole}  # fmt: skip


def values(network, rng):
    """Parameters that float16 and bfloat16 hold exactly, none of them zero and no variance below it."""
    flat = {path: ((2.0 * rng.integers(-63, 64, leaf.shape) + 1) / 128).astype(np.float32)
            for path, leaf in network.shapes().items()}  # fmt: skip
    return {path: np.abs(array) if path.endswith("/var") else array for path, array in flat.items()}


def written(folder, config, network, writer, rng):
    """A checkpoint of random parameters in `folder`; the parameters."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    flat = values(network, rng)
    WRITERS[writer](folder, convert.to_safetensors(flat, config["model_type"], trunk_only=writer == "trunk"))
    return flat


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_there_and_back_is_bit_identical(family, writer, tmp_path):
    table = FAMILIES[family]
    seed = list(WRITERS).index(writer)
    rng = np.random.default_rng(seed)
    config = random_configs.draw(family, seed)
    language = family in (*WORDS, *EVENTS) and writer in ("float16", "sharded")
    config |= {"answers": EVENTS[family][writer]} if language and family in EVENTS else {}
    pooling = table.poolings[seed % len(table.poolings)]
    network = models.build(config, num_labels=0 if language else 3, pooling=pooling)
    flat = written(tmp_path / "in", config, network, writer, rng)
    model = load_pretrained(str(tmp_path / "in"), pooling=pooling, task="language" if language else "classification")
    fresh = {path for path in flat if table.in_head(path)} if writer == "trunk" else set()
    assert (set(model.reinitialised), model.dropped, model.adapted) == (fresh, (), ())
    loaded = trees.flatten(model.params)
    assert loaded.keys() == flat.keys()
    assert trees.digests({path: leaf for path, leaf in loaded.items() if path not in fresh}) == trees.digests(
        {path: leaf for path, leaf in flat.items() if path not in fresh}
    )
    assert model.labels == (() if language else tuple(random_configs.LABELS.values()))


def inputs_of(config, rng):
    if "image_size" in config:
        size = config["image_size"]
        return {"pixel_values": rng.normal(size=(2, 3, size, size)).astype(np.float32)}
    mask = np.ones((2, 7), np.int32)
    mask[1, 5:] = 0
    padding = config.get("pad_token_id", 0)
    return {"input_ids": np.where(mask, rng.integers(3, 17, mask.shape), padding).astype(np.int32),
            "attention_mask": mask}  # fmt: skip


@pytest.mark.parametrize(("family", "task"), TASKS)
def test_logits_of_a_random_config_are_pytorchs(family, task, tmp_path, torch_side):
    """transformers makes the model, saves it, and computes with it."""
    import transformers

    config = random_configs.draw(family, 7)
    fields = {name: value for name, value in config.items() if name not in ("model_type", "id2label")}
    if family == "siglip":
        fields = {"vision_config": fields, "text_config": {"hidden_size": 8}}
    said = transformers.AutoConfig.for_model(family, num_labels=3, **fields)
    said._attn_implementation = "eager"
    torch_side.torch.manual_seed(0)
    if task == "language":
        masked = models.FAMILIES[family].masked
        auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
        theirs = auto.from_config(said)
    else:
        theirs = getattr(transformers, FAMILIES[family].classifier)(said)
    with torch_side.torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.dtype == torch_side.torch.float32:
                tensor.add_(torch_side.torch.randn_like(tensor) * 0.2)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    model, inputs = load_pretrained(str(tmp_path / "theirs"), task=task), inputs_of(config, np.random.default_rng(0))
    assert model.reinitialised == ()
    want = answers(torch_side, theirs, inputs)["logits"]
    turned = {name: x.transpose(0, 2, 3, 1) if name == "pixel_values" else x for name, x in inputs.items()}
    found = np.asarray(jax.jit(model.apply)(model.params, turned).logits)
    real = inputs["attention_mask"] != 0 if task == "language" else slice(None)
    np.testing.assert_allclose(found[real], want[real], **TOLERANCE)
