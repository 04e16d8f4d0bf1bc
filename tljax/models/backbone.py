"""The contract of every network: stages from bottom to top, `run(start, stop)`, `stage_of(path)`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from tljax import trees
from tljax.models import pairs, remat

Activations = dict[str, jax.Array]  # what flows between two stages; a batch of inputs below the first


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a whole network returns: `logits` (B, C) and `last_hidden_state` (B, T, D)."""

    logits: jax.Array
    last_hidden_state: jax.Array


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step from bottom to top.

    Attributes:
      name: of the stage.
      path: where its parameters live; or, where they live in several places, (name in the module, path) of each.
      module: maps activations to activations.
      reads: (name in the module, path) of what other stages own: a tied embedding.
    """

    name: str
    path: str | tuple[tuple[str, str], ...]
    module: nn.Module
    reads: tuple[tuple[str, str], ...] = ()

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        return (("", self.path),) if isinstance(self.path, str) else self.path

    def owns(self, path: str) -> bool:
        return any(path == place or path.startswith(f"{place}/") for _, place in self.places)

    def params(self, params: Mapping[str, Any]) -> trees.Tree:
        """What the module calls its parameters, out of those of the whole network."""
        if isinstance(self.path, str) and not self.reads:
            return trees.subtree(params, self.path)
        own = {name: trees.subtree(params, path) for name, path in (*self.places, *self.reads)}
        return {**own.pop("", {}), **trees.unflatten(own)}

    def named(self, own: Mapping[str, Any]) -> trees.Flat:
        """The inverse of `params`: path in the network -> leaf."""
        if isinstance(self.path, str):
            read = {name.partition("/")[0] for name, _ in self.reads}
            return trees.flatten({name: leaf for name, leaf in own.items() if name not in read}, f"{self.path}/")
        return trees.flatten({path: trees.subtree(own, name) for name, path in self.path})


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network as a list of stages; the last one is the head.

    Everything above this module (freezing, layer-wise rates, caching) speaks of stages alone. A stage needs none of the
    activations that no logit depends on: where it starts from a cache they are missing. A network of one's own joins by
    giving stages, or any hashable object with the same `stages`, `run` and `stage_of` (`lookups` and `packs` may be
    missing there, and `run_moving` without batch statistics); equal ones share what is compiled.

    Attributes:
      stages: bottom to top, e.g. embeddings, layer_0, …, layer_11, pooler, head.
      example: batch size -> shapes of a smallest batch, from which parameter shapes are inferred.
      remat: whether training keeps no more of a stage than what goes in, and computes the rest again on the way back.
      lookups: (path of a table, name of the input whose ids read its rows). Only for a table that nothing else
        reads: the train step then differentiates the rows (rows.py).
      packs: whether a row may hold several texts: `position_ids` (B, T) then say where in its text each token stands,
        and `attention_mask` (B, T, T) which tokens it may see. All stages but the upper two map tokens to tokens.
      gather: the jax.sharding.Sharding that a stage's parameters are brought to where it reads them, and again on the
        way back, so that no more than one stage is whole at a time; None: they lie as they are read.
    """

    stages: tuple[Stage, ...]
    example: Callable[[], dict[str, jax.ShapeDtypeStruct]] = dataclasses.field(compare=False)
    lookups: tuple[tuple[str, str], ...] = ()
    remat: bool = False
    packs: bool = False
    gather: jax.sharding.Sharding | None = None

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)

    def run(self, params: Mapping[str, Any], x: Activations, start: int = 0, stop: int | None = None,
            train: bool = False, key: jax.Array | None = None) -> Activations:  # fmt: skip
        """Runs stages start..stop (exclusive) on the activations that stage `start` takes.

        Args:
          params: the nested parameter dict; only the subtrees of the stages that run are read.
          x: a batch of inputs (start = 0), or what `run(..., stop=start)` returned; or of pairs (pairs.py).
          start, stop: stage numbers; stop = None runs through the head.
          train: whether dropout is on; `key` is then needed. Each stage folds its number into the key, so
            that what a stage draws does not depend on which stages run before it.
        """
        return self._through(params, x, start, stop, train, key, {})[0]

    def run_moving(self, params: Mapping[str, Any], x: Activations, start: int, key: jax.Array,
                   stats: trees.Flat) -> tuple[Activations, trees.Flat]:  # fmt: skip
        """Runs stages start to head in training, and moves running statistics towards those of the batch.

        Args:
          params: as for `run`, with all statistics; those that are not in `stats` stay, and normalise.
          stats: path -> the statistics that move.
        """
        return self._through(params, x, start, None, True, key, stats)

    def _through(self, params: Mapping[str, Any], x: Activations, start: int, stop: int | None, train: bool,
                 key: jax.Array | None, stats: trees.Flat) -> tuple[Activations, trees.Flat]:  # fmt: skip
        end = len(self.stages) if stop is None else stop
        once = functools.partial(self._once, params, train)
        if pairs.are(x):
            return pairs.through(once, x, start, end, len(self.stages) - 1, key, stats)
        return once(x, start, end, key, stats)

    def _once(self, params: Mapping[str, Any], train: bool, x: Activations, start: int, stop: int,
              key: jax.Array | None, stats: trees.Flat) -> tuple[Activations, trees.Flat]:  # fmt: skip
        """Stages on the activations of one domain."""
        run = _applied if not train else _recomputed if self.remat else _differentiated
        # Unrolled: equal stages are traced once, and a scan over stacked layers is better at nothing. BERT-base, full
        # fine-tuning, 8 x 128 tokens on a CPU: compiled in 3.3 s (scanned 3.9), a step in 3.4 s (4.4), temporaries of
        # 1.0 GB (2.0), because the scan stacks parameters and keeps residuals of all (benchmarks/scan_layers.py).
        for index in range(start, stop):
            stage = self.stages[index]
            drawn = jax.random.fold_in(key, index) if train and key is not None else None
            own, _ = trees.partition(stats, stage.owns)
            with jax.named_scope(stage.name):
                called = stage.params(trees.unflatten(own)) if own else {}
                x, moved = run(stage.module, stage.params(params), x, train, drawn, called, self.gather)
            stats = stats | stage.named(moved)
        return x, stats

    def stage_of(self, path: str) -> str:
        """The name of the stage that owns the parameter "a/b/c"; ValueError where none does."""
        for stage in self.stages:
            if stage.owns(path):
                return stage.name
        places = [path for stage in self.stages for _, path in stage.places]
        raise ValueError(f"{path}: no stage owns this parameter; stages live at {places}")

    def index(self, name: str) -> int:
        """The number of a stage, counted from the bottom."""
        return self.stage_names.index(name)

    def shapes(self) -> trees.Flat:
        """Path -> shape and dtype of every parameter, without allocating any."""
        return {path: leaf for _, leaves in self.abstract() for path, leaf in leaves.items()}

    def init(self, key: jax.Array, only: Callable[[str], bool] = lambda path: True) -> trees.Flat:
        """Random parameters, path -> array; with `only`, of no other paths (a new head costs a head)."""
        flat: trees.Flat = {}
        for index, (x, leaves) in enumerate(self.abstract()):
            wanted = [path for path in leaves if only(path)]
            if not wanted:
                continue
            stage = self.stages[index]
            blank = {name: jax.numpy.zeros(s.shape, s.dtype) for name, s in x.items()}
            made = _initial(stage.module, jax.random.fold_in(key, index), blank)
            named = stage.named(made)
            flat |= {path: named[path] for path in wanted}
        return flat

    def abstract(self, collection: str = "params") -> list[tuple[dict[str, Any], trees.Flat]]:
        """For each stage: the shapes that it takes, and path -> shape of its parameters, or of another collection."""
        x: Any = self.example()
        result = []
        for stage in self.stages:
            out, variables = _abstract(stage.module, tuple(sorted(x.items())))
            result.append((dict(x), stage.named(variables.get(collection, {}))))
            x = out
        return result


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A family of networks.

    Attributes:
      build: (fields of config.json, labels, pooling, dtype of the activations) -> the network. Without labels (0) the
        head of a decoder gives the next token, and that of an encoder the hidden ones.
      defaults: the fields that are computed with, and transformers' values where a config.json leaves them out.
      dropouts: the fields that are rates of dropout.
      decoder, masked: whether it can give the next token, or tokens that are hidden.
      causal: whether a token sees those before it alone, in a family that is no decoder of words.
      positions: the field that bounds the tokens of a text; "" where nothing does.
      reserved: fields -> how many of those positions no token takes.
    """

    build: Callable[[Mapping[str, Any], int, str, Any], Backbone]
    defaults: Mapping[str, Any]
    dropouts: tuple[str, ...]
    decoder: bool = False
    positions: str = "max_position_embeddings"
    reserved: Callable[[Mapping[str, Any]], int] = lambda fields: 0
    masked: bool = False
    causal: bool = False


@functools.partial(jax.jit, static_argnums=(0, 3, 6))
def _applied(module: nn.Module, params: Mapping[str, Any], x: Activations, train: bool, key: jax.Array | None,
             stats: Mapping[str, Any],
             gather: jax.sharding.Sharding | None) -> tuple[Activations, Mapping[str, Any]]:  # fmt: skip
    """One stage, and the statistics that it moved; equal stages are traced and lowered once."""
    if gather is not None:
        params = jax.lax.with_sharding_constraint(params, gather)
    rngs = None if key is None else {"dropout": key}
    if not stats:
        return module.apply({"params": params}, x, train, rngs=rngs), {}
    out, moved = module.apply({"params": params, "batch_stats": stats}, x, train, rngs=rngs, mutable="batch_stats")
    return out, moved["batch_stats"]


# Without a rule XLA keeps what it comes upon, so that the queries of a layer stay in two layouts and its activation
# function before and after: LoRA on BERT-base, 8 x 128 tokens on a CPU, has temporaries of 848 MB, and 700 with it.
_differentiated = jax.checkpoint(_applied, static_argnums=(0, 3, 6), policy=remat.is_product)
_recomputed = jax.checkpoint(_applied, static_argnums=(0, 3, 6))


@functools.lru_cache(maxsize=256)
def _abstract(module: nn.Module, given: tuple[tuple[str, Any], ...]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Shapes of what a module gives and of its variables by collection; equal stages are traced once."""
    key = jax.ShapeDtypeStruct((2,), "uint32")
    return jax.eval_shape(lambda key, x: module.init_with_output(key, x, False), key, dict(given))


@functools.partial(jax.jit, static_argnums=0)
def _initial(module: nn.Module, key: jax.Array, x: Activations) -> dict[str, Any]:
    """Random parameters of one stage; compiled once for equal stages, and without the forward pass."""
    return module.init(key, x, False).get("params", {})


def apply(backbone: Backbone, params: Mapping[str, Any], batch: Activations, train: bool = False,
          key: jax.Array | None = None) -> Output:  # fmt: skip
    """Runs the whole network: a batch of inputs -> Output."""
    x = backbone.run(params, batch, train=train, key=key)
    return Output(x["logits"], x["last_hidden_state"])
