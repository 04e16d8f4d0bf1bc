"""The networks, in plain flax.linen, behind one contract: stages from bottom to top."""

import difflib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from tljax.errors import WeightsError
from tljax.models import (
    albert,
    bert,
    convnext,
    deberta_v2,
    deit,
    dinov2,
    distilbert,
    events,
    gpt2,
    llama,
    mobilenet_v2,
    modernbert,
    resnet,
    roberta,
    siglip,
    swin,
    vit,
)
from tljax.models.backbone import Architecture, Backbone, Output, Stage, apply

FAMILIES: dict[str, Architecture] = {
    "albert": albert.ALBERT,
    "bert": bert.BERT,
    "convnext": convnext.CONVNEXT,
    "convnextv2": convnext.CONVNEXTV2,
    "deberta-v2": deberta_v2.DEBERTA_V2,
    "deit": deit.DEIT,
    "dinov2": dinov2.DINOV2,
    "dinov2_with_registers": dinov2.DINOV2_WITH_REGISTERS,
    "distilbert": distilbert.DISTILBERT,
    "gpt2": gpt2.GPT2,
    "llama": llama.LLAMA,
    "mistral": llama.MISTRAL,
    "mobilenet_v2": mobilenet_v2.MOBILENET_V2,
    "modernbert": modernbert.MODERNBERT,
    "qwen2": llama.QWEN2,
    "qwen3": llama.QWEN3,
    "resnet": resnet.RESNET,
    "roberta": roberta.ROBERTA,
    "siglip": siglip.SIGLIP,
    "swin": swin.SWIN,
    "tljax_events": events.EVENTS,
    "vit": vit.VIT,
    "xlm-roberta": roberta.ROBERTA,
}  # by model_type of config.json


def family_of(config: Mapping[str, Any]) -> Architecture:
    """The family of a config's `model_type`.

    Raises:
      WeightsError: an unknown type, with the known ones and the nearest.
    """
    kind = str(config.get("model_type"))
    if kind in FAMILIES:
        return FAMILIES[kind]
    near = difflib.get_close_matches(kind, FAMILIES, 1)
    raise WeightsError(
        "config.json, model_type",
        f"{kind!r} is no family that tljax knows",
        f"one of {', '.join(FAMILIES)}",
        f"the nearest is {near[0]!r}" if near else "",
    )


def build(config: Mapping[str, Any], *, num_labels: int, pooling: str = "pooler", dropout: float | None = None,
          dtype: Any = jnp.float32) -> Backbone:  # fmt: skip
    """A network from the fields of Hugging Face's config.json, without parameters.

    Args:
      config: the fields; `model_type` chooses the family.
      num_labels: C of the logits (B, C).
      pooling: "pooler" or "mean" (families of text).
      dropout: one rate for every dropout of the network, in place of the config's own.
      dtype: of the activations.
    """
    family = family_of(config)
    fields = dict(config)
    if dropout is not None:
        fields |= dict.fromkeys(family.dropouts, dropout)
    return family.build(fields, num_labels, pooling, dtype)


def max_tokens(config: Mapping[str, Any], asked: int) -> int:
    """How many tokens of a text the network takes, at most `asked`."""
    family = family_of(config)
    fields = {**family.defaults, **config}
    return min(asked, fields[family.positions] - family.reserved(fields)) if family.positions in fields else asked


__all__ = ["FAMILIES", "Architecture", "Backbone", "Output", "Stage", "apply", "build", "family_of", "max_tokens"]
