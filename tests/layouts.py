"""Networks with strategies, and batches for them, to be trained on any layout of devices: the cases of law 6."""

import dataclasses
import os

import jax
import numpy as np
from cases import CLASSES, OBJECTIVES, batch_of, make_case

from tljax import mesh, models, trees
from tljax.config import OptimConfig
from tljax.models import paired
from tljax.models.adapters import Adapter
from tljax.train import objectives, optim, state, step
from tljax.transfer import adapters, freeze

EVERY = os.environ.get("TLJAX_EVERY_LAYOUT") == "1"  # the whole grid, which takes 20 minutes; else what differs in kind
STEPS, ROWS = 20, 16
RESNET = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "depths": [1, 1], "hidden_sizes": [8, 16]}
SGD = OptimConfig(name="sgd", learning_rate=0.02, warmup_fraction=0.0, weight_decay=0.1)
SLOW = dataclasses.replace(SGD, learning_rate=0.002)  # rounding grows in kinks of ReLU, divided by small deviations


@dataclasses.dataclass(frozen=True)
class Setup:
    """A network with a strategy, as `make_train_step` takes it."""

    network: models.Backbone
    params: trees.Tree
    plan: freeze.FreezePlan
    optim: OptimConfig
    objective: objectives.Objective = objectives.CLASSIFICATION

    def run(self, layout: mesh.Layout, batches: list, accumulate: int = 1) -> tuple[np.ndarray, trees.Flat]:
        """The losses of steps on batches, and what trained."""
        network = self.network
        if layout.mode == "fsdp" and layout.divided:
            network = dataclasses.replace(network, gather=layout.everywhere)
        optimizer, held = optim.make(self.optim, self.plan, STEPS), layout.held(ROWS, accumulate)
        taken = step.make_train_step(network, self.plan, optimizer, optim.schedule(self.optim, STEPS), layout=layout,
                                     accumulate=accumulate, objective=self.objective)  # fmt: skip
        now = layout.put(state.create(self.params, self.plan, optimizer, jax.random.key(7)))
        losses = []
        for batch in batches:
            own = batch if held is None else jax.tree.map(lambda a: a[held], batch)
            now, metrics = taken(now, layout.send(own, training=True))
            losses.append(float(metrics["loss"]))
        return np.array(losses), mesh.fetch(now.trainable | now.batch_stats)


def setup(family: str, strategy: str) -> Setup:
    objective: objectives.Objective = OBJECTIVES.get(family, objectives.CLASSIFICATION)
    if family in ("resnet", "dann"):
        network = models.build(RESNET, num_labels=CLASSES, dropout=0.0)
        if family == "dann":
            network, objective = paired.paired(network, "dann", 16), objectives.Adaptation("dann", 1.0, STEPS)
        flat = network.init(jax.random.key(1))
    else:
        case = make_case(family, "full", dropout=0.0)
        network, flat = case.backbone, trees.flatten(case.params)
    if strategy == "lora":
        network = adapters.adapted(network, Adapter("lora", rank=4), family)
        flat = trees.flatten(adapters.start(network, trees.unflatten(flat), jax.random.key(2)))
    plan = freeze.plan(network, strategy, **({"k": 1} if strategy == "last_k" else {}))
    slow = family in ("resnet", "dann")
    return Setup(network, trees.unflatten(flat), plan, SLOW if slow else SGD, objective)


def batches(family: str, seed: int = 0) -> list:
    """Batches with rows that are padding, unequally among devices."""
    made: list = []
    for i in range(STEPS):
        if family in ("resnet", "dann"):
            rng = np.random.default_rng([seed, i])
            names = ("pixel_values", "target/pixel_values")[: 1 + (family == "dann")]
            batch = {
                "inputs": {name: rng.normal(size=(ROWS, 32, 32, 3)).astype(np.float32) for name in names},
                "labels": rng.integers(0, CLASSES, ROWS).astype(np.int32),
                "weights": np.ones(ROWS, np.float32),
            }
        else:
            batch = batch_of(family, ROWS, seed=100 * seed + i)
        batch["weights"][[1, 2, 3, 13]] = 0.0
        made.append(batch)
    return made  # fmt: skip
