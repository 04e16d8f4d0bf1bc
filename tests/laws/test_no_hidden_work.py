"""Law 10: what a step is compiled to is at most 5 % above the least work, and frozen parameters own no byte.

Programs are compiled for shapes alone; none runs and nothing is allocated, so the networks are as wide as real ones,
where elementwise work is small against products. Dropout is off: its random bits are elementwise work too.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tljax import models, trees
from tljax.config import OptimConfig
from tljax.models.adapters import KINDS, Adapter
from tljax.models.rows import Rows, capacity
from tljax.train import cost, optim, state, step
from tljax.transfer import adapters, freeze
from tljax.transfer.floor import Floor, floor

TOLERANCE = 0.05
ROWS, TOKENS, PIXELS, CLASSES = 16, 128, 128, 64
WIDE = {"hidden_size": 768, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 3072}
CONFIGS: dict[str, dict[str, Any]] = {  # transformers' base sizes, with 3 layers
    "bert": {"model_type": "bert", **WIDE},
    "vit": {"model_type": "vit", "image_size": PIXELS, **WIDE},
    "resnet": {"model_type": "resnet", "image_size": PIXELS, "depths": [1, 1, 1], "hidden_sizes": [256, 512, 1024]},
    "gpt2": {"model_type": "gpt2", "n_layer": 3, "n_embd": 768, "n_head": 12},
}
MIDDLE = {"bert": ".*/layer/1/.*", "vit": ".*/layer/1/.*", "resnet": ".*/stages/1/.*", "gpt2": ".*/h/1/.*"}
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "feature_extraction": ("feature_extraction", {}),
    "full": ("full", {}),
    "last_1": ("last_k", {"k": 1}),
    "last_2": ("last_k", {"k": 2}),
    "bitfit": ("bitfit", {}),
    "norms": ("norms", {}),
    "embeddings_frozen": ("embeddings_frozen", {}),
    "scratch": ("scratch", {}),
    "custom": ("custom", {}),  # the middle layer and the head
    "surgical": ("surgical", {"stages": ("layer_1",)}),  # the same in other words
    "lora": ("lora", {}),
}
shape = jax.ShapeDtypeStruct


@functools.cache
def backbone_of(family: str, strategy: str = "") -> models.Backbone:
    """The network, with adapters where the strategy is of their kind."""
    plain = models.build(CONFIGS[family], num_labels=CLASSES, dropout=0.0)
    return adapters.adapted(plain, Adapter(strategy), family) if strategy in KINDS else plain


@functools.cache
def plan_of(family: str, strategy: str) -> freeze.FreezePlan:
    backbone, (name, options) = backbone_of(family, strategy), STRATEGIES[strategy]
    if name == "custom":
        head = f"{backbone.stages[-1].path}/.*"
        options = {"rules": ((MIDDLE[family], "body"), (head, "head"), (".*", "frozen"))}
    return freeze.plan(backbone, name, **options)


def inputs_of(family: str, backbone: models.Backbone, start: int) -> dict[str, Any]:
    """A batch, or the activations of it that stage `start` takes, in shapes."""
    pixels = {"pixel_values": shape((ROWS, PIXELS, PIXELS, 3), jnp.float32)}
    text = {name: shape((ROWS, TOKENS), jnp.int32) for name in ("input_ids", "attention_mask")}
    inputs = pixels if family in ("vit", "resnet") else text
    if not start:
        return inputs
    return jax.eval_shape(lambda p, x: backbone.run(trees.unflatten(p), x, 0, start), backbone.shapes(), inputs)


@dataclasses.dataclass(frozen=True)
class Case:
    """A step in shapes, its program, and the floor."""

    plan: freeze.FreezePlan
    shapes: trees.Flat
    now: state.TrainState
    gradients: trees.Flat
    program: jax.stages.Compiled
    floor: Floor

    @property
    def flops(self) -> float:
        return cost.cost(self.program).flops


def make_case(family: str, strategy: str, start: int = 0) -> Case:
    """Strategies that train the same parameters have the same program: it is compiled once."""
    labels = plan_of(family, strategy).labels
    return _made(family, next(twin for twin in STRATEGIES if plan_of(family, twin).labels == labels), start)


@functools.cache
def _made(family: str, strategy: str, start: int) -> Case:
    backbone, plan, config = backbone_of(family, strategy), plan_of(family, strategy), OptimConfig()
    optimizer = optim.make(config, plan, 10)
    made = step.make_train_step(backbone, plan, optimizer, optim.schedule(config, 10), start=start)
    now = jax.eval_shape(
        lambda p: state.create(trees.unflatten(p), plan, optimizer, jax.random.key(0)), backbone.shapes()
    )
    inputs = inputs_of(family, backbone, start)
    batch = {"inputs": inputs, "labels": shape((ROWS,), jnp.int32), "weights": shape((ROWS,), jnp.float32)}
    program = cost.compiled(made, now, batch)
    gradients = program.out_info[0]
    return Case(plan, backbone.shapes(), now, gradients, program, floor(backbone, plan, inputs, start))


CASES = [
    pytest.param(family, strategy, start, id=f"{family}-{strategy}-{'cached' if start else 'whole'}")
    for family in CONFIGS
    for strategy in STRATEGIES
    for start in sorted({0, plan_of(family, strategy).lowest})
]


@pytest.mark.parametrize(("family", "strategy", "start"), CASES)
def test_flops_within_5_percent_of_the_floor(family, strategy, start):
    case = make_case(family, strategy, start)
    assert case.floor.total <= case.flops <= (1 + TOLERANCE) * case.floor.total


@pytest.mark.parametrize(("family", "strategy", "start"), CASES)
def test_gradients_and_moments_are_of_trainables_alone(family, strategy, start):
    """To the byte. A table of words comes as the rows that a batch reads, a fixed number of them (models/rows.py)."""
    case = make_case(family, strategy, start)
    trainable = {path: leaf for path, leaf in case.shapes.items() if case.plan.trains(path)}
    assert set(case.gradients) == set(trainable)
    for path, leaf in trainable.items():
        gradient = case.gradients[path]
        if isinstance(gradient, Rows):
            rows, width = leaf.shape
            assert (gradient.values.shape, gradient.place.shape) == ((capacity(rows), width), (rows,))
        else:
            assert (gradient.shape, gradient.dtype) == (leaf.shape, jnp.float32)
    moments = [leaf for leaf in jax.tree.leaves(case.now.opt_state) if leaf.shape]
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in moments) == 2 * trees.nbytes(trainable)  # AdamW's two
    others = jax.tree.leaves(case.program.out_info[1:])
    returned = sum(leaf.size * leaf.dtype.itemsize for leaf in (*jax.tree.leaves(case.gradients), *others))
    pointers = 8 * len(jax.tree.leaves(case.program.out_info))  # the table of what is returned
    assert cost.cost(case.program).output_bytes == returned + pointers


@pytest.mark.parametrize("family", CONFIGS)
def test_a_gradient_of_everything_breaks_this_law(family):
    """As if frozen gradients were taken, their norm logged, and then thrown away: the program of `full`."""
    wasteful = make_case(family, "full").flops
    for strategy in ("feature_extraction", "last_1", "last_2", "bitfit", "norms", "custom"):
        assert wasteful > (1 + TOLERANCE) * make_case(family, strategy).floor.total


def test_running_what_is_cached_breaks_this_law():
    for family in CONFIGS:
        for strategy in ("feature_extraction", "last_1", "last_2"):
            case = make_case(family, strategy, plan_of(family, strategy).lowest)
            assert make_case(family, strategy).flops > (1 + TOLERANCE) * case.floor.total
