"""Images as tokens. B batch, S side in pixels, P side of a patch, D width."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tljax.models import kernels
from tljax.models.layers import affine, kernel_of

IMAGE = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}  # of transformers' ViTImageProcessor
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def fields(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> nn.FrozenDict:
    """A config over its defaults, hashable."""
    found = {name: config.get(name, default) for name, default in defaults.items()}
    return nn.FrozenDict({name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def example(c: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """A smallest batch, for `Backbone.example`."""
    size = c["image_size"]
    return {"pixel_values": jax.ShapeDtypeStruct((1, size, size, c["num_channels"]), jnp.float32)}


def normalised(pixels: jax.Array, c: Mapping[str, Any]) -> jax.Array:
    """uint8 pixels are scaled and normalised here, on the device, so that a quarter of the bytes travel.

    Floating-point pixels are taken as normalised already.
    """
    if pixels.dtype != jnp.uint8:
        return pixels
    mean, std = (np.asarray(c[name], np.float32)[None, None, None, :] for name in ("image_mean", "image_std"))
    if mean.shape[-1] != pixels.shape[-1]:  # the defaults are of colours
        mean, std = mean.mean(), std.mean()
    return (pixels.astype(jnp.float32) / 255.0 - mean) / std


class PatchProjection(nn.Module):
    """pixels (B, S, S, channels) -> patches (B, (S / P)^2, D): a convolution of stride P, computed as one product."""

    patch: int
    features: int
    init_std: float

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        B, height, width, channels = pixels.shape
        P = self.patch
        kernel = kernel_of(self, self.init_std, (P, P, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        rows, columns = height // P, width // P
        tiles = pixels[:, : rows * P, : columns * P].reshape(B, rows, P, columns, P, channels)
        tiles = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * columns, P * P * channels)
        return affine(tiles, kernels.flat(kernel), bias)


class PatchEmbeddings(nn.Module):
    patch: int
    features: int
    init_std: float

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        return PatchProjection(self.patch, self.features, self.init_std, name="projection")(pixels)
