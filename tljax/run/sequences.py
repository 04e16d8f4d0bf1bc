"""`tljax eval` and `predict` where a file is more than inputs and classes: event tables, and objectives on words."""

import contextlib
import csv
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.config import AdaptConfig, Config
from tljax.data.events import EventExamples, Histories
from tljax.errors import ConfigError, DataError, WriteError
from tljax.evaluate import calibrator
from tljax.evaluate.predict import outputs
from tljax.models.events import RESERVED
from tljax.run import adapting, devices, inputs, ledgers, progress, tasks
from tljax.train import objectives
from tljax.train.step import make_eval_step
from tljax.weights.load import Model

BEST = 10  # items that are named for each entity
Calibrated = Callable[[np.ndarray], np.ndarray]
CLASS_COLUMNS = ("label", "probability", "runner_up", "runner_up_probability")


def needed(c: Config) -> bool:
    """Whether a run's files are read here."""
    return c.task == "events" or c.objective != "classes"


def evaluate(path: Path, c: Config, source: str = "") -> tuple[tasks.Scores, str]:
    """Scores of a finished workdir's model on its own test part, or on another source; and that source's name.

    Raises:
      DataError: no source.
    """
    source = source or c.data.test or c.data.validation
    if not source:
        raise DataError(str(path), "its config names no test data", "a file", "give one with --data=FILE")
    task, examples, found = _found(path, c, source)
    return task.score(examples, calibrator.kept(path)(found) if c.objective == "classes" else found), source


def answered(path: Path, c: Config, source: str) -> tuple[np.ndarray, np.ndarray]:
    """(labels int32 (N,), the model's own probabilities (N, C)) of a labelled source, for a calibration."""
    _, examples, found = _found(path, c, source)
    return examples.truth, found


def _found(path: Path, c: Config, source: str) -> tuple[tasks.Task, Any, np.ndarray]:
    """What a source asks, and what the model answers."""
    c, tables, model = _opened(path, c, source)
    test, classes = tables.test, tables.classes
    if test is None:
        raise DataError(source, "no examples")
    train = inputs.make_examples(tables.train, model, c, classes, True)
    examples = inputs.make_examples(test, model, c, classes)
    task = tasks.of(c, model.config, classes, train)
    return task, examples, _answers(c, model, examples, task.objective, "evaluating")


def predict(path: Path, c: Config, source: str, output: Path) -> int:
    """Writes a row for each event of a part: its place, the class and the runner-up; or, of an item model, for each
    entity the items that are most likely next. Gives the number of rows.

    Args:
      source: as `--config.data.test`, file#part; with the columns that the training table has.

    Raises:
      ConfigError: words, of which there is nothing to write.
      DataError, WriteError.
    """
    if c.task != "events" or c.objective == "next":
        raise ConfigError("tljax predict", f"a model of --config.objective={c.objective}", "classes or item",
                          "tljax eval scores it; fine-tune it to predict")  # fmt: skip
    if output.is_dir():
        raise WriteError(str(output), "a folder", "the name of a CSV file", "take another --output")
    if output.exists() and output.samefile(source.partition("#")[0]):
        raise ConfigError("--output", f"{output} is the input too", "another file")
    c, tables, model = _opened(path, c, source)
    own = tables.test
    if not isinstance(own, Histories):
        raise DataError(source, "no events")
    if c.objective == "item":
        rows = _items(c, model, own)
    else:
        learned = inputs.make_examples(tables.train, model, c, tables.classes, True)
        objective = tasks.of(c, model.config, tables.classes, learned).objective
        rows = _classes(c, model, own, objective, calibrator.kept(path))
    partial = output.with_name(f".{output.name}.partial")
    try:
        with open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows(rows)
        os.replace(partial, output)
    except OSError as error:
        raise WriteError(str(output), f"cannot be written ({error.strerror})", fix="take another --output") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return len(rows) - 1


def _opened(path: Path, c: Config, source: str) -> tuple[Config, inputs.Tables, Model]:
    """The settings of the run with this source as its test, what they read, and the exported model."""
    model = path / "model"
    if not (model / "config.json").is_file():
        raise DataError(str(path), "no model/", "a finished workdir with a model of its own")
    c = dataclasses.replace(
        c,
        data=dataclasses.replace(c.data, test=source, validation="", validation_fraction=0.0),
        model=dataclasses.replace(c.model, ref=str(model)),
        transfer=dataclasses.replace(c.transfer, strategy="full", rules=(), stages="", beside="", l2sp=0.0),
        pretrain=dataclasses.replace(c.pretrain, data=""),
        adapt=AdaptConfig(),
    )
    tables = inputs.read(c)
    return c, tables, adapting.load(c, tables.classes, tables.fields)


