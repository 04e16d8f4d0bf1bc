"""Blocks that several families share. N examples or tokens, D and F widths."""

import functools
import hashlib
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core.scope import LazyRng

from tljax.models import kernels, remat
from tljax.models.kernels import last
from tljax.models.rows import Rows


@remat.elementwise
def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), exact (Hendrycks & Gimpel 2016); by erf: erfc, as flax has it, takes twice as long on CPUs."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.asarray(math.sqrt(0.5), x.dtype)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}


def kernel_of(module: nn.Module, init_std: float, shape: tuple[int, ...]) -> Any:
    """A module's parameter "kernel", or the structured kernel that stands in its place."""
    if module.has_variable("params", "kernel"):  # read without `param`, which would ask for an array of that shape
        kernel = module.get_variable("params", "kernel")
        if isinstance(kernel, kernels.STRUCTURED):
            return kernel
    return module.param("kernel", nn.initializers.normal(init_std), shape)


class Dense(nn.Module):
    """x (..., D) -> (..., features), computed as one (N, D) product.

    Flattened first, because the weight gradient of a product over (B, T, D) runs at 60 % of the speed of
    the same product over (N, D) on CPUs. Parameters are cast to the dtype of `x`.
    """

    features: int
    init_std: float = 0.02
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_D: jax.Array) -> jax.Array:
        kernel = kernel_of(self, self.init_std, (x_D.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None
        return affine(x_D, kernel, bias)


def affine(x_D: jax.Array, kernel_DF: kernels.Kernel, bias_F: jax.Array | None) -> jax.Array:
    """x (..., D) -> (..., F) as one flat product, in the dtype of `x`; the kernel may be a structured one."""
    out_NF = kernels.apply(x_D.reshape(-1, x_D.shape[-1]), kernel_DF, bias_F, operator.matmul)
    return out_NF.reshape(*x_D.shape[:-1], out_NF.shape[-1])


class LayerNorm(nn.Module):
    """Normalises the last axis (Ba et al. 2016), in float32 whatever the dtype of `x`."""

    epsilon: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_D: jax.Array) -> jax.Array:
        width = (x_D.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), width)
        bias = [self.param("bias", nn.initializers.zeros_init(), width)] if self.use_bias else []
        return _normalised(self.epsilon)(x_D, scale, *bias)


@functools.cache
def _normalised(epsilon: float) -> Callable[..., jax.Array]:
    @remat.elementwise
    def normalised(x_D: jax.Array, scale_D: jax.Array, *bias_D: jax.Array) -> jax.Array:
        x = x_D.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
        normed = centred * inverse * last(scale_D, x)
        return sum((last(bias, x) for bias in bias_D), normed).astype(x_D.dtype)

    return normalised


def random_bits(key: jax.Array, shape: tuple[int, ...], salt: str = "") -> jax.Array:
    """uint32 random bits for dropout: a hash of (position, the key's two words, salt).

    JAX's own generators cost more than the network on CPUs: 2.4 million bits take 37 ms with threefry, 39 ms
    with rbg, and 1 ms with this hash, which fuses into its consumer and is never stored. The mixing rounds
    are `lowbias32` of C. Wellons' hash-prospector (avalanche bias 0.17 %), applied twice.
    """
    digest = hashlib.sha256(salt.encode()).digest()
    words = jax.random.key_data(key)[:2] ^ np.frombuffer(digest[:8], "<u4")
    position = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _lowbias32(_lowbias32(position ^ words[0]) ^ words[1])


def _lowbias32(h: jax.Array) -> jax.Array:
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)


class Dropout(nn.Module):
    """Zeroes entries with probability `rate` and scales the rest; the identity outside of training.

    The path of the module salts its bits, a constant, where `make_rng` would fold it into the key: in a BERT of 6
    layers that is 40 runs of threefry a step and a quarter of the time to compile one. So an instance draws one mask
    for each key; where two are needed, make two.
    """

    rate: float

    def together(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the mask: what shares an entry of it is dropped together."""
        return shape

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0.0:
            return x
        if self.scope is None or not self.has_rng("dropout"):
            raise ValueError(f"{'/'.join(self.path)}: train=True needs a key for dropout")
        lazy = LazyRng.create(self.scope.rngs["dropout"])
        bits = random_bits(lazy.rng, self.together(x.shape), "/".join(map(str, lazy.suffix)))
        keep = bits >= np.uint32(self.rate * 2**32)
        return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - self.rate), x.dtype), jnp.zeros((), x.dtype))


class DropPath(Dropout):
    """Drops whole examples from a residual branch (stochastic depth, Huang et al. 2016)."""

    def together(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], *[1] * (len(shape) - 1))


class LayerScale(nn.Module):
    """A learned factor for each entry of the last axis (Touvron et al. 2021, CaiT)."""

    value: float

    @nn.compact
    def __call__(self, x_D: jax.Array) -> jax.Array:
        return x_D * last(self.param("lambda1", nn.initializers.constant(self.value), (x_D.shape[-1],)), x_D)


class Embedding(nn.Module):
    """ids (...) int32 -> rows (..., D) of a learned table, in `dtype`. In place of the table, `Rows` of it will do."""

    rows: int
    features: int
    dtype: Any
    init_std: float = 0.02

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        if self.has_variable("params", "embedding"):  # read without `param`, which would ask for the whole table
            table = self.get_variable("params", "embedding")
            if isinstance(table, Rows):
                return table.take(ids).astype(self.dtype)
        table = self.param("embedding", nn.initializers.normal(self.init_std), (self.rows, self.features))
        return jnp.take(table, ids, axis=0).astype(self.dtype)


def positions(x: Mapping[str, jax.Array]) -> jax.Array:
    """Where in its text each token stands, int32 (B, T) or (1, T): `position_ids`, else its place in the row."""
    return x["position_ids"] if "position_ids" in x else jnp.arange(x["input_ids"].shape[1])[None]


class RMSNorm(nn.Module):
    """Divides the last axis by its root mean square (Zhang & Sennrich 2019), in float32 whatever the dtype of `x`."""

    epsilon: float

    @nn.compact
    def __call__(self, x_D: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones_init(), (x_D.shape[-1],))
        x = x_D.astype(jnp.float32)
        normed = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return normed.astype(x_D.dtype) * last(weight, x_D)
