"""Schedules, clipping, groups, decay, and each rule against optax's own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tljax.config import OptimConfig
from tljax.train import optim
from tljax.transfer.freeze import FreezePlan

PEAK, STEPS = 0.5, 100
SCHEDULES = [
    # schedule, warm-up, step, rate
    ("linear", 0.1, 0, 0.0),
    ("linear", 0.1, 5, PEAK / 2),
    ("linear", 0.1, 10, PEAK),
    ("linear", 0.1, 55, PEAK / 2),
    ("linear", 0.1, 99, PEAK / 90),
    ("linear", 0.1, 100, 0.0),
    ("linear", 0.0, 0, PEAK),
    ("linear", 0.0, 99, PEAK / 100),
    ("cosine", 0.1, 0, 0.0),
    ("cosine", 0.1, 10, PEAK),
    ("cosine", 0.1, 55, PEAK / 2),
    ("cosine", 0.1, 99, PEAK * (1 + math.cos(math.pi * 89 / 90)) / 2),
    ("cosine", 0.0, 0, PEAK),
    ("cosine", 0.0, 100, 0.0),
    ("constant", 0.1, 0, 0.0),
    ("constant", 0.1, 10, PEAK),
    ("constant", 0.1, 99, PEAK),
    ("constant", 0.0, 0, PEAK),
    ("linear", 1.0, 99, PEAK * 0.99),
    ("linear", 1.0, 100, PEAK),
    ("linear", 0.004, 0, PEAK),  # rounds to no warm-up at all
    ("linear", 0.006, 1, PEAK),  # and to one step
]


@pytest.mark.parametrize(("name", "warmup", "step", "rate"), SCHEDULES)
def test_schedules(name, warmup, step, rate):
    config = OptimConfig(schedule=name, warmup_fraction=warmup, learning_rate=PEAK)
    # float32 arithmetic of values up to PEAK
    assert float(optim.schedule(config, STEPS)(step)) == pytest.approx(rate, rel=2e-6, abs=1e-7)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_the_shortest_schedules_are_finite(name, steps, warmup):
    rate = optim.schedule(OptimConfig(schedule=name, warmup_fraction=warmup, learning_rate=PEAK), steps)
    assert all(0.0 <= float(rate(step)) <= PEAK for step in range(steps + 2))


def tree(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"body/bias": (4,), "body/kernel": (3, 4), "classifier/bias": (2,), "classifier/kernel": (4, 2)}
    return {path: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}


PLAN = FreezePlan({path: "head" if path.startswith("classifier") else "body" for path in tree()},
                  {"body": 1.0, "head": 1.0}, 0)  # fmt: skip


def close(a, b, rtol, atol=0.0):
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=rtol, atol=atol, err_msg=path)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e-2, 0.3, 1.0, 1e3, 1e15])
@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e4])
def test_clip_by_norm_is_optaxs(scale, limit):
    gradient = tree(scale)
    ours, _ = optim.clip_by_norm(limit).update(gradient, optax.EmptyState())
    theirs, _ = optax.clip_by_global_norm(limit).update(gradient, optax.EmptyState())
    close(ours, theirs, rtol=1e-6)  # a product in place of a quotient
    assert float(optax.tree.norm(ours)) <= limit * (1 + 1e-6)


def updates_of(config, plan=PLAN, l2sp=0.0, steps=1, params=None, gradients=None):
    """The updates of the last of `steps` steps; params move with them."""
    rule = optim.make(config, plan, 10, l2sp)
    params = tree() if params is None else params
    moments = rule.init(params)
    for i in range(steps):
        gradient = tree(seed=i + 1) if gradients is None else gradients
        with jax.numpy_dtype_promotion("standard"):  # optax raises float decay rates to int32 counts
            updates, moments = rule.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
    return updates


PLAIN = {"schedule": "constant", "warmup_fraction": 0.0, "learning_rate": 0.1, "clip_norm": 0.0}
DECAYS = {path: path.endswith("kernel") for path in tree()}
REFERENCES = [
    ("adamw", {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.3},
     lambda: optax.adamw(0.1, b1=0.8, b2=0.95, weight_decay=0.3, mask=DECAYS)),
    ("adamw", {"weight_decay": 0.0}, lambda: optax.adam(0.1)),
    ("sgd", {"beta1": 0.0, "weight_decay": 0.0}, lambda: optax.sgd(0.1)),
    ("sgd", {"beta1": 0.7, "weight_decay": 0.0}, lambda: optax.sgd(0.1, momentum=0.7)),
    ("lion", {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.3},
     lambda: optax.lion(0.1, b1=0.8, b2=0.95, weight_decay=0.3, mask=DECAYS)),
    ("adafactor", {"weight_decay": 0.0},
     lambda: optax.adafactor(0.1, multiply_by_parameter_scale=False, clipping_threshold=1.0)),
]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("name", "settings", "reference"), REFERENCES)
def test_each_rule_is_optaxs_own(name, settings, reference, steps):
    ours = updates_of(OptimConfig(name=name, **{**PLAIN, **settings}), steps=steps)
    rule, params = reference(), tree()
    moments = rule.init(params)
    for i in range(steps):
        with jax.numpy_dtype_promotion("standard"):
            theirs, moments = rule.update(tree(seed=i + 1), moments, params)
        params = optax.apply_updates(params, theirs)
    close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_every_rule_is_compared():
    assert {row[0] for row in REFERENCES} == set(optim.RULES)


@pytest.mark.parametrize("name", list(optim.RULES))
def test_a_groups_factor_scales_its_update_exactly(name):
    """Decay included; powers of two, so that the comparison is exact."""
    config = OptimConfig(name=name, **{**PLAIN, "clip_norm": 1.0, "weight_decay": 0.3})
    other = FreezePlan(PLAN.labels, {"body": 0.25, "head": 8.0}, 0)
    plain, scaled = updates_of(config), updates_of(config, other)
    for path, label in PLAN.labels.items():
        assert np.array_equal(scaled[path], other.factors[label] * plain[path])


def test_clipping_comes_before_the_moments():
    """Adam's first step is the sign of the gradient; a clip after it would shrink it."""
    config = OptimConfig(**{**PLAIN, "clip_norm": 1e-3, "weight_decay": 0.0})
    close(
        updates_of(config), {path: -0.1 * np.sign(g) for path, g in tree(seed=1).items()}, rtol=1e-2
    )  # its epsilon shows
    sgd = OptimConfig(name="sgd", **{**PLAIN, "clip_norm": 1e-3, "weight_decay": 0.0})
    assert float(optax.tree.norm(updates_of(sgd))) == pytest.approx(0.1 * 1e-3, rel=1e-5)


