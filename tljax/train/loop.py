"""The loop: epochs of steps, an evaluation after each, checkpoints between, and a stop that loses nothing."""

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from tljax.config import TrainConfig
from tljax.errors import DivergedError, StoppedError
from tljax.train.checkpoint import Checkpoints
from tljax.train.state import TrainState
from tljax.train.step import Batch

Scores = dict[str, Any]
LOWER_IS_BETTER = {"loss"}


class Feed(Protocol):
    """Training data: the same batches for the same (epoch, start), on any machine.

    A batch may be a stack of `steps` batches (train/stretch.py); looks(i) is how many may be taken together from the
    i-th of the epoch on, before the loop has something to do.
    """

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, epoch: int, start: int, looks: Callable[[int], int]) -> Iterator[Batch]: ...
    def send(self, batch: Batch) -> Batch: ...  # to the devices, all but `rows`
    def describe(self, rows: Sequence[int]) -> str: ...


class Step(Protocol):
    """A train step, or a stretch of them (train/step.py, train/stretch.py)."""

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]: ...


class Bar(Protocol):
    """What shows the progress of a long run to a person."""

    def update(self, examples: int) -> None: ...
    def show(self, text: str) -> None: ...


@dataclasses.dataclass
class Progress:
    """What the loop remembers besides the state; it is saved with every checkpoint.

    Attributes:
      history: the validation scores after each epoch.
      best_step, best_score: the step whose score was the best so far.
      phase: of the run (transfer/phases.py).
      distances: stage -> how far it had come at the last look of adaptive freezing; `looked`: the step of it.
      moves: (step, lowest stage that trains, stage that batches enter at) of every phase that a look began.
    """

    history: list[Scores] = dataclasses.field(default_factory=list)
    best_step: int | None = None
    best_score: float | None = None
    phase: int = 0
    distances: dict[str, float] = dataclasses.field(default_factory=dict)
    looked: int = 0
    moves: list[list[int]] = dataclasses.field(default_factory=list)

    def add(self, scores: Scores, step: int, metric: str) -> None:
        self.history.append(scores)
        score = scores.get(metric)
        if score is None or not math.isfinite(score):
            return
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        if self.best_score is None or sign * score > sign * self.best_score:
            self.best_score, self.best_step = score, step

    def epochs_since_best(self, metric: str) -> int:
        """0 where nothing was scored: without validation data there is nothing to lose patience over."""
        if self.best_score is None:
            return 0
        scores = [s.get(metric) for s in self.history]
        return len(scores) - 1 - scores.index(self.best_score)


def fit(state: TrainState, step: Step, feed: Feed, evaluate: Callable[[TrainState], Scores],
        checkpoints: Checkpoints, settings: TrainConfig, progress: Progress, until: int, *,
        log: Callable[[dict[str, Any]], None], bar: Bar,
        stopping: Callable[[], bool]) -> tuple[TrainState, Progress]:  # fmt: skip
    """Trains from wherever `state` stands to step `until` or until the patience is over; the last state and progress.

    All resume state is the step number: epoch and position follow from it, and each batch is a function of
    (seed, epoch, position). Nothing is fetched from the device except every `log_every_steps`, at saves and at
    evaluations, and no state is saved before every loss up to it was seen to be finite.

    Args:
      stopping: whether a signal asked to stop; looked at after every step.

    Raises:
      StoppedError: stopped and saved.
      DivergedError: a loss or gradient was not finite; nothing was saved since.
    """
    done = int(state.step)
    window = _Window(feed, log, bar, sorted(state.trainable))
    while True:
        epoch, offset = divmod(done, feed.steps_per_epoch)
        if offset == 0 and epoch > len(progress.history):
            progress.add(evaluate(state), done, settings.best_metric)
            log({"kind": "evaluation", "step": done, "epoch": epoch, **progress.history[-1]})
            # without scores an epoch is no better place to go on from than any other step
            if progress.history[-1] or epoch >= settings.epochs or done % settings.save_every_steps == 0:
                checkpoints.save(state, dataclasses.asdict(progress), progress.best_step)
        if stopping():
            checkpoints.save(state, dataclasses.asdict(progress), progress.best_step)
            raise StoppedError("signal", f"stopped after step {done} and saved",
                               fix="run the same command again to go on")  # fmt: skip
        if finished(done, until, progress, settings):
            return state, progress
        marks = (settings.save_every_steps, settings.log_every_steps)

        def looks(at: int, first: int = done - offset, marks: tuple[int, ...] = marks) -> int:
            left = max(until - first - at, 1)  # one is fetched ahead of the last step
            return min(left, *(every - (first + at) % every for every in marks))

        batches = _ahead(map(feed.send, feed.batches(epoch, offset, looks)))
        for batch in batches:
            rows = batch.pop("rows")
            state, metrics = step(state, batch)
            done += window.add(done, rows, metrics)
            saving = done % settings.save_every_steps == 0
            ending = done % feed.steps_per_epoch == 0
            over = done == until and not ending  # the phase ends within an epoch
            stop = stopping()  # asked once a step: a signal between two answers would save what was not looked at
            if saving or ending or over or stop or done % settings.log_every_steps == 0:
                window.flush()
            if saving and not ending:
                checkpoints.save(state, dataclasses.asdict(progress), progress.best_step)
            if stop or over:
                break
        batches.close()


