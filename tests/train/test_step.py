"""One step: the loss against a reference, dropout by step and key, what NaN does not touch, what is donated."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CLASSES, Case, batch_of, make_case

from tljax import trees
from tljax.train.objectives import Classification, cross_entropy
from tljax.train.state import create
from tljax.train.step import TrainStep, make_eval_step, make_train_step
from tljax.transfer.freeze import FreezePlan


def reference(logits, labels, smoothing=0.0):
    """The same in NumPy, in float64, from the definition: -sum_c q_c log p_c."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    q = np.full(logits.shape, smoothing / logits.shape[-1])
    q[np.arange(len(labels)), labels] += 1 - smoothing
    return -(q * log_p).sum(-1)


def logits_and_labels(scale):
    rng = np.random.default_rng(0)
    return rng.normal(0, scale, (64, 7)).astype(np.float32), rng.integers(0, 7, 64).astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0])
def test_cross_entropy(scale, smoothing):
    logits, labels = logits_and_labels(scale)
    # float32 against float64, at losses of up to a few hundred nats
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing),
                               reference(logits, labels, smoothing), rtol=2e-6, atol=2e-6)  # fmt: skip


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing):
    torch = pytest.importorskip("torch")
    logits, labels = logits_and_labels(3.0)
    theirs = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels).long(), reduction="none",
                                               label_smoothing=smoothing)  # fmt: skip
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing), theirs.numpy(),
                               rtol=2e-6, atol=2e-6)  # fmt: skip


# Compiled steps, shared: `last_k` has frozen parameters, dropout in what trains, and moments.
@pytest.fixture(scope="module")
def case() -> Case:
    return make_case("bert", "last_k", dropout=0.3)


@pytest.fixture(scope="module")
def step(case) -> TrainStep:
    return case.step()


@pytest.fixture(scope="module")
def weighted() -> tuple[Case, TrainStep]:
    """Without dropout; classes weigh 1, 2, 3, 4, 5, and a tenth of the mass is smoothed."""
    case = make_case("bert", "feature_extraction", dropout=0.0)
    return case, case.step(objective=Classification(0.1, (1, 2, 3, 4, 5)))


BATCH = batch_of("bert", 4)


def loss_at(case, step, count=0, key=0, batch=BATCH) -> float:
    state = case.state()
    _, metrics, _ = step.gradient(
        state.trainable, state.frozen, state.batch_stats, jnp.int32(count), jax.random.key(key), batch
    )
    return float(metrics["loss"])


def test_dropout_changes_with_step_and_key_and_is_reproducible(case, step):
    losses = {(count, key): loss_at(case, step, count, key) for count in range(3) for key in range(3)}
    assert len(set(losses.values())) == 9
    for (count, key), loss in losses.items():
        assert loss_at(case, step, count, key) == loss


@pytest.mark.parametrize("masked", [[], [0], [1, 3]])
def test_the_loss_is_the_weighted_mean(weighted, masked):
    case, step = weighted
    batch = {**BATCH, "weights": np.ones(4, np.float32)}
    batch["weights"][masked] = 0.0
    state = case.state()
    logits = case.backbone.run(case.params, batch["inputs"])["logits"]
    weights = batch["weights"] * np.arange(1, CLASSES + 1)[batch["labels"]]
    rows = reference(logits, batch["labels"], smoothing=0.1)
    _, metrics, _ = step.gradient(state.trainable, state.frozen, state.batch_stats, state.step, state.key, batch)
    assert float(metrics["weight"]) == weights.sum()
    assert float(metrics["loss"]) == pytest.approx((rows * weights).sum() / weights.sum(), rel=1e-5)


def test_class_weights_scale_the_gradient_of_their_rows(weighted):
    """With one row of each of two classes, the gradient is the weighted mean of the gradients of either alone."""
    case, step = weighted
    state = case.state()

    def gradient(weights):
        batch = {**BATCH, "labels": np.array([0, 3, 0, 0], np.int32), "weights": np.asarray(weights, np.float32)}
        return step.gradient(state.trainable, state.frozen, state.batch_stats, state.step, state.key, batch)[0]

    first, second, both = gradient([1, 0, 0, 0]), gradient([0, 1, 0, 0]), gradient([1, 1, 0, 0])
    for path in both:
        expected = (1 * np.asarray(first[path]) + 4 * np.asarray(second[path])) / 5
        np.testing.assert_allclose(both[path], expected, rtol=1e-4, atol=1e-7)


