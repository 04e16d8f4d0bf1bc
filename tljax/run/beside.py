"""A run, the strategies to compare it with on the same data, and what the transfer bought in one sentence."""

import dataclasses
from pathlib import Path

from tljax import mesh
from tljax.config import Config, validate
from tljax.evaluate.metrics import NAMES, interval, shown
from tljax.run import stages
from tljax.run.processes import Group
from tljax.run.train import Result, Say, train


def train_all(config: Config, path: Path, say: Say = print, group: Group | None = None) -> list[Result]:
    """Trains the config's strategy, then each of `transfer.beside` in workdir/beside/<strategy>.

    All of them share data, seed, batch size, epochs and rates: what differs is what trains, and for
    "scratch" where it starts. Each goes on where it was stopped, as `train` does.
    """
    config = stages.pretrained(config, path, say, group)
    names = [name.strip() for name in config.transfer.beside.split("|") if name.strip()]
    others = [
        dataclasses.replace(
            config, transfer=dataclasses.replace(config.transfer, strategy=name, beside="", l2sp=0.0, rules=())
        )
        for name in names
    ]
    for one in (config, *others):  # all are checked before the first one starts
        validate(one)
    results = [train(config, path, say, group=group)]
    for name, other in zip(names, others, strict=True):
        if mesh.lead():
            say(f"\n— beside it: {name} —")
        results.append(train(other, path / "beside" / name, say, group=group))
    return results


def render(results: list[Result]) -> str:
    """The results as a table; accuracies with the 95 % interval that the number of examples leaves (Wilson 1927)."""
    width = max([42, *(len(r.strategy) for r in results)])
    names = [name for name in results[0].scores.summary() if name not in ("n", "loss")]
    titles = [NAMES.get(name, name) for name in names]
    at = [max(len(title) + 2, 9) for title in titles]
    heads = [f"{title:>{w}}" for title, w in zip(titles, at, strict=True)]
    if shares := names[0] == "accuracy":
        heads.insert(1, f"  {'95 % interval':<13}")
    lines = [f"{'strategy':<{width}}{''.join(heads)}{'train s':>9}{'eval s':>8}"]
    for r in results:
        values = r.scores.summary()
        cells = [f"{shown(values[name]):>{w}}" for name, w in zip(names, at, strict=True)]
        if shares:
            low, high = interval(values["accuracy"] or 0.0, r.scores.n)
            cells.insert(1, f"  {low:.3f} … {high:.3f}")
        lines.append(f"{r.strategy:<{width}}{''.join(cells)}{r.training_seconds:>9.0f}{r.evaluation_seconds:>8.0f}")
    return "\n".join(lines)


def verdict(results: list[Result]) -> str:
    """What the pretrained weights bought over random ones; empty where no run from scratch stands beside.

    One seed each, so it claims no more than the interval of the test set allows.
    """
    scratch = next((r for r in results if r.strategy.startswith("scratch")), None)
    rest = [r for r in results if r is not scratch]
    if scratch is None or not rest or "accuracy" not in scratch.scores.summary():
        return ""
    best = max(rest, key=_accuracy)
    a, b = _accuracy(best), _accuracy(scratch)
    found = f"{best.strategy} {a:.3f} against {b:.3f} from scratch, on the same {best.split} examples"
    if interval(a, best.scores.n)[0] > interval(b, scratch.scores.n)[1]:
        return f"Transfer pays here: {found}, {100 * (a - b):+.0f} points."
    if interval(a, best.scores.n)[1] < interval(b, scratch.scores.n)[0]:
        return f"Negative transfer: {found}. Train from scratch, or take another checkpoint."
    return f"No difference found: {found}; the intervals overlap."


def _accuracy(result: Result) -> float:
    return result.scores.summary()["accuracy"] or 0.0
