"""DistilBERT (Sanh et al. 2019) with a sequence-classification head; names as Hugging Face's FlaxDistilBert."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.attention import SelfAttention
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.bert import BertEmbeddings
from tljax.models.heads import ClassifierHead, FirstToken, MeanPooler, TwoLayerHead
from tljax.models.layers import ACTIVATIONS, Dense, Dropout, LayerNorm

EPSILON = 1e-12  # of every normalisation; no field of the config


class Attention(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array, train: bool) -> jax.Array:
        c = self.config
        maps = SelfAttention(c["n_heads"], c["attention_dropout"], c["initializer_range"],
                             names=("q_lin", "k_lin", "v_lin"))  # fmt: skip
        nn.share_scope(self, maps)
        return Dense(c["dim"], c["initializer_range"], name="out_lin")(maps(x_BTD, mask_BT, train))


class FeedForward(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = self.config
        x = ACTIVATIONS[c["activation"]](Dense(c["hidden_dim"], c["initializer_range"], name="lin1")(x))
        return Dropout(c["dropout"])(Dense(c["dim"], c["initializer_range"], name="lin2")(x), train)


class Layer(nn.Module):
    """Attention, then two affine layers, each with residual and normalisation after it (post-norm)."""

    config: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, hidden = self.config, x["hidden"]
        attended = Attention(c, name="attention")(hidden, x["attention_mask"], train)
        hidden = LayerNorm(EPSILON, name="sa_layer_norm")(attended + hidden)
        widened = FeedForward(c, name="ffn")(hidden, train)
        return {**x, "hidden": LayerNorm(EPSILON, name="output_layer_norm")(widened + hidden)}


DEFAULTS = {
    "activation": "gelu",
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "hidden_dim": 3072,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "n_heads": 12,
    "n_layers": 6,
    "seq_classif_dropout": 0.2,
    "vocab_size": 30522,
}  # transformers' DistilBertConfig
DROPOUTS = ("attention_dropout", "dropout", "seq_classif_dropout")


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a DistilBERT: embeddings, layer_0 …, pooler (no parameters), head; arguments as for BERT."""
    c = nn.FrozenDict({name: config.get(name, default) for name, default in DEFAULTS.items()})
    fields = c.copy({"type_vocab_size": 0, "layer_norm_eps": EPSILON, "hidden_dropout_prob": c["dropout"]})
    rate, std = c["seq_classif_dropout"], c["initializer_range"]
    layers = (Stage(f"layer_{i}", f"distilbert/transformer/layer/{i}", Layer(c)) for i in range(c["n_layers"]))
    if pooling == "mean":
        top = (Stage("pooler", "distilbert/pooler", MeanPooler()),
               Stage("head", "classifier", ClassifierHead(num_labels, std, dropout=rate)))  # fmt: skip
    else:
        names = ("pre_classifier", "classifier")
        top = (Stage("pooler", "distilbert/pooler", FirstToken()),
               Stage("head", tuple(zip(names, names, strict=True)),
                     TwoLayerHead(num_labels, names, "relu", (0.0, rate), std)))  # fmt: skip
    return Backbone(
        stages=(Stage("embeddings", "distilbert/embeddings", BertEmbeddings(fields, dtype, c["dim"])), *layers, *top),
        example=lambda: {name: jax.ShapeDtypeStruct((1, 1), jnp.int32) for name in ("input_ids", "attention_mask")},
        lookups=(("distilbert/embeddings/word_embeddings/embedding", "input_ids"),),
        packs=True,
    )


DISTILBERT = Architecture(build, DEFAULTS, DROPOUTS)
