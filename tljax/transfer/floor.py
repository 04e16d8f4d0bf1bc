"""The floor under a train step: the products that no way of computing it can leave out.

Counted are the matrix products and convolutions of the forward pass. Each costs its FLOPs (two for a multiplication
and an addition) once forward, and once more for each operand that needs a gradient: one that depends on a parameter
that trains, directly (a weight) or through activations (an input). The two products of an attention have activations
on both sides, and cost two backward each. What lies below the lowest trainable parameter, or on no way by which a
gradient comes down from the logits, costs nothing backward. Lookups and elementwise work are no products and cost 0.

`theoretical` is the rule of thumb that this refines: L equal layers of which k are frozen cost 3 L - 2 k. It charges
the lowest layer that trains for a gradient to its input, which nobody needs, and knows nothing of strategies that train
a little in every layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax import trees
from tljax.errors import ConfigError
from tljax.models import Backbone
from tljax.transfer.freeze import FreezePlan
from tljax.transfer.products import Graph


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of the products of a step."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.backward


@dataclasses.dataclass(frozen=True)
class Floor:
    """The least work of a step, by stage (bottom to top) and in all."""

    stages: dict[str, Work]

    @property
    def forward(self) -> int:
        return sum(work.forward for work in self.stages.values())

    @property
    def backward(self) -> int:
        return sum(work.backward for work in self.stages.values())

    @property
    def total(self) -> int:
        return self.forward + self.backward


def floor(backbone: Backbone, plan: FreezePlan, inputs: Mapping[str, Any], start: int = 0) -> Floor:
    """Counts the least work of one train step, forward and backward; nothing is computed or allocated.

    A product counts as the network writes it: where several weights are joined for one product, as an attention's
    query, key and value are, and one of them trains, the gradient of all is counted.

    Args:
      backbone: a network (models/backbone.py); its `shapes()` and `run(params, x, start, stop)` are used.
      plan: which parameters train.
      inputs: arrays or jax.ShapeDtypeStruct, as stage `start` takes them: a batch where it is 0, else activations.
      start: the lowest stage that runs; above 0 where a step begins from cached activations.

    Raises:
      ConfigError: a parameter below `start` trains; products where they cannot be counted (`Graph.follow`).
    """
    if start > plan.lowest:
        names = backbone.stage_names
        raise ConfigError("the floor", f"activations of stage {names[start]} and parameters of {names[plan.lowest]} "
                          "that train", f"a start of at most {plan.lowest}")  # fmt: skip
    graph, shapes = Graph(), dict(backbone.shapes())
    # One value for each parameter in all stages: a tied table is the same above as below.
    own = {path: graph.values(len(jax.tree.leaves(leaf))) for path, leaf in sorted(shapes.items())}
    x = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in inputs.items()}
    values = dict(zip(sorted(x), graph.values(len(x)), strict=True))
    for index in range(start, len(backbone.stage_names)):

        def stage(params: trees.Flat, x: Any, index: int = index) -> Any:
            return backbone.run(trees.unflatten(params), x, index, index + 1)

        # In float32 whatever the activations are: the FLOPs are the same, and no attention hides in cuDNN's.
        x = {name: jax.ShapeDtypeStruct(leaf.shape, _widest(leaf.dtype)) for name, leaf in x.items()}
        jaxpr, x = jax.make_jaxpr(stage, return_shape=True)(shapes, x)
        taken = [value for path in sorted(shapes) for value in own[path]] + [values[name] for name in sorted(values)]
        given = graph.follow(jaxpr.jaxpr, taken, backbone.stage_names[index])
        values = dict(zip(sorted(x), given, strict=True))
    trained = graph.after(value for path, leaves in own.items() if plan.trains(path) for value in leaves)
    computed = graph.before([values["logits"]], smooth=False)
    differentiated = graph.before([values["logits"]], smooth=True)
    work = {name: Work() for name in backbone.stage_names[start:]}
    for product in graph.products:
        if product.out not in computed:
            continue
        gradients = len([v for v in product.operands if v in trained]) if product.out in differentiated else 0
        so_far = work[product.tag]
        work[product.tag] = Work(so_far.forward + product.flops, so_far.backward + gradients * product.flops)
    return Floor(work)


def theoretical(layers: int, frozen: int, cached: bool = False) -> int:
    """What a step costs in forward passes of a layer, by the rule of thumb: 3 L - 2 k, or 3 (L - k) where `cached`.

    Args:
      layers: how many equal layers there are (L).
      frozen: how many of them, from the bottom, are frozen with all below them (k).
      cached: whether the output of the frozen ones is read instead of computed.

    >>> [theoretical(12, k) for k in (0, 6, 11, 12)], theoretical(12, 11, cached=True)
    ([36, 24, 14, 12], 3)
    """
    return 3 * (layers - frozen) if cached else 3 * layers - 2 * frozen


def _widest(dtype: Any) -> Any:
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
