"""From (path, stage) to a label: `frozen`, or a trainable group with its learning-rate factor."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from tljax import trees
from tljax.config import TransferConfig
from tljax.errors import ConfigError
from tljax.models.adapters import KINDS

FROZEN = "frozen"
MOVING = "moving"  # running statistics of a batch normalisation that trains: no gradient moves them, but batches do
HEAD = "head"
ADAPTER = "adapter"  # a group of its own: no layer decay reaches it
STATISTICS = ("mean", "var")


class Network(Protocol):
    """What freezing needs to know of a network (see models/backbone.py)."""

    @property
    def stage_names(self) -> tuple[str, ...]: ...
    def stage_of(self, path: str) -> str: ...
    def shapes(self) -> trees.Flat: ...


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter sits: `layers_above` counts the numbered layers (layer_0, layer_1, …) over its stage.

    `follows` is, for a running statistic, the scale that decides whether it moves; else "".
    """

    path: str
    stage: str
    layers_above: int
    in_norm: bool
    follows: str = ""


@dataclasses.dataclass(frozen=True)
class FreezePlan:
    """What trains, and how fast.

    Attributes:
      labels: path -> "frozen", "moving" (statistics of a normalisation whose scale trains) or the name of a group,
        for every parameter, sorted.
      factors: group -> factor on the learning rate.
      lowest: number of the lowest stage with a trainable parameter; every stage below runs in eval mode.
    """

    labels: dict[str, str]
    factors: dict[str, float]
    lowest: int

    def trains(self, path: str) -> bool:
        return self.labels[path] not in (FROZEN, MOVING)

    def moves(self, path: str) -> bool:
        """Whether a path is that of running statistics that training moves."""
        return self.labels[path] == MOVING


def _head(place: Place, k: int) -> bool:
    return place.stage == HEAD


def _everything(place: Place, k: int) -> bool:
    return True


def _last_k(place: Place, k: int) -> bool:
    return place.layers_above < k


def _biases(place: Place, k: int) -> bool:  # BitFit, Ben Zaken et al. 2022
    return place.stage == HEAD or place.path.endswith("/bias")


def _norms(place: Place, k: int) -> bool:  # Frankle et al. 2021, for batch normalisation; here every kind
    return place.stage == HEAD or place.in_norm


def _above_embeddings(place: Place, k: int) -> bool:
    return place.stage != "embeddings"


STRATEGIES: dict[str, Callable[[Place, int], bool]] = {
    "feature_extraction": _head,
    "full": _everything,
    "last_k": _last_k,
    "bitfit": _biases,
    "norms": _norms,
    "embeddings_frozen": _above_embeddings,
    "scratch": _everything,  # the control: the same parameters train, from random values
}