def finished(done: int, until: int, progress: Progress, settings: TrainConfig) -> bool:
    """Whether all steps are done, or the patience is over."""
    waited = progress.epochs_since_best(settings.best_metric)
    return done >= until or 0 < settings.patience <= waited


def _ahead(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """Takes each batch, and so sends it to the devices, one step before it is needed."""
    waiting: Batch | None = None
    for batch in batches:
        if waiting is not None:
            yield waiting
        waiting = batch
    if waiting is not None:
        yield waiting


class _Window:
    """Metrics of the steps since the last look at the device."""

    def __init__(self, feed: Feed, log: Callable[[dict[str, Any]], None], bar: Bar, paths: list[str]):
        self.feed, self.log, self.bar, self.paths = feed, log, bar, paths
        self.steps: list[tuple[int, np.ndarray, Any]] = []
        self.since = time.perf_counter()

    def add(self, before: int, rows: np.ndarray, metrics: Any) -> int:
        """Notes the metrics of one step, rows (B,), or of a stretch, rows (steps, B); how many steps that were."""
        self.steps.append((before, rows, metrics))
        return len(rows) if rows.ndim == 2 else 1

    def flush(self) -> None:
        """Waits for the device, checks every step, writes one line."""
        if not self.steps:
            return
        each = self._each()
        for step, rows, metrics in each:
            if not metrics["finite"]:
                self._diverged(step, rows, metrics)
        fetched = [metrics for _, _, metrics in each]
        weights = np.asarray([m["weight"] for m in fetched])
        loss = float(np.dot([m["loss"] for m in fetched], weights) / weights.sum())
        examples = sum(int((rows >= 0).sum()) for _, rows, _ in self.steps)
        now = time.perf_counter()
        rate = examples / (now - self.since)
        last = each[-1][0]
        self.log({"kind": "train", "step": last, "loss": loss, "grad_norm": float(fetched[-1]["grad_norm"]),
                  "learning_rate": float(fetched[-1]["learning_rate"]), "examples_per_s": round(rate, 1)})  # fmt: skip
        self.bar.update(examples)
        self.bar.show(f"loss {loss:.3f}")
        self.steps, self.since = [], now

    def _each(self) -> list[tuple[int, np.ndarray, dict[str, Any]]]:
        """(number, rows (B,), metrics) of every step, from the device."""
        found = []
        fetched = jax.device_get([metrics for _, _, metrics in self.steps])
        for (before, rows, _), metrics in zip(self.steps, fetched, strict=True):
            if rows.ndim == 1:
                found.append((before + 1, rows, metrics))
                continue
            own = [{name: leaf[i] for name, leaf in metrics.items()} for i in range(len(rows))]
            found += [(before + 1 + i, rows[i], own[i]) for i in range(len(rows))]
        return found

    def _diverged(self, step: int, rows: np.ndarray, metrics: Any) -> None:
        what = f"the loss is {metrics['loss']}" if not np.isfinite(metrics["loss"]) else "the gradient is not finite"
        raise DivergedError(
            f"step {step}",
            f"{what}; first non-finite gradient: {self.paths[int(metrics['first_bad'])]}",
            "finite numbers",
            "lower --config.optim.learning_rate or look at the examples; the update was not applied "
            "and the last checkpoint is as it was",
            details=[f"examples: {self.feed.describe([int(row) for row in rows if row >= 0])}"],
        )
