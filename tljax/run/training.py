"""The trainable part of a run: its phases, what each of them starts from, and how it is scored."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from tljax import trees
from tljax.config import Config, TrainConfig
from tljax.data import batching
from tljax.evaluate.predict import outputs
from tljax.mesh import Layout
from tljax.models import Backbone
from tljax.run import inputs, progress, tasks
from tljax.run.activations import Kept
from tljax.run.workdir import Workdir
from tljax.train import checkpoint, cost, loop, optim, state, step, stretch
from tljax.train.state import TrainState
from tljax.transfer import boundary, phases
from tljax.transfer.floor import floor
from tljax.transfer.freeze import FROZEN
from tljax.transfer.quantise import quantise
from tljax.weights.load import Model

Say = Callable[[str], None]
Go = Callable[[TrainState, loop.Progress, int], tuple[TrainState, loop.Progress]]  # up to a step


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A phase, ready: `until` is an optimizer step of the run, `start` the stage that batches enter at."""

    number: int
    phase: phases.Phase
    until: int
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    start: int


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of the longest batch: FLOPs of loss and gradient as compiled and at least, and the most memory on a device."""

    flops: float
    floor: int
    peak_bytes: int


@dataclasses.dataclass
class Training:
    """Trains a model on the examples of a run, phase by phase, from wherever its checkpoints stand.

    Attributes:
      task: what is learned.
      planned: the phases.
      kept: the examples, and the activations that are kept of them.
    """

    config: Config
    model: Model
    task: tasks.Task
    planned: list[phases.Phase]
    kept: Kept
    saves: checkpoint.Checkpoints
    place: Workdir
    say: Say
    stopping: Callable[[], bool]
    layout: Layout

    def __post_init__(self) -> None:
        train = self.kept.examples["train"]
        edges = batching.buckets(train.lengths, self.config.data.max_buckets)
        self.feed = inputs.TrainFeed(train, self.config.train.batch_size, edges, self.config.seed,
                                     self.config.data.threads, layout=self.layout,
                                     accumulate=self.config.optim.accumulate)  # fmt: skip
        self.network = self.model.backbone  # as steps run it
        if self.layout.mode == "fsdp" and self.layout.divided and isinstance(self.network, Backbone):
            self.network = dataclasses.replace(self.network, gather=self.layout.everywhere)
        self.given = self._held(trees.flatten(self.model.params))
        self._costs: list[Callable[[], StepCost]] = []  # of the phases so far
        self.steps = self.config.train.epochs * self.feed.steps_per_epoch

    def resume(self) -> tuple[TrainState, loop.Progress]:
        """The newest state that was saved, or the first one.

        Raises:
          WriteError: there is no room for checkpoints.
        """
        largest = max(range(len(self.planned)), key=lambda n: len(self._trainable(n)))
        self.saves.check_room(self._like(largest))
        restored = self.restore()
        return (self.layout.put(self._like(0)), loop.Progress()) if restored is None else restored

    def restore(self, step: int | None = None) -> tuple[TrainState, loop.Progress] | None:
        """The state at a step that was saved, or the newest; None where there is none."""
        restored = self.saves.restore(lambda at, said: self._like(self._phase_of(said)), step)
        return None if restored is None else (self.layout.put(restored[0]), loop.Progress(**restored[1]))

    def fit(self, now: TrainState, done: loop.Progress) -> tuple[TrainState, loop.Progress]:
        """Trains to the end; the last state, and what the loop remembers."""
        ready = self._prepare(done.phase)
        while True:
            now, done = self._phase(ready, now, done)
            if done.phase + 1 == len(self.planned):
                return now, done
            done.phase += 1
            ready = self._prepare(done.phase)
            now = self.layout.put(self._next(now, ready))

    def score(self, now: TrainState, phase: int, split: str) -> tuple[tasks.Scores, np.ndarray]:
        """Scores of the model in a state of a phase, and its answers (N, K)."""
        params = self.params(now)
        examples, start = self.kept.of(phase, params, split), self.kept.starts[phase]
        return self._score(trees.unflatten(params), examples, start, split)

    def params(self, now: TrainState) -> trees.Flat:
        """What has trained, and the rest in its own precision and not the compute dtype."""
        return trees.flatten(self.model.params) | now.settled | state.learned(now) | now.batch_stats

    def cost(self) -> StepCost | None:
        """What a step costs in the phase that takes the most memory; None where nothing was compiled."""
        return max((cost_of() for cost_of in self._costs), key=lambda found: found.peak_bytes, default=None)

    def _phase(self, ready: Prepared, now: TrainState, done: loop.Progress) -> tuple[TrainState, loop.Progress]:
        c = self.config
        settings = c.train if ready.until == self.steps else dataclasses.replace(c.train, patience=0)
        if loop.finished(int(now.step), ready.until, done, settings):
            return now, done
        with self._running(ready, now, settings) as go:
            return self._driven(go, ready, now, done)

    def _driven(
        self, go: Go, ready: Prepared, now: TrainState, done: loop.Progress
    ) -> tuple[TrainState, loop.Progress]:
        """Takes the steps of a phase."""
        return go(now, done, ready.until)

    def _phase_of(self, said: Mapping[str, Any]) -> int:
        """The phase of a checkpoint, by what the loop remembered in it."""
        return said.get("phase", 0)

    @contextlib.contextmanager
    def _running(self, ready: Prepared, now: TrainState, settings: TrainConfig) -> Iterator[Go]:
        """Sets a phase up, and gives what takes its steps up to one that is named."""
        c = self.config
        params = self.given | now.settled
        ahead = self.kept.ahead(ready.number)
        splits = {name: self.kept.of(ready.number, params, name, ahead)
                  for name in self.kept.examples if name != "test"}  # fmt: skip
        feed = dataclasses.replace(self.feed, examples=splits["train"], views=self.kept.views(ready.number))
        stepper = step.make_train_step(self.network, ready.phase.plan, ready.optimizer, ready.rate,
                                       objective=self.task.objective, accumulate=c.optim.accumulate, start=ready.start,
                                       layout=self.layout)  # fmt: skip

        def validate(at: TrainState) -> loop.Scores:
            if "validation" not in splits:
                return {}
            scores, _ = self._score(state.params_of(at), splits["validation"], ready.start)
            self.say(f"epoch {int(at.step) // feed.steps_per_epoch}: validation {tasks.shown(scores)}")
            return scores.summary()

        taken, n = int(now.step), len(self.planned)
        title = "training" if n == 1 else f"training, phase {ready.number + 1} of {n}"
        with progress.bar(title, c.train.epochs * len(splits["train"]), feed.seen(taken)) as bar:
            shapes = feed.shapes(taken // feed.steps_per_epoch)
            bar.show(f"compiling for {len(shapes)} shape{'s' * (len(shapes) > 1)} of batches")
            long = stretch.length(shapes[0]) if len(shapes) == 1 and ready.start and not self.layout.by_hand else 1
            run: loop.Step = stepper
            programs = None
            if long > 1:
                run, feed = stretch.make_stretch(stepper), dataclasses.replace(feed, stretch=long)
                run.compile(now, self.layout.abstract(stretch.stacked(shapes[0], long), 1))
            else:
                programs = stepper.compile(now, [self.layout.abstract(s, training=True) for s in shapes])[-1]
            self._costs.append(functools.partial(_cost, self.model.backbone, ready, stepper, _abstract(now), shapes[-1],
                                                 programs, self.layout))  # fmt: skip

            def go(at: TrainState, done: loop.Progress, until: int) -> tuple[TrainState, loop.Progress]:
                return loop.fit(at, run, feed, validate, self.saves, settings, done, until, log=self.place.log,
                                bar=bar, stopping=self.stopping)  # fmt: skip

            yield go

    def _score(self, params: Any, examples: Any, start: int, title: str = "") -> tuple[tasks.Scores, np.ndarray]:
        stepper = step.make_eval_step(self.network, start, self.task.objective)
        with progress.bar(title or "evaluating", len(examples)) as bar:
            found = outputs(stepper, self.layout.put(params), examples, self.config.train.eval_batch_size,
                            self.config.data.threads, bar.update, self.layout)  # fmt: skip
        return self.task.score(examples, found), found

    def _prepare(self, number: int) -> Prepared:
        c, phase, each = self.config, self.planned[number], self.feed.steps_per_epoch
        first, long = sum(p.length(each) for p in self.planned[:number]), phase.length(each)
        rate = optim.schedule_of(c.optim, phase, first, long, self.steps)
        since = phases.since([p.plan for p in self.planned], number) if len(self.planned) > 1 else None
        optimizer = optim.make(c.optim, phase.plan, rate, c.transfer.l2sp, since)
        return Prepared(number, phase, first + long, optimizer, rate, self.kept.starts[number])

    def _like(self, number: int) -> TrainState:
        """A state as phase `number` has it; of phase 0, the first."""
        ready, c = self._prepare(0), self.config
        now = state.create(trees.unflatten(self.given), ready.phase.plan, ready.optimizer, jax.random.key(c.seed),
                           c.model.dtype, self._reads(ready.start))  # fmt: skip
        for later in range(1, number + 1):
            ready = self._prepare(later)
            now = self._next(now, ready)
        return now

    def _next(self, now: TrainState, ready: Prepared) -> TrainState:
        return state.next_phase(now, trees.unflatten(self.given), ready.phase.plan, ready.optimizer,
                                self.config.model.dtype, self._reads(ready.start))  # fmt: skip

    def _held(self, flat: trees.Flat) -> trees.Flat:
        """Parameters as the steps read them: what never trains as int8, where that is asked for."""
        if self.config.model.frozen == "same":
            return flat
        plans = [phase.plan for phase in self.planned]
        still, moving = trees.partition(flat, lambda path: all(plan.labels[path] == FROZEN for plan in plans))
        packed, saved = quantise(still)
        self.say(f"frozen kernels as int8: {saved.before / 1e6:,.1f} MB are {saved.after / 1e6:,.1f} MB")
        return packed | moving

    def _trainable(self, number: int) -> list[str]:
        plan = self.planned[number].plan
        return [path for path in plan.labels if plan.trains(path)]

    def _reads(self, start: int) -> Callable[[str], bool]:
        paths = set(boundary.above(self.model.backbone, trees.flatten(self.model.params), start))
        return paths.__contains__


def _abstract(now: TrainState) -> TrainState:
    """The shapes of a state and where they lie, which outlive the arrays that steps donate."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), now)


def _cost(backbone: Any, ready: Prepared, stepper: step.TrainStep, now: TrainState, batch: step.Batch,
          programs: tuple[Any, Any] | None, layout: Layout) -> StepCost:  # fmt: skip
    gradient, update = programs or stepper.compile(now, [layout.abstract(batch, training=True)])[0]
    least = floor(backbone, ready.phase.plan, batch["inputs"], ready.start).total
    flops = cost.flops(gradient, least / layout.count) * layout.count  # a program is that of one device
    return StepCost(flops, least, cost.peak_bytes(gradient, update, now))
