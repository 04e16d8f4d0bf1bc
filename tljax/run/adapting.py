"""Models with adapters: from a config, and from what a run has left."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tljax import trees
from tljax.config import Config
from tljax.errors import ConfigError, WeightsError
from tljax.models import Backbone
from tljax.models.adapted import AdaptedBackbone
from tljax.models.adapters import KINDS, Adapter
from tljax.transfer import adapters
from tljax.weights import adapter_folder
from tljax.weights.adapter_folder import Learned
from tljax.weights.load import Model, load_pretrained
from tljax.weights.outline import outline


def load(c: Config, classes: tuple[str, ...], fields: Mapping[str, Any] | None = None) -> Model:
    """The model that a config asks for, with adapters where its strategy is one.

    Args:
      fields: of config.json, which the data decides.
    """
    head: dict[str, Any] = {"labels": classes} if c.objective == "classes" else {"task": "language"}
    model = load_pretrained(
        c.model.ref, **head, revision=c.model.revision, pooling=c.model.pooling, seed=c.seed,
        dropout=None if c.model.dropout < 0 else c.model.dropout, image_size=c.model.image_size or None,
        vocab_size=c.model.vocab_size or None, scratch=c.transfer.strategy == "scratch",
        dtype=jnp.dtype(c.model.dtype), fields=fields)  # fmt: skip
    model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, remat=c.train.remat))
    return adapted(model, c)


def adapted(model: Model, c: Config) -> Model:
    """A plain model, with adapters where the strategy is one."""
    adapter = adapter_of(c)
    return model if adapter is None else _put_on(model, adapter, c.seed)


def adapter_of(c: Config) -> Adapter | None:
    """The adapter that the strategy is; None where it is none."""
    if c.transfer.strategy not in KINDS:
        return None
    a = c.adapter
    return Adapter(c.transfer.strategy, a.rank, a.alpha, a.targets, layers=a.layers, tokens=a.tokens)


def outlined(c: Config, classes: int, fields: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Backbone]:
    """The fields of config.json and the network that a config asks for, without a weight; `fields` as for `load`."""
    config, network = outline(
        c.model.ref, classes, revision=c.model.revision, pooling=c.model.pooling,
        dropout=None if c.model.dropout < 0 else c.model.dropout, image_size=c.model.image_size or None,
        vocab_size=c.model.vocab_size or None, dtype=jnp.dtype(c.model.dtype), fields=fields)  # fmt: skip
    network, adapter = dataclasses.replace(network, remat=c.train.remat), adapter_of(c)
    return config, network if adapter is None else adapters.adapted(network, adapter, config["model_type"])


def _put_on(model: Model, adapter: Adapter, seed: int) -> Model:
    network = adapters.adapted(model.backbone, adapter, model.config["model_type"])
    params = adapters.start(network, model.params, jax.random.fold_in(jax.random.key(seed), 1))
    return dataclasses.replace(model, backbone=network, params=params)


def mergeable(model: Model) -> bool:
    """Whether a plain network has the same outputs."""
    network = model.backbone
    return not isinstance(network, AdaptedBackbone) or not KINDS[network.adapter.kind].unmergeable


def merged(model: Model, params: trees.Flat) -> trees.Flat | None:
    """Parameters of the plain network with the same outputs; None where no plain network has them."""
    network = model.backbone
    if not isinstance(network, AdaptedBackbone):
        return params
    return network.merged(params) if mergeable(model) else None


def base(c: Config, learned: Learned) -> Model:
    """The plain model that adapters of a run belong on.

    Raises:
      WeightsError: it is not what it was.
    """
    plain = load(dataclasses.replace(c, transfer=dataclasses.replace(c.transfer, strategy="full")), learned.labels)
    if plain.digest != learned.digest:
        raise WeightsError(plain.ref, "weights that differ from those the adapter was trained on", "the same weights",
                           "take them from where they were, or train again")  # fmt: skip
    return plain


def opened(folder: Path, c: Config) -> tuple[Model, Model, Learned]:
    """The model of an adapter run, the plain one that it stands on, and what it learned.

    Args:
      folder: adapter/ of a workdir.
      c: the settings of that run.

    Raises:
      WeightsError: see `base` and `adapter_folder.read`; or leaves that do not fit the network.
    """
    learned = adapter_folder.read(folder)
    plain = base(c, learned)
    model = _put_on(plain, learned.adapter, c.seed)
    network = model.backbone
    if not isinstance(network, AdaptedBackbone):
        raise ConfigError(str(folder), "no adapter", "what a run with adapters left")
    flat = trees.flatten(model.params)
    shapes = {path: tuple(leaf.shape) for path, leaf in adapter_folder.own(network, flat).items()}
    found = {path: tuple(leaf.shape) for path, leaf in learned.leaves.items()}
    if odd := sorted(p for p in shapes.keys() | found.keys() if shapes.get(p) != found.get(p)):
        details = [f"{p}: have {found.get(p, 'nothing')}, want {shapes.get(p, 'nothing')}" for p in odd]
        raise WeightsError(str(folder), f"{len(odd)} arrays do not fit the network", "the adapter of this base",
                           details=details)  # fmt: skip
    given = {path: jnp.asarray(leaf) for path, leaf in learned.leaves.items()}
    return dataclasses.replace(model, params=trees.unflatten(flat | given)), plain, learned
