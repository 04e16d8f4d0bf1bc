"""BERT (Devlin et al. 2019) with a sequence-classification head; parameter names as Hugging Face's FlaxBert."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.attention import SelfAttention
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.heads import ClassifierHead, MaskedHead, MeanPooler
from tljax.models.layers import ACTIVATIONS, Dense, Dropout, Embedding, LayerNorm, positions


class BertEmbeddings(nn.Module):
    """input_ids (B, T) -> hidden (B, T, D): word + position + type, normalised.

    attention_mask (B, T) is ones and token_type_ids (B, T) zeros where the batch leaves them out. Positions count
    from 0; with `padding`, as in RoBERTa, the tokens of a text that are not `padding` from padding + 1.
    """

    config: Any
    dtype: Any
    width: int
    padding: int | None = None

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, ids_BT = self.config, x["input_ids"]

        def looked_up(name: str, rows: int, ids: jax.Array) -> jax.Array:
            return Embedding(rows, self.width, jnp.float32, c["initializer_range"], name=name)(ids)

        places = positions(x) if self.padding is None else _counted(x, self.padding)
        hidden = looked_up("word_embeddings", c["vocab_size"], ids_BT)
        if c["type_vocab_size"]:
            types_BT = x.get("token_type_ids", jnp.zeros_like(ids_BT))
            hidden += looked_up("token_type_embeddings", c["type_vocab_size"], types_BT)
        hidden += looked_up("position_embeddings", c["max_position_embeddings"], places)
        hidden = LayerNorm(c["layer_norm_eps"], name="LayerNorm")(hidden)
        hidden = Dropout(c["hidden_dropout_prob"])(hidden.astype(self.dtype), train)
        passed = {name: x[name] for name in ("predicted",) if name in x}  # the head of masked words reads it
        return {"hidden": hidden, "attention_mask": x.get("attention_mask", jnp.ones_like(ids_BT)), **passed}


def _counted(x: Activations, padding: int) -> jax.Array:
    """RoBERTa's positions (B, T): `padding`, and the tokens that are not counted on from there in each text."""
    real_BT = (x["input_ids"] != padding).astype(jnp.int32)
    count_BT = jnp.cumsum(real_BT, axis=1)
    if "position_ids" in x:
        begins_BT = jnp.arange(real_BT.shape[1])[None] - x["position_ids"]
        count_BT -= jnp.take_along_axis(count_BT - real_BT, begins_BT, axis=1)  # what came before the text
    return count_BT * real_BT + padding


class BertSelfOutput(nn.Module):
    """Affine, dropout, residual, normalisation: the end of both halves of a layer."""

    config: Any

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array, train: bool) -> jax.Array:
        c = self.config
        x = Dense(c["hidden_size"], c["initializer_range"], name="dense")(x)
        x = Dropout(c["hidden_dropout_prob"])(x, train)
        return LayerNorm(c["layer_norm_eps"], name="LayerNorm")(x + residual)


class BertAttention(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array, train: bool) -> jax.Array:
        c = self.config
        attended = SelfAttention(c["num_attention_heads"], c["attention_probs_dropout_prob"], c["initializer_range"],
                                 name="self")(x_BTD, mask_BT, train)  # fmt: skip
        return BertSelfOutput(c, name="output")(attended, x_BTD, train)


class BertIntermediate(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        return ACTIVATIONS[c["hidden_act"]](Dense(c["intermediate_size"], c["initializer_range"], name="dense")(x))


class BertLayer(nn.Module):
    """Attention, then two affine layers, each with residual and normalisation after it (post-norm)."""

    config: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c = self.config
        attended = BertAttention(c, name="attention")(x["hidden"], x["attention_mask"], train)
        widened = BertIntermediate(c, name="intermediate")(attended)
        return {**x, "hidden": BertSelfOutput(c, name="output")(widened, attended, train)}


class BertPooler(nn.Module):
    """tanh of an affine map of the first token (B, T, D) -> (B, D)."""

    config: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c = self.config
        pooled = jnp.tanh(Dense(c["hidden_size"], c["initializer_range"], name="dense")(x["hidden"][:, 0]))
        return {"pooled": pooled, "last_hidden_state": x["hidden"]}


DEFAULTS = {
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}  # transformers' BertConfig: fields that a config.json leaves out have these values
DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout")


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a BERT: embeddings, layer_0 …, pooler, head.

    Args:
      config: fields of Hugging Face's config.json over `DEFAULTS`.
      num_labels: C of the logits (B, C); 0: words that are hidden (B, M, V), without a pooler.
      pooling: "pooler" (first token, the head that Hugging Face has) or "mean" (no pooler parameters).
      dtype: of the activations.
    """
    c = nn.FrozenDict({name: config.get(name, default) for name, default in DEFAULTS.items()})
    embeddings = BertEmbeddings(c, dtype, c["hidden_size"])
    if not num_labels:
        paths = (f"cls/predictions/{name}" for name in ("transform/dense", "transform/LayerNorm", "bias"))
        return assembled("bert", c, embeddings, masked("bert", c, c["hidden_act"], *paths))
    head = ClassifierHead(num_labels, c["initializer_range"], dropout=head_dropout(c))
    pooler = BertPooler(c) if pooling == "pooler" else MeanPooler()
    return assembled("bert", c, embeddings, Stage("pooler", "bert/pooler", pooler), Stage("head", "classifier", head))


def masked(base: str, c: Mapping[str, Any], activation: str, dense: str, norm: str, bias: str) -> Stage:
    """The head that tells hidden words, its parameters at the paths that are given."""
    table = f"{base}/embeddings/word_embeddings/embedding"
    module = MaskedHead(c["vocab_size"], activation, c["layer_norm_eps"], c["initializer_range"])
    return Stage("head", (("dense", dense), ("norm", norm), ("bias", bias)), module, reads=(("embedding", table),))


def head_dropout(c: Mapping[str, Any]) -> float:
    """The head's own rate, or the body's where the config leaves it null."""
    return c["hidden_dropout_prob"] if c["classifier_dropout"] is None else c["classifier_dropout"]


def assembled(base: str, c: nn.FrozenDict, embeddings: nn.Module, *top: Stage) -> Backbone:
    """The stages of a BERT or its kin, all under `base` but the head; `top`: above the layers."""
    layers = (Stage(f"layer_{i}", f"{base}/encoder/layer/{i}", BertLayer(c)) for i in range(c["num_hidden_layers"]))
    return Backbone(
        stages=(
            Stage("embeddings", f"{base}/embeddings", embeddings),
            *layers,
            *top,
        ),
        example=lambda: {
            name: jax.ShapeDtypeStruct((1, 1), jnp.int32) for name in ("input_ids", "attention_mask", "token_type_ids")
        },
        lookups=() if top[-1].reads else ((f"{base}/embeddings/word_embeddings/embedding", "input_ids"),),
        packs=True,
    )


BERT = Architecture(build, DEFAULTS, DROPOUTS, masked=True)
