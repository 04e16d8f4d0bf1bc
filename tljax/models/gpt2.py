"""GPT-2 (Radford et al. 2019): classification by the last token, or language modelling; names as FlaxGPT2.

Hugging Face keeps GPT-2's kernels transposed in Flax (out, in) and not in PyTorch (in, out); here they are (in, out).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.attention import attend, causal
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.heads import ClassifierHead, TiedLanguageHead, last_token
from tljax.models.layers import ACTIVATIONS, Dense, Dropout, Embedding, LayerNorm, positions


class GPT2Embeddings(nn.Module):
    """input_ids (B, T) -> hidden (B, T, D): word + position. attention_mask (B, T) is ones where it is left out."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, ids_BT = self.config, x["input_ids"]
        D, std = c["n_embd"], c["initializer_range"]
        hidden = Embedding(c["vocab_size"], D, jnp.float32, std, name="wte")(ids_BT)
        hidden += Embedding(c["n_positions"], D, jnp.float32, std, name="wpe")(positions(x))
        hidden = Dropout(c["embd_pdrop"])(hidden.astype(self.dtype), train)
        return {"hidden": hidden, "attention_mask": x.get("attention_mask", jnp.ones_like(ids_BT))}


class GPT2Attention(nn.Module):
    """Causal attention; scores are divided by `depth`."""

    config: Any
    depth: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array, train: bool) -> jax.Array:
        c, std = self.config, self.config["initializer_range"]
        B, T, D = x_BTD.shape
        H = D // c["n_head"]
        q, k, v = Dense(3 * D, std, name="c_attn")(x_BTD).reshape(B, T, 3, c["n_head"], H).transpose(2, 0, 3, 1, 4)
        scale = (H**-0.5 if c["scale_attn_weights"] else 1.0) / self.depth
        attended = attend(q, k, v, visible=causal(mask_BT), scale=scale, dropout=c["attn_pdrop"], train=train)
        return Dropout(c["resid_pdrop"])(Dense(D, std, name="c_proj")(attended), train)


class GPT2MLP(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c, std, D = self.config, self.config["initializer_range"], x.shape[-1]
        x = ACTIVATIONS[c["activation_function"]](Dense(c["n_inner"] or 4 * D, std, name="c_fc")(x))
        return Dropout(c["resid_pdrop"])(Dense(D, std, name="c_proj")(x), train)


class GPT2Layer(nn.Module):
    """Normalisation, attention, residual; normalisation, two affine layers, residual (pre-norm)."""

    config: Any
    depth: int

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, hidden = self.config, x["hidden"]
        normed = LayerNorm(c["layer_norm_epsilon"], name="ln_1")(hidden)
        hidden = hidden + GPT2Attention(c, self.depth, name="attn")(normed, x["attention_mask"], train)
        normed = LayerNorm(c["layer_norm_epsilon"], name="ln_2")(hidden)
        return {**x, "hidden": hidden + GPT2MLP(c, name="mlp")(normed, train)}


class FinalLayerNorm(LayerNorm):
    """The normalisation above the last layer (a stage); a classifier reads the last real token."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:  # type: ignore[override]
        return last_token(LayerNorm.__call__(self, x["hidden"]), x["attention_mask"])


DEFAULTS = {
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5,
    "n_embd": 768,
    "n_head": 12,
    "n_inner": None,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "vocab_size": 50257,
}  # transformers' GPT2Config
DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a GPT-2: embeddings, layer_0 …, norm, head; without labels the head gives the next token."""
    c = nn.FrozenDict({name: config.get(name, default) for name, default in DEFAULTS.items()})

    def depth(layer: int) -> int:
        return layer + 1 if c["scale_attn_by_inverse_layer_idx"] else 1

    table = "transformer/wte/embedding"
    head = Stage("head", "score", ClassifierHead(num_labels, c["initializer_range"], use_bias=False))
    if not num_labels:
        head = Stage("head", "lm_head", TiedLanguageHead(), reads=(("embedding", table),))
    return Backbone(
        stages=(
            Stage("embeddings", (("wte", "transformer/wte"), ("wpe", "transformer/wpe")), GPT2Embeddings(c, dtype)),
            *(Stage(f"layer_{i}", f"transformer/h/{i}", GPT2Layer(c, depth(i))) for i in range(c["n_layer"])),
            Stage("norm", "transformer/ln_f", FinalLayerNorm(c["layer_norm_epsilon"])),
            head,
        ),
        example=lambda: {name: jax.ShapeDtypeStruct((1, 1), jnp.int32) for name in ("input_ids", "attention_mask")},
        lookups=((table, "input_ids"),) if num_labels else (),
        packs=True,
    )


GPT2 = Architecture(build, DEFAULTS, DROPOUTS, decoder=True, positions="n_positions")
