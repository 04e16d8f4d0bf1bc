"""Products of jaxprs, counted by hand, and as XLA counts them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas

from tljax.errors import ConfigError
from tljax.transfer.products import Graph

X, W = jax.ShapeDtypeStruct((3, 4), jnp.float32), jax.ShapeDtypeStruct((4, 4), jnp.float32)
ONCE = 2 * 3 * 4 * 4


def graph_of(f, *shapes):
    """(graph, values in, values out) of a function."""
    graph, traced = Graph(), jax.make_jaxpr(f)(*shapes)
    ins = graph.values(len(traced.jaxpr.invars))
    return graph, ins, graph.follow(traced.jaxpr, ins, "all")


def total(graph: Graph) -> int:
    return sum(product.flops for product in graph.products)


@jax.custom_vjp
def own_gradient(x, w):
    return x @ w


own_gradient.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))

CALLS = [  # (how, function, how many times x @ w)
    ("plain", lambda x, w: x @ w, 1),
    ("jit, twice the same", lambda x, w: (lambda f: f(f(x, w), w))(jax.jit(jnp.matmul)), 2),
    ("remat", jax.checkpoint(lambda x, w: jnp.sin(x @ w)), 1),
    ("custom_jvp", lambda x, w: jax.nn.relu(x @ w), 1),
    ("custom_vjp", own_gradient, 1),
    ("scan", lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0], 5),
    ("scan within scan", lambda x, w: jax.lax.scan(
        lambda x, _: (jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0], None), x, length=3)[0], 15),
    ("while: one round", lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: x @ w, x), 1),
    ("cond: the dearest", lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w), 2),
    ("by platform", lambda x, w: jax.lax.platform_dependent(x, w, cpu=lambda x, w: x, default=jnp.matmul), 1),
    ("elements alone", lambda x, w: jnp.tanh(x) * x, 0),
    ("a lookup", lambda x, w: jnp.take(w, jnp.arange(3), axis=0), 0),
]  # fmt: skip


@pytest.mark.parametrize(("f", "times"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_inner_jaxprs_are_walked(f, times):
    assert total(graph_of(f, X, W)[0]) == times * ONCE


@pytest.mark.parametrize(("f", "times"), [row[1:] for row in CALLS if row[2]], ids=[r[0] for r in CALLS if r[2]])
def test_every_way_in_leads_to_the_end(f, times):
    graph, ins, outs = graph_of(f, X, W)
    for value in ins:
        assert set(outs) <= graph.after([value])
    assert set(ins) <= graph.before(outs, smooth=True)


def test_a_loop_carries_dependence_round():
    """c turns into b turns into a: two rounds after the first, c has reached what comes out of a."""

    def f(a, b, c):
        return jax.lax.scan(lambda abc, _: ((abc[1], abc[2], abc[2]), abc[0]), (a, b, c), length=4)[0][0]

    graph, (_, b, c), (out,) = graph_of(f, X, X, X)
    assert {b, c} <= graph.before([out], smooth=True)
    assert out in graph.after([c])


def test_no_gradient_passes_integers_nor_stop_gradient():
    def f(x, w):
        return (x @ w).argmax(-1), jax.lax.stop_gradient(x), x.astype(jnp.int32).astype(jnp.float32), x + 1

    graph, (x, _), (*stopped, smooth) = graph_of(f, X, W)
    assert graph.after([x]).isdisjoint(stopped)
    assert smooth in graph.after([x])
    for value in stopped:
        assert x in graph.before([value], smooth=False)
        assert x not in graph.before([value], smooth=True)


def test_a_kernel_that_hides_its_products_is_refused():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    call = pallas.pallas_call(kernel, out_shape=X, interpret=True)
    with pytest.raises(ConfigError, match="matrix products inside of pallas_call"):
        graph_of(call, X, W)


def test_batched_products_with_several_contracted_axes():
    q, k = (jax.ShapeDtypeStruct((2, 3, n, 4, 5), jnp.float32) for n in (6, 7))
    assert total(graph_of(functools.partial(jnp.einsum, "bnthd,bnshd->bnts"), q, k)[0]) == 2 * 2 * 3 * 6 * 7 * 4 * 5


CONVOLUTIONS = [  # size, stride, padding, dilation, C, features, groups
    (3, 1, (1, 1), 1, 8, 16, 1),
    (3, 2, (1, 1), 1, 8, 16, 1),
    (3, 2, (0, 1), 1, 8, 16, 1),
    (7, 2, (3, 3), 1, 3, 16, 1),
    (1, 2, (0, 0), 1, 8, 16, 1),
    (3, 1, (2, 2), 2, 8, 16, 1),
    (4, 4, (0, 0), 1, 3, 16, 1),
    (3, 1, (1, 1), 1, 8, 16, 4),
]


@pytest.mark.parametrize(("size", "stride", "padding", "dilation", "channels", "features", "groups"), CONVOLUTIONS)
def test_convolutions_and_both_gradients_cost_what_xla_says(
    size, stride, padding, dilation, channels, features, groups
):
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(stride, stride), padding=(padding, padding),
        rhs_dilation=(dilation, dilation), dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((2, 13, 14, channels), jnp.float32)
    w = jax.ShapeDtypeStruct((size, size, channels // groups, features), jnp.float32)
    found = total(graph_of(convolve, x, w)[0])
    programs = [
        jax.jit(convolve).lower(x, w),
        jax.jit(lambda x, w, g: jax.vjp(lambda x: convolve(x, w), x)[1](g)).lower(x, w, jax.eval_shape(convolve, x, w)),
    ]
    if groups == 1:  # XLA counts the weight gradient of groups as if each output saw all channels
        programs.append(
            jax.jit(lambda x, w, g: jax.vjp(lambda w: convolve(x, w), w)[1](g)).lower(
                x, w, jax.eval_shape(convolve, x, w)
            )
        )
    assert [program.compile().cost_analysis()["flops"] for program in programs] == [found] * len(programs)


def test_a_gradient_of_a_convolution_is_counted_like_the_convolution():
    """The transposed convolution that an input gradient is: holes between the pixels are no work."""

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, w = jnp.ones((2, 14, 14, 4)), jnp.ones((3, 3, 4, 8))
    whole = total(graph_of(jax.grad(lambda x, w: convolve(x, w).sum(), (0, 1)), x, w)[0])
    assert whole == 3 * total(graph_of(convolve, x, w)[0])
