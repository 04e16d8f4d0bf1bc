"""`tljax compare`: several strategies on the same data, one pass through what they all leave frozen, and one table."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tljax import trees
from tljax.config import Config, settings, validate
from tljax.errors import ConfigError, StoppedError, WriteError
from tljax.evaluate import comparison
from tljax.evaluate.comparison import Run, Shared
from tljax.run import activations, adapting, devices, progress, several, signals, train, workdir
from tljax.run.together import Together
from tljax.transfer import phases, worth

Say = Callable[[str], None]
SWITCHES = {"1": True, "true": True, "0": False, "false": False}


def strategies(config: Config, asked: str) -> dict[str, Config]:
    """ "head,last_2,full:optim.learning_rate=1e-5" -> name -> the config of each.

    A name is a strategy, `head` (feature_extraction) or `last_<k>`; after a colon, settings of its own.

    Raises:
      ConfigError: an unknown name or setting, or one that stands twice.
    """
    found: dict[str, Config] = {}
    for word in (w.strip() for w in asked.split(",") if w.strip()):
        name, *own = word.split(":")
        if word in found:
            raise ConfigError("--strategies", f"{word!r} stands twice", "each once")
        changes: dict[str, Any] = {"transfer.strategy": "feature_extraction" if name == "head" else name}
        if name.startswith("last_") and name[5:].isdecimal():
            changes = {"transfer.strategy": "last_k", "transfer.k": int(name[5:])}
        plain = {"transfer.beside": "", "transfer.rules": (), "transfer.stages": ""}
        found[word] = validate(changed(config, {**plain, **changes, **dict(_setting(text) for text in own)}))
    if not found:
        raise ConfigError("--strategies", "empty", "names joined by commas, as head,last_2,full")
    return found


def _setting(text: str) -> tuple[str, Any]:
    """ "optim.learning_rate=1e-5" -> the name and the value in the setting's own type."""
    name, _, value = text.partition("=")
    known = {full.removeprefix("config."): field.type for full, field, _ in settings(Config())}
    kind: Any = known.get(name)
    if kind not in (str, int, float, bool):
        raise ConfigError("--strategies", f"{text!r}", "STRATEGY:section.setting=value, as in --config.section.setting")
    try:
        return name, SWITCHES[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        raise ConfigError("--strategies", f"{text!r}", f"a value of type {kind.__name__}") from None


def folder(strategy: str) -> str:
    """The name of a strategy's folder.

    >>> folder("full:data.train=/tmp/a b")
    'full_data.train=_tmp_a_b'
    """
    return re.sub(r"[^A-Za-z0-9_=.-]", "_", strategy)


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with some settings replaced: {"seed": 3, "data.split_seed": 0}."""
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        value = dataclasses.replace(getattr(config, section), **{field: value}) if section else value
        config = dataclasses.replace(config, **{section or field: value})
    return config


def compare(config: Config, path: Path, asked: str, seeds: int = 3, minutes: float = 0.0, say: Say = print) -> str:
    """Runs each strategy with each seed; writes compare.json, compare.png and compare.html, and returns the table.

    Seeds come in turn over all strategies, so that a budget that ends early leaves whole rounds. A run that is finished
    is not run again: the same call goes on where it was stopped.

    Args:
      seeds: config.seed, config.seed + 1, …; what is held out for validation is the same for all.
      minutes: no run is begun whose strategy took longer before than what is left; 0: no limit.

    Raises:
      StoppedError: a signal; the table of what is finished has been said and written.
    """
    if seeds < 1:
        raise ConfigError("--seeds", f"{seeds}", "at least 1")
    if not 0 <= minutes < float("inf"):
        raise ConfigError("--minutes", f"{minutes}", "0 or more; 0: no limit")
    split = config.data.split_seed if config.data.split_seed >= 0 else config.seed
    return _Comparison(changed(config, {"data.split_seed": split}), path, asked, seeds, minutes, say).go()


class _Comparison:
    """One comparison in its workdir; `told` is what compare.json says: the settings, the pass, and every run."""

    def __init__(self, config: Config, path: Path, asked: str, seeds: int, minutes: float, say: Say):
        self.config, self.path, self.seeds, self.say = config, path, seeds, say
        self.chosen = strategies(config, asked)
        self.until = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.together = Together()
        self.left: list[str] = []
        self.told = several.begun(path / "compare.json", config, "comparison", ("pass", "runs"))

    def go(self) -> str:
        try:
            self._pass()
            for number in range(self.seeds):
                for name, config in self.chosen.items():
                    self._one(name, changed(config, {"seed": self.config.seed + number}))
        finally:
            table = self._publish()
            self.say("\n" + table)
        return table

    def _pass(self) -> None:
        """The activations at every stage that a strategy starts from, for all of them."""
        first, config = next(iter(self.chosen.values())), self.config
        tables = self.together.tables(first)
        model = adapting.load(changed(first, {"transfer.strategy": "full"}), tables.classes, tables.fields)
        examples = self.together.examples(first, model)
        planned = {name: phases.of(adapting.adapted(model, c).backbone, c.transfer, c.train.epochs)
                   for name, c in self.chosen.items()}  # fmt: skip
        starts = {name: sorted({p.plan.lowest for p in own if p.plan.lowest}) for name, own in planned.items()}
        stages = sorted({stage for own in starts.values() for stage in own})
        if not stages:
            return
        passes = {stage: self.seeds * sum(p.epochs for own in planned.values() for p in own if p.plan.lowest == stage)
                  for stage in stages}  # fmt: skip
        chosen, layout = activations.choose(config, model.backbone, examples, passes), devices.layout(config)
        self.say(chosen.why)
        self.together.chosen = dataclasses.replace(chosen, why="")
        if not chosen.stages:
            return
        began, seen = time.monotonic(), []
        with signals.watched() as stopping:
            for split, own in examples.items():
                seeds = activations.seeds(config, split)
                with progress.bar(f"frozen stages, {split}", len(own) * len(seeds)) as bar:

                    def show(n: int, bar: Any = bar) -> None:
                        seen.append(n)
                        bar.update(n)

                    activations.passing(config, model.backbone, trees.flatten(model.params), show, stopping, layout)(
                        chosen.cache, own, chosen.stages, seeds)  # fmt: skip
        work = {stage: worth.products(model.backbone, stage, 16) for stage in chosen.stages}
        top = max(work.values()) or 1.0
        used = {name: [stage for stage in own if stage in work] for name, own in starts.items()}
        if seen:  # else all of it was there
            self.told["pass"] = {"seconds": self.told["pass"].get("seconds", 0.0) + time.monotonic() - began}
        self.told["pass"] |= {
            "stages": [model.backbone.stage_names[stage] for stage in chosen.stages],
            "share": {name: work[own[-1]] / top if own else 0.0 for name, own in used.items()},
        }
        self._write()

    def _one(self, name: str, config: Config) -> None:
        key = f"{name}, seed {config.seed}"
        so_far = self.told["runs"].setdefault(key, {"seconds": 0.0})
        if "score" in so_far:
            return
        before = [run["whole_seconds"] for other, run in self.told["runs"].items()
                  if other.startswith(f"{name}, seed ") and "score" in run]  # fmt: skip
        if time.monotonic() + max(before, default=0.0) > self.until:
            self.left.append(key)
            return
        self.say(f"\n— {key} —")
        began = time.monotonic()
        try:
            result = train.train(config, self.path / folder(name) / f"seed_{config.seed}", self.say, self.together)
        except StoppedError:  # where the run goes on, this time was its own too
            so_far["seconds"] += time.monotonic() - began
            raise
        finally:
            so_far["whole_seconds"] = so_far.get("whole_seconds", 0.0) + time.monotonic() - began
            self._write()
        cost = result.cost
        so_far |= dataclasses.asdict(Run(
            name, config.seed, result.scores.summary()["accuracy"] or 0.0, result.validation, result.split,
            result.scores.n,
            so_far["seconds"] + result.training_seconds, result.trainable, cost.peak_bytes if cost else None,
            cost.flops / cost.floor if cost and cost.floor else None,
            len(self.together.tables(config).splits().get("validation") or ())))  # fmt: skip
        self._write()

    def _publish(self) -> str:
        """Says and writes what is finished."""
        runs = [Run(**{k: v for k, v in run.items() if k != "whole_seconds"})
                for run in self.told["runs"].values() if "score" in run]  # fmt: skip
        known = [run for run in runs if run.strategy in self.chosen]
        table, shared = comparison.rows(known), self._shared(known)
        text = comparison.render(table, shared)
        if self.left:
            text += f"\nnot begun, for want of time: {'; '.join(self.left)}"
        if table:
            facts = {"data": self.config.data.train, "model": self.config.model.ref, "seeds": self.seeds,
                     "epochs": self.config.train.epochs,
                     **{f"version of {k}": v for k, v in workdir.versions().items()}}  # fmt: skip
            try:
                (self.path / "compare.png").write_bytes(comparison.picture(table))
                page = comparison.web_page(f"Strategies on {self.path.name}", table, shared, facts)
                (self.path / "compare.html").write_text(page, encoding="utf-8")
            except OSError as error:
                raise WriteError(str(self.path), f"cannot be written ({error.strerror})") from None
        return text

    def _shared(self, runs: list[Run]) -> Shared:
        """The pass, and what it saved: each run would have made it to the highest stage that it starts from."""
        made = self.told["pass"]
        if "stages" not in made:
            return Shared()
        seconds = made.get("seconds", 0.0)
        alone = sum(seconds * made["share"].get(run.strategy, 0.0) for run in runs)
        return Shared(seconds, max(alone - seconds, 0.0), tuple(made["stages"]))

    def _write(self) -> None:
        several.write(self.path / "compare.json", self.told)