def test_compiled_ahead(case, step):
    """Every program is there before the first step: those of the shapes, and of both forms of a table's gradient."""
    from jax import monitoring

    whole = make_case("bert", "full")
    shapes = [batch_of("bert", rows, length=length) for rows, length in ((8, 5), (8, 7), (16, 9))]
    abstract = [jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch) for batch in shapes]
    stepper, now = whole.step(), whole.state()
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        compiled.extend([event] * event.endswith("backend_compile_duration"))

    monitoring.register_event_duration_secs_listener(listen)
    try:
        stepper.compile(now, abstract)
        assert len(compiled) == len(shapes) + 2
        for batch in shapes:
            now, _ = stepper(now, jax.device_put(batch))
        assert len(compiled) == len(shapes) + 2
    finally:
        monitoring.unregister_event_duration_listener(listen)


def test_equal_networks_share_the_gradient():
    """A run from scratch beside one from pretrained weights compiles nothing anew."""
    gradient = make_case("bert", "full").step().gradient
    assert make_case("bert", "scratch", learning_rate=0.5).step().gradient is gradient
    assert make_case("bert", "last_k").step().gradient is not gradient
    assert make_case("bert", "full", dropout=0.2).step().gradient is not gradient
    assert make_case("bert", "full").step(objective=Classification(0.1)).gradient is not gradient
    assert make_case("bert", "full").step(objective=Classification(0.0, (1, 2, 3, 4, 5))).gradient is not gradient


def test_metrics(case, step):
    state = dataclasses.replace(case.state(), step=jnp.int32(3))
    grads, _, _ = step.gradient(state.trainable, state.frozen, state.batch_stats, state.step, state.key, BATCH)
    _, metrics = step(state, BATCH)
    assert grads.keys() == state.trainable.keys()
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-6)
    assert float(metrics["learning_rate"]) == pytest.approx(0.01 * 0.7)  # linear over 10 steps
    assert bool(metrics["finite"])
    assert {name: value.dtype.name for name, value in metrics.items()} == {
        "loss": "float32", "weight": "float32", "grad_norm": "float32", "learning_rate": "float32", "finite": "bool",
        "first_bad": "int32",
    }  # fmt: skip
    assert all(value.shape == () for value in metrics.values())


def test_steps_are_counted(case, step):
    state = case.state()
    for expected in (1, 2, 3):
        state, _ = step(state, BATCH)
        assert (int(state.step), state.step.dtype) == (expected, jnp.int32)


def test_steps_learn(case, step):
    state = case.state()
    before = loss_at(case, step)
    for _ in range(9):
        state, metrics = step(state, BATCH)
    assert float(metrics["loss"]) < 0.7 * before


def poisoned(case, path, value=np.nan):
    """The state with one entry of one parameter broken."""
    state = case.state()
    part = "trainable" if path in state.trainable else "frozen"
    leaves = dict(getattr(state, part))
    leaves[path] = leaves[path].at[(0,) * leaves[path].ndim].set(value)
    return dataclasses.replace(state, **{part: leaves})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("path", ["bert/embeddings/LayerNorm/scale", "classifier/bias"])
def test_numbers_that_are_not_finite_are_not_applied(case, step, path, value):
    state, _ = step(case.state(), BATCH)  # moments that are not zero
    broken = poisoned(case, path, value)
    state = dataclasses.replace(broken, opt_state=state.opt_state, step=state.step)
    before = trees.digests({**state.trainable, **{str(i): x for i, x in enumerate(jax.tree.leaves(state.opt_state))}})
    after, metrics = step(state, BATCH)
    assert not bool(metrics["finite"])
    assert not np.isfinite(metrics["loss"])
    now = trees.digests({**after.trainable, **{str(i): x for i, x in enumerate(jax.tree.leaves(after.opt_state))}})
    assert now == before  # bit for bit, the moments too
    assert int(after.step) == 2
    assert sorted(after.trainable)[int(metrics["first_bad"])] in after.trainable


@pytest.mark.parametrize("path", ["bert/encoder/layer/1/attention/self/query/bias", "bert/pooler/dense/kernel"])
def test_first_bad_names_the_first_parameter_whose_gradient_is_not_finite(case, step, path):
    state = poisoned(case, path)
    grads, metrics, _ = step.gradient(state.trainable, state.frozen, state.batch_stats, state.step, state.key, BATCH)
    bad = [p for p in sorted(grads) if not np.all(np.isfinite(grads[p]))]
    assert bad
    assert sorted(grads)[int(metrics["first_bad"])] == bad[0]