def plan(network: Network, strategy: str = "full", *, k: int = 2, rules: Iterable[tuple[str, str]] = (),
         stages: Iterable[str] = (), layer_decay: float = 1.0, head_factor: float = 1.0,
         adapter_factor: float = 1.0) -> FreezePlan:  # fmt: skip
    """Labels every parameter of a network.

    Args:
      network: anything with stages (models/backbone.py).
      strategy: a name in `STRATEGIES`, "custom", "surgical", or the kind of adapter that the network has (adapters.py):
        the adapters train, and the head.
      k: `last_k` trains the k top layers and all that stands above them.
      rules: for "custom": (pattern over whole paths, "frozen" | "body" | "head"); the first match wins.
      stages: for "surgical" (Lee et al. 2023): the stages that train, beside the head.
      layer_decay: learning-rate factor from each layer to the one below (Howard & Ruder 2018; numbered as
        in BEiT: head, pooler and final normalisation 1, the top layer `layer_decay`, embeddings the lowest). It does
        not reach adapters, which have no pretrained values to keep.
      head_factor, adapter_factor: learning-rate factors of the head and of adapters.

    Raises:
      ConfigError: an unknown strategy or stage, k beyond the layers there are, a path that no rule covers, a rule
        that matches nothing, or nothing that trains.
    """
    places, count, chosen = _places(network), layers(network), set(stages)
    if odd := sorted(chosen - set(network.stage_names)):
        known = f"some of {', '.join(network.stage_names)}"
        raise ConfigError("--config.transfer.stages", f"no stage {odd[0]!r}", known)
    if strategy == "surgical":
        labels = {p.path: _group(p) if p.stage in {HEAD, *chosen} else FROZEN for p in places}
    elif strategy == "custom":
        labels = trees.match(rules, [p.path for p in places], "--config.transfer.rules")
        if odd := sorted(set(labels.values()) - {FROZEN, "body", HEAD}):
            raise ConfigError("--config.transfer.rules", f"label {odd[0]!r}", "frozen, body or head")
    elif strategy in STRATEGIES:
        if strategy == "last_k" and not 1 <= k <= count:
            raise ConfigError("--config.transfer.k", f"{k}", f"1 to {count}, the layers of this network")
        trains = STRATEGIES[strategy]
        labels = {p.path: _group(p) if trains(p, k) else FROZEN for p in places}
    elif strategy in KINDS:
        own = _grafted(network, strategy)
        labels = {p.path: HEAD if p.stage == HEAD else ADAPTER if p.path in own else FROZEN for p in places}
    else:
        known = f"one of {', '.join(STRATEGIES)}, surgical or custom, or a kind of adapter: {', '.join(KINDS)}"
        raise ConfigError("--config.transfer.strategy", f"{strategy!r}", known)

    labels |= {p.path: FROZEN if labels[p.follows] == FROZEN else MOVING for p in places if p.follows}
    factors = {"body": 1.0, ADAPTER: adapter_factor, HEAD: head_factor}
    if layer_decay != 1.0:  # each stage a group of its own
        for place in places:
            if labels[place.path] == "body" and place.stage != HEAD:  # HEAD names a group of its own factor
                labels[place.path] = place.stage
                factors[place.stage] = layer_decay ** _steps_down(place, count)
    still = (FROZEN, MOVING)
    trainable = [network.stage_names.index(p.stage) for p in places if labels[p.path] not in still]
    if not trainable:
        where = "--config.transfer.rules" if strategy == "custom" else f"strategy {strategy!r}"
        raise ConfigError(where, "every parameter is frozen", "at least one that trains")
    used = set(labels.values()) - set(still)
    return FreezePlan(labels, {name: factor for name, factor in factors.items() if name in used}, min(trainable))


def of(network: Network, transfer: TransferConfig, **changes: Any) -> FreezePlan:
    """The plan that the settings ask for; `changes` as for `plan`."""
    options = {"strategy": transfer.strategy, "k": transfer.k, "rules": transfer.rules,
               "stages": tuple(name.strip() for name in transfer.stages.split("|") if name.strip()),
               "layer_decay": transfer.layer_decay, "head_factor": transfer.head_factor}  # fmt: skip
    return plan(network, **{**options, **changes})


def layers(network: Network) -> int:
    """How many numbered layers there are: layer_0, layer_1, …"""
    return sum(1 for name in network.stage_names if is_layer(name))


def labels(network: Network, strategy: str = "full", **options: Any) -> trees.Tree:
    """The label of every parameter, as a tree of the same structure as the parameters (for optax.partition)."""
    return trees.unflatten(plan(network, strategy, **options).labels)


def mask(network: Network, strategy: str = "full", **options: Any) -> trees.Tree:
    """True for every parameter that trains, as a tree of the same structure as the parameters.

    Mind that optax.masked(tx, mask) passes the raw gradient of the others on as their update:
    use optax.partition with `labels`, or take the gradient with respect to the trainable part alone.
    """
    chosen = plan(network, strategy, **options)
    return trees.unflatten({path: chosen.trains(path) for path in chosen.labels})


