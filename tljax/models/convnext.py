"""ConvNeXt (Liu et al. 2022) and V2 (Woo et al. 2023); names as in transformers' PyTorch. A stage is a block."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.convolution import Conv
from tljax.models.heads import ClassifierHead
from tljax.models.layers import ACTIVATIONS, Dense, DropPath, LayerNorm, last
from tljax.models.patches import IMAGENET, PatchProjection, example, fields, normalised

EPSILON = 1e-6  # of every normalisation but the last; no field of the config


class Embeddings(nn.Module):
    """pixel_values (B, S, S, 3) -> hidden (B, S / P, S / P, C)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, pixels = self.config, normalised(x["pixel_values"], self.config).astype(self.dtype)
        project = PatchProjection(c["patch_size"], c["hidden_sizes"][0], c["initializer_range"],
                                  name="patch_embeddings")  # fmt: skip
        B, height, width, _ = pixels.shape
        hidden = project(pixels).reshape(B, height // c["patch_size"], width // c["patch_size"], -1)
        return {"hidden": LayerNorm(EPSILON, name="layernorm")(hidden)}


class ResponseNorm(nn.Module):
    """Global response normalisation: channels compete by their norm over the picture (Woo et al. 2023)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, 1, 1, x.shape[-1])
        weight = self.param("weight", nn.initializers.zeros_init(), shape).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), shape).astype(x.dtype)
        norm = jnp.sqrt(jnp.square(x).sum((1, 2), keepdims=True))
        return weight * (x * (norm / (norm.mean(-1, keepdims=True) + 1e-6))) + bias + x


class Layer(nn.Module):
    """Depthwise convolution, normalisation, two affine layers, residual."""

    config: Any
    drop: float

    @nn.compact
    def __call__(self, hidden: jax.Array, train: bool) -> jax.Array:
        c, C, std = self.config, hidden.shape[-1], self.config["initializer_range"]
        x = Conv(C, 7, groups=C, init_std=std, name="dwconv")(hidden)
        x = Dense(4 * C, std, name="pwconv1")(LayerNorm(EPSILON, name="layernorm")(x))
        x = ACTIVATIONS[c["hidden_act"]](x)
        if c["v2"]:
            x = ResponseNorm(name="grn")(x)
        x = Dense(C, std, name="pwconv2")(x)
        if not c["v2"] and c["layer_scale_init_value"] > 0:
            value = nn.initializers.constant(c["layer_scale_init_value"])
            x = x * last(self.param("layer_scale_parameter", value, (C,)), x)
        return hidden + DropPath(self.drop)(x, train)


class Downsampling(nn.Module):
    """Normalisation and a convolution of stride 2."""

    features: int
    init_std: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = LayerNorm(EPSILON, name="0")(x)
        return Conv(self.features, 2, 2, padding="VALID", init_std=self.init_std, name="1")(x)


class Block(nn.Module):
    """A layer; the first one above a coarser picture makes that first."""

    config: Any
    features: int
    drop: float
    coarser: bool

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden = x["hidden"]
        if self.coarser:
            hidden = Downsampling(self.features, self.config["initializer_range"], name="downsampling_layer")(hidden)
        return {"hidden": Layer(self.config, self.drop, name="layer")(hidden, train)}


class PooledNorm(LayerNorm):
    """The mean over the picture, normalised (a stage)."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:  # type: ignore[override]
        pooled = LayerNorm.__call__(self, x["hidden"].mean((1, 2)))
        return {"pooled": pooled, "last_hidden_state": x["hidden"]}


DEFAULTS = {
    **IMAGENET,
    "depths": (3, 3, 9, 3),
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_sizes": (96, 192, 384, 768),
    "image_size": 224,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "layer_scale_init_value": 1e-6,
    "num_channels": 3,
    "patch_size": 4,
}  # transformers' ConvNextConfig


def _build(base: str, config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a ConvNeXt: embeddings, layer_0 …, layernorm, head; arguments as for ViT."""
    c = fields(config, DEFAULTS).copy({"v2": base == "convnextv2"})
    drops = iter(np.linspace(0, c["drop_path_rate"], sum(c["depths"])).tolist())
    stages: list[Stage] = []
    for i, (depth, features) in enumerate(zip(c["depths"], c["hidden_sizes"], strict=True)):
        root = f"{base}/encoder/stages/{i}"
        for j in range(depth):
            coarser = i > 0 and j == 0
            places = (("downsampling_layer", f"{root}/downsampling_layer"),) if coarser else ()
            block = Block(c, features, next(drops), coarser)
            stages.append(Stage(f"layer_{len(stages)}", (*places, ("layer", f"{root}/layers/{j}")), block))
    return Backbone(
        stages=(
            Stage("embeddings", f"{base}/embeddings", Embeddings(c, dtype)),
            *stages,
            Stage("layernorm", f"{base}/layernorm", PooledNorm(c["layer_norm_eps"])),
            Stage("head", "classifier", ClassifierHead(num_labels, c["initializer_range"])),
        ),
        example=lambda: example(c),
    )


CONVNEXT = Architecture(functools.partial(_build, "convnext"), DEFAULTS, ())
CONVNEXTV2 = Architecture(functools.partial(_build, "convnextv2"), DEFAULTS, ())
