"""ViT (Dosovitskiy et al. 2021) with a classification head; parameter names as Hugging Face's FlaxViT."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.attention import SelfAttention
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.heads import ClassifierHead
from tljax.models.layers import ACTIVATIONS, Dense, Dropout, LayerNorm
from tljax.models.patches import IMAGE, PatchEmbeddings, example, fields, normalised


class ViTEmbeddings(nn.Module):
    """pixel_values (B, S, S, 3) -> hidden (B, 1 + (S / P)^2, D): class token and patches, with positions.

    Attributes:
      distilled: whether a distillation token follows the class token (DeiT).
      registers: how many tokens without a position follow the class token (Darcet et al. 2024).
      mask: the shape of a mask token, which only pretraining uses and checkpoints carry; () without one.
    """

    config: Any
    dtype: Any
    distilled: bool = False
    registers: int = 0
    mask: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, pixels = self.config, normalised(x["pixel_values"], self.config).astype(self.dtype)
        D, normal = c["hidden_size"], nn.initializers.truncated_normal(c["initializer_range"])
        patches = PatchEmbeddings(c["patch_size"], D, c["initializer_range"], name="patch_embeddings")(pixels)
        if self.mask:
            self.param("mask_token", nn.initializers.zeros_init(), self.mask)

        def tokens(name: str, count: int = 1) -> jax.Array:
            token = self.param(name, normal, (1, count, D)).astype(self.dtype)
            return jnp.broadcast_to(token, (patches.shape[0], count, D))

        first = [tokens("cls_token"), *([tokens("distillation_token")] if self.distilled else [])]
        count = len(first) + (c["image_size"] // c["patch_size"]) ** 2
        positions = self.param("position_embeddings", normal, (1, count, D)).astype(self.dtype)
        hidden = jnp.concatenate([*first, patches], axis=1) + positions
        if self.registers:
            registers = tokens("register_tokens", self.registers)
            hidden = jnp.concatenate([hidden[:, :1], registers, hidden[:, 1:]], axis=1)
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
    **IMAGE,
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 224,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
}  # transformers' ViTConfig
DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob")


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a ViT: embeddings, layer_0 …, layernorm, head.

    Args:
      config: fields of Hugging Face's config.json over `DEFAULTS`; image_mean and image_std normalise uint8.
      num_labels: C of the logits (B, C).
      pooling: not read; a ViT's head reads the class token.
      dtype: of the activations.
    """
    c = fields(config, DEFAULTS)
    head = Stage("head", "classifier", ClassifierHead(num_labels, c["initializer_range"]))
    return assembled("vit", c, ViTEmbeddings(c, dtype), ViTLayer(c), FinalLayerNorm(c["layer_norm_eps"]), head)


def assembled(base: str, c: nn.FrozenDict, embeddings: nn.Module, layer: nn.Module, norm: nn.Module,
              head: Stage) -> Backbone:  # fmt: skip
    """The stages of a ViT or its kin, all under `base` but the head."""
    return Backbone(
        stages=(
            Stage("embeddings", f"{base}/embeddings", embeddings),
            *(Stage(f"layer_{i}", f"{base}/encoder/layer/{i}", layer) for i in range(c["num_hidden_layers"])),
            Stage("layernorm", f"{base}/layernorm", norm),
            head,
        ),
        example=lambda: example(c),
    )


VIT = Architecture(build, DEFAULTS, DROPOUTS)
