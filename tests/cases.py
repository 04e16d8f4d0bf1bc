"""Tiny networks of every family with every strategy: parameters, a batch, a train step. Shared by the tests."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tljax import models, trees
from tljax.config import OptimConfig
from tljax.train import objectives, optim, state, step
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
WORDS = 60
# What is learned besides the class of an example, over a network of each kind: the rows of the laws beside CONFIGS.
EVENT_FIELDS = [["amount", 20, True], ["shop", 300, False]]
EVENTS = {"model_type": "tljax_events", "n_embd": 64, "n_head": 4, "n_layer": 3, "n_inner": 128, "n_positions": 24,
          "fields": EVENT_FIELDS, "foretold": ["amount", "shop"], "item": "shop"}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "events-each": {**EVENTS, "answers": "each"},
    "events-next": {**EVENTS, "answers": "next"},
    "events-item": {**EVENTS, "answers": "item"},
    "bert-masked": CONFIGS["bert"],
}
OBJECTIVES: dict[str, objectives.Objective] = {
    "events-next": objectives.Prediction((20, 300)),
    "events-item": objectives.Ranking(),
    "bert-masked": objectives.Prediction((CONFIGS["bert"]["vocab_size"],)),
}
EVENT_RULES = ((".*/h/1/.*", "body"), ("(score|next|item_head)/.*", "head"), (".*", "frozen"))
RULES = {name: EVENT_RULES for name in OTHERS if name.startswith("events")}
RULES["bert-masked"] = ((".*/layer/1/.*", "body"), ("cls/.*", "head"), (".*", "frozen"))


def options_of(family: str, strategy: str) -> dict[str, Any]:
    """Of a strategy, for a family."""
    custom = strategy == "custom" and family in RULES
    return {"rules": RULES[family]} if custom else STRATEGIES[strategy]


@dataclasses.dataclass
class Case:
    """A family with a strategy, ready to train."""

    name: str
    backbone: models.Backbone
    params: trees.Tree
    plan: freeze.FreezePlan
    optim: OptimConfig
    objective: objectives.Objective = objectives.CLASSIFICATION

    @property
    def family(self) -> str:
        return self.name.rpartition("-")[0]

    def loss(self, params: trees.Tree, batch: dict[str, Any]) -> jax.Array:
        """The mean loss of a batch in eval mode, of nested parameters."""
        x = self.backbone.run(params, batch["inputs"])
        return self.objective.loss(x, batch, jnp.int32(0)) / batch["weights"].sum()

    def optimizer(self) -> optax.GradientTransformation:
        return optim.make(self.optim, self.plan, 10)

    def state(self) -> state.TrainState:
        return state.create(self.params, self.plan, self.optimizer(), jax.random.key(7))

    def step(self, **options: Any) -> step.TrainStep:
        return step.make_train_step(
            self.backbone,
            self.plan,
            self.optimizer(),
            optim.schedule(self.optim, 10),
            **{"objective": self.objective, **options},
        )


def batch_of(family: str, rows: int, seed: int = 0, length: int = 8) -> dict[str, Any]:
    """A full batch of random examples, with token masks of different lengths for text."""
    rng = np.random.default_rng(seed)
    if family in OTHERS:
        return _other(family, rows, length, rng)
    if family == "bert":
        lengths = rng.integers(2, length + 1, rows)
        mask = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
        inputs = {"input_ids": rng.integers(1, 60, (rows, length)).astype(np.int32) * mask, "attention_mask": mask}
    else:
        inputs = {"pixel_values": rng.normal(size=(rows, 16, 16, 3)).astype(np.float32)}
    labels = rng.integers(0, CLASSES, rows).astype(np.int32)
    return {"inputs": inputs, "labels": labels, "weights": np.ones(rows, np.float32)}


def _other(family: str, rows: int, length: int, rng: np.random.Generator) -> dict[str, Any]:
    """As `batch_of`: answers at places of a row, and places that nothing is asked of."""
    lengths = rng.integers(2, length + 1, rows)
    mask = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
    if family == "bert-masked":
        inputs = {"input_ids": rng.integers(1, WORDS, (rows, length)).astype(np.int32) * mask, "attention_mask": mask,
                  "predicted": rng.integers(0, 2, (rows, 3)).astype(np.int32)}  # fmt: skip
        labels = rng.integers(1, WORDS, (rows, 3, 1)).astype(np.int32)
        return {"inputs": inputs, "labels": labels, "weights": rng.integers(0, 2, (rows, 3)).astype(np.float32)}
    ids = {name: rng.integers(2, size, (rows, length)).astype(np.int32) * mask for name, size, _ in EVENT_FIELDS}
    inputs = {**ids, "amount.number": rng.normal(size=(rows, length)).astype(np.float32) * mask,
              "attention_mask": mask}  # fmt: skip
    labels = {
        "events-each": rng.integers(0, CLASSES, (rows, length)),
        "events-next": np.stack([rng.integers(2, size, (rows, length)) for _, size, _ in EVENT_FIELDS], -1),
        "events-item": rng.integers(2, 300, (rows, length)),
    }[family]
    return {"inputs": inputs, "labels": labels.astype(np.int32),
            "weights": (mask * rng.integers(0, 2, mask.shape)).astype(np.float32)}  # fmt: skip


def make_case(family: str, strategy: str, dropout: float | None = None, **settings: Any) -> Case:
    labels = 0 if family in OBJECTIVES else CLASSES
    backbone = models.build({**CONFIGS, **OTHERS}[family], num_labels=labels, dropout=dropout)
    rng = np.random.default_rng(1)
    params = {path: jax.numpy.asarray(rng.normal(0, 0.1, leaf.shape) + path.endswith("/scale"), leaf.dtype)
              for path, leaf in backbone.shapes().items()}  # fmt: skip
    plan = freeze.plan(backbone, strategy, **options_of(family, strategy))
    chosen = OptimConfig(**{"learning_rate": 0.01, "weight_decay": 0.1, "warmup_fraction": 0.0, **settings})
    objective = OBJECTIVES.get(family, objectives.CLASSIFICATION)
    return Case(f"{family}-{strategy}", backbone, trees.unflatten(params), plan, chosen, objective)
