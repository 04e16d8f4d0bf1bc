"""Convolutions and pools on CPUs as sums over the places of a kernel: XLA's own, or their gradients, are slow there.

B batch, H and W pixels, C channels, K x K places, F features. Places that reach beyond the picture's edge have their
smaller part of it, so that no product is with a zero.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.kernels import last


def shifted(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, padding: Any) -> jax.Array:
    """A depthwise convolution as a sum of shifted pictures, x (B, H, W, C) and kernel (K, K, 1, C).

    XLA's own takes 9 to 36 times as long on CPUs, and its gradient 4 to 16 times (K = 3).
    """
    wide = jnp.pad(x.astype(jnp.float32), ((0, 0), *padding, (0, 0)))
    size = kernel.shape[0]
    rows, columns = ((n - (size - 1) * dilation - 1) // stride + 1 for n in wide.shape[1:3])
    total = jnp.zeros((x.shape[0], rows, columns, x.shape[3]), jnp.float32)
    for i, j in itertools.product(range(size), repeat=2):
        top, left = i * dilation, j * dilation
        ends = (x.shape[0], top + (rows - 1) * stride + 1, left + (columns - 1) * stride + 1, x.shape[3])
        part = jax.lax.slice(wide, (0, top, left, 0), ends, (1, stride, stride, 1))
        total += part * last(kernel[i, j, 0].astype(jnp.float32), part)
    return total.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def summed(x: jax.Array, kernel: jax.Array, stride: int, padding: Any) -> jax.Array:
    """A convolution, x (B, H, W, C) and kernel (K, K, C, F), with a gradient that is a sum over the kernel's places.

    On CPUs XLA's own gradient of a kernel takes up to 7 times as long (ResNet's 28 x 28 x 128), and where a picture is
    smaller than the kernel its convolution takes 50 times as long (2 x 2 x 512). As many products are made as there.
    """
    if min(x.shape[1:3]) >= len(kernel):
        return own(x, kernel, stride, padding)
    rows, columns, sides = _overlaps(x, len(kernel), stride, padding)
    shape = x.shape[0], *sides, kernel.shape[3]
    total = jnp.zeros(shape, jnp.float32)
    for (i, to_rows, of_rows), (j, to_columns, of_columns) in itertools.product(rows, columns):
        part = jnp.matmul(x[:, of_rows, of_columns], kernel[i, j], preferred_element_type=jnp.float32)
        total = total.at[:, to_rows, to_columns].add(part)
    return total.astype(x.dtype)


def _summed_forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Any) -> tuple[jax.Array, Any]:
    return summed(x, kernel, stride, padding), (x, kernel)


def _summed_backward(stride: int, padding: Any, kept: Any, by_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    rows, columns, _ = _overlaps(x, len(kernel), stride, padding)
    by_places = stride > 1 or min(x.shape[1:3]) < len(kernel)  # XLA's own spreads the gradient out, with zeros between
    by_x, by_kernel = jnp.zeros(x.shape, jnp.float32), jnp.zeros(kernel.shape, jnp.float32)
    for (i, to_rows, of_rows), (j, to_columns, of_columns) in itertools.product(rows, columns):
        met, given = x[:, of_rows, of_columns], by_out[:, to_rows, to_columns]
        part = jnp.tensordot(met, given, ((0, 1, 2), (0, 1, 2)), preferred_element_type=jnp.float32)
        by_kernel = by_kernel.at[i, j].set(part)
        if by_places:
            back = jnp.matmul(given, kernel[i, j].T, preferred_element_type=jnp.float32)
            by_x = by_x.at[:, of_rows, of_columns].add(back)
    if by_places:
        return by_x.astype(x.dtype), by_kernel.astype(kernel.dtype)
    around = tuple((len(kernel) - 1 - low, n + low - out) for n, out, (low, _) in
                   zip(x.shape[1:3], by_out.shape[1:3], padding, strict=True))  # fmt: skip
    turned = jnp.asarray(kernel)[::-1, ::-1].swapaxes(2, 3)
    return own(by_out, turned, 1, around), by_kernel.astype(kernel.dtype)


summed.defvjp(_summed_forward, _summed_backward)


def own(x: jax.Array, kernel: jax.Array, stride: int, padding: Any) -> jax.Array:
    """As XLA computes it."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def pooled(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The largest of each window, with a gradient by comparing: XLA's own takes 2 to 5 times as long on CPUs."""
    return own_pool(x, size, stride)


def _pooled_forward(x: jax.Array, size: int, stride: int) -> tuple[jax.Array, Any]:
    out = own_pool(x, size, stride)
    return out, (x, out)


def _pooled_backward(size: int, stride: int, kept: Any, by_out: jax.Array) -> tuple[jax.Array]:
    x, out = kept
    rows, columns, _ = _overlaps(x, size, stride, ((size // 2, size // 2),) * 2)
    by_x, given = jnp.zeros_like(x), jnp.zeros(out.shape, bool)
    for (_, to_rows, of_rows), (_, to_columns, of_columns) in itertools.product(rows, columns):
        to, of = (slice(None), to_rows, to_columns), (slice(None), of_rows, of_columns)
        chosen = (x[of] == out[to]) & ~given[to]  # of equal ones the first
        given = given.at[to].set(given[to] | chosen)
        by_x = by_x.at[of].add(jnp.where(chosen, by_out[to], 0))
    return (by_x,)


pooled.defvjp(_pooled_forward, _pooled_backward)


def own_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """As XLA computes it."""
    half = size // 2
    return nn.max_pool(x, (size, size), (stride, stride), ((half, half), (half, half)))


def _overlaps(x: jax.Array, size: int, stride: int, padding: Any) -> tuple[Any, Any, tuple[int, int]]:
    """By rows and by columns, (place in the kernel, the outputs that it reaches, the inputs that it meets there) of
    each place that meets any; and the sides of the output."""
    ways, sides = [], []
    for n, (low, high) in zip(x.shape[1:3], padding, strict=True):
        side = (n + low + high - size) // stride + 1
        way = []
        for i in range(size):
            first, end = max(0, -(-(low - i) // stride)), min(side, (n - 1 + low - i) // stride + 1)
            begin = first * stride + i - low
            if first < end:
                way.append((i, slice(first, end), slice(begin, begin + (end - first - 1) * stride + 1, stride)))
        ways.append(way)
        sides.append(side)
    return ways[0], ways[1], (sides[0], sides[1])
