"""`tljax soup`: the models of one strategy over the seeds of a comparison, averaged into one.

Wortsman et al. 2022, Model soups.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tljax import trees
from tljax.config import Config
from tljax.data import sources
from tljax.errors import ConfigError, DataError
from tljax.evaluate import columns
from tljax.evaluate.metrics import shown
from tljax.run import adapting, progress, remade, several
from tljax.run.compare import folder
from tljax.run.predict import scoring
from tljax.transfer import blend
from tljax.weights.load import Model

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Soups:
    """Accuracies of single models by name, and of the two soups; `taken` are the models in the greedy one."""

    single: Mapping[str, tuple[float, float]]  # (validation, test)
    uniform: tuple[float, float]
    greedy: tuple[float, float]
    taken: tuple[str, ...]

    @property
    def mean(self) -> tuple[float, float]:
        first, second = zip(*self.single.values(), strict=True)
        return statistics.fmean(first), statistics.fmean(second)


def soup(path: Path, strategy: str, output: Path | None = None, say: Say = print) -> str:
    """Averages the models of all finished seeds, and those that validation data choose one after the other; returns the
    table of both beside the single models.

    Args:
      path: a workdir of tljax compare.
      strategy: as it was called there.
      output: a new workdir for the greedy soup.

    Raises:
      ConfigError: a strategy that cannot be averaged, or with fewer than two finished seeds; no validation data; the
        output exists.
      DataError: no comparison there, or one without test data.
    """
    if output is not None:
        remade.check_new(output)
    seeds = _finished(path, strategy)
    places = {f"seed {seed}": path / folder(strategy) / f"seed_{seed}" for seed in seeds}
    opened = {name: remade.opened(place) for name, place in places.items()}
    model, c = next(iter(opened.values()))
    if c.transfer.strategy == "scratch":
        raise ConfigError("--strategy", f"{strategy!r}, whose seeds have no weight in common to start from",
                          "one that starts from pretrained weights")  # fmt: skip
    held = remade.held_out(c)
    if held is None:
        raise ConfigError("--workdir", f"{path} held out no validation data to choose by",
                          "one with --config.data.validation or --config.data.validation_fraction")  # fmt: skip
    test = sources.read_records(remade.test_source(path, c), c.data, c.task)
    flat = {name: trees.flatten(own.params) for name, (own, _) in opened.items()}
    of_held, of_test = scoring(model, c, held), scoring(model, c, test)
    asked: list[float] = []
    with progress.bar("soups", 2 * len(flat) * len(held) + (len(flat) + 2) * len(test)) as bar:

        def validated(soup: trees.Flat) -> float:
            asked.append(of_held(remade.on_devices(soup), bar.update).accuracy or 0.0)
            return asked[-1]

        def tested(soup: trees.Flat) -> float:
            return of_test(remade.on_devices(soup), bar.update).accuracy or 0.0

        taken, best, top = blend.greedy(list(flat.items()), validated)
        alone = dict(zip(flat, asked, strict=False))  # it asks for each by itself first
        uniform = blend.averaged(list(flat.values()))
        found = Soups({name: (alone[name], tested(own)) for name, own in flat.items()},
                      (validated(uniform), tested(uniform)), (top, tested(best)), tuple(taken))  # fmt: skip
    text = "\n".join([render(found), *_notes(found, c, model, flat)])
    say("\n" + text)
    if output is not None:
        how = {"soup": {"comparison": str(path), "strategy": strategy, "models": taken}}
        note = f"A model soup: the mean of {len(taken)} models that differ in their seeds ({', '.join(taken)})."
        remade.write(output, places[taken[0]], model, c, best, how, note)
    return text


def _finished(path: Path, strategy: str) -> list[int]:
    """The seeds of a strategy of which a comparison has a model."""
    told = several.read(path / "compare.json", "comparison", ("runs",))
    if told is None:
        raise DataError(str(path), "no compare.json", "a workdir of tljax compare", "look at --workdir")
    done = [name.rpartition(", seed ") for name, run in told["runs"].items() if "score" in run]
    known = list(dict.fromkeys(name for name, _, _ in done))
    seeds = [int(seed) for name, _, seed in done if name == strategy]
    if len(seeds) < 2:
        found = f"{strategy!r}, of which {len(seeds)} seed is finished" if seeds else f"{strategy!r}"
        raise ConfigError("--strategy", found, f"one with two seeds or more, of {', '.join(known) or 'none'}")
    return seeds


def render(found: Soups) -> str:
    """The table."""
    rows = {**found.single, f"mean of {len(found.single)} single models": found.mean,
            "uniform soup": found.uniform, f"greedy soup ({', '.join(found.taken)})": found.greedy}  # fmt: skip
    lines = columns.aligned(["model", "validation", "test"], [[name, *map(shown, row)] for name, row in rows.items()])
    return "\n".join(
        [*lines, "", "accuracy; the greedy soup was chosen by validation data, which its score there flatters"]
    )


def _notes(found: Soups, c: Config, model: Model, flat: Mapping[str, trees.Flat]) -> list[str]:
    """How far the models are apart; and, where their mean is worse than they are, why that may be."""
    head = {name: _vector(model, own, True) for name, own in flat.items()}
    body = {name: _vector(model, own, False) for name, own in flat.items()}
    lines = [f"cosine of two models' weights: {_cosine(list(head.values())):.3f} in the head, "
             f"{_cosine(list(body.values())):.4f} below it"]  # fmt: skip
    if found.uniform[1] >= found.mean[1]:
        return lines
    drawn = adapting.load(c, model.labels).reinitialised
    worse = f"The uniform soup is below the mean single model by {100 * (found.mean[1] - found.uniform[1]):.1f} points."
    if not drawn:
        why = (
            "All seeds set out from the same weights: they have moved too far for what lies between them to be as good."
        )
        return [*lines, f"{worse} {why} Fewer epochs or lower rates leave them nearer to each other."]
    return [*lines, f"{worse} A soup is of models that set out from the same weights, and here each seed drew its own "
            f"{', '.join(drawn)}. Train the head once (strategy feature_extraction), then compare with that workdir as "
            "--config.model.ref: its head is where all seeds begin."]  # fmt: skip


def _vector(model: Model, flat: trees.Flat, head: bool) -> np.ndarray:
    own = [np.ravel(leaf) for path, leaf in sorted(flat.items()) if (model.backbone.stage_of(path) == "head") == head]
    return np.concatenate(own).astype(np.float64)


def _cosine(vectors: Sequence[np.ndarray]) -> float:
    """The mean over all pairs."""
    unit = [vector / (np.linalg.norm(vector) or 1.0) for vector in vectors]
    return statistics.fmean(float(a @ b) for a, b in itertools.combinations(unit, 2))
