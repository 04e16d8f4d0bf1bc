"""DeBERTa v2 and v3 (He et al. 2021, 2023): disentangled attention; names as in transformers' PyTorch class.

B batch, T tokens, D width, N heads, H width of a head, S rows for relative positions on each side.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tljax.models.attention import attend
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.bert import BertIntermediate, BertSelfOutput
from tljax.models.heads import ClassifierHead, FirstToken, Logits, MeanPooler
from tljax.models.layers import ACTIVATIONS, Dense, Dropout, Embedding, LayerNorm

RELATIVE = (("rel_embeddings", "deberta/encoder/rel_embeddings"), ("LayerNorm", "deberta/encoder/LayerNorm"))


class Embeddings(nn.Module):
    """input_ids (B, T) -> hidden (B, T, D), normalised, zero where there is padding."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, ids_BT = self.config, x["input_ids"]
        std, width = c["initializer_range"], c["embedding_size"] or c["hidden_size"]

        def looked_up(name: str, rows: int, ids: jax.Array) -> jax.Array:
            return Embedding(rows, width, jnp.float32, std, name=name)(ids)

        mask_BT = x.get("attention_mask", jnp.ones_like(ids_BT))
        hidden = looked_up("word_embeddings", c["vocab_size"], ids_BT)
        if c["position_biased_input"]:
            positions = jnp.arange(ids_BT.shape[1])[None]
            hidden += looked_up("position_embeddings", c["max_position_embeddings"], positions)
        if c["type_vocab_size"]:
            types_BT = x.get("token_type_ids", jnp.zeros_like(ids_BT))
            hidden += looked_up("token_type_embeddings", c["type_vocab_size"], types_BT)
        if width != c["hidden_size"]:
            hidden = Dense(c["hidden_size"], std, False, name="embed_proj")(hidden)
        hidden = LayerNorm(c["layer_norm_eps"], name="LayerNorm")(hidden) * mask_BT[:, :, None].astype(jnp.float32)
        hidden = Dropout(c["hidden_dropout_prob"])(hidden.astype(self.dtype), train)
        return {"hidden": hidden, "attention_mask": mask_BT}


class Relative(nn.Module):
    """The table of relative positions (2 S, D), normalised where the config says so. Every layer reads it."""

    config: Any

    @nn.compact
    def __call__(self, dtype: Any) -> jax.Array:
        c = self.config
        rows = 2 * c["span"]
        table = Embedding(rows, c["hidden_size"], dtype, c["initializer_range"], name="rel_embeddings")(
            jnp.arange(rows)
        )
        return LayerNorm(c["layer_norm_eps"], name="LayerNorm")(table) if "layer_norm" in c["norm_rel_ebd"] else table


