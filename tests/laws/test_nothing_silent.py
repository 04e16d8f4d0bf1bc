"""Law 11: nothing loads silently different. Whatever is wrong with any tensor: one list, one error, nothing loaded."""

import msgpack
import numpy as np
import pytest
import tiny

from tljax import trees
from tljax.errors import WeightsError
from tljax.weights import files
from tljax.weights.load import load_pretrained


def spoilt(array, value):
    array = np.array(array)
    array.reshape(-1)[-1] = value
    return array


def without_base(name):
    """The other spelling of a trunk's tensor, as a checkpoint of the trunk alone has it."""
    base, separator, rest = name.partition("." if "." in name else "/")
    return rest if separator and base in tiny.CONFIGS else ""


MAY_BE_ZERO = ("token_type", "cls_token", "classifier")  # in sound checkpoints
# name -> (what becomes of a tensor: what the file holds instead; what the message says of it)
FAULTS = {
    "missing": (lambda name, array: {}, "missing"),
    "a row less": (lambda name, array: {name: array[:-1]}, "shape"),
    "an axis more": (lambda name, array: {name: array[None]}, "shape"),
    "float64": (lambda name, array: {name: array.astype(np.float64)}, "dtype"),
    "whole numbers": (lambda name, array: {name: array.astype(np.int32)}, "dtype"),
    "one NaN": (lambda name, array: {name: spoilt(array, np.nan)}, "1 of"),
    "one infinity": (lambda name, array: {name: spoilt(array, -np.inf)}, "1 of"),
    "one more of its kind": (lambda name, array: {name: array, f"{name}_2": array}, "unexpected"),
    "doubled": (lambda name, array: {name: array, without_base(name) or name: array}, "doubled"),
    "all zeros": (lambda name, array: {name: np.zeros_like(array)}, "are zero"),
}


def concerned(fault, name, array):
    """Whether this is a fault in this tensor; those of a head may be missing, and have one spelling."""
    if fault == "missing":
        return "classifier" not in name and "pooler" not in name  # without a pooler the mean over tokens is taken
    if fault == "one more of its kind":
        return "pooler" not in name  # what else a pooler holds is dropped, and said to be
    if fault == "doubled":
        return bool(without_base(name))
    if fault == "all zeros":
        return array.ndim >= 2 and not any(part in name for part in MAY_BE_ZERO)
    return True


def write(folder, format, tensors):
    (folder / files.SAFETENSORS).unlink(missing_ok=True)
    if format == "safetensors":
        files.write_safetensors(folder / files.SAFETENSORS, tensors)
        return
    packed = {name: msgpack.ExtType(1, msgpack.packb((a.shape, a.dtype.name, a.tobytes())))
              for name, a in tensors.items()}  # fmt: skip
    (folder / files.FLAX).write_bytes(msgpack.packb(trees.unflatten(packed)))


@pytest.fixture(params=["safetensors", "flax"])
def checkpoint(request, family, tmp_path):
    """(folder, format, the tensors of a sound checkpoint under the names of that format)."""
    folder = tiny.checkpoint(tmp_path / family, family)
    if request.param == "safetensors":
        weights = files.open_weights(folder)
        tensors = {name: weights.read(name) for name in weights.tensors}
    else:
        tensors = {path: np.asarray(leaf) for path, leaf in trees.flatten(load_pretrained(str(folder)).params).items()}
    return folder, request.param, tensors


def test_a_sound_one_loads_whole(checkpoint):
    folder, format, tensors = checkpoint
    want = trees.digests(trees.flatten(load_pretrained(str(folder)).params))
    write(folder, format, tensors)
    model = load_pretrained(str(folder))
    assert trees.digests(trees.flatten(model.params)) == want
    assert (model.reinitialised, model.dropped, model.adapted) == ((), (), ())


@pytest.mark.parametrize("fault", FAULTS)
def test_every_tensor_with_this_fault_is_named_in_one_error(checkpoint, fault):
    folder, format, tensors = checkpoint
    becomes, says = FAULTS[fault]
    wrong = [name for name, array in tensors.items() if concerned(fault, name, array)]
    written = {}
    for name, array in tensors.items():
        written |= becomes(name, array) if name in wrong else {name: array}
    write(folder, format, written)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(str(folder))
    assert caught.value.exit_code == 66
    assert len(wrong) == len(caught.value.details)
    for name in wrong:
        assert any(name in line and says in line for line in caught.value.details), name
    assert "nothing was loaded" in str(caught.value)


def test_what_is_not_an_error_is_named(checkpoint):
    """A trunk without its head, and what a classifier has no use for."""
    folder, format, tensors = checkpoint
    separator = "." if format == "safetensors" else "/"
    extra = f"{folder.name}{separator}pooler{separator}dense{separator}extra"
    trunk = {name: array for name, array in tensors.items() if not name.startswith("classifier")}
    write(folder, format, {**trunk, extra: np.ones(3, np.float32)})
    model = load_pretrained(str(folder))
    assert (model.reinitialised, model.dropped) == (("classifier/bias", "classifier/kernel"), (extra,))


def test_one_fault_among_sound_tensors_is_enough(checkpoint):
    folder, format, tensors = checkpoint
    for name in list(tensors)[::7]:
        write(folder, format, {**tensors, name: spoilt(tensors[name], np.nan)})
        with pytest.raises(WeightsError) as caught:
            load_pretrained(str(folder))
        assert len(caught.value.details) == 1
