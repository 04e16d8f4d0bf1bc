"""Structured kernels: each gives what its plain kernel gives, forwards and backwards, without forming it."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tljax.models import kernels
from tljax.models.kernels import Bottleneck, DoRA, LowRank, Quantised, Scaled
from tljax.models.layers import affine

D, F, R, N = 6, 5, 2, 7
CONV = (3, 3, 4, 5)  # K, K, C, F


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def quantised(*shape):
    values = np.random.default_rng(3).integers(-127, 128, shape).astype(np.int8)
    return Quantised(jnp.asarray(values), jnp.abs(random(shape[-1])) * 0.02 + 0.01)


convolution = functools.partial(jax.lax.conv_general_dilated, window_strides=(2, 2), padding=((1, 1), (1, 1)),
                                dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
GEOMETRY = {  # name -> (kernel's shape, x, product)
    "affine": ((D, F), random(N, D), operator.matmul),
    "convolution": (CONV, random(2, 5, 5, 4), convolution),
}
BASES = {"float": random, "int8": quantised}


def low_rank(base, inputs=False):
    return LowRank(base, random(*base.shape[:-1], R, seed=1), random(R, F, seed=2), 0.5)


def dora(base, inputs=False):
    a = low_rank(base)
    return DoRA(base, a.a, a.b, a.scale, jnp.abs(random(F, seed=4)) + 0.5)


KINDS = {"low_rank": low_rank, "dora": dora,
         "scaled_outputs": lambda base: Scaled(base, random(F, seed=5), False),
         "scaled_inputs": lambda base: Scaled(base, random(base.shape[-2], seed=6), True)}  # fmt: skip


def dense(base):
    """What a kernel stands for, by numpy and in float64."""
    if isinstance(base, Quantised):
        return np.asarray(base.values, np.float64) * np.asarray(base.scale, np.float64)
    return np.asarray(base, np.float64)


def formula(kernel, bias):
    """(plain kernel, plain bias) as the papers have them, in float64."""
    whole, bias = dense(kernel.base), np.asarray(bias, np.float64)
    if isinstance(kernel, LowRank):
        whole = whole + kernel.scale * (np.asarray(kernel.a, np.float64) @ np.asarray(kernel.b, np.float64))
    if isinstance(kernel, DoRA):
        columns = whole.reshape(-1, F)
        whole = whole * (np.asarray(kernel.magnitude) / np.linalg.norm(columns, axis=0))
    if isinstance(kernel, Scaled):
        factor = np.asarray(kernel.factor, np.float64)
        whole = whole * (factor[:, None] if kernel.inputs else factor)
        bias = bias if kernel.inputs else bias * factor
    return whole, bias


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_what_its_plain_kernel_gives(kind, geometry, base):
    shape, x, product = GEOMETRY[geometry]
    kernel, bias = KINDS[kind](BASES[base](*shape)), random(F, seed=7)
    whole, moved = (jnp.asarray(a, jnp.float32) for a in formula(kernel, bias))
    np.testing.assert_allclose(kernels.apply(x, kernel, bias, product), product(x, whole) + kernels.last(moved, x),
                               rtol=1e-5, atol=2e-5)  # fmt: skip
    merged, merged_bias = kernel.merged(bias)
    np.testing.assert_allclose(merged, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(merged_bias, moved, rtol=1e-6)


@pytest.mark.parametrize("kind", ["low_rank", "scaled_outputs", "scaled_inputs"])
def test_gradients_are_those_of_the_merged_formula(kind):
    shape, x, product = GEOMETRY["affine"]
    kernel, bias, seen = KINDS[kind](random(*shape)), random(F, seed=7), random(N, F, seed=8)

    def ours(kernel):
        return (kernels.apply(x, kernel, bias, product) * seen).sum()

    def merged(kernel):
        whole, moved = kernel.merged(bias)
        return ((x @ whole + moved[None]) * seen).sum()

    found, want = jax.grad(ours)(kernel), jax.grad(merged)(kernel)
    assert jax.tree.structure(found) == jax.tree.structure(want)
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


def test_no_gradient_passes_the_norm_of_dora():
    kernel = dora(random(D, F))
    x, seen = random(N, D), random(N, F, seed=8)
    norm = np.linalg.norm(formula(low_rank(kernel.base), jnp.zeros(F))[0], axis=0)

    def ours(b):
        return (kernels.apply(x, DoRA(kernel.base, kernel.a, b, kernel.scale, kernel.magnitude), None,
                              operator.matmul) * seen).sum()  # fmt: skip

    want = kernel.scale * np.asarray(x @ kernel.a).T @ np.asarray(seen * (kernel.magnitude / norm)[None])
    np.testing.assert_allclose(jax.grad(ours)(kernel.b), want, rtol=1e-4)


def test_bottleneck_by_hand():
    base, bias = random(D, F), random(F, seed=7)
    down, down_bias, up, up_bias = random(F, R), random(R), random(R, F), random(F, seed=1)
    x = random(N, D)
    y = np.asarray(x @ base) + np.asarray(bias)
    narrow = y @ np.asarray(down) + np.asarray(down_bias)
    bent = 0.5 * narrow * (1 + np.tanh(np.sqrt(2 / np.pi) * (narrow + 0.044715 * narrow**3)))
    want = y + bent @ np.asarray(up) + np.asarray(up_bias)
    found = affine(x, Bottleneck(base, down, down_bias, up, up_bias), bias)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def products(jaxpr):
    """The shapes of every product in a program."""
    found = [tuple(v.aval.shape for v in eqn.invars) for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    for eqn in jaxpr.eqns:
        for inner in jaxprs_in_params(eqn.params):
            found += products(inner)
    return found


@pytest.mark.parametrize("kind", ["low_rank", "dora"])
def test_the_branch_costs_rank_work_alone(kind):
    """Forwards and backwards: two products with W (its own and the gradient to x), the others with A or B."""
    N, D, F = 64, 40, 24
    base = random(D, F)
    leaves = {"a": random(D, R), "b": random(R, F)} | ({"magnitude": random(F)} if kind == "dora" else {})
    make = {"low_rank": LowRank, "dora": DoRA}[kind]

    def loss(leaves, x):
        return jnp.square(affine(x, make(base, scale=0.5, **leaves), None)).sum()

    used = products(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(leaves, random(N, D)).jaxpr)
    large = [pair for pair in used if all(R not in shape for shape in pair)]
    assert len(large) == 2, used
    assert all((D, F) in pair or (F, D) in pair for pair in large)
    assert not [pair for pair in used if pair in (((D, R), (R, F)), ((R, F), (D, R)))]  # A B is never formed


def test_a_quantised_kernel_looks_like_the_weights_it_stands_for():
    kernel = quantised(D, F)
    assert (kernel.shape, kernel.ndim) == ((D, F), 2)
    np.testing.assert_allclose(np.asarray(kernel), dense(kernel), rtol=1e-6)


def test_a_convolution_kernel_as_an_affine_one():
    kernel = kernels.flat(low_rank(random(*CONV)))
    assert (kernel.base.shape, kernel.a.shape, kernel.b.shape) == ((36, 5), (36, R), (R, F))


@pytest.mark.parametrize("kind", KINDS)
def test_over_bfloat16_it_computes_in_bfloat16_and_merges_to_float32(kind):
    kernel = KINDS[kind](random(D, F).astype(jnp.bfloat16))
    found = affine(random(N, D).astype(jnp.bfloat16), kernel, random(F, seed=7))
    assert found.dtype == jnp.bfloat16
    whole, moved = kernel.merged(random(F, seed=7))
    assert (whole.dtype, moved.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(found.astype(jnp.float32), random(N, D) @ whole + moved[None], atol=0.2, rtol=0.05)
