"""States: what is copied, cast and left out at the start, and what goes from one phase into the next."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tljax import trees
from tljax.config import OptimConfig
from tljax.errors import WeightsError
from tljax.train import optim, state
from tljax.train.checkpoint import Checkpoints, named
from tljax.transfer import phases
from tljax.transfer.freeze import FreezePlan
from tljax.transfer.quantise import quantise

SHAPES = {"bert/a/kernel": (3, 4), "bert/b/kernel": (4, 4), "bert/n/mean": (4,), "bert/n/scale": (4,),
          "classifier/kernel": (4, 2)}  # fmt: skip
START = {path: jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32)
         for i, (path, shape) in enumerate(SHAPES.items())}  # fmt: skip
PARAMS = trees.unflatten(START)
RATE = 0.1


def plan(*trains: str) -> FreezePlan:
    """`trains`: of the modules a, b, n, whose mean moves with its scale; and the head."""
    labels = {path: "body" if path.split("/")[1] in trains else "frozen" for path in SHAPES}
    labels |= {"classifier/kernel": "head", "bert/n/mean": "moving" if "n" in trains else "frozen"}
    return FreezePlan(labels, {"body": 1.0, "head": 1.0}, 0)


PLANS = [plan(), plan("b", "n"), plan("a"), plan("a", "b")]
CONFIG = OptimConfig(learning_rate=RATE, weight_decay=0.0, clip_norm=0.0, schedule="constant", warmup_fraction=0.0)


def rule(number: int) -> optax.GradientTransformationExtraArgs:
    return optim.make(CONFIG, PLANS[number], 100, since=phases.since(PLANS, number))


def stepped(now: state.TrainState, optimizer: optax.GradientTransformation, steps: int) -> state.TrainState:
    """After so many steps with gradients of ones; statistics grow by one in each."""
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):
            updates, held = optimizer.update(jax.tree.map(jnp.ones_like, now.trainable), now.opt_state, now.trainable)
        moved, stats = optax.apply_updates(now.trainable, updates), {k: v + 1 for k, v in now.batch_stats.items()}
        now = dataclasses.replace(now, step=now.step + 1, trainable=moved, opt_state=held, batch_stats=stats)
    return now


def first(steps: int = 0, dtype=jnp.float32, **options) -> state.TrainState:
    return stepped(state.create(PARAMS, PLANS[0], rule(0), jax.random.key(3), dtype, **options), rule(0), steps)


def then(before: state.TrainState, number: int, steps: int = 0, **options) -> state.TrainState:
    made = state.next_phase(before, PARAMS, PLANS[number], rule(number), **options)
    return stepped(made, rule(number), steps)


def values(flat: trees.Flat) -> dict[str, tuple[str, bytes]]:
    return {path: (leaf.dtype.name, np.asarray(leaf).tobytes()) for path, leaf in flat.items()}


def under(now: state.TrainState, path: str) -> dict[str, np.ndarray]:
    """The arrays of a path in the optimizer's state."""
    return {name: leaf for name, leaf in named(now).items() if name.startswith("optimizer/") and name.endswith(path)}


def test_the_first_state():
    made = state.create(PARAMS, PLANS[1], rule(1), jax.random.key(3), jnp.bfloat16)
    assert made.trainable.keys() == {"bert/b/kernel", "bert/n/scale", "classifier/kernel"}
    assert made.batch_stats.keys() == {"bert/n/mean"}
    assert made.frozen.keys() == {"bert/a/kernel"}
    assert made.frozen["bert/a/kernel"].dtype == jnp.bfloat16
    assert values(made.trainable | made.batch_stats) == values({k: START[k] for k in made.trainable | made.batch_stats})
    assert all(made.trainable[path] is not START[path] for path in made.trainable)  # steps donate them
    assert (int(made.step), made.settled) == (0, {})


def test_statistics_that_lie_still_stay_float32():
    assert first(dtype=jnp.bfloat16).frozen["bert/n/mean"].dtype == jnp.float32


def test_what_no_step_reads_is_left_out():
    made = first(reads=lambda path: path.startswith("bert/b"))
    assert made.frozen.keys() == {"bert/b/kernel"}
    assert made.trainable.keys() == {"classifier/kernel"}


