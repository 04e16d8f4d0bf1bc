"""Structured kernels: pytrees that stand in the place of a kernel array and know how to apply themselves.

N rows, D inputs, F outputs, r rank. A kernel is (D, F), or (K, K, C, F) of a convolution: every formula is said with
`product(x, array)`, which is x @ array for one and the convolution for the other, so that both share it. None of them
forms the matrix that it stands for: what is frozen in it is read and never differentiated.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from tljax.models import remat

Product: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
Merged: TypeAlias = tuple[jax.Array, jax.Array | None]  # a plain kernel and its bias


def last(vector_D: jax.Array, x: jax.Array) -> jax.Array:
    """A vector along the last axis of `x`, in its dtype: nothing here is broadcast in silence."""
    return vector_D.astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """int8 `values` of a kernel's shape, and the float32 `scale` (F,) of each output: it stands for values * scale.

    The scale comes after the product, which is thereby one of whole numbers up to 127: exact in bfloat16 too.
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """What it stands for, so that a digest or an export of it is one of weights."""
        return np.asarray(weight(self), dtype)


Base: TypeAlias = jax.Array | Quantised


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A base kernel, which stays as it is, and something small that trains beside it."""

    base: Base

    def layer(self, x: jax.Array, bias: jax.Array | None, product: Product) -> jax.Array:
        """What a layer with this kernel gives for x."""
        raise NotImplementedError

    def merged(self, bias: jax.Array | None) -> Merged:
        """The plain kernel and bias, float32, that give the same; only where `layer` is affine in x."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank(Adapted):
    """W + scale * A B (LoRA, Hu et al. 2022): A (…, r) takes the place of W in the product, B is (r, F)."""

    a: jax.Array
    b: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})

    def branch(self, x: jax.Array, product: Product) -> jax.Array:
        narrow = product(x, self.a.astype(x.dtype)) * self.scale
        return narrow @ self.b.astype(x.dtype)

    def layer(self, x: jax.Array, bias: jax.Array | None, product: Product) -> jax.Array:
        return biased(_times(x, self.base, product) + self.branch(x, product), bias)

    def merged(self, bias: jax.Array | None) -> Merged:
        a, b = self.a.astype(jnp.float32), self.b.astype(jnp.float32)
        return _wide(self.base) + self.scale * (a @ b), bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoRA(LowRank):
    """magnitude (F,) * the direction of W + scale * A B, an output's column being a direction (Liu et al. 2024).

    Its norm takes no gradient (section 4.3 of the paper). It is read off W and the factors: rank work.
    """

    magnitude: jax.Array

    def factor(self) -> jax.Array:
        """magnitude / norm, float32 (F,)."""
        w_DF, a_Dr = (x.reshape(-1, x.shape[-1]).astype(jnp.float32) for x in (weight(self.base), self.a))
        b_rF, s = self.b.astype(jnp.float32), self.scale
        mixed = 2 * s * (a_Dr.T @ w_DF) + s**2 * ((a_Dr.T @ a_Dr) @ b_rF)
        squares = column_norms(w_DF) ** 2 + (b_rF * mixed).sum(0)
        norm = jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))
        return self.magnitude / jax.lax.stop_gradient(norm)

    def layer(self, x: jax.Array, bias: jax.Array | None, product: Product) -> jax.Array:
        turned = _times(x, self.base, product) + self.branch(x, product)
        return biased(turned * last(self.factor(), turned), bias)

    def merged(self, bias: jax.Array | None) -> Merged:
        whole, _ = LowRank.merged(self, bias)
        return whole * last(self.factor(), whole), bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled(Adapted):
    """IA3 (Liu et al. 2022): a factor for each output, bias included, or, with `inputs`, for each input."""

    factor: jax.Array
    inputs: bool = dataclasses.field(metadata={"static": True})

    def layer(self, x: jax.Array, bias: jax.Array | None, product: Product) -> jax.Array:
        if self.inputs:
            return biased(_times(x * last(self.factor, x), self.base, product), bias)
        whole = biased(_times(x, self.base, product), bias)
        return whole * last(self.factor, whole)

    def merged(self, bias: jax.Array | None) -> Merged:
        whole = _wide(self.base)
        if self.inputs:
            return whole * last(self.factor, whole).swapaxes(-1, -2), bias
        return whole * last(self.factor, whole), None if bias is None else bias.astype(jnp.float32) * self.factor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bottleneck(Adapted):
    """y + up(gelu(down(y))) of the layer's y (Houlsby et al. 2019); down is (F, r), up (r, F)."""

    down: jax.Array
    down_bias: jax.Array
    up: jax.Array
    up_bias: jax.Array

    def layer(self, x: jax.Array, bias: jax.Array | None, product: Product) -> jax.Array:
        y = biased(_times(x, self.base, product), bias)
        inner = jax.nn.gelu(biased(y @ self.down.astype(y.dtype), self.down_bias))
        return y + biased(inner @ self.up.astype(y.dtype), self.up_bias)