def split(params: Mapping[str, Any], plan: FreezePlan) -> tuple[trees.Flat, trees.Flat]:
    """Nested parameters -> (trainable, the rest), both flat. `trees.join` of the two is the inverse."""
    return trees.partition(trees.flatten(params), plan.trains)


@dataclasses.dataclass(frozen=True)
class Row:
    """One stage in the freeze table; `factor` is the range of learning-rate factors, empty if frozen."""

    stage: str
    parameters: int
    trainable: int
    factor: str
    mode: str


def table(network: Network, plan: FreezePlan) -> list[Row]:
    """One row for each stage, bottom to top, and the total."""
    shapes = network.shapes()
    rows = []
    for index, stage in enumerate(network.stage_names):
        own = {path: leaf for path, leaf in shapes.items() if network.stage_of(path) == stage}
        moving = {path: leaf for path, leaf in own.items() if plan.trains(path)}
        rates = sorted({plan.factors[plan.labels[path]] for path in moving})
        factor = "–".join(f"{rate:.3g}" for rate in dict.fromkeys([*rates[:1], *rates[-1:]]))
        mode = "train" if index >= plan.lowest else "eval"
        rows.append(Row(stage, trees.count(own), trees.count(moving), factor, mode))
    rows.append(Row("total", sum(r.parameters for r in rows), sum(r.trainable for r in rows), "", ""))
    return rows


def render(rows: list[Row]) -> str:
    """The freeze table as text."""
    lines = [f"{'stage':<12}{'parameters':>13}{'trainable':>13}  {'rate factor':<12}mode"]
    for row in rows:
        shown = f"{row.trainable:,}" if row.trainable else "frozen" if row.parameters else "–"
        lines.append(f"{row.stage:<12}{row.parameters:>13,}{shown:>13}  {row.factor:<12}{row.mode:<6}".rstrip())
    total = rows[-1]
    lines.append(f"{100 * total.trainable / total.parameters:.2f} % of the parameters train")
    return "\n".join(lines)


def _group(place: Place) -> str:
    return HEAD if place.stage == HEAD else "body"


def is_statistic(path: str) -> bool:
    """Whether a path names running statistics of a normalisation."""
    return path.rpartition("/")[2] in STATISTICS


def _grafted(network: Network, kind: str) -> Mapping[str, Any]:
    """What a network with adapters of this kind has besides the plain one's parameters."""
    own = getattr(network, "grafted", {})
    if not own or network.adapter.kind != kind:  # type: ignore[attr-defined]
        found = f"{kind}, but the network has {'no adapters' if not own else network.adapter.kind}"  # type: ignore[attr-defined]
        raise ConfigError("--config.transfer.strategy", found, f"a network with {kind}",
                          "put it on first: transfer.adapters.adapted(network, Adapter(kind))")  # fmt: skip
    return own


def is_layer(stage: str) -> bool:
    """Whether a stage is one of the numbered layers."""
    return re.fullmatch(r".*_\d+", stage) is not None


def _steps_down(place: Place, layers: int) -> int:
    """How many times the layer decay applies: 0 above all layers, 1 in the top layer, layers + 1 below all."""
    if is_layer(place.stage):
        return place.layers_above + 1
    return 0 if place.layers_above == 0 else layers + 1


def _places(network: Network) -> list[Place]:
    """Every parameter with its stage. A module that owns a `scale` is a normalisation, one that owns just a `weight`
    too: kernels and tables have other names."""
    paths = sorted(network.shapes())
    norms = {path.rpartition("/")[0] for path in paths if path.endswith(("/scale", "/weight"))}
    above, layers_above = {}, 0
    for name in reversed(network.stage_names):
        above[name] = layers_above
        layers_above += is_layer(name)
    places = []
    for path in paths:
        stage = network.stage_of(path)
        module = path.rpartition("/")[0]
        follows = f"{module}/scale" if is_statistic(path) and module in norms else ""
        places.append(Place(path, stage, above[stage], module in norms, follows))
    return places
