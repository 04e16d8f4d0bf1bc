"""DINOv2 (Oquab et al. 2024), with and without registers (Darcet et al. 2024); parameter names as FlaxDinov2."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models import vit
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.heads import ClassifierHead
from tljax.models.layers import ACTIVATIONS, Dense, DropPath, LayerNorm, LayerScale
from tljax.models.patches import IMAGENET, fields


class MLP(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, D, std = self.config, x.shape[-1], self.config["initializer_range"]
        x = ACTIVATIONS[c["hidden_act"]](Dense(int(D * c["mlp_ratio"]), std, name="fc1")(x))
        return Dense(D, std, name="fc2")(x)


class SwiGLU(nn.Module):
    """weights_out(silu(a) * b), (a, b) = weights_in(x) (Shazeer 2020); two thirds as wide, in multiples of 8."""

    config: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, D, std = self.config, x.shape[-1], self.config["initializer_range"]
        width = (int(int(D * c["mlp_ratio"]) * 2 / 3) + 7) // 8 * 8
        one, two = jnp.split(Dense(2 * width, std, name="weights_in")(x), 2, axis=-1)
        return Dense(D, std, name="weights_out")(nn.silu(one) * two)


class Layer(nn.Module):
    """Normalisation, attention, scale, residual; normalisation, affine layers, scale, residual (pre-norm)."""

    config: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, hidden = self.config, x["hidden"]
        epsilon, scale, path = c["layer_norm_eps"], c["layerscale_value"], c["drop_path_rate"]
        inner = vit.ViTAttention(c, name="attention")(LayerNorm(epsilon, name="norm1")(hidden), train)
        hidden = hidden + DropPath(path)(LayerScale(scale, name="layer_scale1")(inner), train)
        mlp = (SwiGLU if c["use_swiglu_ffn"] else MLP)(c, name="mlp")
        inner = mlp(LayerNorm(epsilon, name="norm2")(hidden))
        return {"hidden": hidden + DropPath(path)(LayerScale(scale, name="layer_scale2")(inner), train)}


class FinalLayerNorm(LayerNorm):
    """The normalisation above the last layer (a stage); the head reads the class token and the mean of the patches."""

    registers: int = 0

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:  # type: ignore[override]
        hidden = LayerNorm.__call__(self, x["hidden"])
        pooled = jnp.concatenate([hidden[:, 0], hidden[:, 1 + self.registers :].mean(axis=1)], axis=-1)
        return {"pooled": pooled, "last_hidden_state": hidden}


_DEFAULTS = {
    **vit.DEFAULTS,
    **IMAGENET,
    "drop_path_rate": 0.0,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "num_register_tokens": 0,
    "patch_size": 14,
    "use_mask_token": True,
    "use_swiglu_ffn": False,
}  # transformers' Dinov2Config (image_* from facebook/dinov2's preprocessor)
_WITH_REGISTERS = {**_DEFAULTS, "num_register_tokens": 4, "patch_size": 16}
DROPOUTS = vit.DROPOUTS


def _build(base: str, defaults: Mapping[str, Any], config: Mapping[str, Any], num_labels: int, pooling: str,
          dtype: Any) -> Backbone:  # fmt: skip
    """The stages of a DINOv2: embeddings, layer_0 …, layernorm, head; arguments as for ViT."""
    c = fields(config, defaults)
    registers = c["num_register_tokens"]
    mask = (1, c["hidden_size"]) if c["use_mask_token"] else ()
    embeddings = vit.ViTEmbeddings(c, dtype, registers=registers, mask=mask)
    head = Stage("head", "classifier", ClassifierHead(num_labels, c["initializer_range"]))
    return vit.assembled(base, c, embeddings, Layer(c), FinalLayerNorm(c["layer_norm_eps"], registers=registers), head)


DINOV2 = Architecture(functools.partial(_build, "dinov2", _DEFAULTS), _DEFAULTS, DROPOUTS)
DINOV2_WITH_REGISTERS = Architecture(
    functools.partial(_build, "dinov2_with_registers", _WITH_REGISTERS), _WITH_REGISTERS, DROPOUTS
)
