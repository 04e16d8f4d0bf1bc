"""Many steps as one program: the same wherever a run is cut, and the same as steps one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, batch_of, make_case

from tljax import trees
from tljax.train import stretch
from tljax.train.checkpoint import named
from tljax.transfer import boundary

STEPS, ROOM = 7, 8  # batches, and how many a stack has room for


@pytest.fixture(scope="module")
def case() -> Case:
    """The head alone, with dropout, from activations."""
    return make_case("bert", "feature_extraction", dropout=0.2, clip_norm=0.5)


@pytest.fixture(scope="module")
def step(case):
    return case.step(start=case.plan.lowest)


@pytest.fixture(scope="module")
def long(step):
    return stretch.make_stretch(step)


@pytest.fixture(scope="module")
def batches(case):
    """Activations at the head of seven batches; the last is partial."""
    names = [leaf.name for leaf in boundary.layout(case.backbone, case.plan.lowest)]
    trunk = jax.jit(lambda inputs: case.backbone.run(case.params, inputs, 0, case.plan.lowest))
    made = []
    for seed in range(STEPS):
        batch = batch_of("bert", 4, seed)
        x = trunk(batch["inputs"])
        made.append({**batch, "inputs": {name: np.asarray(x[name]) for name in names}})
    made[-1]["weights"] = np.array([1, 1, 0, 0], np.float32)
    return made


def stack(batches):
    """With what must not be read in the places that are left."""
    filled = batches + batches[-1:] * (ROOM - len(batches))
    made = jax.tree.map(lambda *leaves: np.stack(leaves), *filled)
    made["weights"][len(batches) :] = np.nan
    return {**made, "steps": np.int32(len(batches))}


def taken(case, long, batches, cuts):
    """The last state, and the metrics of each step, where the batches are cut into stretches so."""
    now, found, at = case.state(), [], 0
    for steps in cuts:
        now, metrics = long(now, stack(batches[at : at + steps]))
        found += [{name: leaf[i] for name, leaf in jax.device_get(metrics).items()} for i in range(steps)]
        at += steps
    return now, found


def one_by_one(case, step, batches):
    now, found = case.state(), []
    for batch in batches:
        now, metrics = step(now, batch)
        found.append(jax.device_get(metrics))
    return now, found


@pytest.mark.parametrize("cuts", [(3, 4), (1,) * 7, (6, 1), (2, 2, 3)])
def test_where_a_run_is_cut_changes_no_bit(case, long, batches, cuts):
    (whole, metrics), (cut, others) = (taken(case, long, batches, c) for c in ((STEPS,), cuts))
    assert trees.digests(named(whole)) == trees.digests(named(cut))
    assert all(trees.digests(one) == trees.digests(other) for one, other in zip(metrics, others, strict=True))
    assert int(whole.step) == STEPS


def test_a_stretch_is_so_many_steps(case, step, long, batches):
    (now, metrics), (want, expected) = taken(case, long, batches, (STEPS,)), one_by_one(case, step, batches)
    for path, leaf in named(want).items():
        np.testing.assert_allclose(named(now)[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)  # fused otherwise
    for found, other in zip(metrics, expected, strict=True):
        assert found.keys() == other.keys()
        for name in other:
            np.testing.assert_allclose(found[name], other[name], rtol=1e-4, err_msg=name)
    losses = [float(m["loss"]) for m in metrics]
    assert len(set(losses)) == STEPS
    assert [float(m["weight"]) for m in metrics] == [4.0] * 6 + [2.0]


@pytest.mark.parametrize("bad", [0, 3, 6])
def test_a_step_that_is_not_finite_is_not_applied(case, step, long, batches, bad):
    spoilt = [dict(batch) for batch in batches]
    spoilt[bad]["inputs"] = {name: np.full_like(x, np.nan) for name, x in spoilt[bad]["inputs"].items()}
    (now, metrics), (want, _) = taken(case, long, spoilt, (STEPS,)), one_by_one(case, step, spoilt)
    assert [bool(m["finite"]) for m in metrics] == [i != bad for i in range(STEPS)]
    assert all(np.isfinite(leaf).all() for leaf in now.trainable.values())
    for path in now.trainable:
        np.testing.assert_allclose(now.trainable[path], want.trainable[path], rtol=1e-4, atol=1e-6, err_msg=path)
    alone, _ = taken(case, long, spoilt[bad : bad + 1], (1,))
    assert trees.digests(alone.trainable) == trees.digests(case.state().trainable)


def test_no_step_is_no_change(case, long, batches):
    now, _ = long(case.state(), {**stack(batches[:1]), "steps": np.int32(0)})
    assert trees.digests(named(now)) == trees.digests(named(case.state()))


def test_what_moves_is_donated_and_the_rest_is_kept(case, long, batches):
    state = case.state()
    after, _ = long(state, stack(batches))
    assert all(leaf.is_deleted() for leaf in state.trainable.values())
    assert all(after.frozen[path] is leaf for path, leaf in state.frozen.items())
    assert after.key is state.key
    assert after.settled is state.settled


def test_the_program_is_compiled_before_it_is_needed(case, step, batches, capfd):
    long = stretch.make_stretch(step)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batches[0])
    long.compile(case.state(), stretch.stacked(one, ROOM))
    with jax.log_compiles():
        long(case.state(), stack(batches))
    assert "Compiling jit(run)" not in capfd.readouterr().err


MB = 2**20


@pytest.mark.parametrize(("shapes", "steps"), [
    ({"x": (32, 384)}, 64), ({"x": (MB // 4,)}, 8), ({"x": (MB // 4 + 1,)}, 1), ({"x": (MB // 16,)}, 32),
    ({"x": (MB // 8,), "y": (MB // 8,)}, 8), ({"x": (MB // 8,), "y": (MB // 8 + 1,)}, 1), ({"x": (1,)}, 64),
])  # fmt: skip
def test_how_many_batches_are_taken_at_a_time(shapes, steps):
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    assert stretch.length(batch) == steps
    many = stretch.stacked(batch, 5)
    assert {name: leaf.shape for name, leaf in many.items()} == {name: (5, *shape) for name, shape in shapes.items()}
