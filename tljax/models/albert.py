"""ALBERT (Lan et al. 2020) with a sequence-classification head; parameter names as Hugging Face's FlaxAlbert.

Layers share their parameters, so a stage is a group of layers that do: most checkpoints have one.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.attention import SelfAttention
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.bert import BertEmbeddings
from tljax.models.heads import ClassifierHead, MeanPooler
from tljax.models.layers import ACTIVATIONS, Dense, Dropout, LayerNorm


class AlbertEmbeddings(nn.Module):
    """input_ids (B, T) -> hidden (B, T, D), through embeddings of a smaller width."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c = self.config
        x = BertEmbeddings(c, self.dtype, c["embedding_size"], name="embeddings")(x, train)
        hidden = Dense(c["hidden_size"], c["initializer_range"], name="embedding_hidden_mapping_in")(x["hidden"])
        return {**x, "hidden": hidden}


class AlbertAttention(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array, train: bool) -> jax.Array:
        c, std = self.config, self.config["initializer_range"]
        maps = SelfAttention(c["num_attention_heads"], c["attention_probs_dropout_prob"], std)
        nn.share_scope(self, maps)
        attended = Dense(c["hidden_size"], std, name="dense")(maps(x_BTD, mask_BT, train))
        attended = Dropout(c["hidden_dropout_prob"], name="output_dropout")(attended, train)
        return LayerNorm(c["layer_norm_eps"], name="LayerNorm")(x_BTD + attended)


class AlbertLayer(nn.Module):
    """Attention, then two affine layers, each with residual and normalisation after it (post-norm)."""

    config: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array, train: bool) -> jax.Array:
        c, std = self.config, self.config["initializer_range"]
        attended = AlbertAttention(c, name="attention")(x_BTD, mask_BT, train)
        widened = ACTIVATIONS[c["hidden_act"]](Dense(c["intermediate_size"], std, name="ffn")(attended))
        narrowed = Dense(c["hidden_size"], std, name="ffn_output")(widened)
        return LayerNorm(c["layer_norm_eps"], name="full_layer_layer_norm")(narrowed + attended)


class AlbertLayers(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array, train: bool) -> jax.Array:
        for i in range(self.config["inner_group_num"]):
            x_BTD = AlbertLayer(self.config, name=str(i))(x_BTD, mask_BT, train)
        return x_BTD


class AlbertGroup(nn.Module):
    """The same layers `repeats` times, each time with dropout of its own."""

    config: Any
    repeats: int

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        layers = AlbertLayers(self.config, name="albert_layers")
        hidden, mask = x["hidden"], x["attention_mask"]
        if self.is_initializing():
            return {**x, "hidden": layers(hidden, mask, train)}
        key = self.make_rng("dropout") if train else None
        for turn in range(self.repeats):
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, turn)}
            hidden = AlbertLayers(self.config, parent=None).apply(layers.variables, hidden, mask, train, rngs=rngs)
        return {**x, "hidden": hidden}


class AlbertPooler(nn.Module):
    """tanh of an affine map of the first token (B, T, D) -> (B, D)."""

    config: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c = self.config
        mapped = Dense(c["hidden_size"], c["initializer_range"], name="pooler")(x["hidden"][:, 0])
        return {"pooled": jnp.tanh(mapped), "last_hidden_state": x["hidden"]}


DEFAULTS = {
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.1,
    "embedding_size": 128,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "inner_group_num": 1,
    "intermediate_size": 16384,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 64,
    "num_hidden_groups": 1,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30000,
}  # transformers' AlbertConfig
DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout_prob")


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of an ALBERT: embeddings, layer_0 … (one a group), pooler, head; arguments as for BERT."""
    c = nn.FrozenDict({name: config.get(name, default) for name, default in DEFAULTS.items()})
    layers, groups = c["num_hidden_layers"], c["num_hidden_groups"]
    group_of = [int(i / (layers / groups)) for i in range(layers)]  # in floating point, as transformers has it
    mapping = "embedding_hidden_mapping_in"
    places = (("embeddings", "albert/embeddings"), (mapping, f"albert/encoder/{mapping}"))
    return Backbone(
        stages=(
            Stage("embeddings", places, AlbertEmbeddings(c, dtype)),
            *(Stage(f"layer_{i}", f"albert/encoder/albert_layer_groups/{i}", AlbertGroup(c, group_of.count(i)))
              for i in range(groups)),
            Stage("pooler", (("pooler", "albert/pooler"),), AlbertPooler(c)) if pooling == "pooler"
            else Stage("pooler", "albert/pooler", MeanPooler()),
            Stage("head", "classifier",
                  ClassifierHead(num_labels, c["initializer_range"], dropout=c["classifier_dropout_prob"])),
        ),
        example=lambda: {
            name: jax.ShapeDtypeStruct((1, 1), jnp.int32) for name in ("input_ids", "attention_mask", "token_type_ids")
        },
        lookups=(("albert/embeddings/word_embeddings/embedding", "input_ids"),),
        packs=True,
    )  # fmt: skip


ALBERT = Architecture(build, DEFAULTS, DROPOUTS)
