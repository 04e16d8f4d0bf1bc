"""BERT (Devlin et al. 2019) with a sequence-classification head; parameter names as Hugging Face's FlaxBert."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.backbone import Activations, Backbone, Stage
from tljax.models.heads import ClassifierHead, MeanPooler
from tljax.models.layers import ACTIVATIONS, Dense, Dropout, Embedding, LayerNorm, SelfAttention


class BertEmbeddings(nn.Module):
    """input_ids (B, T) -> hidden (B, T, D): word + position + type, normalised.

    attention_mask (B, T) is ones and token_type_ids (B, T) zeros where the batch leaves them out.
    """

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, ids_BT = self.config, x["input_ids"]
        std = c["initializer_range"]
        word = Embedding(c["vocab_size"], c["hidden_size"], jnp.float32, std, name="word_embeddings")(ids_BT)
        positions_T = jnp.arange(ids_BT.shape[1])
        position = Embedding(c["max_position_embeddings"], c["hidden_size"], jnp.float32, std,
                             name="position_embeddings")(positions_T)  # fmt: skip
        types = Embedding(c["type_vocab_size"], c["hidden_size"], jnp.float32, std,
                          name="token_type_embeddings")(x.get("token_type_ids", jnp.zeros_like(ids_BT)))  # fmt: skip
        hidden = LayerNorm(c["layer_norm_eps"], name="LayerNorm")(word + types + position[None])
        hidden = Dropout(c["hidden_dropout_prob"])(hidden.astype(self.dtype), train)
        return {"hidden": hidden, "attention_mask": x.get("attention_mask", jnp.ones_like(ids_BT))}


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
      num_labels: C of the logits (B, C).
      pooling: "pooler" (first token, the head that Hugging Face has) or "mean" (no pooler parameters).
      dtype: of the activations.
    """
    c = nn.FrozenDict({name: config.get(name, default) for name, default in DEFAULTS.items()})
    rate = c["hidden_dropout_prob"] if c["classifier_dropout"] is None else c["classifier_dropout"]
    layers = (Stage(f"layer_{i}", f"bert/encoder/layer/{i}", BertLayer(c)) for i in range(c["num_hidden_layers"]))
    return Backbone(
        stages=(
            Stage("embeddings", "bert/embeddings", BertEmbeddings(c, dtype)),
            *layers,
            Stage("pooler", "bert/pooler", BertPooler(c) if pooling == "pooler" else MeanPooler()),
            Stage("head", "classifier", ClassifierHead(num_labels, rate, c["initializer_range"])),
        ),
        example=lambda: {
            name: jax.ShapeDtypeStruct((1, 1), jnp.int32) for name in ("input_ids", "attention_mask", "token_type_ids")
        },
        lookups=(("bert/embeddings/word_embeddings/embedding", "input_ids"),),
    )
