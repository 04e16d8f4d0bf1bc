"""Domain adaptation in a run: the network for pairs, the pairs, and what trains (transfer/discrepancy.py).

Where a config names no target, each function gives back what it was given.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from tljax import trees
from tljax.config import Config
from tljax.data import sources
from tljax.data.paired import FeatureExamples, PairedExamples
from tljax.errors import ConfigError, DataError
from tljax.evaluate.predict import outputs
from tljax.mesh import Layout
from tljax.models import paired
from tljax.run import inputs, progress
from tljax.transfer import features, freeze
from tljax.transfer.phases import Phase
from tljax.weights.load import Model

GROUP = "domain"  # of the discriminator's parameters


def network(c: Config, model: Model) -> Model:
    """The model with a network for pairs, its discriminator random."""
    if not c.adapt.target:
        return model
    made = paired.paired(model.backbone, c.adapt.method, c.adapt.width)
    key = jax.random.fold_in(jax.random.key(c.seed), 2)
    own = made.init(key, lambda path: path.startswith(f"{paired.DISCRIMINATOR}/"))
    flat = trees.flatten(model.params) | own
    return dataclasses.replace(model, backbone=made, params=trees.unflatten({p: flat[p] for p in sorted(flat)}))


def phases(c: Config, planned: list[Phase]) -> list[Phase]:
    """The phases, with a rate of its own for the discriminator; of ADDA, whose classifier is the source's, with that
    frozen."""
    if not c.adapt.target:
        return planned
    return [dataclasses.replace(phase, plan=_plan(c, phase.plan)) for phase in planned]


def _plan(c: Config, plan: freeze.FreezePlan) -> freeze.FreezePlan:
    labels = dict(plan.labels)
    for path, label in plan.labels.items():
        if path.startswith(f"{paired.DISCRIMINATOR}/"):
            labels[path] = GROUP
        elif c.adapt.method == "adda" and label == freeze.HEAD:
            labels[path] = freeze.FROZEN
    factors = {**plan.factors, GROUP: c.adapt.discriminator_factor} if GROUP in labels.values() else plan.factors
    return dataclasses.replace(plan, labels=labels, factors={n: f for n, f in factors.items() if n in labels.values()})


def pairs(c: Config, model: Model, examples: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """The examples, those of training in pairs with the target's.

    ADDA's source examples are the vectors that the source's network makes of them, computed once: that network never
    trains again (Tzeng et al. 2017).

    Raises:
      DataError: the target cannot be read.
      ConfigError: events, which adaptation does not know.
    """
    if not c.adapt.target:
        return examples
    if c.task == "events":
        raise ConfigError("--config.adapt.target", "found with --config.task=events", "text or image")
    records = sources.read_records(c.adapt.target, c.data, c.task, labelled=False)
    if not len(records):
        raise DataError(c.adapt.target, "0 examples", "at least one")
    target = inputs.make_examples(records, model, c, None)
    source: Any = examples["train"]
    if c.adapt.method == "adda":
        source = FeatureExamples(pooled(c, model, source, layout), source)
    return {**examples, "train": PairedExamples(source, target)}


def pooled(c: Config, model: Model, examples: Any, layout: Layout, title: str = "features of the source") -> np.ndarray:
    """What the head reads of every example, float32 (n, D), in eval mode."""
    step = features.make_step(model.backbone, (len(model.backbone.stages) - 2,))
    with progress.bar(title, len(examples)) as bar:
        return outputs(step, layout.put(model.params), examples, c.train.eval_batch_size, c.data.threads, bar.update,
                       layout)  # fmt: skip
