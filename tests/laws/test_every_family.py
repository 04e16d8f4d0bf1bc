"""Laws 1, 2, 3 and 9 over every family of the table, on the tiny checkpoints of tests/golden."""

import checkpoints
import jax
import numpy as np
import pytest
from cases import STRATEGIES
from theirs import TOLERANCE, answers

from tljax import trees
from tljax.config import OptimConfig
from tljax.train import optim, state, step
from tljax.transfer import freeze
from tljax.weights import export
from tljax.weights.load import load_pretrained

ALL = pytest.mark.parametrize("name", checkpoints.SETS)
OPTIONS = {name: options for name, options in STRATEGIES.items() if name != "custom"} | {"last_k": {"k": 1}}


def moved(path, leaf):
    """Every parameter another value, so that two in each other's place are seen; variances stay above 0."""
    noise = np.random.default_rng(list(path.encode())).uniform(0.05, 0.2, leaf.shape).astype(np.float32)
    return leaf + jax.numpy.asarray(noise)


@ALL
def test_split_and_join(name):
    model = checkpoints.load(name)
    flat = trees.flatten(model.params)
    for strategy, options in OPTIONS.items():
        if name in checkpoints.LANGUAGE and strategy in ("feature_extraction", "bitfit"):
            continue  # a tied head has nothing to train, and Llama no biases
        plan = freeze.plan(model.backbone, strategy, **options)
        trainable, rest = freeze.split(model.params, plan)
        assert trees.digests(trees.join(trainable, rest)) == trees.digests(flat)
        now = state.create(model.params, plan, optim.make(OptimConfig(), plan, 10), jax.random.key(0))
        assert trees.digests(trees.flatten(state.params_of(now))) == trees.digests(flat)


@ALL
def test_cut_at_every_stage(name):
    model, (inputs, _) = checkpoints.load(name), checkpoints.given(name)
    whole = model.backbone.run(model.params, inputs)
    for k in range(len(model.backbone.stages) + 1):
        parts = model.backbone.run(model.params, model.backbone.run(model.params, inputs, stop=k), start=k)
        assert parts.keys() == whole.keys()
        assert all(np.array_equal(parts[key], whole[key]) for key in whole), f"cut at {k}"


@ALL
def test_every_parameter_belongs_to_one_stage(name):
    backbone = checkpoints.load(name).backbone
    for path in backbone.shapes():
        assert [stage.name for stage in backbone.stages if stage.owns(path)] == [backbone.stage_of(path)]


@pytest.mark.parametrize("strategy", ["full", "last_k", "norms"])
@pytest.mark.parametrize("name", checkpoints.CLASSIFIERS)
def test_frozen_is_frozen_and_the_rest_moves(name, strategy):
    model, (inputs, _) = checkpoints.load(name), checkpoints.given(name)
    rows = len(next(iter(inputs.values())))
    batch = {"inputs": inputs, "labels": np.arange(rows, dtype=np.int32), "weights": np.ones(rows, np.float32)}
    plan = freeze.plan(model.backbone, strategy, **OPTIONS[strategy])
    settings = OptimConfig(learning_rate=0.01, weight_decay=0.1, warmup_fraction=0.0)
    optimizer = optim.make(settings, plan, 10)
    now = state.create(model.params, plan, optimizer, jax.random.key(0))
    run = step.make_train_step(model.backbone, plan, optimizer, optim.schedule(settings, 10))
    moments = sum(leaf.nbytes for leaf in jax.tree.leaves(now.opt_state) if leaf.ndim)
    assert moments == 2 * trees.nbytes(now.trainable)
    for _ in range(2):
        now, metrics = run(now, batch)
        assert bool(metrics["finite"])
    before, after = (trees.digests(trees.flatten(tree)) for tree in (model.params, state.params_of(now)))
    changed = {path for path in before if before[path] != after[path]}
    still = {path for path, label in plan.labels.items() if label == freeze.FROZEN}
    assert not changed & still
    assert {path for path in plan.labels if plan.trains(path) and path.endswith("/kernel")} <= changed
    statistics = {path for path in plan.labels if freeze.is_statistic(path)}
    assert {path for path in statistics if plan.trains(f"{path.rpartition('/')[0]}/scale")} == statistics & changed


@pytest.mark.parametrize("name", checkpoints.CLASSIFIERS)
def test_what_is_exported_transformers_opens(name, tmp_path, torch_side):
    import transformers

    model, (inputs, _) = checkpoints.load(name), checkpoints.given(name)
    params = {path: moved(path, leaf) for path, leaf in trees.flatten(model.params).items()}
    export.export_hf(tmp_path / "out", params=params, config=model.config, labels=model.labels,
                     copy=(), pooling=model.pooling, card="")  # fmt: skip
    again = load_pretrained(str(tmp_path / "out"))
    assert trees.digests(trees.flatten(again.params)) == trees.digests(params)
    assert (again.labels, again.reinitialised, again.dropped) == (model.labels, (), ())
    kind = "Image" if "pixel_values" in inputs else "Sequence"
    opener = getattr(transformers, f"AutoModelFor{kind}Classification")
    if name == "deit-distilled":  # no Auto class
        opener = transformers.DeiTForImageClassificationWithTeacher
    theirs, info = opener.from_pretrained(tmp_path / "out", output_loading_info=True, attn_implementation="eager")
    assert {key: list(found) for key, found in info.items() if found} == {}
    asked = {key: value.transpose(0, 3, 1, 2) if key == "pixel_values" else value for key, value in inputs.items()}
    want = answers(torch_side, theirs, asked)["logits"]
    np.testing.assert_allclose(jax.jit(again.apply)(again.params, inputs).logits, want, **TOLERANCE)
