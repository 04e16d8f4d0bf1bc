"""What training keeps for the way back."""

import functools

import checkpoints
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.models import backbone, layers, remat

DEEP, ROWS, WIDTH = 6, 64, 128


def function(x, scale, bias=None):
    out = jnp.tanh(x) * scale.sum()
    return out if bias is None else out + bias


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_of_elementwise_are_those_of_the_function(dtype, count):
    arguments = [jax.random.normal(jax.random.key(i), (4, 3), dtype) for i in range(count)]
    found = [jax.jit(jax.value_and_grad(lambda *a, f=f: jnp.square(f(*a)).sum(), range(count)))(*arguments)
             for f in (function, remat.elementwise(function))]  # fmt: skip
    tolerance = 1e-5 if dtype == "float32" else 2e-2  # XLA rounds to bfloat16 where a fusion ends
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=tolerance, atol=tolerance)


def test_only_arguments_are_kept():
    x = jnp.ones((ROWS, WIDTH))
    for act in (layers.gelu, functools.partial(lambda f, x: f(x, x[0], x[1]), layers._normalised(1e-6))):
        kept = jax.tree.leaves(jax.vjp(act, x)[1])
        assert sum(leaf.nbytes for leaf in kept) < 1.1 * x.nbytes


def temporaries(act):
    """Bytes that the compiled gradient of DEEP products, with `act` after each, has beside what it is given."""

    def loss(x, kernels):
        for kernel in kernels:
            x = act(x @ kernel)
        return x.sum()

    given = jnp.ones((ROWS, WIDTH)), [jnp.ones((WIDTH, WIDTH))] * DEEP
    return jax.jit(jax.grad(loss)).lower(*given).compile().memory_analysis().temp_size_in_bytes


def test_less_is_kept_compiled():
    plain = layers.gelu.__wrapped__
    layer = ROWS * WIDTH * 4
    assert temporaries(layers.gelu) <= temporaries(plain) - DEEP / 2 * layer


def products(jaxpr):
    """How often it multiplies matrices or convolves; JAX's own rules have left out what nothing reads."""
    inner = [products(j) for equation in jaxpr.eqns for j in jax.extend.core.jaxprs_in_params(equation.params)]
    return sum(inner) + sum(e.primitive.name in ("dot_general", "conv_general_dilated") for e in jaxpr.eqns)


@pytest.mark.parametrize("name", ["bert", "vit", "resnet", "gpt2", "deberta-v2", "swin", "mobilenet_v2"])
def test_products_are_not_computed_again(name, monkeypatch):
    """Traced, because XLA's CPU backend finds equal products and would hide it."""
    model, (inputs, _) = checkpoints.load(name, dropout=0.1), checkpoints.given(name)

    def loss(params):
        return model.backbone.run(params, inputs, train=True, key=jax.random.key(0))["logits"].sum()

    with_rule = products(jax.make_jaxpr(jax.grad(loss))(model.params).jaxpr)
    monkeypatch.setattr(backbone, "_differentiated", backbone._applied)
    assert with_rule == products(jax.make_jaxpr(jax.grad(loss))(model.params).jaxpr)
