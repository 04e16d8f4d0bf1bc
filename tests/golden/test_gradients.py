"""Ground truth of training: the gradients of every family are PyTorch's, and so are the statistics that batches move.

PyTorch's gradients come as a checkpoint: each takes its parameter's place, and transformers saves them under the names
and in the layout of its files.
"""

import checkpoints
import jax
import numpy as np
import pytest

from tljax import trees
from tljax.config import OptimConfig
from tljax.models.rows import Rows
from tljax.train import objectives, optim, state, step
from tljax.transfer import freeze
from tljax.weights import convert, export, files, rules
from tljax.weights.families import FAMILIES

# Of a tensor's largest gradient: float32 on both sides. Some gradients are zero but for rounding, that of a key's bias
# before a softmax first of all; so a tensor's largest counts as at least this share of the largest of all.
TOLERANCE, LEAST = 1e-5, 1e-2
PARTS = [("bert", "last_k"), ("llama", "last_k"), ("vit", "last_k"), ("resnet", "last_k"), ("resnet", "full"),
         ("mobilenet_v2", "last_k")]  # fmt: skip


def opened(name, folder):
    """transformers' class for a set, in evaluation mode."""
    import transformers

    kind = "Image" if "pixel_values" in checkpoints.given(name)[0] else "Sequence"
    opener = getattr(transformers, f"AutoModelFor{kind}Classification")
    if name == "deit-distilled":  # no Auto class
        opener = transformers.DeiTForImageClassificationWithTeacher
    if name in checkpoints.LANGUAGE:
        opener = transformers.AutoModelForCausalLM
    return opener.from_pretrained(folder, attn_implementation="eager").eval()


def successors(input_ids, attention_mask):
    """Each token's successor, -100 (PyTorch's mark for what does not count) where that is padding."""
    return np.where(attention_mask[:, 1:] != 0, input_ids[:, 1:], -100).reshape(-1)


def tensors(side, inputs, dtype="float32"):
    """Inputs as PyTorch takes them, channels first."""
    turned = {key: x.transpose(0, 3, 1, 2).astype(dtype) if x.ndim == 4 else x.astype(np.int64)
              for key, x in inputs.items()}  # fmt: skip
    return {key: side.torch.from_numpy(np.ascontiguousarray(x)) for key, x in turned.items()}


