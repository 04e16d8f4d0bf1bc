"""Adapting a finished classifier to a target without labels: statistics of normalisations, and their scales.

Legend: B rows in a batch.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import trees
from tljax.errors import ConfigError
from tljax.models import Backbone
from tljax.models.convolution import BatchNorm
from tljax.transfer import freeze


def statistics(network: Backbone, params: Mapping[str, Any], batches: Iterable[Mapping[str, Any]],
               show: Callable[[int], None] = lambda n: None) -> trees.Flat:  # fmt: skip
    """AdaBN (Li et al. 2017): the running means and variances of every batch normalisation, of the target's batches.

    The mean over all batches, each of which is normalised by itself.

    Args:
      params: nested.
      batches: inputs (B, …), full ones: a row that pads would count.

    Returns path -> float32 array, of the statistics alone.

    Raises:
      ConfigError: the network has no batch normalisation, or there is no batch.
    """
    flat = trees.flatten(params)
    own = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in flat.items() if freeze.is_statistic(path)}
    if not own:
        raise ConfigError("--method", "adabn, and the network has no batch normalisation", "tent, or another network")
    momentum = BatchNorm.momentum

    @jax.jit
    def of_batch(stats: trees.Flat, inputs: Mapping[str, Any]) -> trees.Flat:
        _, moved = network.run_moving(params, dict(inputs), 0, jax.random.key(0), stats)
        return {path: leaf + (moved[path] - leaf) / momentum for path, leaf in stats.items()}

    total, count = {path: np.zeros(leaf.shape, np.float64) for path, leaf in own.items()}, 0
    for inputs in batches:
        for path, leaf in jax.device_get(of_batch(own, inputs)).items():
            total[path] += leaf
        count += 1
        show(len(next(iter(inputs.values()))))
    if not count:
        raise ConfigError("--target", "fewer examples than one batch", "at least --config.train.eval_batch_size")
    return {path: (leaf / count).astype(np.float32) for path, leaf in total.items()}


def tent_plan(network: Backbone) -> freeze.FreezePlan:
    """What Tent (Wang et al. 2021) trains: scale and bias of every normalisation; not the head.

    Statistics are the target's batches' own: they move.
    """
    whole = freeze.plan(network, "norms")
    labels = {path: freeze.FROZEN if label == freeze.HEAD else label for path, label in whole.labels.items()}
    names = network.stage_names
    trained = [names.index(network.stage_of(path)) for path, label in labels.items() if label == "body"]
    if not trained:
        raise ConfigError("--method", "tent, and the network has no normalisation", "another network")
    return freeze.FreezePlan(labels, {"body": 1.0}, min(trained))
