"""Adapters on any family: `adapted` puts them on a network, `start` and `merge` take its parameters there and back."""

from collections.abc import Mapping
from typing import Any

import jax

from tljax import models, trees
from tljax.errors import ConfigError
from tljax.models import prefix, prompt
from tljax.models.adapted import AdaptedBackbone
from tljax.models.adapters import KINDS, Adapter, Site
from tljax.transfer import targets
from tljax.transfer.freeze import HEAD, is_layer


def adapted(backbone: models.Backbone, adapter: Adapter, family: str = "") -> AdaptedBackbone:
    """A network with adapters, behind the contract of the plain one.

    `freeze.plan(network, adapter.kind)` then trains them and the head; with adapters in the top layers alone, all below
    stays frozen and runs in eval mode.

    Args:
      family: `model_type` of config.json, which says where the adapters belong where `adapter.targets` does not.

    Raises:
      ConfigError: a family that the adapter cannot be put on, targets that match nothing or do not fit, more layers
        than there are, or a network that has adapters.
    """
    if isinstance(backbone, AdaptedBackbone):
        raise ConfigError("adapter", f"{adapter.kind} on a network with {backbone.adapter.kind}", "a plain network",
                          "merge the first one")  # fmt: skip
    layers = [name for name in backbone.stage_names if is_layer(name)]
    if adapter.layers > len(layers):
        raise ConfigError("adapter, layers", f"{adapter.layers}", f"0 to {len(layers)}, the layers of this network")
    top = set(layers[-adapter.layers :] if adapter.layers else backbone.stage_names) - {HEAD}
    stages = backbone.stages
    found: tuple[Site, ...] = ()
    match KINDS[adapter.kind].on:
        case "kernels":
            shapes = {path: leaf.shape for path, leaf in backbone.shapes().items() if backbone.stage_of(path) in top}
            kernels = {path: s for path, s in shapes.items() if path.endswith("/kernel") and len(s) in (2, 4)}
            found = targets.sites(adapter, family, kernels)
        case "attention":
            found = _attentions(backbone, top, family)
        case _:
            stages = _with_prompt(backbone, adapter, family, layers)
    return AdaptedBackbone(stages, backbone.example, backbone.lookups, backbone.remat, backbone.packs,
                           backbone.gather, adapter, found, plain=backbone)  # fmt: skip


def start(network: AdaptedBackbone, params: Mapping[str, Any], key: jax.Array) -> trees.Tree:
    """Parameters of the plain network -> those of the network with adapters, both nested.

    The outputs are the same: exactly for lora, rslora, ia3 and bottleneck, to rounding for dora and pissa. Not for
    prefix and prompt, whose tokens are there from the start.

    Args:
      params: nested dict of arrays.
      key: of the values that are random.
    """
    return trees.unflatten(network.started(trees.flatten(params), key))


def merge(network: AdaptedBackbone, params: Mapping[str, Any]) -> trees.Tree:
    """Parameters of a network with adapters -> those of `network.plain` with the same outputs, both nested.

    Raises:
      ConfigError: bottleneck, prefix and prompt, which no plain network has the same outputs as.
    """
    return trees.unflatten(network.merged(trees.flatten(params)))


def _attentions(backbone: models.Backbone, top: set[str], family: str) -> tuple[Site, ...]:
    """Every attention of the stages `top`, with (heads, width of a head) of its keys."""
    end = "/prefix/shape"
    heads = {path: leaf.shape for _, leaves in backbone.abstract(prefix.HEADS) for path, leaf in leaves.items()}
    found = tuple(Site(path.removesuffix(end), shape) for path, shape in heads.items()
                  if path.endswith(end) and backbone.stage_of(path) in top)  # fmt: skip
    if not found:
        raise ConfigError("adapter prefix", f"{family or 'this network'} has no attention to put keys and values into",
                          "a family with attention", "take lora or ia3")  # fmt: skip
    return found


def _with_prompt(backbone: models.Backbone, adapter: Adapter, family: str,
                 layers: list[str]) -> tuple[models.Stage, ...]:  # fmt: skip
    """The stages with learned tokens: behind the first, so that [CLS] stays there; of a decoder, before all others."""
    if adapter.layers:
        raise ConfigError("adapter, layers", f"{adapter.layers} for prompt", "0", "its tokens enter below all layers")
    above = backbone.abstract()[1][0].get("hidden") if layers else None
    if above is None or len(above.shape) != 3:
        raise ConfigError("adapter prompt", f"{family or 'this network'} has pictures between its layers",
                          "a family with a sequence of tokens", "take lora or ia3")  # fmt: skip
    own = models.FAMILIES.get(family)
    first = own is not None and (own.decoder or own.causal)
    return prompt.stages(backbone.stages, adapter.tokens, 0 if first else 1, backbone.index(layers[-1]))


__all__ = ["KINDS", "Adapter", "adapted", "merge", "start"]
