"""What convolutional families share. B batch, H and W pixels, C channels."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.mesh import AXIS
from tljax.models import kernels, places, remat
from tljax.models.backbone import Activations
from tljax.models.kernels import last
from tljax.models.layers import kernel_of

LARGEST = 3  # kernel that places.py computes: each of its places takes time to compile
Padding = str | tuple[tuple[int, int], tuple[int, int]]


class Conv(nn.Module):
    """x (B, H, W, C) -> (B, H', W', features); `groups` = C is a depthwise convolution.

    `padding` None is half the kernel on each side, as PyTorch's networks have it.
    """

    features: int
    size: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = True
    dilation: int = 1
    padding: Padding | None = None
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = kernel_of(self, self.init_std, shape)
        half, wide = self.size // 2 * self.dilation, (self.size - 1) * self.dilation + 1
        padding: Any = self.padding or ((half, half), (half, half))
        if isinstance(padding, str):
            padding = jax.lax.padtype_to_pads(x.shape[1:3], (wide, wide), (self.stride, self.stride), padding)
        grouped = functools.partial(
            jax.lax.conv_general_dilated, window_strides=(self.stride, self.stride), padding=padding,
            rhs_dilation=(self.dilation, self.dilation), dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )  # fmt: skip
        product: kernels.Product = grouped
        if self.groups == x.shape[-1] == self.features and 1 < self.size <= LARGEST:
            shifts = functools.partial(places.shifted, stride=self.stride, dilation=self.dilation, padding=padding)
            product = functools.partial(jax.lax.platform_dependent, cpu=shifts, default=grouped)
        elif self.groups == self.dilation == 1 and self.size <= LARGEST:
            sums = functools.partial(places.summed, stride=self.stride, padding=tuple(map(tuple, padding)))

            def either(x: jax.Array, kernel: jax.Array) -> jax.Array:
                return remat.product(jax.lax.platform_dependent(x, kernel, cpu=sums, default=grouped))

            product = either
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None
        return kernels.apply(x, kernel, bias, product)


def over_devices() -> tuple[int, Callable[[jax.Array], jax.Array]]:
    """How many devices have divided a batch by hand (jax.pmap), and what takes the mean over them. Elsewhere a program
    sees the whole batch: 1, and the value itself."""
    try:
        devices = jax.lax.axis_size(AXIS)
    except NameError:  # no such axis
        return 1, lambda x: x
    return devices, lambda x: jax.lax.pmean(x, AXIS)


class BatchNorm(nn.Module):
    """Normalises each channel (Ioffe & Szegedy 2015), in float32 whatever the dtype of `x`.

    `mean` and `var` are leaves among the parameters that no gradient reaches. Where they stand in the collection
    `batch_stats` too, training normalises by the batch and moves them; elsewhere it normalises by them as eval does.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1  # the share of the new batch

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), width).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), width).astype(jnp.float32)
        mean = self.param("mean", nn.initializers.zeros_init(), width).astype(jnp.float32)
        var = self.param("var", nn.initializers.ones_init(), width).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        if train and self.has_variable("batch_stats", "mean"):
            mean, var = self._moved(wide)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (wide * last(factor, wide) + last(bias - mean * factor, wide)).astype(x.dtype)

    def _moved(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of the batch; the running ones go towards them, the variance unbiased, as in PyTorch."""
        devices, of_all = over_devices()
        count = x.size // x.shape[-1] * devices
        mean = of_all(x.mean((0, 1, 2)))
        var = of_all(jnp.square(x - last(mean, x)).mean((0, 1, 2)))
        for name, new in (("mean", mean), ("var", var * (count / max(count - 1, 1)))):
            old = self.get_variable("batch_stats", name)
            self.put_variable("batch_stats", name, old + self.momentum * (jax.lax.stop_gradient(new) - old))
        return mean, var


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """The largest of each window; half the window of padding on each side."""
    by_place, own = (functools.partial(pool, size=size, stride=stride) for pool in (places.pooled, places.own_pool))
    return jax.lax.platform_dependent(x, cpu=by_place, default=own)


class MeanOfPixels(nn.Module):
    """The mean over the picture; no parameters."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden: Any = x["hidden"]
        return {"pooled": hidden.mean((1, 2)), "last_hidden_state": hidden}
