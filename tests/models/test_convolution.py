"""Convolutions: those of CPUs are XLA's own, and so are their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.models import convolution, places

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}  # other orders of the same sums


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", None, ((2, 1), (0, 3))])
def test_shifted_pictures_are_a_depthwise_convolution(monkeypatch, side, stride, dilation, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, side, side + 1, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 6)), jnp.float32)
    layer = convolution.Conv(6, 3, stride, 6, False, dilation, padding)

    def both(x, kernel):
        out, back = jax.vjp(lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x), x, kernel)
        return out, back(jnp.cos(out))

    found = jax.jit(both)(x, kernel)
    monkeypatch.setattr(convolution, "LARGEST", 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, jax.jit(lambda *a: both(*a))(x, kernel)
    )


@pytest.mark.parametrize("side", [1, 2, 3, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("padding", ["SAME", None, ((2, 1), (0, 2))])
def test_sums_over_the_kernels_places_are_a_convolution(monkeypatch, side, stride, size, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, side, side + 1, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 4, 6)), jnp.float32)
    layer = convolution.Conv(6, size, stride, 1, False, 1, padding)

    def both(x, kernel):
        out, back = jax.vjp(lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x), x, kernel)
        return out, back(jnp.cos(out))

    found = jax.jit(both)(x, kernel)
    monkeypatch.setattr(convolution, "LARGEST", 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, jax.jit(lambda *a: both(*a))(x, kernel)
    )


@pytest.mark.parametrize("side", [2, 6])
@pytest.mark.parametrize("which", ["kernel", "x", "both"])
def test_a_sum_makes_as_many_products_as_xlas_own_and_none_that_nobody_wants(side, which):
    x, kernel = jnp.ones((4, side, side, 64)), jnp.ones((3, 3, 64, 64))
    wanted = {"kernel": 1, "x": 0, "both": (0, 1)}[which]

    def cost(product):
        taken = jax.grad(lambda *a: jnp.square(product(*a, 1, ((1, 1), (1, 1)))).sum(), argnums=wanted)
        return jax.jit(taken).lower(x, kernel).compile().cost_analysis()["flops"]

    assert cost(places.summed) == pytest.approx(cost(places.own), rel=0.05)


@pytest.mark.parametrize("side", [2, 7, 8])
@pytest.mark.parametrize(("size", "stride"), [(3, 2), (2, 2), (3, 1)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_gradient_of_a_pool_goes_to_the_first_of_the_largest(side, size, stride, ties):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, side, side + 1, 3)), jnp.float32)
    x = jnp.maximum(jnp.round(x), 0) if ties else x
    found, expected = (jax.vjp(functools.partial(pool, size=size, stride=stride), x)
                       for pool in (convolution.max_pool, places.own_pool))  # fmt: skip
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1](jnp.cos(found[0]))[0], expected[1](jnp.cos(found[0]))[0], rtol=1e-6)


def test_a_convolution_in_half_precision_adds_up_in_float32():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((8, 2, 2, 64), (3, 3, 64, 4)))

    def both(x, kernel):
        out, back = jax.vjp(lambda *a: places.summed(*a, 1, ((1, 1), (1, 1))), x, kernel)
        return out, *back(out)

    exact = both(x.astype(jnp.float32), kernel.astype(jnp.float32))
    for a, b in zip(both(x, kernel), exact, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(a), b, atol=0.02 * float(abs(b).max()))


@pytest.mark.parametrize(
    ("name", "settings", "own"),
    [("depthwise", {"size": 3, "groups": 6}, False), ("as wide as a ConvNeXt's", {"size": 7, "groups": 6}, True),
     ("in two groups", {"size": 3, "groups": 2}, True), ("two for each channel", {"features": 12, "groups": 6}, True),
     ("dense", {"size": 3}, True), ("one pixel", {"size": 1, "groups": 6}, True)],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_which_convolutions_are_xlas_own(name, settings, own):
    layer = convolution.Conv(**{"features": 6, "size": 3, "use_bias": False, **settings})
    x = jnp.ones((1, 8, 8, 6))
    params = layer.init(jax.random.key(0), x)
    text = jax.jit(layer.apply).lower(params, x).as_text()
    assert ("stablehlo.convolution" in text) == own


def test_bfloat16_adds_up_in_float32(monkeypatch):
    layer = convolution.Conv(4, 3, groups=4, use_bias=False)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 4)), jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)
    found = layer.apply(params, x)
    assert found.dtype == jnp.bfloat16
    monkeypatch.setattr(convolution, "LARGEST", 0)
    expected = layer.apply(params, x)
    np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=1e-2, atol=1e-4)
