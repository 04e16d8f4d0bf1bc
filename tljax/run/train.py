"""`tljax train`: a config becomes a finished workdir, or goes on where it was stopped."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import trees
from tljax.config import Config, TransferConfig, validate
from tljax.data import batching, sources
from tljax.errors import DivergedError, WeightsError, printable
from tljax.evaluate import metrics
from tljax.evaluate.predict import probabilities
from tljax.run import inputs, memory, progress, publish, signals, workdir
from tljax.run.workdir import Workdir
from tljax.train import checkpoint, loop, optim, state, step
from tljax.train.state import TrainState
from tljax.transfer import freeze
from tljax.weights.load import Model, load_pretrained

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to: scores on `split` (test, else validation, else train), where the model lies, seconds."""

    strategy: str
    scores: metrics.Scores
    split: str
    model: Path
    seconds: float
    training_seconds: float  # of these: steps, compilation, validation and checkpoints
    evaluation_seconds: float  # of these: the scores on `split`


def train(config: Config, path: Path, say: Say = print) -> Result:
    """Trains, evaluates and exports; called again on the same workdir it goes on, bit for bit.

    Args:
      config: the settings; they are checked here.
      path: the workdir.
      say: prints a line for the user.

    Raises:
      TljaxError: see errors.py; the exit code says which.
    """
    config = validate(config)
    memory.keep_freed()
    with workdir.opened(path, config) as place, signals.watched() as stopping:
        try:
            return _Run(config, place, stopping, say).go()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fix = "lower --config.train.batch_size, or raise --config.optim.accumulate"
            raise DivergedError("device memory", f"used up ({printable(error)})", fix=fix) from error


def describe(transfer: TransferConfig) -> str:
    """The strategy in words: "last_k, k = 2"."""
    named = {"layer_decay": 1.0, "head_factor": 1.0, "l2sp": 0.0}
    extras = [
        f"{name} = {getattr(transfer, name):g}" for name, plain in named.items() if getattr(transfer, name) != plain
    ]
    return ", ".join([transfer.strategy, *([f"k = {transfer.k}"] if transfer.strategy == "last_k" else []), *extras])


