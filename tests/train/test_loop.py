"""The loop, with a step and a feed that compute nothing: in which order things happen, and what is never done."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.config import TrainConfig
from tljax.errors import DivergedError, StoppedError
from tljax.train import loop
from tljax.train.state import TrainState

ROWS = 4  # examples in a batch


def state_at(step: int) -> TrainState:
    return TrainState(
        jnp.int32(step), {"b/kernel": jnp.zeros(2), "a/bias": jnp.zeros(2)}, {}, {}, (), jax.random.key(0)
    )


class World:
    """Everything that the loop is given; `events` is what it did, in order.

    Args:
      scores: of each evaluation in turn, of the best metric.
      bad: steps whose loss is NaN.
      stop_at: the event after which a signal has come.
      stretch: how many batches come as one stack.
    """

    def __init__(self, scores=(), bad=(), stop_at=None, steps_per_epoch=3, metric="accuracy", stretch=1):
        self.events: list[tuple[Any, ...]] = []
        self.scores, self.bad, self.stop_at, self.metric = iter(scores), set(bad), stop_at, metric
        self.steps_per_epoch, self.stretch = steps_per_epoch, stretch
        self.lines: list[dict[str, Any]] = []
        self.saved: list[tuple[int, dict[str, Any], int | None]] = []
        self.shown: list[str] = []
        self.examples = 0
        self.open = 0

    # the feed
    def batches(self, epoch, start, looks):
        self.events.append(("feed", epoch, start))

        def made():
            self.open += 1
            try:
                i = start
                while i < self.steps_per_epoch:
                    steps = min(self.stretch, looks(i), self.steps_per_epoch - i)
                    assert steps >= 1
                    own = [self._batch(epoch, min(i + n, i + steps - 1)) for n in range(self.stretch)]
                    stack = {"inputs": {"x": np.stack([x for x, _ in own])}, "steps": np.int32(steps),
                             "rows": np.stack([rows for _, rows in own[:steps]])}  # fmt: skip
                    yield stack if self.stretch > 1 else {"inputs": {"x": own[0][0]}, "rows": own[0][1]}
                    i += steps
            finally:
                self.open -= 1

        return made()

    def _batch(self, epoch, i):
        rows = np.arange(ROWS) + 100 * epoch + 10 * i
        rows[ROWS - 1] = -1  # padding
        return np.full(2, i, np.float32), rows

    def send(self, batch):
        return batch

    def describe(self, rows):
        return ", ".join(f"row {row}" for row in rows)

    # the step
    def step(self, state, batch):
        assert "rows" not in batch  # they stay on the host
        if "steps" in batch:
            return self._stretch(state, batch)
        done = int(state.step) + 1
        self.events.append(("step", done, float(batch["inputs"]["x"][0])))
        bad = done in self.bad
        metrics = {"loss": jnp.float32(math.nan if bad else done), "weight": jnp.float32(1 + done % 2),
                   "grad_norm": jnp.float32(done / 2), "learning_rate": jnp.float32(0.25), "finite": jnp.bool_(not bad),
                   "first_bad": jnp.int32(1 if bad else 0)}  # fmt: skip
        return state_at(done), metrics

    def _stretch(self, state, stack):
        """Metrics as of that many steps, with what is not one in the places after them."""
        found = []
        for i in range(int(stack["steps"])):
            state, metrics = self.step(state, {"inputs": {"x": stack["inputs"]["x"][i]}})
            found.append(metrics)
        blank = dict.fromkeys(found[0], 0)
        found += [blank] * (self.stretch - len(found))
        return state, {name: jnp.stack([jnp.asarray(m[name], found[0][name].dtype) for m in found]) for name in blank}

    # the rest
    def evaluate(self, state):
        self.events.append(("evaluate", int(state.step)))
        score = next(self.scores, None)
        return {} if score is None else {self.metric: score}

    def save(self, state, progress, best):
        self.events.append(("save", int(state.step)))
        self.saved.append((int(state.step), progress, best))

    def log(self, record):
        self.events.append(("log", record["kind"], record["step"]))
        self.lines.append(record)

    def update(self, examples):
        self.examples += examples

    def show(self, text):
        self.shown.append(text)

    def stopping(self):
        return self.stop_at is not None and self.stop_at in self.events

    def fit(self, start=0, progress=None, until=0, **settings):
        chosen = TrainConfig(**{"epochs": 2, "log_every_steps": 100, "save_every_steps": 100, **settings},
                             best_metric=self.metric)  # fmt: skip
        until = until or chosen.epochs * self.steps_per_epoch
        return loop.fit(state_at(start), self.step, self, self.evaluate, self, chosen, progress or loop.Progress(),
                        until, log=self.log, bar=self, stopping=self.stopping)  # fmt: skip

    def order(self, *kinds):
        return [event for event in self.events if not kinds or event[0] in kinds]


def test_the_order_of_everything():
    world = World(scores=[0.5, 0.7])
    final, done = world.fit()
    assert int(final.step) == 6
    assert world.events == [
        ("feed", 0, 0), ("step", 1, 0), ("step", 2, 1), ("step", 3, 2), ("log", "train", 3),
        ("evaluate", 3), ("log", "evaluation", 3), ("save", 3),
        ("feed", 1, 0), ("step", 4, 0), ("step", 5, 1), ("step", 6, 2), ("log", "train", 6),
        ("evaluate", 6), ("log", "evaluation", 6), ("save", 6),
    ]  # fmt: skip
    assert (done.best_step, done.best_score, done.history) == (6, 0.7, [{"accuracy": 0.5}, {"accuracy": 0.7}])
    assert world.open == 0  # the threads of the feed are stopped


def test_saves_between_and_once_at_the_end_of_an_epoch():
    world = World(scores=[0.5, 0.7])
    world.fit(save_every_steps=1)
    assert [step for step, _, _ in world.saved] == [1, 2, 3, 4, 5, 6]
    after = [world.events[i - 1][0] for i, event in enumerate(world.events) if event[0] == "save"]
    assert after == ["log", "log", "log", "log", "log", "log"]  # never before the losses were looked at


@pytest.mark.parametrize(("every", "saved"), [(100, [9]), (3, [3, 6, 9]), (2, [2, 4, 6, 8, 9])])
def test_without_scores_the_end_of_an_epoch_is_a_step_like_others(every, saved):
    world = World()
    world.fit(epochs=3, save_every_steps=every)
    assert [step for step, _, _ in world.saved] == saved


@pytest.mark.parametrize(("every", "lines"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 3, 4, 6]), (4, [3, 4, 6])])
def test_a_log_line_every_so_many_steps_and_at_the_end_of_an_epoch(every, lines):
    world = World()
    world.fit(log_every_steps=every)
    assert [r["step"] for r in world.lines if r["kind"] == "train"] == lines


def test_what_stands_in_the_log_lines():
    world = World(scores=[0.5])
    world.fit(epochs=1)
    train, evaluation = world.lines
    assert train.pop("examples_per_s") > 0
    weights = [2, 1, 2]
    assert train == {"kind": "train", "step": 3, "loss": (1 * 2 + 2 * 1 + 3 * 2) / sum(weights), "grad_norm": 1.5,
                     "learning_rate": 0.25}  # fmt: skip
    assert evaluation == {"kind": "evaluation", "step": 3, "epoch": 1, "accuracy": 0.5}
    assert world.examples == 3 * (ROWS - 1)  # padding is no example
    assert world.shown == ["loss 2.000"]


@pytest.mark.parametrize(("metric", "scores", "best"), [
    ("accuracy", [0.5, 0.7, 0.6], 6), ("macro_f1", [0.5, 0.4, 0.3], 3), ("accuracy", [0.5, 0.5, 0.5], 3),
    ("loss", [0.5, 0.7, 0.6], 3), ("loss", [0.5, 0.2, 0.3], 6), ("accuracy", [None, None, 0.1], 9),
    ("accuracy", [None, None, None], None), ("accuracy", [0.0, 0.0, 0.0], 3), ("accuracy", [math.nan, 0.1, 0.2], 9),
])  # fmt: skip
def test_the_best_step(metric, scores, best):
    world = World(scores=scores, metric=metric)
    _, done = world.fit(epochs=3)
    assert done.best_step == best
    assert [b for _, _, b in world.saved][-1] == best


@pytest.mark.parametrize(("patience", "scores", "metric", "epochs"), [
    (0, [5, 4, 3, 2, 1], "accuracy", 5), (1, [5, 4, 3, 2, 1], "accuracy", 2), (2, [5, 4, 3, 2, 1], "accuracy", 3),
    (2, [5, 4, 6, 5, 4], "accuracy", 5), (1, [1, 1, 2, 3, 4], "accuracy", 2), (2, [5, 4, 3, 3, 3], "loss", 5),
    (1, [1, 2, 3, 4, 5], "loss", 2), (1, [None] * 5, "accuracy", 5),
])  # fmt: skip
def test_patience(patience, scores, metric, epochs):
    world = World(scores=scores, metric=metric)
    final, _ = world.fit(epochs=5, patience=patience)
    assert int(final.step) == 3 * epochs
    assert world.saved[-1][0] == 3 * epochs


@pytest.mark.parametrize("start", range(1, 6))
def test_from_any_step_the_rest_is_the_same(start):
    whole = World(scores=[0.5, 0.7])
    _, expected = whole.fit(save_every_steps=1)
    known = loop.Progress(**next(progress for step, progress, _ in whole.saved if step == start))
    rest = World(scores=[0.5, 0.7][len(known.history) :])
    _, done = rest.fit(start, known, save_every_steps=1)
    assert done == expected
    assert rest.events[0] == ("feed", *divmod(start, 3))
    assert rest.order("step", "save", "evaluate") == [
        e for e in whole.order("step", "save", "evaluate") if e[1] > start
    ]  # fmt: skip


def test_an_epoch_that_ended_unscored_is_scored_on_resuming():
    world = World(scores=[0.7])
    world.fit(3, loop.Progress())
    assert world.order("evaluate", "feed")[:2] == [("evaluate", 3), ("feed", 1, 0)]


@pytest.mark.parametrize(("start", "history"), [(6, 2), (7, 2), (3, 1)])
def test_a_finished_run_does_nothing(start, history):
    world = World()
    done = loop.Progress([{"accuracy": 1 / (i + 1)} for i in range(history)], 3, 1.0)
    world.fit(start, done, epochs=start // 3)
    assert world.events == []


def test_patience_holds_on_resuming():
    world = World()
    world.fit(6, loop.Progress([{"accuracy": 0.5}, {"accuracy": 0.4}], 3, 0.5), epochs=5, patience=1)
    assert world.events == []


@pytest.mark.parametrize(("after", "step"), [
    (("step", 1, 0.0), 1), (("step", 3, 2.0), 3), (("log", "train", 3), 3), (("evaluate", 3), 3), (("save", 3), 3),
    (("feed", 1, 0), 4), (("step", 6, 2.0), 6),
])  # fmt: skip
def test_a_signal_ends_the_step_and_saves(after, step):
    world = World(scores=[0.5, 0.7], stop_at=after)
    with pytest.raises(StoppedError, match=f"stopped after step {step} and saved"):
        world.fit()
    assert world.order("step")[-1][1] == world.saved[-1][0] == step
    assert world.open == 0
    trained = [r["step"] for r in world.lines if r["kind"] == "train"]
    assert trained[-1] == step  # every loss up to the saved step was looked at


def test_a_signal_at_any_moment_saves_nothing_that_was_not_looked_at():
    """The signal comes at each of the loop's questions in turn: also between two questions about one step."""
    for moment in itertools.count():
        world = World(scores=[0.5, 0.7], bad={4})
        asked = itertools.count()
        world.stopping = lambda asked=asked, moment=moment: next(asked) >= moment
        try:
            world.fit(log_every_steps=2)
        except StoppedError:
            logged = [r["step"] for r in world.lines if r["kind"] == "train"]
            assert world.saved[-1][0] < 4
            assert world.saved[-1][0] in (0, *logged), f"question {moment}"
        except DivergedError:
            assert all(step < 4 for step, _, _ in world.saved), f"question {moment}"
            if next(asked) < moment:
                return  # the signal came after the end


