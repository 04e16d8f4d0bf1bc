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
from tljax.transfer.phases import OneCycle, Phase

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


def test_the_running_mean_follows_the_parameters_and_changes_none():
    decay, count = 0.6, 12
    config, params = OptimConfig(**{**PLAIN, "ema": decay}), {path: jnp.array(leaf) for path, leaf in tree().items()}
    plain = dict(params)
    rule, other = optim.make(config, PLAN, 100), optim.make(OptimConfig(**PLAIN), PLAN, 100)
    state, without = rule.init(params), other.init(plain)
    mean = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    assert optim.mean_of(without) == {}
    for t in range(count):
        gradients = {path: jnp.full_like(leaf, (-1.0) ** t * (t + 1)) for path, leaf in params.items()}
        with jax.numpy_dtype_promotion("standard"):
            updates, state = rule.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        with jax.numpy_dtype_promotion("standard"):
            updates, without = other.update(gradients, without, plain)
        plain = optax.apply_updates(plain, updates)
        kept = min(decay, (1 + t) / (10 + t))
        mean = {path: kept * old + (1 - kept) * np.asarray(params[path]) for path, old in mean.items()}
    found = optim.mean_of(state)
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, plain[path])
        np.testing.assert_allclose(found[path], mean[path], rtol=1e-5, atol=1e-6)
        assert (np.asarray(found[path]) != np.asarray(leaf)).any()


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


CYCLES = [OneCycle(0.99, 25.0), OneCycle(0.3, 5.0, 0.5), OneCycle(0.25, 10.0, 2.0)]


def cycle(c, step, steps):
    """fastai's `combined_cos(pct, lr / div, lr, lr / 1e5)` at a step of so many."""
    peak, top = c.factor * PEAK, int(c.rising * steps)
    low, high, part = (peak / c.start, peak, step / top) if step < top else (peak / 1e5, peak, None)
    part = (steps - step) / (steps - top) if part is None else part
    return low + (high - low) * (1 - math.cos(math.pi * part)) / 2


@pytest.mark.parametrize("steps", [7, 100, 1000])
@pytest.mark.parametrize("of", CYCLES)
def test_a_cycle_is_fastais(of, steps):
    config, first = OptimConfig(learning_rate=PEAK, schedule="linear"), 40
    rate = optim.schedule_of(config, Phase(PLAN, 1, of), first, steps, 9999)
    looked = [*range(0, steps, max(steps // 10, 1)), int(of.rising * steps), steps]
    found = [float(rate(first + step)) for step in looked]
    assert found == pytest.approx([cycle(of, step, steps) for step in looked], rel=1e-4, abs=2e-7)  # float32
    assert max(found) == pytest.approx(of.factor * PEAK)
    assert found[-1] == pytest.approx(of.factor * PEAK / 1e5, abs=2e-7)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("of", CYCLES)
def test_the_shortest_cycles_are_finite(of, steps):
    rate = optim.schedule_of(OptimConfig(learning_rate=PEAK), Phase(PLAN, 1, of), 5, steps, 8)
    assert all(0.0 < float(rate(5 + step)) <= of.factor * PEAK * (1 + 1e-6) for step in range(steps))


@pytest.mark.parametrize(("name", "warmup"), [(n, w) for n in ("linear", "cosine", "constant") for w in (0.0, 0.1)])
def test_own_schedules_restart_and_whole_ones_go_on(name, warmup):
    config = OptimConfig(learning_rate=PEAK, schedule=name, warmup_fraction=warmup)
    whole, own = (optim.schedule_of(config, Phase(PLAN, 1, rate), 40, 60, STEPS) for rate in ("whole", "own"))
    run, alone = optim.schedule(config, STEPS), optim.schedule(config, 60)
    for step in (40, 41, 70, 99):
        assert float(whole(step)) == float(run(step))
        assert float(own(step)) == float(alone(step - 40))


def moments(rule, params, steps, held=None):
    """The state of a rule after so many steps with gradients of ones."""
    held = rule.init(params) if held is None else held
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):
            updates, held = rule.update(jax.tree.map(jnp.ones_like, params), held, params)
    return updates, held


HEADS = {path: leaf for path, leaf in tree().items() if path.startswith("classifier")}
SINCE = [dict.fromkeys(HEADS, 0), {path: 0 if path in HEADS else 1 for path in tree()}]
PHASED = OptimConfig(**{**PLAIN, "weight_decay": 0.0})


def phased(name, l2sp=0.0):
    """A rule's states: of the head after 30 steps, and of all in the phase after."""
    rules = [optim.make(OptimConfig(name=name, **PLAIN), PLAN, lambda count: 0.1, l2sp, since) for since in SINCE]
    _, before = moments(rules[0], HEADS, 30)
    return rules[1], before, optim.carried(before, rules[1].init(tree()))


def leaves(held, path):
    """The arrays of a path in an optimizer's state, by what stands around it."""
    found = {jax.tree_util.keystr(at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(held)}
    return {at: np.asarray(leaf) for at, leaf in found.items() if f"'{path}'" in at}


@pytest.mark.parametrize("name", list(optim.RULES))
def test_moments_of_what_goes_on_are_carried_over_and_those_of_what_is_new_are_fresh(name):
    rule, before, after = phased(name)
    fresh = rule.init(tree())
    for path in tree():
        want, found = leaves(before if path in HEADS else fresh, path), leaves(after, path)
        assert found.keys() == want.keys()
        assert all(np.array_equal(found[at], want[at]) for at in want), path
    held = [leaf for path in HEADS for leaf in leaves(before, path).values()]
    assert not held or any(leaf.any() for leaf in held)
    assert int(after[-1].count) == 30  # of the run's schedule


def test_what_newly_trains_counts_its_own_steps():
    """With the count of the head, 31, the bias correction would leave its first step 2.5 times too long."""
    rule, _, after = phased("adamw")
    first, _ = moments(rule, tree(), 1, after)
    close(first, {path: np.full(w.shape, -0.1) for path, w in tree().items()}, rtol=0.05)  # weight decay of 0.01


def test_a_run_of_one_phase_has_one_count():
    counts = [leaf for leaf in jax.tree.leaves(optim.make(PHASED, PLAN, 10).init(tree())) if leaf.ndim == 0]
    assert len(counts) == 2  # of the moments, and of the schedule


def test_the_anchor_of_what_goes_on_stays_where_the_run_began():
    rules = [optim.make(PHASED, PLAN, 10, 0.5, since) for since in SINCE]
    began = {path: leaf + 5.0 for path, leaf in HEADS.items()}
    later = optim.carried(rules[0].init(began), rules[1].init(tree()))
    anchor = later[2].anchor
    assert all(not anchor[path].any() for path in HEADS)  # the head's is zero
    assert all(np.array_equal(anchor[path], tree()[path]) for path in tree() if path not in HEADS)


def test_what_has_another_shape_is_not_carried_over():
    rule = optim.make(PHASED, PLAN, 10)
    _, before = moments(rule, {"classifier/bias": jnp.ones(3)}, 2)
    after = optim.carried(before, rule.init({"classifier/bias": jnp.ones(2)}))
    assert all(not leaf.any() for leaf in leaves(after, "classifier/bias").values())
