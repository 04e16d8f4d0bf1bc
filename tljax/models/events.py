"""A causal transformer of event sequences: an event is a set of fields, embedded and summed; the trunk is GPT-2's.

B sequences, T events, D width, N numbers, R ids of all fields that are foretold.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models import gpt2
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.heads import ClassifierHead, Logits
from tljax.models.layers import Dense, Dropout, Embedding, affine

RESERVED = 2  # ids that are no values: padding, and unknown or missing
ANSWERS = ("each", "last", "next", "item")
TRUNK = "transformer"


class Binned(Embedding):
    """ids (...) of bins -> (..., D): each bin's row is a step from the one below it, so that neighbours are alike and
    what is learned of one holds for those beside it (as piecewise linear encoding, Gorishniy et al. 2022)."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        steps = self.param("embedding", nn.initializers.normal(self.init_std), (self.rows, self.features))
        table = jnp.concatenate([steps[:RESERVED], jnp.cumsum(steps[RESERVED:], axis=0)])
        return jnp.take(table, ids, axis=0).astype(self.dtype)


class EventEmbeddings(nn.Module):
    """Ids of fields, int32 (B, T) each, and their numbers, float32 (B, T) -> hidden (B, T, D).

    The sum of a row of each field's table, one affine map of all numbers, and the position.
    """

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c = self.config
        D, std = c["n_embd"], c["initializer_range"]
        mask_BT = x["attention_mask"]
        places = x.get("position_ids", jnp.arange(mask_BT.shape[1])[None])
        hidden = Embedding(c["n_positions"], D, jnp.float32, std, name="wpe")(places)
        for name, size, numeric in c["fields"]:
            kind = Binned if numeric else Embedding
            hidden = hidden + kind(size, D, jnp.float32, std, name=f"field_{name}")(x[name])
        if numbers := [number(name) for name, _, numeric in c["fields"] if numeric]:
            hidden = hidden + Dense(D, std, name="numbers")(jnp.stack([x[name] for name in numbers], axis=-1))
        hidden = Dropout(c["embd_pdrop"])(hidden.astype(self.dtype), train)
        return {"hidden": hidden, "attention_mask": mask_BT}


class EachHead(ClassifierHead):
    """Dropout and one affine map of every event (B, T, D) -> logits (B, T, C)."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden_BTD = Dropout(self.dropout)(x["last_hidden_state"], train)
        return {**x, "logits": Logits.__call__(self, hidden_BTD)}


class NextHead(Logits):
    """Scores of the ids of every field that is foretold, for the event that follows each (B, T, R), field by field."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:  # type: ignore[override]
        return {**x, "logits": Logits.__call__(self, x["last_hidden_state"])}


class ItemHead(nn.Module):
    """Scores of every item as the next one after each event (B, T, V): by the items' own table, and a bias of each.

    "items" (V, D) and "item_bias" (V,) are given too, for those who do not want all scores at once.
    """

    items: int

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden_BTD = x["last_hidden_state"]
        bias_V = self.param("bias", nn.initializers.zeros_init(), (self.items,))
        table_VD = self.get_variable("params", "embedding")
        if table_VD is None:  # parameter shapes are being inferred
            return {**x, "logits": hidden_BTD.astype(jnp.float32)}
        logits = affine(hidden_BTD, table_VD.T, bias_V).astype(jnp.float32)
        return {**x, "logits": logits, "items": table_VD, "item_bias": bias_V}


DEFAULTS = {
    "answers": "each",
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "fields": (),
    "foretold": (),
    "initializer_range": 0.02,
    "item": "",
    "layer_norm_epsilon": 1e-5,
    "n_embd": 64,
    "n_head": 2,
    "n_inner": None,
    "n_layer": 2,
    "n_positions": 128,
    "resid_pdrop": 0.1,
}
FIXED = {"activation_function": "gelu_new", "scale_attn_weights": True}  # of gpt2.py's layers


def number(field: str) -> str:
    """The input that holds the number of a field, where it has one besides its ids."""
    return f"{field}.number"


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of an event model: embeddings, layer_0 …, norm, head.

    Fields of the config, besides GPT-2's: `fields`, (name, ids, whether it has a number) of each; `answers`, what the
    head gives: "each": classes for each event; "last": for the last event of a sequence; "next": the `foretold` fields
    of the following event; "item": the following event's field `item`, by that field's own table.
    """
    own = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    own["fields"] = tuple((str(name), int(size), bool(numeric)) for name, size, numeric in own["fields"])
    own["foretold"] = tuple(own["foretold"])
    c = nn.FrozenDict({**own, **FIXED})
    std, sizes = c["initializer_range"], {name: size for name, size, _ in c["fields"]}
    table = f"{TRUNK}/fields/{c['item']}/embedding"
    heads = {
        "each": Stage("head", "score", EachHead(num_labels, std)),
        "last": Stage("head", "score", ClassifierHead(num_labels, std)),
        "next": Stage("head", "next", NextHead(sum(sizes[name] for name in c["foretold"]), std)),
        "item": Stage("head", "item_head", ItemHead(sizes.get(c["item"], 1)), reads=(("embedding", table),)),
    }
    embedded = [("wpe", f"{TRUNK}/wpe"), *((f"field_{name}", f"{TRUNK}/fields/{name}") for name in sizes)]
    embedded += [("numbers", f"{TRUNK}/numbers")] if any(numeric for _, _, numeric in c["fields"]) else []
    return Backbone(
        stages=(
            Stage("embeddings", tuple(embedded), EventEmbeddings(c, dtype)),
            *(Stage(f"layer_{i}", f"{TRUNK}/h/{i}", gpt2.GPT2Layer(c, 1)) for i in range(c["n_layer"])),
            Stage("norm", f"{TRUNK}/ln_f", gpt2.FinalLayerNorm(c["layer_norm_epsilon"])),
            heads[c["answers"]],
        ),
        example=lambda: _example(c),
        lookups=tuple((f"{TRUNK}/fields/{name}/embedding", name) for name, _, numeric in c["fields"]
                      if not numeric and not (c["answers"] == "item" and name == c["item"])),
        packs=True,
    )  # fmt: skip


def _example(c: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    made = {name: jax.ShapeDtypeStruct((1, 1), jnp.int32) for name, _, _ in c["fields"]}
    made |= {number(name): jax.ShapeDtypeStruct((1, 1), jnp.float32) for name, _, numeric in c["fields"] if numeric}
    return made | {"attention_mask": jax.ShapeDtypeStruct((1, 1), jnp.int32)}


EVENTS = Architecture(build, DEFAULTS, ("attn_pdrop", "embd_pdrop", "resid_pdrop"), causal=True,
                      positions="n_positions")  # fmt: skip