def test_a_signal_before_the_first_step_saves_what_there_is():
    world = World()
    world.stopping = lambda: True
    with pytest.raises(StoppedError, match="step 0"):
        world.fit()
    assert world.events == [("save", 0)]


@pytest.mark.parametrize(("bad", "saves"), [(1, []), (2, [1]), (3, [1, 2]), (5, [1, 2, 3, 4])])
def test_nan_ends_the_run_before_anything_is_saved(bad, saves):
    world = World(scores=[0.5, 0.7], bad={bad})
    with pytest.raises(DivergedError) as caught:
        world.fit(save_every_steps=1)
    assert [step for step, _, _ in world.saved] == saves
    error = caught.value
    epoch, i = divmod(bad - 1, 3)
    assert error.where == f"step {bad}"
    assert error.found == "the loss is nan; first non-finite gradient: b/kernel"  # the second by sorted name
    first = 100 * epoch + 10 * i
    assert error.details == (f"examples: row {first}, row {first + 1}, row {first + 2}",)  # the padding is not named


def test_nan_is_found_in_the_middle_of_a_window():
    world = World(bad={2}, steps_per_epoch=9)
    with pytest.raises(DivergedError, match="step 2"):
        world.fit(log_every_steps=5)
    assert world.order("step")[-1][1] == 5
    assert world.lines == []
    assert world.saved == []


