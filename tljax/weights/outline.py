"""What a checkpoint's network is, without reading a weight."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from tljax import models
from tljax.weights import checkpoint, hub, load
from tljax.weights.families import FAMILIES


def outline(ref: str, num_labels: int, *, revision: str = "", pooling: str = "auto", dropout: float | None = None,
            image_size: int | None = None, vocab_size: int | None = None,
            dtype: Any = jnp.float32, fields: Mapping[str, Any] | None = None,
            ) -> tuple[dict[str, Any], models.Backbone]:  # fmt: skip
    """The fields of config.json and the network, as `load_pretrained` makes them; a folder with config.json is enough.

    Raises:
      WeightsError, ConfigError: as for `load_pretrained`.
    """
    place = hub.resolve(ref, revision)
    config, weights, _ = checkpoint.opened(place.folder, optional=True)
    config |= fields or {}
    pooling = load.pooling_of(place.folder, pooling, FAMILIES[config["model_type"]], weights)
    config, _ = load.sized(config, image_size, None, vocab_size)
    return config, models.build(config, num_labels=num_labels, pooling=pooling, dropout=dropout, dtype=dtype)
