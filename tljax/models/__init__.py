"""The networks, in plain flax.linen, behind one contract: stages from bottom to top."""

import difflib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp

from tljax.errors import WeightsError
from tljax.models import bert, vit
from tljax.models.backbone import Backbone, Output, Stage, apply

FAMILIES: dict[str, ModuleType] = {"bert": bert, "vit": vit}  # model_type of config.json -> module


def family_of(config: Mapping[str, Any]) -> ModuleType:
    """The module of a config's `model_type`.

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
          image_size: int | None = None, dtype: Any = jnp.float32) -> Backbone:  # fmt: skip
    """A network from the fields of Hugging Face's config.json, without parameters.

    Args:
      config: the fields; `model_type` chooses the family.
      num_labels: C of the logits (B, C).
      pooling: "pooler" or "mean" (families of text).
      dropout: one rate for every dropout of the network, in place of the config's own.
      image_size: side in pixels, in place of the config's own (families of images).
      dtype: of the activations.
    """
    family = family_of(config)
    fields = dict(config)
    if dropout is not None:
        fields |= dict.fromkeys(family.DROPOUTS, dropout)
    if image_size is not None:
        fields["image_size"] = image_size
    return family.build(fields, num_labels, pooling, dtype)


__all__ = ["FAMILIES", "Backbone", "Output", "Stage", "apply", "build", "family_of"]