def test_an_infinite_gradient_with_a_finite_loss_ends_the_run_too():
    world = World()

    def step(state, batch):
        now, metrics = World.step(world, state, batch)
        return now, {**metrics, "finite": jnp.bool_(False)}

    world.step = step
    with pytest.raises(DivergedError, match="the gradient is not finite; first non-finite gradient: a/bias"):
        world.fit()


def test_progress_counts_from_the_first_of_equal_scores():
    done = loop.Progress()
    for step, score in enumerate([0.5, 0.5, 0.5]):
        done.add({"accuracy": score}, step, "accuracy")
    assert (done.best_step, done.epochs_since_best("accuracy")) == (0, 2)


@pytest.mark.parametrize(("until", "evaluations"), [(2, 0), (3, 1), (4, 1), (7, 2)])
def test_a_phase_ends_where_it_is_told(until, evaluations):
    """Within an epoch too; the next phase goes on at the same batch and evaluates nothing twice."""
    world = World(scores=[0.1, 0.2, 0.3])
    now, done = world.fit(epochs=3, until=until)
    assert int(now.step) == until
    assert len(done.history) == evaluations
    world.fit(start=until, progress=done, epochs=3)
    steps = [event for event in world.events if event[0] == "step"]
    assert len(steps) == 9
    assert len([event for event in world.events if event[0] == "evaluate"]) == 3