def test_decay_is_decoupled_and_spares_biases():
    config = OptimConfig(**{**PLAIN, "weight_decay": 0.5})
    still = jax.tree.map(jnp.zeros_like, tree())
    expected = {path: -0.1 * 0.5 * w if path.endswith("kernel") else 0 * w for path, w in tree().items()}
    close(updates_of(config, gradients=still), expected, rtol=1e-6)


def test_l2sp_pulls_the_body_to_its_start_and_the_head_to_zero():
    rule = optim.make(OptimConfig(**{**PLAIN, "weight_decay": 0.9}), PLAN, 10, l2sp=0.5)
    start = tree()
    moments = rule.init(start)
    start_values = jax.tree.map(np.array, start)
    now = jax.tree.map(lambda w: w + 1.0, start)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = rule.update(jax.tree.map(jnp.zeros_like, start), moments, now)
    goal = {path: 0.0 if path.startswith("classifier") else w for path, w in start_values.items()}
    expected = {path: -0.1 * 0.5 * (np.asarray(w) - goal[path]) for path, w in now.items()}
    close(updates, expected, rtol=1e-6)  # biases too; no weight decay besides


def test_l2sp_keeps_its_start_when_the_parameters_are_donated():
    params = tree()
    anchor = optim.decay_towards_start(0.1, lambda path: False).init(params)
    kept = jax.tree.map(np.array, params)
    jax.jit(lambda p: jax.tree.map(lambda w: w + 1, p), donate_argnums=0)(params)
    assert all(np.array_equal(anchor.anchor[path], kept[path]) for path in kept)


@pytest.mark.parametrize(("name", "trees"), [("adamw", 2), ("lion", 1), ("sgd", 1)])
def test_moments_bytes(name, trees):
    moments = optim.make(OptimConfig(name=name), PLAN, 10).init(tree())
    counts = 4 if name == "sgd" else 8  # the schedule's step, and the rule's own
    assert optim.moments_bytes(moments) == trees * 4 * (4 + 12 + 2 + 8) + counts
