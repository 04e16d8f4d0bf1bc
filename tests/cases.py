"""Tiny networks of every family with every strategy: parameters, a batch, a train step. Shared by the tests."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from tljax import models, trees
from tljax.config import OptimConfig
from tljax.train import optim, state, step
from tljax.transfer import freeze

# 800 words: a batch of 4 or 8 x 8 tokens reads few of them, so the gradient of the word table comes as rows.
# 64 wide: XLA unrolls the products of narrower networks, and takes 20 s instead of 8 to compile a step.
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "vocab_size": 800, "hidden_size": 64, "num_hidden_layers": 3,
             "intermediate_size": 128, "num_attention_heads": 4, "max_position_embeddings": 24},
    "vit": {"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128,
            "num_attention_heads": 4, "image_size": 16, "patch_size": 4, "hidden_dropout_prob": 0.1},
}  # fmt: skip
STRATEGIES: dict[str, dict[str, Any]] = {
    "feature_extraction": {},
    "full": {"layer_decay": 0.7, "head_factor": 3.0},
    "last_k": {"k": 2},
    "bitfit": {},
    "norms": {},
    "embeddings_frozen": {},
    "scratch": {},
    "custom": {"rules": ((".*/layer/1/.*", "body"), ("classifier/.*", "head"), (".*", "frozen"))},
}
CLASSES = 5


@dataclasses.dataclass
class Case:
    """A family with a strategy, ready to train."""

    name: str
    backbone: models.Backbone
    params: trees.Tree
    plan: freeze.FreezePlan
    optim: OptimConfig

    def optimizer(self) -> optax.GradientTransformation:
        return optim.make(self.optim, self.plan, 10)

    def state(self) -> state.TrainState:
        return state.create(self.params, self.plan, self.optimizer(), jax.random.key(7))

    def step(self, **options: Any) -> step.TrainStep:
        return step.make_train_step(
            self.backbone, self.plan, self.optimizer(), optim.schedule(self.optim, 10), **options
        )


def batch_of(family: str, rows: int, seed: int = 0, length: int = 8) -> dict[str, Any]:
    """A full batch of random examples, with token masks of different lengths for text."""
    rng = np.random.default_rng(seed)
    if family == "bert":
        lengths = rng.integers(2, length + 1, rows)
        mask = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
        inputs = {"input_ids": rng.integers(1, 60, (rows, length)).astype(np.int32) * mask, "attention_mask": mask}
    else:
        inputs = {"pixel_values": rng.normal(size=(rows, 16, 16, 3)).astype(np.float32)}
    labels = rng.integers(0, CLASSES, rows).astype(np.int32)
    return {"inputs": inputs, "labels": labels, "weights": np.ones(rows, np.float32)}


def make_case(family: str, strategy: str, dropout: float | None = None, **settings: Any) -> Case:
    backbone = models.build(CONFIGS[family], num_labels=CLASSES, dropout=dropout)
    rng = np.random.default_rng(1)
    params = {path: jax.numpy.asarray(rng.normal(0, 0.1, leaf.shape) + path.endswith("/scale"), leaf.dtype)
              for path, leaf in backbone.shapes().items()}  # fmt: skip
    plan = freeze.plan(backbone, strategy, **STRATEGIES[strategy])
    chosen = OptimConfig(**{"learning_rate": 0.01, "weight_decay": 0.1, "warmup_fraction": 0.0, **settings})
    return Case(f"{family}-{strategy}", backbone, trees.unflatten(params), plan, chosen)
