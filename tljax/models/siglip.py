"""SigLIP's vision tower (Zhai et al. 2023), classified by the mean over patches; names as in transformers' PyTorch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.attention import SelfAttention
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.heads import ClassifierHead
from tljax.models.layers import ACTIVATIONS, Dense, Embedding, LayerNorm
from tljax.models.patches import IMAGE, PatchProjection, example, fields, normalised


class Embeddings(nn.Module):
    """pixel_values (B, S, S, 3) -> hidden (B, (S / P)^2, D): patches with positions."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, pixels = self.config, normalised(x["pixel_values"], self.config).astype(self.dtype)
        D, P, std = c["hidden_size"], c["patch_size"], c["initializer_range"]
        count = (c["image_size"] // P) ** 2
        patches = PatchProjection(P, D, std, name="patch_embedding")(pixels)
        positions = Embedding(count, D, self.dtype, std, name="position_embedding")(jnp.arange(count))
        return {"hidden": patches + positions[None]}


class Attention(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, train: bool) -> jax.Array:
        c, std = self.config, self.config["initializer_range"]
        maps = SelfAttention(
            c["num_attention_heads"], c["attention_dropout"], std, names=("q_proj", "k_proj", "v_proj")
        )
        nn.share_scope(self, maps)
        return Dense(c["hidden_size"], std, name="out_proj")(maps(x_BTD, None, train))


class MLP(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, std = self.config, self.config["initializer_range"]
        x = ACTIVATIONS[c["hidden_act"]](Dense(c["intermediate_size"], std, name="fc1")(x))
        return Dense(c["hidden_size"], std, name="fc2")(x)


class Layer(nn.Module):
    """Normalisation, attention, residual; normalisation, two affine layers, residual (pre-norm)."""

    config: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, hidden = self.config, x["hidden"]
        normed = LayerNorm(c["layer_norm_eps"], name="layer_norm1")(hidden)
        hidden = hidden + Attention(c, name="self_attn")(normed, train)
        return {"hidden": hidden + MLP(c, name="mlp")(LayerNorm(c["layer_norm_eps"], name="layer_norm2")(hidden))}


class MeanOfPatches(LayerNorm):
    """The normalisation above the last layer (a stage); the head reads the mean over the patches."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:  # type: ignore[override]
        hidden = LayerNorm.__call__(self, x["hidden"])
        return {"pooled": hidden.mean(1), "last_hidden_state": hidden}


DEFAULTS = {
    **IMAGE,
    "attention_dropout": 0.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 768,
    "image_size": 224,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-6,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
}  # transformers' SiglipVisionConfig
DROPOUTS = ("attention_dropout",)


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a SigLIP vision tower: embeddings, layer_0 …, layernorm, head; arguments as for ViT."""
    c = fields(config, DEFAULTS)
    root = "vision_model"
    return Backbone(
        stages=(
            Stage("embeddings", f"{root}/embeddings", Embeddings(c, dtype)),
            *(Stage(f"layer_{i}", f"{root}/encoder/layers/{i}", Layer(c)) for i in range(c["num_hidden_layers"])),
            Stage("layernorm", f"{root}/post_layernorm", MeanOfPatches(c["layer_norm_eps"])),
            Stage("head", "classifier", ClassifierHead(num_labels, c["initializer_range"])),
        ),
        example=lambda: example(c),
    )


SIGLIP = Architecture(build, DEFAULTS, DROPOUTS)