def _answers(c: Config, model: Model, examples: Any, objective: objectives.Objective, title: str) -> np.ndarray:
    layout = devices.reading(c)
    with progress.bar(title, len(examples)) as bar:
        return outputs(make_eval_step(model.backbone, 0, objective), layout.put(model.params), examples,
                       c.train.eval_batch_size, c.data.threads, bar.update, layout)  # fmt: skip


def _classes(c: Config, model: Model, own: Histories, objective: objectives.Objective,
             calibrated: Calibrated) -> list[list[Any]]:  # fmt: skip
    examples = ledgers.examples(own, model.config, c, False)
    probs = calibrated(_answers(c, model, examples, objective, "predicting"))
    ledger, places = own.ledger, examples.places
    entities = np.searchsorted(ledger.offsets, places, side="right") - 1
    order = np.argsort(ledger.rows[places], kind="stable")  # as in the file
    rows: list[list[Any]] = [["row", ledger.entity, *([ledger.time] if ledger.time else []), *CLASS_COLUMNS]]
    for i in order.tolist():
        first, second = np.argsort(-probs[i], kind="stable")[:2]
        when = [ledger.times[places[i]]] if ledger.time else []
        answer = [model.labels[first], f"{probs[i, first]:.6f}", model.labels[second], f"{probs[i, second]:.6f}"]
        rows.append([int(ledger.rows[places[i]]) + 1, ledger.entities[entities[i]], *when, *answer])
    return rows


@dataclasses.dataclass(frozen=True)
class _Best:
    """The items with the highest scores after each event, (B, T, BEST), best first."""

    def weights(self, batch: objectives.Batch) -> jax.Array:
        return batch["weights"]

    def loss(self, x: objectives.Activations, batch: objectives.Batch, count: jax.Array) -> jax.Array:
        raise NotImplementedError("to predict with, not to train")

    def outputs(self, x: objectives.Activations, batch: objectives.Batch) -> jax.Array:
        scores = x["logits"][..., RESERVED:]
        return (jax.lax.top_k(scores, min(BEST, scores.shape[-1]))[1] + RESERVED).astype(jnp.float32)


def _items(c: Config, model: Model, own: Histories) -> list[list[Any]]:
    """After the last event of each entity, which the part need not hold."""
    ledger, item = own.ledger, str(model.config["item"])
    everything = dataclasses.replace(own, asked=np.ones(len(ledger), bool), labels=None)
    length = min(c.data.max_length, int(model.config["n_positions"]))
    examples = EventExamples(everything, "last", (), length, length - 1)
    of_entity = _Windows(examples)
    found = _answers(c, model, of_entity, _Best(), "predicting").astype(np.int64)
    vocabulary = ledgers.known(c.model.ref, "")
    names = next((field.values for field in vocabulary.fields if field.name == item), ()) if vocabulary else ()
    rows: list[list[Any]] = [[ledger.entity, *(f"{item}_{n + 1}" for n in range(found.shape[1]))]]
    entities = np.searchsorted(ledger.offsets, examples.places, side="right") - 1
    rows += [[ledger.entities[entity], *(names[i - RESERVED] for i in best)]
             for entity, best in zip(entities.tolist(), found.tolist(), strict=True)]  # fmt: skip
    return rows


@dataclasses.dataclass(frozen=True)
class _Windows:
    """The last window of each entity, with an answer at its last event, as a network with answers at each has them."""

    of: EventExamples

    def __len__(self) -> int:
        return len(self.of)

    @property
    def lengths(self) -> np.ndarray:
        return self.of.lengths

    @property
    def truth(self) -> np.ndarray:
        return self.of.truth

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, np.ndarray]:
        return self.of.gather(indices, length, seed)

    def targets(self, indices: np.ndarray, length: int, seed: int | None = None) -> Any:
        return self.of.targets(indices, length, seed)

    def spots(self, indices: np.ndarray, length: int) -> np.ndarray:
        at_last = np.arange(length)[None, :] == self.of.lengths[indices][:, None] - 1
        return np.where(at_last, self.of.spots(indices, length)[:, None], -1)
