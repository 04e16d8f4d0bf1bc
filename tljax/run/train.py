"""`tljax train`: a config becomes a finished workdir, or goes on where it was stopped."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax

from tljax import mesh, trees
from tljax.config import Config, settings, validate
from tljax.errors import DivergedError, WeightsError, printable
from tljax.models.adapters import LOW_RANK
from tljax.run import activations, adapting, devices, domains, memory, processes, publish, signals, tasks, workdir
from tljax.run.adaptive import AdaptiveTraining
from tljax.run.labelshift import class_shares
from tljax.run.together import Together
from tljax.run.training import StepCost, Training
from tljax.run.workdir import Workdir
from tljax.train import checkpoint, loop
from tljax.train.state import TrainState
from tljax.transfer import freeze, phases

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to: scores on `split` (test, else validation, else train), where the model lies, seconds."""

    strategy: str
    scores: tasks.Scores
    split: str
    model: Path
    seconds: float
    training_seconds: float  # of these: steps, compilation, validation and checkpoints
    evaluation_seconds: float  # of these: the scores on `split`
    validation: float | None  # accuracy on validation data of the epoch that is kept; of a ranking, what chose it
    trainable: int  # parameters, in the phase that trains most
    cost: StepCost | None  # of the phase that takes most memory, for who asked with `together`; None: nothing compiled


def train(config: Config, path: Path, say: Say = print, together: Together | None = None,
          group: processes.Group | None = None) -> Result:  # fmt: skip
    """Trains, evaluates and exports; called again on the same workdir it goes on, bit for bit.

    Args:
      config: the settings; they are checked here.
      path: the workdir.
      say: prints a line for the user.
      together: what this run shares with others on the same data.
      group: the processes that it is divided among; each of them has to call this. The first one speaks and writes.

    Raises:
      TljaxError: see errors.py; the exit code says which.
    """
    config = validate(config)
    memory.keep_freed()
    say = say if mesh.lead() else lambda text: None
    watched = group.watched() if group else signals.watched()
    with workdir.opened(path, config, mesh.lead()) as place, watched as stopping:
        try:
            return _Run(config, place, stopping, say, together).go()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fix = "lower --config.train.batch_size, or raise --config.optim.accumulate"
            raise DivergedError("device memory", f"used up ({printable(error)})", fix=fix) from error


def describe(config: Config) -> str:
    """The strategy in words: "last_k, k = 2"."""
    transfer = config.transfer
    named = {"layer_decay": 1.0, "head_factor": 1.0, "l2sp": 0.0}
    extras = [
        f"{name} = {getattr(transfer, name):g}" for name, plain in named.items() if getattr(transfer, name) != plain
    ]
    own = {"last_k": f"k = {transfer.k}", "gradual": f"k = {transfer.k}", "surgical": transfer.stages}
    own |= dict.fromkeys((*LOW_RANK, "bottleneck"), f"rank {config.adapter.rank}")
    own |= dict.fromkeys(("prefix", "prompt"), f"{config.adapter.tokens} tokens")
    extras += ["int8 trunk"] if config.model.frozen == "int8" else []
    return ", ".join([transfer.strategy, *([own[transfer.strategy]] if transfer.strategy in own else []), *extras])