STRUCTURED = (Quantised, Adapted)
Kernel: TypeAlias = Base | Adapted


def apply(x: jax.Array, kernel: Kernel, bias: jax.Array | None, product: Product) -> jax.Array:
    """x (…, D) -> (…, F): x times any kernel, plus the bias, in the dtype of `x`."""
    if isinstance(kernel, Adapted):
        return kernel.layer(x, bias, product)
    return biased(_times(x, kernel, product), bias)


def flat(kernel: Any) -> Any:
    """The kernel of a convolution (K, K, C, F) as that of an affine map (K * K * C, F)."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim == 4 else leaf, kernel)


def weight(base: Base) -> jax.Array:
    """The array that a base stands for."""
    if not isinstance(base, Quantised):
        return base
    values = jnp.asarray(base.values).astype(jnp.float32)
    return values * last(jnp.asarray(base.scale), values)


def _wide(base: Base) -> jax.Array:
    return jnp.asarray(weight(base)).astype(jnp.float32)


def column_norms(kernel: jax.Array) -> jax.Array:
    """The Euclidean norm of what leads to each output (F,), float32."""
    return jnp.sqrt(jnp.square(kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)).sum(0))


def biased(out: jax.Array, bias: jax.Array | None) -> jax.Array:
    return out if bias is None else out + jnp.expand_dims(bias.astype(out.dtype), range(out.ndim - 1))


def _times(x: jax.Array, base: Base, product: Product) -> jax.Array:
    if not isinstance(base, Quantised):
        return product(x, base.astype(x.dtype))
    out = remat.product(_dequantised(product, x.shape, x, base.values))
    return out * last(base.scale, out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dequantised(product: Product, shape: tuple[int, ...], x: jax.Array, values: jax.Array) -> jax.Array:
    """x of a shape times whole numbers that take no gradient; their copy in the dtype of x lives no longer than the
    product, and x itself is not kept for the way back."""
    return product(x, _cast(x, values))


def _forward(product: Product, shape: tuple[int, ...], x: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _dequantised(product, shape, x, values), values


def _backward(product: Product, shape: tuple[int, ...], values: jax.Array,
              gradient: jax.Array) -> tuple[jax.Array, np.ndarray]:  # fmt: skip
    whole = _cast(gradient, values)
    transposed = jax.linear_transpose(lambda x: product(x, whole), jax.ShapeDtypeStruct(shape, gradient.dtype))
    return transposed(gradient)[0], np.zeros(values.shape, jax.dtypes.float0)


_dequantised.defvjp(_forward, _backward)


def _cast(x: jax.Array, values: jax.Array) -> jax.Array:
    """`values` in the dtype of x, once x is there: XLA would cast the kernels of all layers at the start and keep them
    to the end, four times what int8 takes."""
    return remat.after(x, values).astype(x.dtype)
