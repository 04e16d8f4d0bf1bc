"""Convolutions: the depthwise one of CPUs is XLA's own, and so is its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.models import convolution

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
    monkeypatch.setattr(convolution, "SHIFTED", 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, jax.jit(lambda *a: both(*a))(x, kernel)
    )


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
    monkeypatch.setattr(convolution, "SHIFTED", 0)
    expected = layer.apply(params, x)
    np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=1e-2, atol=1e-4)
