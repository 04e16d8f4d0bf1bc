"""`tljax verdict`: a config beside the same network from scratch, with few and with all examples: does transfer pay?"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax.config import Config, validate
from tljax.data.records import Records
from tljax.errors import ConfigError, DataError, WriteError
from tljax.evaluate import curves, shots
from tljax.evaluate.metrics import NAMES
from tljax.evaluate.shots import Point
from tljax.run import several, stages, train
from tljax.run.compare import changed
from tljax.run.lasting import Asked, left
from tljax.run.together import Together
from tljax.transfer.verdict import judge

Say = Callable[[str], None]
FILE, CONTROL = "verdict.json", "scratch"
# What does not belong to the control: pretrained weights to stay near, and lower rates for layers that know something.
PLAIN = {"transfer.strategy": CONTROL, "transfer.rules": (), "transfer.stages": "", "transfer.l2sp": 0.0,
         "transfer.layer_decay": 1.0}  # fmt: skip
MOVES_ALL = ("full", "fine_tune", "lp_ft", "gradual")  # at the latest in the end: there is no fewer frozen layer to try


def verdict(config: Config, path: Path, few: Sequence[int] = (1, 5, 10, 0), seeds: int = 3,
            metric: str = "accuracy", say: Say = print) -> str:  # fmt: skip
    """Runs the config and its control with each number of examples and each seed; writes verdict.json and few_shot.png,
    and returns the table, with the verdict below it.

    The control is the strategy "scratch" with the same draw of examples, batches, epochs and rates. Seeds come in turn
    over all numbers of examples. A run that is finished is not run again: the same call goes on where it was stopped.

    Args:
      path: the runs are in shots_<k>/<strategy>/seed_<s>.
      few: of each class so many training examples (`data.per_class`), drawn with the run's seed; 0: all.
      seeds: config.seed, config.seed + 1, …
      metric: what is judged, the higher the better.

    Raises:
      ConfigError: shots, seeds or a metric that cannot be; a config that is from scratch, or without test data.
      StoppedError: a signal; the table of what is finished has been said and written.
    """
    if seeds < 1:
        raise ConfigError("--seeds", f"{seeds}", "at least 1")
    if not few or min(few) < 0 or len(set(few)) < len(few):
        raise ConfigError("--shots", f"{','.join(map(str, few))!r}", "numbers of examples a class, each once; 0: all")
    if config.transfer.strategy == CONTROL:
        raise ConfigError("--config.transfer.strategy", "scratch, which is the control", "one that starts from the "
                          "pretrained weights")  # fmt: skip
    return _Judgement(validate(config), path, tuple(few), seeds, metric, say).go()


def prepared(config: Config) -> tuple[Config, list[str]]:
    """What all runs share, and in words what of the config they do not take over: few examples leave none to hold out,
    and the control none of the layers that `layer_decay` is for."""
    changes: dict[str, Any] = {"transfer.beside": "", "data.per_class": 0}
    told = []
    if not config.data.validation and config.data.validation_fraction:
        changes["data.validation_fraction"] = 0.0
        told.append(
            "no example is held out for validation (data.validation_fraction=0), so the last epoch's model is "
            "scored; with --config.data.validation=FILE it would be that of the best epoch"
        )
        if config.train.patience:
            changes["train.patience"] = 0
    if config.transfer.layer_decay != 1:
        told.append(f"the control has one rate for all layers: layer_decay {config.transfer.layer_decay:g} is for "
                    "layers that are pretrained")  # fmt: skip
    return changed(config, changes), told


class _Judgement:
    """One call in its workdir; `told` is what verdict.json says: the settings, every run, and what was judged."""

    def __init__(self, config: Config, path: Path, few: tuple[int, ...], seeds: int, metric: str, say: Say):
        self.path, self.few, self.metric, self.say = path, few, metric, say
        self.config, notes = prepared(config)
        validate(changed(self.config, PLAIN))
        self.names = (self.config.transfer.strategy, CONTROL)
        self.seeds = range(config.seed, config.seed + seeds)
        self.most = self._most()
        self.told = several.begun(path / FILE, config, "verdict", ("runs",))
        for note in notes:
            say(note)

    def go(self) -> str:
        asked = [Asked(k, name, seed) for seed in self.seeds for k in self.few for name in self.names]
        try:
            config = stages.pretrained(self.config, self.path, self.say)
            pair = {self.names[0]: config, CONTROL: changed(config, PLAIN)}
            together = Together()
            for number, run in enumerate(asked):
                if run.name != CONTROL:  # the two runs of a pair learn from the same draw
                    together = Together()
                if self._finished(run):
                    continue
                taken = {one: self._said(one)["whole_seconds"] for one in asked if self._finished(one)}
                still = left(asked, taken, self._examples)
                self.say(f"\n— run {number + 1} of {len(asked)}: {self._drawn(run.shots)}, {run.name}, seed {run.seed}"
                         f"{still and f'; {still}'} —")  # fmt: skip
                self._one(run, changed(pair[run.name], {"data.per_class": run.shots, "seed": run.seed}), together)
        finally:
            text = self._publish()
            self.say("\n" + text)
        return text

    def _most(self) -> int:
        """How many training examples the largest class has; 0 where there are no classes to draw of.

        Raises:
          ConfigError: no test data; shots that cannot be drawn, or are all that there is; an unknown metric.
        """
        c, tables = self.config, Together().tables(self.config)
        if tables.test is None:
            raise ConfigError("--config.data.test", "empty", "labelled examples that no run learns from, to judge by")
        labels = tables.train.labels if isinstance(tables.train, Records) and tables.classes else None
        known, few = ({"accuracy", *NAMES} - {"loss"} if labels is None else {"accuracy", "macro_f1"}), max(self.few)
        if self.metric not in known:
            raise ConfigError("--metric", f"{self.metric!r}", f"one of {', '.join(sorted(known))}")
        if labels is None:
            if few:
                raise ConfigError("--shots", f"{few} with --config.task={c.task}, --config.objective={c.objective}",
                                  "0 alone: few examples are drawn of the classes of texts or images")  # fmt: skip
            return 0
        most = max(Counter(labels).values())
        if few >= most:
            raise ConfigError("--shots", f"{few}, and the largest class has {most} training examples",
                              f"fewer than {most}, or 0 for all")  # fmt: skip
        return most

    def _one(self, run: Asked, config: Config, together: Together) -> None:
        so_far, began = self.told["runs"].setdefault(run.place, {}), time.monotonic()
        try:
            result = train.train(config, self.path / run.place, self.say, together)
        finally:
            so_far["whole_seconds"] = so_far.get("whole_seconds", 0.0) + time.monotonic() - began
            several.write(self.path / FILE, self.told)
        scores = result.scores.summary()
        so_far |= {"scores": scores, "training_seconds": result.training_seconds, "trainable": result.trainable}
        several.write(self.path / FILE, self.told)
        if self.metric not in scores:  # of a task that says only now what it is scored by
            known = sorted(scores.keys() - {"n", "loss"})
            raise ConfigError("--metric", f"{self.metric!r}", f"one of {', '.join(known)}")

    def _said(self, run: Asked) -> Mapping[str, Any]:
        return self.told["runs"].get(run.place, {})

    def _finished(self, run: Asked) -> bool:
        return "scores" in self._said(run)

    def _examples(self, k: int) -> int:
        """The most that a class has: all examples are as many of each as the largest class has."""
        return k or max(self.most, 1)

    def _drawn(self, k: int) -> str:
        return f"{k:,} example{'s' * (k > 1)} a class" if k else "all examples"

    def _points(self) -> list[Point]:
        """What each number of examples has come to, over the seeds of which both runs are finished."""
        found = []
        for k in sorted(self.few, key=self._examples):
            pairs = [[Asked(k, name, seed) for name in self.names] for seed in self.seeds]
            pairs = [pair for pair in pairs if all(map(self._finished, pair))]
            if not pairs:
                continue
            n = int(self._said(pairs[0][0])["scores"]["n"]) if self.metric == "accuracy" else 0  # others are no shares
            ours, control = (tuple(map(self._score, runs)) for runs in zip(*pairs, strict=True))
            found.append(Point(k, self._examples(k), judge(ours, control, n, unit=self.metric), ours, control))
        return found

    def _score(self, run: Asked) -> float:
        value = self._said(run)["scores"].get(self.metric)
        if value is None:
            raise DataError(str(self.path / run.place), f"its {self.metric} is undefined", "a number",
                            "take another --metric: what is finished stays")  # fmt: skip
        return float(value)

    def _publish(self) -> str:
        """Writes what is finished, and gives it as text."""
        found = self._points()
        if not found:
            return "no pair of runs is finished yet"
        tried = {"layers"} if self.names[0] in MOVES_ALL else set()
        self.told["metric"], self.told["verdicts"] = self.metric, [_as_json(point) for point in found]
        several.write(self.path / FILE, self.told)
        if self.most:
            title = f"test {NAMES.get(self.metric, self.metric)}"
            picture = curves.few_shot([(p.examples, p.transferred, p.control) for p in found], title)
            try:
                (self.path / "few_shot.png").write_bytes(picture)
            except OSError as error:
                raise WriteError(str(self.path), f"cannot be written ({error.strerror})") from None
        return shots.render(found, self.names[0], tried)


def _as_json(point: Point) -> dict[str, Any]:
    """With null for what is infinite, which JSON has not."""
    values = {"shots": point.shots, "examples": point.examples, **dataclasses.asdict(point.verdict)}
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()}  # fmt: skip
