"""ViT (Dosovitskiy et al. 2021) with a classification head; parameter names as Hugging Face's FlaxViT."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tljax.models.backbone import Activations, Backbone, Stage
from tljax.models.heads import ClassifierHead
from tljax.models.layers import ACTIVATIONS, Dense, Dropout, LayerNorm, SelfAttention, affine


class PatchProjection(nn.Module):
    """pixels (B, S, S, 3) -> patches (B, (S / P)^2, D): a convolution of stride P, computed as one product."""

    patch: int
    features: int
    init_std: float

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        B, height, width, channels = pixels.shape
        P = self.patch
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (P, P, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        rows, columns = height // P, width // P
        tiles = pixels[:, : rows * P, : columns * P].reshape(B, rows, P, columns, P, channels)
        tiles = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * columns, P * P * channels)
        return affine(tiles, kernel.reshape(-1, self.features), bias)


class PatchEmbeddings(nn.Module):
    patch: int
    features: int
    init_std: float

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        return PatchProjection(self.patch, self.features, self.init_std, name="projection")(pixels)


class ViTEmbeddings(nn.Module):
    """pixel_values (B, S, S, 3) -> hidden (B, 1 + (S / P)^2, D): class token and patches, with positions.

    uint8 pixels are scaled and normalised here, on the device, so that a quarter of the bytes travel;
    floating-point pixels are taken as normalised already.
    """

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, pixels = self.config, x["pixel_values"]
        if pixels.dtype == jnp.uint8:
            mean, std = (np.asarray(c[name], np.float32)[None, None, None, :] for name in ("image_mean", "image_std"))
            pixels = (pixels.astype(jnp.float32) / 255.0 - mean) / std
        normal = nn.initializers.truncated_normal(c["initializer_range"])
        D, tokens = c["hidden_size"], 1 + (c["image_size"] // c["patch_size"]) ** 2
        cls = self.param("cls_token", normal, (1, 1, D))
        positions = self.param("position_embeddings", normal, (1, tokens, D))
        patches = PatchEmbeddings(c["patch_size"], D, c["initializer_range"], name="patch_embeddings")(
            pixels.astype(self.dtype)
        )
        cls = jnp.broadcast_to(cls.astype(self.dtype), (patches.shape[0], 1, D))
        hidden = jnp.concatenate([cls, patches], axis=1) + positions.astype(self.dtype)
        return {"hidden": Dropout(c["hidden_dropout_prob"])(hidden, train)}


class ViTAttention(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, train: bool) -> jax.Array:
        c = self.config
        attended = SelfAttention(c["num_attention_heads"], c["attention_probs_dropout_prob"], c["initializer_range"],
                                 c["qkv_bias"], name="attention")(x_BTD, None, train)  # fmt: skip
        return ViTOutput(c, name="output")(attended, train)


class ViTOutput(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = self.config
        x = Dense(c["hidden_size"], c["initializer_range"], name="dense")(x)
        return Dropout(c["hidden_dropout_prob"])(x, train)


class ViTIntermediate(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        return ACTIVATIONS[c["hidden_act"]](Dense(c["intermediate_size"], c["initializer_range"], name="dense")(x))


class ViTLayer(nn.Module):
    """Normalisation, attention, residual; normalisation, two affine layers, residual (pre-norm)."""

    config: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, hidden = self.config, x["hidden"]
        normed = LayerNorm(c["layer_norm_eps"], name="layernorm_before")(hidden)
        hidden = hidden + ViTAttention(c, name="attention")(normed, train)
        normed = LayerNorm(c["layer_norm_eps"], name="layernorm_after")(hidden)
        return {"hidden": hidden + ViTOutput(c, name="output")(ViTIntermediate(c, name="intermediate")(normed), train)}


class FinalLayerNorm(LayerNorm):
    """The normalisation above the last layer (a stage); its first token is what the head reads."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:  # type: ignore[override]
        hidden = LayerNorm.__call__(self, x["hidden"])
        return {"pooled": hidden[:, 0], "last_hidden_state": hidden}


DEFAULTS = {
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_mean": (0.5, 0.5, 0.5),
    "image_size": 224,
    "image_std": (0.5, 0.5, 0.5),
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
}  # transformers' ViTConfig (image_* from its ViTImageProcessor): values of fields that config.json leaves out
DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob")


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a ViT: embeddings, layer_0 …, layernorm, head.

    Args:
      config: fields of Hugging Face's config.json over `DEFAULTS`; image_mean and image_std normalise uint8.
      num_labels: C of the logits (B, C).
      pooling: not read; a ViT's head reads the class token.
      dtype: of the activations.
    """
    c = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    c = nn.FrozenDict({name: tuple(value) if isinstance(value, list) else value for name, value in c.items()})
    size = c["image_size"]
    layers = (Stage(f"layer_{i}", f"vit/encoder/layer/{i}", ViTLayer(c)) for i in range(c["num_hidden_layers"]))
    return Backbone(
        stages=(
            Stage("embeddings", "vit/embeddings", ViTEmbeddings(c, dtype)),
            *layers,
            Stage("layernorm", "vit/layernorm", FinalLayerNorm(c["layer_norm_eps"])),
            Stage("head", "classifier", ClassifierHead(num_labels, 0.0, c["initializer_range"])),
        ),
        example=lambda: {"pixel_values": jax.ShapeDtypeStruct((1, size, size, c["num_channels"]), jnp.float32)},
    )