def gradients(side, theirs, folder):
    """Name -> gradient, of a parameter that nothing reads zeros; and name -> running statistic."""
    with side.torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(side.torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    theirs.float().save_pretrained(folder)
    weights = files.open_weights(folder)
    saved = {name: weights.read(name) for name, (_, dtype) in weights.names.items() if dtype == "float32"}
    moved, grads = trees.partition(saved, lambda name: ".running_" in name)
    return grads, moved


def errors(found, want):
    """Name -> largest difference, as a share of the tensor's largest entry."""
    floor = LEAST * max(np.abs(array).max() for array in want.values())
    return {name: float(np.abs(found[name] - array).max() / max(np.abs(array).max(), floor))
            for name, array in want.items()}  # fmt: skip


def source(name, model, tmp_path):
    """The set's folder; or what tljax makes of a trunk, which has no head of its own."""
    if not model.reinitialised:
        return checkpoints.DATA / name
    export.export_hf(tmp_path / "made", params=trees.flatten(model.params), config=model.config, labels=model.labels,
                     copy=(), pooling=model.pooling, card="")  # fmt: skip
    return tmp_path / "made"


@pytest.mark.parametrize("name", checkpoints.SETS)
def test_gradients_are_pytorchs(name, tmp_path, torch_side):
    model, (inputs, _) = checkpoints.load(name), checkpoints.given(name)
    statistics, trainable = trees.partition(trees.flatten(model.params), freeze.is_statistic)
    language = name in checkpoints.LANGUAGE
    labels = successors(**inputs) if language else np.arange(2, dtype=np.int32)

    def loss(trainable):
        logits = model.apply(trees.unflatten(trees.join(trainable, statistics)), inputs).logits
        if language:  # each token's successor
            logits = logits[:, :-1].reshape(-1, logits.shape[-1])
        counts = (labels >= 0).astype(np.float32)
        return (objectives.cross_entropy(logits, np.maximum(labels, 0)) * counts).sum() / counts.sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(trainable)
    theirs = opened(name, source(name, model, tmp_path))
    logits = theirs(**tensors(torch_side, inputs)).logits
    logits = logits[:, :-1].flatten(0, 1) if language else logits
    total = torch_side.torch.nn.functional.cross_entropy(logits, torch_side.torch.from_numpy(labels).long())
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    want, _ = gradients(torch_side, theirs, tmp_path / "theirs")
    found = convert.to_safetensors(grads, model.config["model_type"])
    unread = () if model.reinitialised else model.dropped  # SigLIP's head that compares pictures with texts
    assert want.keys() - found.keys() == set(unread)
    assert {key: e for key, e in errors(found, {key: want[key] for key in found}).items() if not e <= TOLERANCE} == {}


@pytest.mark.parametrize(("name", "strategy"), PARTS)
def test_a_step_that_trains_a_part_has_pytorchs_gradients(name, strategy, tmp_path, torch_side):
    """Frozen normalisations go by their statistics, the others by the batch's, which then move.

    Dividing by a variance of few pixels makes much of rounding: as much as PyTorch's own float32 errs is no fault.
    """
    model, (inputs, _) = checkpoints.load(name, dropout=0.0), checkpoints.given(name)
    if "pixel_values" in inputs:  # four, and large enough that each statistic is one of many pixels
        size = 16 if name == "vit" else 64
        inputs = {"pixel_values": np.random.default_rng(1).normal(size=(4, size, size, 3)).astype(np.float32)}
    rows, family = len(next(iter(inputs.values()))), model.config["model_type"]
    labels = np.arange(rows, dtype=np.int32) % len(model.labels)
    batch = {"inputs": inputs, "labels": labels, "weights": np.ones(rows, np.float32)}
    plan = freeze.plan(model.backbone, strategy, k=1)
    optimizer, rate = optim.make(OptimConfig(), plan, 10), optim.schedule(OptimConfig(), 10)
    now = state.create(model.params, plan, optimizer, jax.random.key(0))
    run = step.make_train_step(model.backbone, plan, optimizer, rate).gradient
    grads, metrics, moved = run(now.trainable, now.frozen, now.batch_stats, now.step, now.key, batch)
    grads = {path: grad.dense() if isinstance(grad, Rows) else grad for path, grad in grads.items()}
    spellings = {key for path, leaf in grads.items() for key in rules.lookup(FAMILIES[family], path, leaf.ndim)[0]}

    def their(dtype):
        """(loss, gradients, statistics) of one step in which the same parameters train."""
        theirs = opened(name, checkpoints.DATA / name).to(getattr(torch_side.torch, dtype))
        for path, parameter in theirs.named_parameters():
            parameter.requires_grad_(path in spellings)
        assert sum(parameter.requires_grad for parameter in theirs.parameters()) == len(grads)
        for module in theirs.modules():
            if hasattr(module, "running_mean"):
                module.train(module.weight.requires_grad)
                module.momentum = min(module.momentum, 1 - module.momentum)  # see models/mobilenet_v2.py
        assert bool(moved) == any(module.training for module in theirs.modules())
        logits = theirs(**tensors(torch_side, inputs, dtype)).logits
        total = torch_side.torch.nn.functional.cross_entropy(logits, torch_side.torch.from_numpy(labels).long())
        total.backward()
        return total.item(), *gradients(torch_side, theirs, tmp_path / dtype)

    loss, want, statistics = their("float64")
    found = convert.to_safetensors(grads, family)
    want = {key: want[key] for key in found}
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    allowed = max(TOLERANCE, 2 * max(errors(their("float32")[1], want).values()) if moved else 0.0)
    assert {key: e for key, e in errors(found, want).items() if not e <= allowed} == {}
    for key, array in convert.to_safetensors(moved, family).items():
        if key in statistics:
            np.testing.assert_allclose(array, statistics[key], rtol=1e-5, atol=1e-5, err_msg=key)
