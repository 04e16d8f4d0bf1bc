"""Losses between domains against the plain formulas in float64 NumPy, on the rows that count, and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.transfer import discrepancy

ONES = np.ones(6, np.float32), np.ones(5, np.float32)
LOSSES = [discrepancy.coral, discrepancy.mmd]


def domains(apart: float = 1.0, seed: int = 0, D: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """6 and 5 rows of features, the target's further out and wider."""
    rng = np.random.default_rng(seed)
    source, target = rng.normal(size=(6, D)), apart + (1 + apart) * rng.normal(size=(5, D))
    return source.astype(np.float32), target.astype(np.float32)


def plain_coral(source: np.ndarray, target: np.ndarray) -> float:
    return float(((np.cov(source.T) - np.cov(target.T)) ** 2).sum()) / (4 * source.shape[1] ** 2)


def plain_bandwidth(source: np.ndarray, target: np.ndarray) -> float:
    both = np.concatenate([source, target]).astype(np.float64)
    return float(np.mean([((x - y) ** 2).sum() for i, x in enumerate(both) for j, y in enumerate(both) if i != j]))


def plain_mmd(source: np.ndarray, target: np.ndarray, bandwidth: float | None = None,
              factors: tuple[float, ...] = discrepancy.FACTORS) -> float:  # fmt: skip
    h = bandwidth or plain_bandwidth(source, target)

    def mean(A: np.ndarray, B: np.ndarray) -> float:
        return float(
            np.mean([[np.mean([np.exp(-((x - y) ** 2).sum() / (f * h)) for f in factors]) for y in B] for x in A])
        )

    return mean(source, source) + mean(target, target) - 2 * mean(source, target)


PLAIN = {discrepancy.coral: plain_coral, discrepancy.mmd: plain_mmd}


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_the_plain_formula(loss, seed):
    source, target = domains(seed=seed)
    assert float(jax.jit(loss)(source, target, *ONES)) == pytest.approx(PLAIN[loss](*wide(source, target)), rel=1e-5)


def test_mmd_with_other_kernels():
    source, target = domains()
    found = jax.jit(functools.partial(discrepancy.mmd, factors=(1.0, 3.0)))(source, target, *ONES)
    assert float(found) == pytest.approx(plain_mmd(*wide(source, target), factors=(1.0, 3.0)), rel=1e-5)


GARBAGE = [("zeros", 0.0), ("large", 1e4), ("squares to infinity", 1e30), ("not a number", np.nan)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [row[1] for row in GARBAGE], ids=[row[0] for row in GARBAGE])
def test_rows_of_weight_0_do_nothing(loss, value):
    """Neither to the value, nor to the gradients of the others, and have none themselves."""
    source, target = domains()
    padded_source = np.insert(source, [0, 3], value, axis=0)  # before rows 0 and 3: they are rows 0 and 4 then
    padded_target = np.append(target, np.full((1, 4), value, np.float32), axis=0)
    weights = np.array([0, 1, 1, 1, 0, 1, 1, 1.0], np.float32), np.array([1, 1, 1, 1, 1, 0.0], np.float32)
    take = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    wanted, gradients = take(source, target, *ONES)
    found, with_padding = take(padded_source, padded_target, *weights)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)  # sums of as many numbers in another order
    for gradient, padded, w in zip(gradients, with_padding, weights, strict=True):
        np.testing.assert_allclose(padded[w > 0], gradient, rtol=1e-5, atol=1e-8)
        assert not np.asarray(padded[w == 0]).any()


def test_a_row_of_weight_2_is_two_rows():
    """But for the bandwidth of an MMD: two copies are one pair more, of distance 0, each way; so 132 pairs, not 130."""
    source, target = domains()
    weights, twice = np.array([2, 1, 1, 1, 1, 1.0], np.float32), np.concatenate([source[:1], source])
    found = jax.jit(discrepancy.coral)(source, target, weights, ONES[1])
    assert float(found) == pytest.approx(plain_coral(*wide(twice, target)), rel=1e-5)
    found = jax.jit(discrepancy.mmd)(source, target, weights, ONES[1])
    bandwidth = plain_bandwidth(twice, target) * 132 / 130
    assert float(found) == pytest.approx(plain_mmd(*wide(twice, target), bandwidth), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_slopes(loss):
    """Finite differences in float64; of an MMD with the bandwidth held."""
    source, target = domains()
    plain = PLAIN[loss]
    if loss is discrepancy.mmd:
        plain = functools.partial(plain_mmd, bandwidth=plain_bandwidth(source, target))
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(source, target, *ONES)
    for side, gradient in enumerate(gradients):
        for place in np.ndindex(gradient.shape):
            up, down = wide(source, target), wide(source, target)
            up[side][place] += 1e-5
            down[side][place] -= 1e-5
            slope = (plain(*up) - plain(*down)) / 2e-5
            assert float(gradient[place]) == pytest.approx(slope, rel=1e-3, abs=1e-6), (side, place)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_domains_are_at_0_and_the_loss_grows_with_what_is_between(loss):
    source, _ = domains()
    shuffled = source[np.random.default_rng(1).permutation(6)]
    found = float(jax.jit(loss)(source, shuffled, ONES[0], ONES[0]))
    assert 0 <= found < 1e-6
    near, far = (float(jax.jit(loss)(*domains(apart), *ONES)) for apart in (0.5, 2.0))
    assert found < near < far


@pytest.mark.parametrize("loss", LOSSES)
def test_what_does_not_matter(loss):
    """Where both domains lie, how they are turned, and which of them is called the source."""
    source, target = domains()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0].astype(np.float32)
    wanted = pytest.approx(float(jax.jit(loss)(source, target, *ONES)), rel=1e-4)
    assert float(jax.jit(loss)(source + 100, target + 100, *ONES)) == wanted
    assert float(jax.jit(loss)(source @ turn, target @ turn, *ONES)) == wanted
    assert float(jax.jit(loss)(target, source, *reversed(ONES))) == wanted