class Bottom(nn.Module):
    """The embeddings, and the table of relative positions, which is theirs."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        if self.config["relative_attention"]:
            Relative(self.config, name="relative")(self.dtype)
        return Embeddings(self.config, self.dtype, name="embeddings")(x, train)


class DisentangledSelfAttention(nn.Module):
    """Content to content, content to position and position to content, added before the softmax."""

    config: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, relative_SD: jax.Array | None, mask_BT: jax.Array, train: bool) -> jax.Array:
        c, std = self.config, self.config["initializer_range"]
        _, T, D = x_BTD.shape
        N = c["num_attention_heads"]
        kinds = c["pos_att_type"]
        maps = {name: Dense(D, std, name=f"{name}_proj") for name in ("query", "key", "value")}
        shared = c["share_att_key"]
        if relative_SD is not None and not shared:
            maps |= {name: Dense(D, std, name=f"{name}_proj") for kind, name in
                     (("c2p", "pos_key"), ("p2c", "pos_query")) if kind in kinds}  # fmt: skip

        def heads(name: str, rows: jax.Array) -> jax.Array:
            return maps[name](rows).reshape(-1, rows.shape[-2], N, D // N).transpose(0, 2, 1, 3)

        q, k, v = heads("query", x_BTD), heads("key", x_BTD), heads("value", x_BTD)
        scale = 1 / math.sqrt(D // N * (1 + len(kinds)))
        bias = None
        if relative_SD is not None:
            relative_SD = Dropout(c["hidden_dropout_prob"])(relative_SD, train)
            away = _rows(T, c)  # of the table, for how far a query stands behind the key: 1 - T … T - 1
            bias = jnp.zeros((), x_BTD.dtype)
            if "c2p" in kinds:
                keys = heads("key" if shared else "pos_key", relative_SD[away[::-1]])[0]
                bias += _skewed(jnp.einsum("bnth,nsh->bnts", q, keys))
            if "p2c" in kinds:
                queries = heads("query" if shared else "pos_query", relative_SD[away])[0]
                bias += _skewed(jnp.einsum("bnth,nsh->bnts", k, queries)).swapaxes(2, 3)
            bias = bias * scale
        real_BT = mask_BT != 0
        visible = real_BT[:, None, :, None] & real_BT[:, None, None, :]
        dropout = c["attention_probs_dropout_prob"]
        return attend(q, k, v, visible=visible, bias=bias, scale=scale, dropout=dropout, train=train)


def _rows(tokens: int, c: Mapping[str, Any]) -> np.ndarray:
    """(2 T - 1): the row of the table for each distance, near ones exact, far ones in logarithmic buckets."""
    distance = np.arange(1 - tokens, tokens)
    span, longest = c["span"], c["longest"]
    if c["position_buckets"] > 0:
        middle = c["position_buckets"] // 2
        size = np.where(np.abs(distance) < middle, middle - 1, np.abs(distance)).astype(np.float32)
        steps = np.log(size / middle) / np.log(np.float32((longest - 1) / middle)) * (middle - 1)
        far = (np.ceil(steps) + middle) * np.sign(distance)
        distance = np.where(size <= middle, distance, far).astype(int)
    return np.clip(distance + span, 0, 2 * span - 1)


def _skewed(scores: jax.Array) -> jax.Array:
    """(…, T, 2 T - 1) by distance -> (…, T, T) by place: row i is shifted by i, without a gather."""
    *batch, T, width = scores.shape
    if T == 1:
        return scores
    flat = scores.reshape(*batch, T * width)[..., T - 1 : T - 1 + T * (width - 1)]
    return flat.reshape(*batch, T, width - 1)[..., :T]


class Attention(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, relative: jax.Array | None, mask_BT: jax.Array, train: bool) -> jax.Array:
        attended = DisentangledSelfAttention(self.config, name="self")(x_BTD, relative, mask_BT, train)
        return BertSelfOutput(self.config, name="output")(attended, x_BTD, train)


class EncoderLayer(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, hidden: jax.Array, relative: jax.Array | None, mask_BT: jax.Array, train: bool) -> jax.Array:
        attended = Attention(self.config, name="attention")(hidden, relative, mask_BT, train)
        widened = BertIntermediate(self.config, name="intermediate")(attended)
        return BertSelfOutput(self.config, name="output")(widened, attended, train)


class Layer(nn.Module):
    """Attention, then two affine layers, each with residual and normalisation after it (post-norm)."""

    config: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden = x["hidden"]
        relative = Relative(self.config, name="relative")(hidden.dtype) if self.config["relative_attention"] else None
        return {**x, "hidden": EncoderLayer(self.config, name="layer")(hidden, relative, x["attention_mask"], train)}


class Pooler(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, pooled_BD: jax.Array, train: bool) -> jax.Array:
        c = self.config
        pooled_BD = Dropout(c["pooler_dropout"])(pooled_BD, train)
        mapped = Dense(pooled_BD.shape[-1], c["initializer_range"], name="dense")(pooled_BD)
        return ACTIVATIONS[c["pooler_hidden_act"]](mapped)


class Head(nn.Module):
    """Affine map, activation, dropout, affine map on the first token (B, D) -> logits (B, C)."""

    config: Any
    num_labels: int
    dropout: float

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        inner = Dropout(self.dropout)(Pooler(self.config, name="pooler")(x["pooled"], train), train)
        logits = Logits(self.num_labels, self.config["initializer_range"], name="classifier")(inner)
        return {**x, "logits": logits}


DEFAULTS = {
    "attention_probs_dropout_prob": 0.1,
    "cls_dropout": None,
    "embedding_size": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1536,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "norm_rel_ebd": "none",
    "num_attention_heads": 24,
    "num_hidden_layers": 24,
    "pooler_dropout": 0.0,
    "pooler_hidden_act": "gelu",
    "pos_att_type": (),
    "position_biased_input": True,
    "position_buckets": -1,
    "relative_attention": False,
    "share_att_key": False,
    "type_vocab_size": 0,
    "vocab_size": 128100,
}  # transformers' DebertaV2Config
DROPOUTS = ("attention_probs_dropout_prob", "cls_dropout", "hidden_dropout_prob", "pooler_dropout")


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a DeBERTa: embeddings, layer_0 …, pooler (no parameters), head; arguments as for BERT.

    The table of relative positions, which every layer reads, belongs to the embeddings.
    """
    c = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    kinds = c["pos_att_type"] or ()
    kinds = tuple(kinds.split("|")) if isinstance(kinds, str) else tuple(kinds)
    longest = c["max_relative_positions"] if c["max_relative_positions"] > 0 else c["max_position_embeddings"]
    span = c["position_buckets"] if c["position_buckets"] > 0 else longest
    c = nn.FrozenDict({**c, "pos_att_type": kinds, "longest": longest, "span": span})
    rate = c["hidden_dropout_prob"] if c["cls_dropout"] is None else c["cls_dropout"]
    relative = RELATIVE[: 2 if "layer_norm" in c["norm_rel_ebd"] else 1] if c["relative_attention"] else ()
    reads = tuple((f"relative/{name}", path) for name, path in relative)
    pooler: nn.Module = FirstToken()
    head = Stage("head", (("pooler", "pooler"), ("classifier", "classifier")), Head(c, num_labels, rate))
    if pooling == "mean":
        pooler = MeanPooler()
        head = Stage("head", "classifier", ClassifierHead(num_labels, c["initializer_range"], dropout=rate))
    layers = ((("layer", f"deberta/encoder/layer/{i}"),) for i in range(c["num_hidden_layers"]))
    return Backbone(
        stages=(
            Stage("embeddings", (("embeddings", "deberta/embeddings"), *reads), Bottom(c, dtype)),
            *(Stage(f"layer_{i}", place, Layer(c), reads) for i, place in enumerate(layers)),
            Stage("pooler", "deberta/pooler", pooler),
            head,
        ),
        example=lambda: {
            name: jax.ShapeDtypeStruct((1, 1), jnp.int32) for name in ("input_ids", "attention_mask", "token_type_ids")
        },
        lookups=(("deberta/embeddings/word_embeddings/embedding", "input_ids"),),
    )


DEBERTA_V2 = Architecture(build, DEFAULTS, DROPOUTS)
