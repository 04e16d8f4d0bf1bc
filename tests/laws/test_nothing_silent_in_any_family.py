"""Law 11 over every family: whatever is wrong with the tensors of a checkpoint, one error lists all of it."""

import shutil

import checkpoints
import numpy as np
import pytest
import safetensors.numpy

from tljax import trees
from tljax.errors import WeightsError
from tljax.weights import files, rules
from tljax.weights.families import FAMILIES
from tljax.weights.load import load_pretrained


def spoilt(array, value):
    array = array.copy()
    array.reshape(-1)[array.size // 2] = value
    return array


# what becomes of a tensor (one name more is another spelling of it, or a name that no parameter has); what is said
FAULTS = {
    "missing": (lambda name, array, other: {}, "missing, expected "),
    "shape": (lambda name, array, other: {name: array[:-1]}, "shape "),
    "whole numbers": (lambda name, array, other: {name: array.astype(np.int32)}, "dtype I32"),
    "NaN": (lambda name, array, other: {name: spoilt(array, np.nan)}, "1 of "),
    "infinite": (lambda name, array, other: {name: spoilt(array, np.inf)}, "1 of "),
    "zeros": (lambda name, array, other: {name: np.zeros_like(array)}, "values are zero"),
    "doubled": (lambda name, array, other: {name: array, other: array}, "doubled"),
    "unexpected": (lambda name, array, other: {name: array, f"{name}_2": array}, "unexpected"),
    "axis": (lambda name, array, other: {name: array[None]}, "shape "),
}


def parameters(model, family, tensors):
    """(path, name in the file, its other spellings) of every parameter, from the bottom stage to the head."""
    shapes = model.backbone.shapes()
    order = sorted(shapes, key=lambda path: (model.backbone.index(model.backbone.stage_of(path)), path))
    for path in order:
        names, _ = rules.sources(family, "safetensors", path, len(shapes[path].shape))
        found = [name for name in names if name in tensors]
        if found:  # else the set has no head
            yield path, found[0], [name for name in names if name not in tensors]


def task(name):
    return "language" if name in checkpoints.LANGUAGE else "classification"


def read(name, folder):
    """A copy of a set in `folder`, and its tensors."""
    shutil.copytree(checkpoints.DATA / name, folder)
    return safetensors.numpy.load_file(folder / files.SAFETENSORS)


def assigned(rows, family):
    """name -> (fault, another spelling): kernels from the bottom up take turns, then vectors, then the head."""
    kernels = [row for row in rows if row[0].endswith("/kernel") and not family.in_head(row[0])]
    vectors = [row for row in rows if row[0].endswith(("/scale", "/weight", "/bias", "/var", "/lambda1"))
               and not family.in_head(row[0])]  # fmt: skip
    head = [row for row in rows if family.in_head(row[0]) and row[0].endswith("/kernel")]
    twice = [row for row in kernels if row[2]][-1]
    turns = [*zip(kernels, FAULTS, strict=False), (twice, "doubled"),
             *zip(vectors, ("NaN", "missing", "axis", "unexpected"), strict=False), (vectors[-1], "infinite"),
             *zip(head[-1:], ("NaN",), strict=False)]  # fmt: skip
    return {name: (fault, others[-1 if path == twice[0] else 0] if others else "")
            for (path, name, others), fault in turns}  # fmt: skip


@pytest.mark.parametrize("name", checkpoints.SETS)
def test_all_faults_at_once_are_one_list(name, tmp_path):
    model, tensors = checkpoints.load(name), read(name, tmp_path / name)
    family = FAMILIES[model.config["model_type"]]
    rows = list(parameters(model, family, tensors))
    wrong = assigned(rows, family)
    assert set(FAULTS) <= {fault for fault, _ in wrong.values()}
    written = {}
    for tensor, array in tensors.items():
        fault, other = wrong.get(tensor, ("", ""))
        written |= FAULTS[fault][0](tensor, array, other) if fault else {tensor: array}
    files.write_safetensors(tmp_path / name / files.SAFETENSORS, written)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(str(tmp_path / name), task=task(name))
    assert caught.value.exit_code == 66
    assert "nothing was loaded" in str(caught.value)
    assert len(caught.value.details) == len(wrong)
    for tensor, (fault, other) in wrong.items():
        said = [line for line in caught.value.details if FAULTS[fault][1] in line and tensor in line.replace(":", " ")]
        assert any(other in line for line in said) if fault == "doubled" else said, (tensor, fault)


@pytest.mark.parametrize("name", checkpoints.SETS)
def test_every_matrix_of_zeros_is_named_but_those_that_may_be(name, tmp_path):
    model, tensors = checkpoints.load(name), read(name, tmp_path / name)
    family = FAMILIES[model.config["model_type"]]
    zeroed = {tensor for path, tensor, _ in parameters(model, family, tensors)
              if tensors[tensor].ndim >= 2 and not rules.may_be_zero(family, path)}  # fmt: skip
    zeros = {tensor: np.zeros_like(array) if array.ndim >= 2 else array for tensor, array in tensors.items()}
    files.write_safetensors(tmp_path / name / files.SAFETENSORS, zeros)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(str(tmp_path / name), task=task(name))
    assert {line.partition(":")[0] for line in caught.value.details} == zeroed
    assert len(zeroed) > len([tensor for tensor in tensors if tensors[tensor].ndim >= 2]) / 2


@pytest.mark.parametrize(("name", "head"), [("gpt2-lm", "score/kernel"), ("llama-yarn", "score/kernel")])
def test_a_tied_head_has_no_tensor_of_its_own(name, head, tmp_path):
    tensors = read(name, tmp_path / name)
    assert not any(tensor.startswith("lm_head") for tensor in tensors)
    model = load_pretrained(str(tmp_path / name), task="language")
    assert (model.reinitialised, model.dropped) == ((), ())
    assert load_pretrained(str(tmp_path / name)).reinitialised == (head,)
    table = next(tensor for tensor in tensors if tensor.endswith(("wte.weight", "embed_tokens.weight")))
    files.write_safetensors(tmp_path / name / files.SAFETENSORS, {**tensors, "lm_head.weight": tensors[table]})
    again = load_pretrained(str(tmp_path / name), task="language")
    assert again.dropped == ("lm_head.weight",)
    assert trees.digests(trees.flatten(again.params)) == trees.digests(trees.flatten(model.params))
    # transformers reads a head that is another matrix, tied or not: neither of the two would be what was trained
    files.write_safetensors(tmp_path / name / files.SAFETENSORS, {**tensors, "lm_head.weight": tensors[table][::-1]})
    with pytest.raises(WeightsError) as caught:
        load_pretrained(str(tmp_path / name), task="language")
    assert caught.value.details == (f"lm_head.weight: another matrix than {table}, to which config.json ties it",)
    assert load_pretrained(str(tmp_path / name)).dropped == ("lm_head.weight",)  # a classifier reads neither


def test_an_untied_head_is_missed_by_a_language_model_and_new_in_a_classifier(tmp_path):
    tensors = read("llama-lm", tmp_path / "llama-lm")
    assert load_pretrained(str(tmp_path / "llama-lm")).dropped == ("lm_head.weight",)
    del tensors["lm_head.weight"]
    files.write_safetensors(tmp_path / "llama-lm" / files.SAFETENSORS, tensors)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(str(tmp_path / "llama-lm"), task="language")
    assert len(caught.value.details) == 1
    assert caught.value.details[0].startswith("lm_head/kernel: missing, expected lm_head.weight")
    model = load_pretrained(str(tmp_path / "llama-lm"))
    assert (model.reinitialised, model.dropped) == (("score/kernel",), ())


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet"])
def test_a_variance_below_zero_is_named(name, tmp_path):
    tensors = read(name, tmp_path / name)
    tensor = next(tensor for tensor in tensors if tensor.endswith("running_var"))
    tensors[tensor] = tensors[tensor] * np.where(np.arange(tensors[tensor].size) == 1, -1, 1).astype(np.float32)
    files.write_safetensors(tmp_path / name / files.SAFETENSORS, tensors)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(str(tmp_path / name))
    assert caught.value.details == (f"{tensor}: 1 of {tensors[tensor].size} variances are below 0",)