class _Run:
    """One run in its workdir: what is set up once and used to the end."""

    def __init__(self, config: Config, place: Workdir, stopping: Callable[[], bool], say: Say):
        self.config, self.place, self.stopping, self.say = config, place, stopping, say
        self.started = time.monotonic()
        self.warnings: list[str] = []
        self.tables = inputs.read(config)
        self.model = self._load(self.tables.classes)
        self.plan = freeze.plan(self.model.backbone, **_freeze_options(config.transfer))
        self.table = freeze.render(freeze.table(self.model.backbone, self.plan))
        self.examples = {name: inputs.make_examples(records, self.model, config, self.tables.classes)
                         for name, records in self.tables.splits().items()}  # fmt: skip
        self.eval_step = step.make_eval_step(self.model.backbone)
        self._tell()

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.say(f"WARNING: {text}")

    def _load(self, classes: tuple[str, ...]) -> Model:
        c = self.config
        model = load_pretrained(
            c.model.ref, labels=classes, revision=c.model.revision, pooling=c.model.pooling, seed=c.seed,
            dropout=None if c.model.dropout < 0 else c.model.dropout, image_size=c.model.image_size or None,
            vocab_size=c.model.vocab_size or None, scratch=c.transfer.strategy == "scratch",
            dtype=jnp.dtype(c.model.dtype))  # fmt: skip
        return dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, remat=c.train.remat))

    def _tell(self) -> None:
        model, tables = self.model, self.tables
        sizes = ", ".join(f"{name} {len(records):,}" for name, records in tables.splits().items())
        self.say(f"{model.config['model_type']} from {model.ref}, {describe(self.config.transfer)}")
        self.say(f"{len(tables.classes)} classes; examples: {sizes}")
        if model.reinitialised and self.config.transfer.strategy != "scratch":
            self.say(f"from random values: {', '.join(model.reinitialised)}")
        if model.dropped:
            self.say(f"not used from the checkpoint: {', '.join(model.dropped[:8])}{' …' * (len(model.dropped) > 8)}")
        if model.adapted:
            self.say(f"changed to the size that was asked for: {', '.join(model.adapted)}")
        self.say("\n" + self.table + "\n")
        for name, records in tables.splits().items():
            if records.bad:
                self.warn(f"{len(records.bad)} rows of {name} cannot be used and are left out; see bad_rows.jsonl")
            if name != "train" and (shared := sources.overlap(tables.train, records)):
                self.warn(f"{shared} of {len(records):,} {name} inputs are in train too: the score flatters")

    def go(self) -> Result:
        saved = self._resume()
        began = time.monotonic()
        final, done = self._fit(*saved)
        training = time.monotonic() - began
        best = done.best_step
        if best is not None and best != int(final.step):
            final = self._best(final, best)
        params = self._whole(final)
        split = next(name for name in ("test", "validation", "train") if name in self.examples)
        began = time.monotonic()
        scores, probs = self._score(params, split, split)
        evaluation = time.monotonic() - began
        self.place.log({"kind": "final", "step": int(final.step), "split": split, **scores.summary()})
        result = Result(describe(self.config.transfer), scores, split, self.place.model,
                        time.monotonic() - self.started, training, evaluation)  # fmt: skip
        publish.publish(
            publish.Finished(
                self.config,
                self.place,
                self.model,
                params,
                self.tables,
                result.strategy,
                split,
                scores,
                probs,
                self.table,
                tuple(self.warnings),
                result.seconds,
            )
        )
        return result

    def _best(self, last: TrainState, step: int) -> TrainState:
        """The state of the best step; the last one where that checkpoint was damaged since."""
        try:
            restored = self.saves.restore(last, step)
        except WeightsError as error:
            self.warn(f"{error} It held the best {self.config.train.best_metric}; the last model is kept instead.")
            return last
        self.say(f"the best {self.config.train.best_metric} was at step {step}; that model is kept")
        return restored[0] if restored else last

    def _resume(self) -> tuple[TrainState, loop.Progress]:
        """The state to go on from, and everything that fit needs; made once the data is known."""
        c, train = self.config, self.examples["train"]
        edges = batching.buckets(train.lengths, c.data.max_buckets)
        self.feed = inputs.TrainFeed(train, c.train.batch_size, edges, c.seed, c.data.threads)
        steps = c.train.epochs * self.feed.steps_per_epoch
        self.optimizer = optim.make(c.optim, self.plan, steps, c.transfer.l2sp)
        self.rate = optim.schedule(c.optim, steps)
        fresh = state.create(self.model.params, self.plan, self.optimizer, jax.random.key(c.seed), c.model.dtype)
        digests = {"weights": self.model.digest, **{f"{n} data": e.digest() for n, e in self.examples.items()}}
        self.saves = checkpoint.Checkpoints(self.place.checkpoints, c.train.keep, digests, self.warn)
        self.saves.check_room(fresh)
        restored = self.saves.restore(fresh)
        # first of all files, because a folder with files and without config.json is not taken for a run; and not
        # before `restore`, which may refuse: what the checkpoints belong to must still be read there then
        self.place.describe(c, {"model": self.model.ref, "revision": self.model.revision, "digests": digests,
                                "classes": list(self.tables.classes)})  # fmt: skip
        self.place.list_bad({name: records.bad for name, records in self.tables.splits().items()})
        if restored is None:
            self.place.rewind(-1)
            return fresh, loop.Progress()
        self.say(f"going on from step {int(restored[0].step)} of {steps}")
        self.place.rewind(int(restored[0].step))
        return restored[0], loop.Progress(**restored[1])

    def _fit(self, start: TrainState, done: loop.Progress) -> tuple[TrainState, loop.Progress]:
        c, train = self.config, self.examples["train"]
        weights = None
        if c.optim.class_weights == "balanced" and train.labels is not None:
            weights = inputs.class_weights(train.labels, len(self.tables.classes))
        stepper = step.make_train_step(self.model.backbone, self.plan, self.optimizer, self.rate, class_weights=weights,
                                       smoothing=c.optim.label_smoothing, accumulate=c.optim.accumulate)  # fmt: skip
        epochs, position = divmod(int(start.step), self.feed.steps_per_epoch)
        seen = epochs * len(train) + position * c.train.batch_size
        with progress.bar("training", c.train.epochs * len(train), seen) as bar:
            if not loop.finished(epochs, done, c.train):
                shapes = self.feed.shapes(epochs)
                bar.show(f"compiling for {len(shapes)} shape{'s' * (len(shapes) > 1)} of batches")
                stepper.compile(start, shapes)
            return loop.fit(start, stepper, self.feed, self._validate, self.saves, c.train, done, log=self.place.log,
                            bar=bar, stopping=self.stopping)  # fmt: skip

    def _validate(self, now: TrainState) -> loop.Scores:
        if "validation" not in self.examples:
            return {}
        scores, _ = self._score(state.params_of(now), "validation")
        epoch = int(now.step) // self.feed.steps_per_epoch
        self.say(f"epoch {epoch}: validation accuracy {metrics.shown(scores.accuracy)}, "
                 f"macro-F1 {metrics.shown(scores.macro_f1)}, loss {metrics.shown(scores.loss)}")  # fmt: skip
        return scores.summary()

    def _score(self, params: Any, split: str, title: str = "") -> tuple[metrics.Scores, np.ndarray]:
        examples = self.examples[split]
        with progress.bar(title or "evaluating", len(examples)) as bar:
            probs = probabilities(self.eval_step, params, examples, self.config.train.eval_batch_size,
                                  self.config.data.threads, bar.update)  # fmt: skip
        return metrics.classification(np.asarray(examples.labels), probs, self.tables.classes), probs

    def _whole(self, final: TrainState) -> trees.Tree:
        """The trained part and the pretrained rest, the latter in its own precision and not the compute dtype."""
        flat = trees.flatten(self.model.params)
        return trees.unflatten(flat | final.trainable | final.batch_stats)


def _freeze_options(transfer: TransferConfig) -> dict[str, Any]:
    names = ("strategy", "k", "rules", "layer_decay", "head_factor")
    return {name: getattr(transfer, name) for name in names}
