"""The contract of every network: stages from bottom to top, `run(start, stop)`, `stage_of(path)`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from tljax import trees

Activations = dict[str, jax.Array]  # what flows between two stages; a batch of inputs below the first


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a whole network returns: `logits` (B, C) and `last_hidden_state` (B, T, D)."""

    logits: jax.Array
    last_hidden_state: jax.Array


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step from bottom to top: its name, where its parameters live, and the module that maps activations."""

    name: str
    path: str
    module: nn.Module


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network as a list of stages; the last one is the head.

    Everything above this module (freezing, layer-wise rates, caching) speaks of stages alone. A network of
    one's own joins by giving stages, or any hashable object with the same `stages`, `run` and `stage_of`
    (`lookups` may be missing there); equal ones share what is compiled.

    Attributes:
      stages: bottom to top, e.g. embeddings, layer_0, …, layer_11, pooler, head.
      example: batch size -> shapes of a smallest batch, from which parameter shapes are inferred.
      lookups: (path of a table, name of the input whose ids read its rows). Only for a table that nothing else
        reads: the train step then differentiates the rows (rows.py).
    """

    stages: tuple[Stage, ...]
    example: Callable[[], dict[str, jax.ShapeDtypeStruct]] = dataclasses.field(compare=False)
    lookups: tuple[tuple[str, str], ...] = ()

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)

    def run(self, params: Mapping[str, Any], x: Activations, start: int = 0, stop: int | None = None,
            train: bool = False, key: jax.Array | None = None) -> Activations:  # fmt: skip
        """Runs stages start..stop (exclusive) on the activations that stage `start` takes.

        Args:
          params: the nested parameter dict; only the subtrees of the stages that run are read.
          x: a batch of inputs (start = 0), or what `run(..., stop=start)` returned.
          start, stop: stage numbers; stop = None runs through the head.
          train: whether dropout is on; `key` is then needed. Each stage folds its number into the key, so
            that what a stage draws does not depend on which stages run before it.
        """
        for index in range(start, len(self.stages) if stop is None else stop):
            stage = self.stages[index]
            drawn = jax.random.fold_in(key, index) if train and key is not None else None
            with jax.named_scope(stage.name):
                x = _applied(stage.module, trees.subtree(params, stage.path), x, train, drawn)
        return x

    def stage_of(self, path: str) -> str:
        """The name of the stage that owns the parameter "a/b/c"; ValueError where none does."""
        for stage in self.stages:
            if path.startswith(f"{stage.path}/"):
                return stage.name
        raise ValueError(f"{path}: no stage owns this parameter; stages live at {[s.path for s in self.stages]}")

    def index(self, name: str) -> int:
        """The number of a stage, counted from the bottom."""
        return self.stage_names.index(name)

    def shapes(self) -> trees.Flat:
        """Path -> shape and dtype of every parameter, without allocating any."""
        return {path: leaf for _, leaves in self._abstract() for path, leaf in leaves.items()}

    def init(self, key: jax.Array, only: Callable[[str], bool] = lambda path: True) -> trees.Flat:
        """Random parameters, path -> array; with `only`, of no other paths (a new head costs a head)."""
        flat: trees.Flat = {}
        for index, (x, leaves) in enumerate(self._abstract()):
            wanted = [path for path in leaves if only(path)]
            if not wanted:
                continue
            stage = self.stages[index]
            blank = {name: jax.numpy.zeros(s.shape, s.dtype) for name, s in x.items()}
            made = _initial(stage.module, jax.random.fold_in(key, index), blank)
            named = trees.flatten(made, f"{stage.path}/")
            flat |= {path: named[path] for path in wanted}
        return flat

    def _abstract(self) -> list[tuple[dict[str, Any], trees.Flat]]:
        """For each stage: the shapes that it takes, and path -> shape of its parameters."""
        x: Any = self.example()
        result = []
        for stage in self.stages:

            def initialise(key: jax.Array, x: Activations, stage: Stage = stage) -> tuple[Activations, Any]:
                return stage.module.init_with_output(key, x, False)

            out, variables = jax.eval_shape(initialise, jax.ShapeDtypeStruct((2,), "uint32"), x)
            result.append((x, trees.flatten(variables.get("params", {}), f"{stage.path}/")))
            x = out
        return result


@functools.partial(jax.jit, static_argnums=(0, 3))
def _applied(module: nn.Module, params: Mapping[str, Any], x: Activations, train: bool,
             key: jax.Array | None) -> Activations:  # fmt: skip
    """One stage; equal stages are traced and lowered once."""
    return module.apply({"params": params}, x, train, rngs=None if key is None else {"dropout": key})


@functools.partial(jax.jit, static_argnums=0)
def _initial(module: nn.Module, key: jax.Array, x: Activations) -> dict[str, Any]:
    """Random parameters of one stage; compiled once for equal stages, and without the forward pass."""
    return module.init(key, x, False).get("params", {})


def apply(backbone: Backbone, params: Mapping[str, Any], batch: Activations, train: bool = False,
          key: jax.Array | None = None) -> Output:  # fmt: skip
    """Runs the whole network: a batch of inputs -> Output."""
    x = backbone.run(params, batch, train=train, key=key)
    return Output(x["logits"], x["last_hidden_state"])