def test_what_is_quantised_is_held_as_it_is():
    packed, _ = quantise({"bert/a/kernel": jnp.ones((64, 64))})
    made = state.create(trees.unflatten({**START, **packed}), PLANS[0], rule(0), jax.random.key(0), jnp.bfloat16)
    assert made.frozen["bert/a/kernel"] is packed["bert/a/kernel"]


def test_the_next_phase_goes_on_from_the_values_of_the_last():
    before = first(5)
    after = then(before, 1)
    assert values(after.trainable) == values({**{p: START[p] for p in after.trainable}, **before.trainable})
    assert values(after.batch_stats) == values({"bert/n/mean": START["bert/n/mean"]})
    assert int(after.step) == 5
    assert np.array_equal(jax.random.key_data(after.key), jax.random.key_data(before.key))
    assert after.settled == {}


def test_moments_are_carried_over_by_path():
    before = first(5)
    after = then(before, 1)
    head = under(before, "classifier/kernel")
    assert len(head) == 2  # mu, nu
    assert all(leaf.any() for leaf in head.values())
    assert values(under(after, "classifier/kernel")) == values(head)
    assert not any(leaf.any() for leaf in under(after, "bert/b/kernel").values())


def test_the_first_update_of_what_newly_trains_has_the_size_of_the_rate():
    before = first(30)
    after = then(before, 1)
    moved = stepped(after, rule(1), 1).trainable
    for path in moved:  # constant gradients: Adam's update is the rate at any step, if the count is the moments' own
        np.testing.assert_allclose(after.trainable[path] - moved[path], RATE, rtol=1e-3, err_msg=path)


def test_what_trains_again_starts_with_moments_of_its_own():
    """b trains in phases 1 and 3: what it had in 1 is of another time."""
    later = then(then(then(first(5), 1, 5), 2, 5), 3)
    assert not any(leaf.any() for leaf in under(later, "bert/b/kernel").values())
    assert all(leaf.any() for leaf in under(later, "bert/a/kernel").values())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_stops_training_is_settled(dtype):
    second = then(first(5), 1, 4)
    third = then(second, 2, 2, dtype=dtype)
    assert third.settled.keys() == {"bert/b/kernel", "bert/n/scale", "bert/n/mean"}
    assert values(third.settled) == values({p: (second.trainable | second.batch_stats)[p] for p in third.settled})
    assert third.batch_stats == {}
    assert third.frozen["bert/b/kernel"].dtype == dtype
    np.testing.assert_array_equal(third.frozen["bert/b/kernel"], third.settled["bert/b/kernel"].astype(dtype))
    np.testing.assert_array_equal(third.frozen["bert/n/mean"], third.settled["bert/n/mean"])  # statistics: float32
    fourth = then(third, 3)
    assert values({"b": fourth.trainable["bert/b/kernel"]}) == values({"b": second.trainable["bert/b/kernel"]})
    assert fourth.settled.keys() == {"bert/n/scale", "bert/n/mean"}


def test_what_is_settled_is_kept_though_no_step_reads_it():
    third = then(then(first(5), 1, 4), 2, reads=lambda path: path.startswith("classifier"))
    assert third.frozen == {}
    assert "bert/b/kernel" in third.settled


def test_all_of_a_later_phase_is_saved_and_restored(tmp_path):
    saves = Checkpoints(tmp_path / "checkpoints", 2, {}, lambda text: None)
    now = then(then(first(5), 1, 4), 2, 2)
    saves.save(now, {"phase": 2}, None)
    asked = []

    def like(step, progress):
        asked.append((step, progress["phase"]))
        return then(then(first(), 1), 2)

    found, _ = saves.restore(like)
    assert asked == [(11, 2)]
    assert values(named(found)) == values(named(now))
    assert values(found.settled) == values(now.settled)
    assert {path for path in named(now) if path.startswith("settled/")} == {f"settled/{path}" for path in now.settled}
    with pytest.raises(WeightsError, match="settled/bert/b/kernel: have float32"):
        saves.restore(lambda *at: then(first(), 1))
