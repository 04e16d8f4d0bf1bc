"""Training in phases: what trains in each, for how long, and at what rates."""

import dataclasses
from collections.abc import Callable, Sequence

from tljax.config import TransferConfig
from tljax.errors import ConfigError
from tljax.transfer import freeze
from tljax.transfer.freeze import FreezePlan, Network


@dataclasses.dataclass(frozen=True)
class OneCycle:
    """A rate that rises and falls along half cosines (Smith 2018, as fastai's `fit_one_cycle`).

    Attributes:
      rising: share of the steps until the peak.
      start: the peak is this many times the first rate.
      factor: on the configured rate, for the peak.
    """

    rising: float
    start: float
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Phase:
    """Some epochs in which the same parameters train.

    Attributes:
      rate: "whole": the run's one schedule goes on; "own": the configured schedule from its beginning to its end; or a
        cycle.
      steps: how long it is, where that is no number of epochs.
    """

    plan: FreezePlan
    epochs: int
    rate: str | OneCycle = "whole"
    steps: int = 0

    def length(self, each: int) -> int:
        """Steps, where an epoch has `each`."""
        return self.steps or self.epochs * each


def _gradual(network: Network, t: TransferConfig, epochs: int) -> list[Phase]:
    """The head for an epoch, then k more layers in each, then all for the rest (Howard & Ruder 2018, ULMFiT)."""
    layers = freeze.layers(network)
    last = [min(step * t.k, layers) for step in range(1, -(-layers // t.k) + 1)]
    plans = [freeze.of(network, t, strategy="feature_extraction")]
    plans += [freeze.of(network, t, strategy="last_k", k=k) for k in last]
    plans += [freeze.of(network, t, strategy="full")]
    each = [Phase(plan, 1) for plan in plans[:epochs]]
    return [*each[:-1], dataclasses.replace(each[-1], epochs=1 + epochs - len(each))]


def _lp_ft(network: Network, t: TransferConfig, epochs: int) -> list[Phase]:
    """The head first, then everything from there (linear probing then fine-tuning, Kumar et al. 2022)."""
    plans = [freeze.of(network, t, strategy=name) for name in ("feature_extraction", "full")]
    return [Phase(plans[0], t.head_epochs, "own"), Phase(plans[1], epochs - t.head_epochs, "own")]


def _fine_tune(network: Network, t: TransferConfig, epochs: int) -> list[Phase]:
    """fastai's `fine_tune`: a cycle of the head alone, then one of everything at half the rate, a hundredth of it in
    the lowest layer and in equal ratios between. Its momentum cycles against the rate there; here it stays."""
    decay = 100.0 ** (-1 / (freeze.layers(network) + 1))
    head = freeze.of(network, t, strategy="feature_extraction")
    whole = freeze.of(network, t, strategy="full", layer_decay=decay)
    return [Phase(head, t.head_epochs, OneCycle(0.99, 25.0)),
            Phase(whole, epochs - t.head_epochs, OneCycle(0.3, 5.0, 0.5))]  # fmt: skip


def _adaptive(network: Network, t: TransferConfig, epochs: int) -> list[Phase]:
    """Everything, until the first look finds that something has settled (adaptive.py)."""
    return [Phase(freeze.of(network, t, strategy="full"), epochs)]


def above(network: Network, transfer: TransferConfig, lowest: int) -> FreezePlan:
    """A plan under which a stage and all above it train."""
    return freeze.of(network, transfer, strategy="surgical", stages=network.stage_names[lowest:])


RECIPES: dict[str, Callable[[Network, TransferConfig, int], list[Phase]]] = {
    "gradual": _gradual,
    "lp_ft": _lp_ft,
    "fine_tune": _fine_tune,
    "adaptive": _adaptive,
}
HEAD_FIRST = ("lp_ft", "fine_tune")


def of(network: Network, transfer: TransferConfig, epochs: int, adapter_factor: float = 1.0) -> list[Phase]:
    """The phases of a run; one, where the strategy is a single freeze plan.

    `adapter_factor`: as for `freeze.plan`.

    Raises:
      ConfigError: see `freeze.plan`; or no epoch is left for the second phase.
    """
    if transfer.strategy in HEAD_FIRST and transfer.head_epochs >= epochs:
        raise ConfigError("--config.transfer.head_epochs", f"{transfer.head_epochs}",
                          f"less than --config.train.epochs={epochs}, which counts both phases")  # fmt: skip
    if transfer.strategy in RECIPES:
        return RECIPES[transfer.strategy](network, transfer, epochs)
    return [Phase(freeze.of(network, transfer, adapter_factor=adapter_factor), epochs)]


def since(plans: Sequence[FreezePlan], index: int) -> dict[str, int]:
    """For each path that trains in phase `index`, the phase from which it has trained without a break."""
    found = {}
    for path in plans[index].labels:
        if not plans[index].trains(path):
            continue
        first = index
        while first and plans[first - 1].trains(path):
            first -= 1
        found[path] = first
    return found


def untouched(plans: Sequence[FreezePlan], index: int, now: int) -> bool:
    """Whether nothing below the lowest trainable stage of phase `index` trains in the phases `now` to `index`."""
    return all(plan.lowest >= plans[index].lowest for plan in plans[now:index])


def render(phases: Sequence[Phase], names: Sequence[str]) -> str:
    """The phases as text, a line each; empty for one alone."""
    if len(phases) == 1:
        return ""
    lines, first = [], 1
    for number, phase in enumerate(phases, 1):
        last = first + phase.epochs - 1
        shown = f"epoch {first}" if first == last else f"epochs {first} to {last}"
        lines.append(f"phase {number}, {shown}: {names[phase.plan.lowest]} and above train")
        first = last + 1
    return "\n".join(lines)
