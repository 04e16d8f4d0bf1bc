"""`tljax wiseft`: the weights between pretrained and fine-tuned ones, scored on the target and on a shifted set.

Wortsman et al. 2022, Robust fine-tuning of zero-shot models.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax import trees
from tljax.config import Config
from tljax.data import sources
from tljax.data.records import Records
from tljax.errors import ConfigError, WeightsError, WriteError, printable
from tljax.evaluate import columns, curves
from tljax.evaluate.metrics import Scores, shown
from tljax.run import adapting, progress, remade
from tljax.run.predict import scoring
from tljax.run.workdir import read_config
from tljax.train.checkpoint import write_json
from tljax.transfer import blend, freeze
from tljax.weights.load import Model

Say = Callable[[str], None]


def wiseft(path: Path, data: str = "", shifted: str = "", points: int = 11, output: Path | None = None,
           say: Say = print) -> str:  # fmt: skip
    """Scores the weights at `points` shares alpha of the fine-tuned ones, from 0 to 1; writes wiseft.json and
    wiseft.png into the workdir and returns the table.

    Args:
      path: a finished workdir.
      data: a labelled source in place of the run's test data.
      shifted: another one, of a shifted domain; "": none.
      output: a new workdir for the weights that are best on validation data, those with the least loss among equals.

    Raises:
      ConfigError: a run from scratch, of the head alone, or with adapters that cannot be merged; no validation data for
        the choice that `output` needs; or it exists.
      WeightsError: the pretrained weights are not what they were.
      DataError, WriteError.
    """
    if points < 2:
        raise ConfigError("--points", f"{points}", "at least 2: both ends")
    if output is not None:
        remade.check_new(output)
    if read_config(path)[1].transfer.strategy == "scratch":
        raise ConfigError("--workdir", f"{path} was trained from scratch", "a run that started from pretrained weights")
    model, c = remade.opened(path)
    named = {"validation": remade.held_out(c)}
    if output is not None and named["validation"] is None:
        raise ConfigError("--output", "found, and the run held out no validation data to choose by",
                          "a run with --config.data.validation or --config.data.validation_fraction")  # fmt: skip
    for name, source in (("test", data or remade.test_source(path, c)), ("shifted", shifted)):
        named[name] = sources.read_records(source, c.data, c.task) if source else None
    records = {name: one for name, one in named.items() if one is not None}
    before, borrowed = pretrained(path, c, model)
    after = trees.flatten(model.params)
    alphas = [i / (points - 1) for i in range(points)]
    for line in _notes(borrowed, after, records):
        say(line)
    scores = _scored(model, c, before, after, alphas, records)
    best = chosen(scores["validation"]) if "validation" in scores else None
    text = _render(alphas, scores, best)
    say("\n" + text)
    _write(path, alphas, scores, records, borrowed, best)
    if output is not None and best is not None:
        alpha = alphas[best]
        note = f"WiSE-FT: {1 - alpha:g} of the pretrained weights and {alpha:g} of the fine-tuned ones."
        flat = blend.interpolated(before, after, alpha)
        remade.write(output, path, model, c, flat, {"wiseft": {"alpha": alpha, "from": str(path)}}, note)
    return text


def pretrained(path: Path, c: Config, model: Model) -> tuple[trees.Flat, tuple[str, ...]]:
    """The weights that a run started from, and the paths among them that are the fine-tuned model's: those that the
    checkpoint does not give, as a head for these classes. There is no zero-shot head here, and a random one is no end
    worth going to.

    Raises:
      WeightsError: the checkpoint is not what it was.
      ConfigError: all that trained is what is borrowed, so that both ends are the same.
    """
    resolved: Mapping[str, Any] = read_config(path)[0].get("resolved", {})
    own = dataclasses.replace(c.model, revision=resolved.get("revision") or c.model.revision)
    plain = adapting.load(dataclasses.replace(c, model=own, transfer=dataclasses.replace(c.transfer, strategy="full")),
                          model.labels)  # fmt: skip
    digest = resolved.get("digests", {}).get("weights", plain.digest)
    if plain.digest != digest:
        raise WeightsError(plain.ref, "weights that differ from those the run started from", "the same weights",
                           "take them from where they were, or train again")  # fmt: skip
    after = trees.flatten(model.params)
    before = trees.flatten(plain.params) | {p: after[p] for p in plain.reinitialised if p in after}
    if all(np.array_equal(before[p], leaf) for p, leaf in after.items() if p in before):
        found = f"what {path} trained has no pretrained values ({', '.join(plain.reinitialised)})"
        raise ConfigError("--workdir", found, "a run that trained layers below the head")
    return before, plain.reinitialised


def chosen(own: Sequence[Scores]) -> int:
    """Which of the scores on validation data is the best: the highest accuracy, of equals the least loss."""
    return max(range(len(own)), key=lambda i: (own[i].accuracy or 0.0, -(own[i].loss or 0.0)))


def _notes(borrowed: Sequence[str], after: trees.Flat, records: Mapping[str, Records]) -> list[str]:
    found = [f"{name}: {printable(one.name)}, {len(one):,} examples" for name, one in records.items()]
    if borrowed:
        found.append("the fine-tuned model's own on both sides, because the checkpoint has none and there is no "
                     f"zero-shot head here: {', '.join(borrowed)}")  # fmt: skip
    if any(map(freeze.is_statistic, after)):
        found.append("running statistics of batch normalisation lie between the two as well; they are not those of the "
                     "network between (tljax adapt --method=adabn measures them)")  # fmt: skip
    return found


def _scored(model: Model, c: Config, before: trees.Flat, after: trees.Flat, alphas: Sequence[float],
            records: Mapping[str, Records]) -> dict[str, list[Scores]]:  # fmt: skip
    """Data set -> scores by alpha. One compiled network serves them all."""
    score = {name: scoring(model, c, one) for name, one in records.items()}
    found: dict[str, list[Scores]] = {name: [] for name in records}
    with progress.bar("between the weights", len(alphas) * sum(map(len, records.values()))) as bar:
        for alpha in alphas:
            params = remade.on_devices(blend.interpolated(before, after, alpha))
            for name in records:
                found[name].append(score[name](params, bar.update))
    return found


def _render(alphas: Sequence[float], scores: Mapping[str, Sequence[Scores]], best: int | None) -> str:
    rows = [[("* " if i == best else "") + f"{alpha:.3g}", *(shown(own[i].accuracy) for own in scores.values())]
            for i, alpha in enumerate(alphas)]  # fmt: skip
    lines = [*columns.aligned(["alpha", *scores], rows), "",
             "accuracy; alpha 0: the pretrained weights, 1: the fine-tuned ones"]  # fmt: skip
    if best is None:
        return "\n".join(
            [*lines, "No alpha is chosen: the run held out no validation data, and the test data choose none."]
        )
    others = [f"{name} {shown(own[best].accuracy)} against {shown(own[-1].accuracy)}"
              for name, own in scores.items() if name != "validation"]  # fmt: skip
    mark = f"* alpha {alphas[best]:.3g}, the best on validation data ({shown(scores['validation'][best].accuracy)})"
    if best == len(alphas) - 1:
        return "\n".join([*lines, f"{mark}: the fine-tuned weights as they are"])
    return "\n".join([*lines, f"{mark}: {', '.join(others)} of the fine-tuned weights"])


def _write(path: Path, alphas: Sequence[float], scores: Mapping[str, Sequence[Scores]],
           records: Mapping[str, Records], borrowed: Sequence[str], best: int | None) -> None:  # fmt: skip
    told = {
        "data": {name: one.name for name, one in records.items()},
        "of the fine-tuned model at every alpha": list(borrowed),
        "chosen": None if best is None else alphas[best],
        "scores": [{"alpha": alpha, **{name: own[i].summary() for name, own in scores.items()}}
                   for i, alpha in enumerate(alphas)],
    }  # fmt: skip
    drawn = {name: [(alpha, own[i].accuracy or 0.0) for i, alpha in enumerate(alphas)]
             for name, own in scores.items() if name != "validation"}  # fmt: skip
    picture = curves.interpolation(drawn)
    try:
        write_json(path / "wiseft.json", json.loads(json.dumps(told)))
        (path / "wiseft.png").write_bytes(picture)
    except OSError as error:
        raise WriteError(str(path), f"cannot be written ({error.strerror})") from None
