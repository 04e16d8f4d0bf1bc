"""Llama (Touvron et al. 2023), Mistral, Qwen2 and Qwen3: classification by the last token, or language modelling.

Parameter names as Hugging Face's FlaxLlama. B batch, T tokens, D width, N heads, M key-value heads, H width of a head.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models import rope
from tljax.models.attention import attend, causal
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.heads import ClassifierHead, LanguageHead, TiedLanguageHead, last_token
from tljax.models.layers import ACTIVATIONS, Dense, Embedding, RMSNorm


class LlamaEmbeddings(nn.Module):
    """input_ids (B, T) -> hidden (B, T, D); attention_mask (B, T) is ones where the batch leaves it out."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, ids_BT = self.config, x["input_ids"]
        table = Embedding(c["vocab_size"], c["hidden_size"], self.dtype, c["initializer_range"], name="embed_tokens")
        return {"hidden": table(ids_BT), "attention_mask": x.get("attention_mask", jnp.ones_like(ids_BT))}


class LlamaAttention(nn.Module):
    """Causal attention with rotary positions and shared key-value heads (Ainslie et al. 2023).

    A token sees the last `window` tokens, itself included; 0: all before it.
    """

    config: Any
    window: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array, train: bool) -> jax.Array:
        c = self.config
        B, T, D = x_BTD.shape
        H, std = c["head_dim"], c["initializer_range"]

        def heads(name: str, count: int) -> jax.Array:
            mapped = Dense(count * H, std, c["qkv_bias"], name=f"{name}_proj")(x_BTD).reshape(B, T, count, H)
            if c["qk_norm"] and name != "v":
                mapped = RMSNorm(c["rms_norm_eps"], name=f"{name}_norm")(mapped)
            return mapped.transpose(0, 2, 1, 3)

        N, M = c["num_attention_heads"], c["num_key_value_heads"]
        turns = rope.frequencies(c["rope"], H, c["max_position_embeddings"], T)
        q, k, v = rope.rotate(heads("q", N), *turns), rope.rotate(heads("k", M), *turns), heads("v", M)
        attended = attend(q, k, v, visible=causal(mask_BT, self.window), dropout=c["attention_dropout"], train=train)
        return Dense(D, std, c["attention_bias"], name="o_proj")(attended)


class LlamaMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020)."""

    config: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        wide, std, bias = c["intermediate_size"], c["initializer_range"], c["mlp_bias"]
        gate = ACTIVATIONS[c["hidden_act"]](Dense(wide, std, bias, name="gate_proj")(x))
        return Dense(x.shape[-1], std, bias, name="down_proj")(gate * Dense(wide, std, bias, name="up_proj")(x))


class LlamaLayer(nn.Module):
    """Normalisation, attention, residual; normalisation, gated affine layers, residual (pre-norm)."""

    config: Any
    window: int

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, hidden = self.config, x["hidden"]
        normed = RMSNorm(c["rms_norm_eps"], name="input_layernorm")(hidden)
        hidden = hidden + LlamaAttention(c, self.window, name="self_attn")(normed, x["attention_mask"], train)
        normed = RMSNorm(c["rms_norm_eps"], name="post_attention_layernorm")(hidden)
        return {**x, "hidden": hidden + LlamaMLP(c, name="mlp")(normed)}


class FinalNorm(RMSNorm):
    """The normalisation above the last layer (a stage); a classifier reads the last real token."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:  # type: ignore[override]
        return last_token(RMSNorm.__call__(self, x["hidden"]), x["attention_mask"])


DROPOUTS = ("attention_dropout",)
_LLAMA = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": None,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}  # transformers' LlamaConfig
_MISTRAL = {
    **_LLAMA,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}
_QWEN2 = {
    **_LLAMA,
    "intermediate_size": 22016,
    "layer_types": None,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
_QWEN3 = {**_QWEN2, "head_dim": 128}


def _windows(c: Mapping[str, Any]) -> list[int]:
    """For each layer how many tokens a token sees; 0: all before it."""
    layers, window = c["num_hidden_layers"], c.get("sliding_window") or 0
    if "use_sliding_window" not in c:  # Mistral
        return [window] * layers
    kinds = c["layer_types"] or ["full_attention" if i < c["max_window_layers"] else "" for i in range(layers)]
    return [window if c["use_sliding_window"] and kind != "full_attention" else 0 for kind in kinds]


def _build(defaults: Mapping[str, Any], qkv_bias: bool, qk_norm: bool, config: Mapping[str, Any], num_labels: int,
           pooling: str, dtype: Any) -> Backbone:  # fmt: skip
    """The stages: embeddings, layer_0 …, norm, head; without labels the head gives the next token."""
    c = {name: config.get(name, default) for name, default in defaults.items()}
    c |= {"rope": nn.FrozenDict(rope.parameters(c)), "qk_norm": qk_norm, "qkv_bias": qkv_bias or c["attention_bias"]}
    c["head_dim"] = c["head_dim"] or c["hidden_size"] // c["num_attention_heads"]
    c["num_key_value_heads"] = c["num_key_value_heads"] or c["num_attention_heads"]
    windows = _windows(c)
    c = nn.FrozenDict({name: value for name, value in c.items() if not isinstance(value, list | dict)})
    table, std = "model/embed_tokens/embedding", c["initializer_range"]
    if num_labels:
        head = Stage("head", "score", ClassifierHead(num_labels, std, use_bias=False))
    elif c["tie_word_embeddings"]:
        head = Stage("head", "lm_head", TiedLanguageHead(), reads=(("embedding", table),))
    else:
        head = Stage("head", (("lm_head", "lm_head"),), LanguageHead(c["vocab_size"], std))
    return Backbone(
        stages=(
            Stage("embeddings", (("embed_tokens", "model/embed_tokens"),), LlamaEmbeddings(c, dtype)),
            *(Stage(f"layer_{i}", f"model/layers/{i}", LlamaLayer(c, window)) for i, window in enumerate(windows)),
            Stage("norm", "model/norm", FinalNorm(c["rms_norm_eps"])),
            head,
        ),
        example=lambda: {name: jax.ShapeDtypeStruct((1, 1), jnp.int32) for name in ("input_ids", "attention_mask")},
        lookups=() if head.reads else ((table, "input_ids"),),
        packs=c["rope"]["rope_type"] != "dynamic",  # there a longer row turns every text in it otherwise
    )


def _architecture(defaults: Mapping[str, Any], qkv_bias: bool = False, qk_norm: bool = False) -> Architecture:
    return Architecture(functools.partial(_build, defaults, qkv_bias, qk_norm), defaults, DROPOUTS, decoder=True)


LLAMA = _architecture(_LLAMA)
MISTRAL = _architecture(_MISTRAL)
QWEN2 = _architecture(_QWEN2, qkv_bias=True)
QWEN3 = _architecture(_QWEN3, qk_norm=True)