def test_mmd_knows_no_scale_and_coral_no_mean():
    source, target = domains()
    assert float(jax.jit(discrepancy.mmd)(source * 1000, target * 1000, *ONES)) == pytest.approx(
        plain_mmd(source, target), rel=1e-4
    )
    moved = jax.jit(discrepancy.coral)(source, target + 3, *ONES)
    assert float(moved) == pytest.approx(plain_coral(source, target), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_mmd_is_never_negative(seed):
    rng = np.random.default_rng(seed)
    same = rng.normal(size=(6, 4)).astype(np.float32)
    assert float(jax.jit(discrepancy.mmd)(same, same[rng.permutation(6)], ONES[0], ONES[0])) >= 0


DEGENERATE = [  # (name, loss, source rows, source weights, target weights)
    ("no source, coral", discrepancy.coral, None, np.zeros(6, np.float32), ONES[1]),
    ("no target, coral", discrepancy.coral, None, ONES[0], np.zeros(5, np.float32)),
    ("one row, coral", discrepancy.coral, None, np.array([1, 0, 0, 0, 0, 0.0], np.float32), ONES[1]),
    ("no source, mmd", discrepancy.mmd, None, np.zeros(6, np.float32), ONES[1]),
    ("no target, mmd", discrepancy.mmd, None, ONES[0], np.zeros(5, np.float32)),
    ("nothing, mmd", discrepancy.mmd, None, np.zeros(6, np.float32), np.zeros(5, np.float32)),
    ("all rows equal, coral", discrepancy.coral, 0.1, ONES[0], ONES[1]),
    ("all rows equal, mmd", discrepancy.mmd, 0.1, ONES[0], ONES[1]),
    ("all rows equal and 0, mmd", discrepancy.mmd, 0.0, ONES[0], ONES[1]),
    ("all rows equal and far, mmd", discrepancy.mmd, 12345.678, ONES[0], ONES[1]),
]


@pytest.mark.parametrize(("loss", "value", "ws", "wt"), [row[1:] for row in DEGENERATE], ids=[r[0] for r in DEGENERATE])
def test_where_there_is_nothing_to_compare_loss_and_gradient_are_0(loss, value, ws, wt):
    source, target = domains()
    if value is not None:
        source, target = np.full_like(source, value), np.full_like(target, value)
    found, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(source, target, ws, wt)
    assert float(found) == pytest.approx(0, abs=1e-6)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-2 if value else 0)  # rounding, of numbers as large as value


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_features_are_compared_in_float32(loss):
    source, target = (jnp.asarray(x, jnp.bfloat16) for x in domains())
    found, gradient = jax.jit(jax.value_and_grad(loss))(source, target, *ONES)
    assert found.dtype == jnp.float32
    rounded = [np.asarray(x, np.float64) for x in (source, target)]
    assert float(found) == pytest.approx(PLAIN[loss](*rounded), rel=1e-5)
    assert gradient.dtype == jnp.bfloat16


def test_the_strength_of_the_reversal():
    progress = np.linspace(0, 1, 11)
    found = discrepancy.reversal_strength(jnp.asarray(progress, jnp.float32))
    np.testing.assert_allclose(found, 2 / (1 + np.exp(-10 * progress)) - 1, atol=1e-6)
    assert found.dtype == discrepancy.reversal_strength(0.5).dtype == jnp.float32


def probabilities(rows: int = 6, C: int = 3, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(C), rows).astype(np.float32)


def test_entropy():
    logits = np.array([[0, 0, 0], [1, 2, 3], [1000, 0, -1000], [5, 5, -np.inf], [1e30, 0, 0]], np.float32)
    found, gradient = jax.vjp(jax.jit(discrepancy.entropy), logits)
    p = np.exp(np.array([1, 2, 3.0])) / np.exp([1, 2, 3.0]).sum()
    np.testing.assert_allclose(found, [np.log(3), -(p * np.log(p)).sum(), 0, np.log(2), 0], rtol=1e-6, atol=1e-7)
    (slopes,) = gradient(np.ones(5, np.float32))
    entropy = -(p * np.log(p)).sum()
    np.testing.assert_allclose(slopes, [[0] * 3, -p * (np.log(p) + entropy), [0] * 3, [0] * 3, [0] * 3], atol=1e-6)


LOGITS = [-200.0, -20.0, -1.0, 0.0, 1.0, 20.0, 200.0]


@pytest.mark.parametrize("label", [0, 1, 0.25])
def test_binary_cross_entropy(label):
    z, y = np.array(LOGITS), np.full(len(LOGITS), label)
    wanted = y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)
    logits, labels = jnp.asarray(z, jnp.float32), jnp.asarray(y, jnp.int32 if isinstance(label, int) else jnp.float32)
    found, gradient = jax.vjp(lambda z: discrepancy.binary_cross_entropy(z, labels), logits)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-37)  # relative: 2e-9 at a logit of 20 is not 0
    np.testing.assert_allclose(gradient(jnp.ones(len(z)))[0], 1 / (1 + np.exp(-z)) - y, rtol=1e-5, atol=1e-7)