class _Run:
    """One run in its workdir: what is set up once and used to the end."""

    def __init__(self, config: Config, place: Workdir, stopping: Callable[[], bool], say: Say,
                 together: Together | None = None):  # fmt: skip
        self.config, self.place, self.stopping, self.say = config, place, stopping, say
        self.measure, together = together is not None, together or Together()
        self.started = time.monotonic()
        self.warnings: list[str] = []
        self.layout = devices.layout(config)
        self.tables = together.tables(config)
        self.model = adapting.load(config, self.tables.classes, self.tables.fields)
        self.model = domains.network(config, self.model)
        planned = phases.of(self.model.backbone, config.transfer, config.train.epochs, config.adapter.factor)
        self.planned = domains.phases(config, planned)
        shapes = self.model.backbone.shapes()
        self.table = freeze.render(
            freeze.table(self.model.backbone, max((p.plan for p in self.planned), key=lambda p: _breadth(p, shapes)))
        )
        own = together.examples(config, self.model)
        self.examples = domains.pairs(config, self.model, own, self.layout)
        self.kept = activations.plan(
            config, self.model.backbone, self.examples, self.planned, together.chosen, stopping, self.layout
        )
        self._tell()

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.say(f"WARNING: {text}")

    def _tell(self) -> None:
        model, tables = self.model, self.tables
        sizes = ", ".join(f"{name} {len(records):,}" for name, records in tables.splits().items())
        self.say(f"{model.config['model_type']} from {model.ref}, {describe(self.config)}")
        if self.layout.divided:
            self.say(devices.told(self.layout))
        self.say(f"{f'{len(tables.classes)} classes; ' if tables.classes else ''}examples: {sizes}")
        if model.reinitialised and self.config.transfer.strategy != "scratch":
            self.say(f"from random values: {', '.join(model.reinitialised)}")
        if model.dropped:
            self.say(f"not used from the checkpoint: {', '.join(model.dropped[:8])}{' …' * (len(model.dropped) > 8)}")
        if model.adapted:
            self.say(f"changed to the size that was asked for: {', '.join(model.adapted)}")
        self.say("\n" + self.table + "\n")
        for line in (phases.render(self.planned, model.backbone.stage_names), self.kept.why):
            if line:
                self.say(line + "\n")
        for name, records in tables.splits().items():
            if records.bad:
                self.warn(f"{len(records.bad)} rows of {name} cannot be used and are left out; see bad_rows.jsonl")
        for name, shared in tables.shared().items():
            if shared:
                self.warn(f"{shared} of {len(tables.splits()[name]):,} {name} inputs are in train too: the score "
                          "flatters")  # fmt: skip

    def go(self) -> Result:
        training = self._training()
        start, done = training.resume()
        self._describe(start, done, training.steps)
        began = time.monotonic()
        final, done = training.fit(start, done)
        seconds = time.monotonic() - began
        final, phase = self._best(training, final, done)
        split = next(name for name in ("test", "validation", "train") if name in self.examples)
        began = time.monotonic()
        scores, probs = training.score(final, phase, split)
        evaluation = time.monotonic() - began
        self.place.log({"kind": "final", "step": int(final.step), "split": split, **scores.summary()})
        left = self.place.model if adapting.mergeable(self.model) else self.place.adapter
        result = Result(describe(self.config), scores, split, left,
                        time.monotonic() - self.started, seconds, evaluation, self._validation(done),
                        max(_breadth(p.plan, self.model.backbone.shapes()) for p in self.planned),
                        training.cost() if self.measure else None)  # fmt: skip
        params = trees.unflatten(mesh.fetch(training.params(final)))
        if mesh.lead():
            publish.publish(publish.Finished(self.config, self.place, self.model, params, self.tables, result.strategy,
                                             split, scores, probs, self.table, tuple(self.warnings),
                                             result.seconds))  # fmt: skip
        mesh.barrier("published")
        return result

    def _training(self) -> Training:
        c = self.config
        self.digests = {"weights": self.model.digest, **{f"{n} data": e.digest() for n, e in self.examples.items()}}
        if self.layout.processes > 1:
            said = {f"--{name}": value for name, _, value in settings(c)} | workdir.versions() | self.digests
            processes.compare(said | {"code of tljax": devices.code(), "number of devices": jax.local_device_count()})
        saves = checkpoint.Checkpoints(self.place.checkpoints, c.train.keep, self.digests, self.warn)
        kind = AdaptiveTraining if c.transfer.strategy == "adaptive" else Training
        task = tasks.of(c, self.model.config, self.tables.classes, self.examples["train"])
        return kind(c, self.model, task, self.planned, self.kept, saves, self.place, self.say,
                    self.stopping, self.layout)  # fmt: skip

    def _describe(self, start: TrainState, done: loop.Progress, steps: int) -> None:
        """Writes what the run is; not before its state was restored, which may refuse: what the checkpoints belong to
        must still be read then. And config.json first of all files: a folder without it is not taken for a run."""
        c, step = self.config, int(start.step)
        self.place.describe(c, {"model": self.model.ref, "revision": self.model.revision, "digests": self.digests,
                                "classes": list(self.tables.classes),
                                "class_shares": class_shares(self.tables)})  # fmt: skip
        self.place.list_bad({name: list(records.bad) for name, records in self.tables.splits().items()})
        resumed = step > 0 or bool(done.history)
        if resumed:
            self.say(f"going on from step {step} of {steps}")
        self.place.rewind(step if resumed else -1)

    def _validation(self, done: loop.Progress) -> float | None:
        metric = self.config.train.best_metric
        best = [scores for scores in done.history
                if done.best_score is not None and scores.get(metric) == done.best_score]  # fmt: skip
        return best[0].get("accuracy", best[0][metric]) if best else None

    def _best(self, training: Training, last: TrainState, done: loop.Progress) -> tuple[TrainState, int]:
        """The state of the best step and its phase; the last one where that checkpoint was damaged since."""
        best = done.best_step
        if best is None or best == int(last.step):
            return last, done.phase
        try:
            restored = training.restore(best)
        except WeightsError as error:
            self.warn(f"{error} It held the best {self.config.train.best_metric}; the last model is kept instead.")
            return last, done.phase
        if restored is None:
            return last, done.phase
        self.say(f"the best {self.config.train.best_metric} was at step {best}; that model is kept")
        return restored[0], restored[1].phase


def _breadth(plan: freeze.FreezePlan, shapes: trees.Flat) -> int:
    """How many parameters train."""
    return trees.count({path: leaf for path, leaf in shapes.items() if plan.trains(path)})