def test_where_only_the_norm_overflows_the_largest_gradient_is_named():
    class Steep:
        """logits whose gradients are finite, and whose squares are not."""

        def run(self, params, x, start=0, stop=None, train=False, key=None):
            return x if stop == 0 else {"logits": x["ones"] @ (params["a"] + 2e19 * params["b"] + 2.5e19 * params["c"])}

    params = {name: jnp.array([[0.0, 0.0]]) for name in "abc"}
    plan = FreezePlan(dict.fromkeys("abc", "body"), {"body": 1.0}, 0)
    rule = optax.sgd(1.0)
    steep = make_train_step(Steep(), plan, rule, optax.constant_schedule(1.0))
    batch = {"inputs": {"ones": np.ones((2, 1), np.float32)}, "labels": np.zeros(2, np.int32),
             "weights": np.ones(2, np.float32)}  # fmt: skip
    grads, metrics, _ = steep.gradient(params, {}, {}, jnp.int32(0), jax.random.key(0), batch)
    assert all(np.isfinite(g).all() for g in grads.values())
    assert all(np.isfinite(np.square(g).sum()) for g in grads.values())
    assert not bool(metrics["finite"])
    assert int(metrics["first_bad"]) == 2


class Roots:
    """logits = sum of the square roots of three parameters, in each of two classes: an infinite slope at 0."""

    def run(self, params, x, start=0, stop=None, train=False, key=None):
        if stop == 0:
            return x
        return {"logits": x["ones"] @ sum(jnp.sqrt(params[name]) for name in ("a", "b", "c"))}


@pytest.mark.parametrize(("zero", "first"), [("a", 0), ("b", 1), ("c", 2), ("bc", 1), ("", 0)])
def test_an_infinite_gradient_of_a_finite_loss_is_found_and_named(zero, first):
    params = {name: jnp.array([[0.0 if name in zero else 1.0, 4.0]]) for name in "abc"}
    plan = FreezePlan(dict.fromkeys("abc", "body"), {"body": 1.0}, 0)
    rule = optax.sgd(1.0)
    roots = make_train_step(Roots(), plan, rule, optax.constant_schedule(1.0))
    state = create(params, plan, rule, jax.random.key(0))
    batch = {"inputs": {"ones": np.ones((2, 1), np.float32)}, "labels": np.zeros(2, np.int32),
             "weights": np.ones(2, np.float32)}  # fmt: skip
    before = trees.digests(state.trainable)
    after, metrics = roots(state, batch)
    assert np.isfinite(metrics["loss"])
    assert bool(metrics["finite"]) == (not zero)
    assert (trees.digests(after.trainable) == before) == bool(zero)
    assert int(metrics["first_bad"]) == first


def test_the_moving_part_is_donated_and_the_frozen_part_is_kept(case, step):
    state = case.state()
    after, _ = step(state, BATCH)
    assert all(leaf.is_deleted() for leaf in state.trainable.values())
    assert state.step.is_deleted()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert not any(leaf.is_deleted() for leaf in state.frozen.values())
    assert all(after.frozen[path] is leaf for path, leaf in state.frozen.items())
    assert not state.key.is_deleted()


def test_what_the_state_was_made_from_survives_the_donation(case, step):
    before = trees.digests(trees.flatten(case.params))
    step(case.state(), BATCH)
    assert trees.digests(trees.flatten(case.params)) == before


def test_the_same_step_twice_is_bit_identical(case, step):
    (a, x), (b, y) = (step(case.state(), BATCH) for _ in range(2))
    assert trees.digests(a.trainable) == trees.digests(b.trainable)
    assert float(x["loss"]) == float(y["loss"])


def test_the_evaluation_step_gives_probabilities_and_has_no_dropout(case):
    evaluate = make_eval_step(case.backbone)
    probs = evaluate(case.params, BATCH["inputs"])
    assert probs.shape == (4, CLASSES)
    assert probs.dtype == jnp.float32
    np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-6)
    assert np.array_equal(probs, evaluate(case.params, BATCH["inputs"]))
    logits = np.asarray(case.backbone.run(case.params, BATCH["inputs"])["logits"])
    np.testing.assert_allclose(np.log(probs), logits - np.log(np.exp(logits).sum(-1, keepdims=True)), atol=2e-6)


def test_equal_networks_share_what_is_compiled_for_evaluation(case):
    again = dataclasses.replace(case.backbone, example=lambda: {})
    other = dataclasses.replace(case.backbone, stages=case.backbone.stages[:-1])
    assert make_eval_step(again) is make_eval_step(case.backbone)
    assert make_eval_step(other) is not make_eval_step(case.backbone)