@pytest.mark.parametrize("stretch", [2, 3, 64])
@pytest.mark.parametrize(("settings", "steps_per_epoch"), [
    ({}, 7), ({"log_every_steps": 3}, 7), ({"save_every_steps": 2}, 7),
    ({"log_every_steps": 2, "save_every_steps": 5}, 9), ({"log_every_steps": 1}, 4), ({"until": 10}, 7),
    ({"until": 3, "log_every_steps": 2}, 7),
])  # fmt: skip
def test_stacks_of_batches_change_nothing_but_how_often_the_device_is_called(stretch, settings, steps_per_epoch):
    plain, stacked = (World(scores=[0.5, 0.7, 0.6], steps_per_epoch=steps_per_epoch, stretch=s) for s in (1, stretch))
    outcomes = [world.fit(epochs=3, **settings)[1] for world in (plain, stacked)]
    assert outcomes[0] == outcomes[1]
    assert stacked.events == plain.events
    assert (stacked.saved, stacked.examples, stacked.shown) == (plain.saved, plain.examples, plain.shown)
    for line in (*plain.lines, *stacked.lines):
        line.pop("examples_per_s", None)
    assert stacked.lines == plain.lines
    assert stacked.open == 0


@pytest.mark.parametrize("bad", range(1, 13))
def test_nan_in_a_stack_is_reported_with_its_own_step_and_rows(bad):
    world = World(bad={bad}, steps_per_epoch=6, stretch=4)
    with pytest.raises(DivergedError) as caught:
        world.fit(save_every_steps=5)
    epoch, i = divmod(bad - 1, 6)
    first = 100 * epoch + 10 * i
    assert caught.value.where == f"step {bad}"
    assert caught.value.details == (f"examples: row {first}, row {first + 1}, row {first + 2}",)
    assert all(step < bad for step, _, _ in world.saved)


@pytest.mark.parametrize("after", [("step", 1, 0.0), ("step", 3, 2.0), ("step", 6, 5.0), ("log", "train", 5)])
def test_a_signal_ends_the_stretch_and_saves(after):
    world = World(stop_at=after, steps_per_epoch=9, stretch=4)
    with pytest.raises(StoppedError):
        world.fit(log_every_steps=5)
    last = world.order("step")[-1][1]
    assert world.saved[-1][0] == last
    assert last - after[-1] <= 4
    assert [r["step"] for r in world.lines if r["kind"] == "train"][-1] == last
