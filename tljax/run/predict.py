"""`tljax predict` and `tljax eval`: from an exported model and a file to labels and scores."""

import contextlib
import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tljax.config import Config
from tljax.data import sources
from tljax.data.records import Records
from tljax.errors import ConfigError, DataError, WriteError
from tljax.evaluate import metrics
from tljax.evaluate.predict import outputs
from tljax.run import adapting, devices, inputs, progress
from tljax.run.workdir import read_config
from tljax.train.step import make_eval_step
from tljax.weights import adapter_folder
from tljax.weights.load import Model, load_pretrained

CHUNK = 4096  # inputs decided at a time, so that a large file needs little memory
COLUMNS = ("label", "probability", "runner_up", "runner_up_probability")


def open_model(path: Path) -> tuple[Model, Config]:
    """The exported model of a finished workdir, and its settings."""
    _, config = read_config(path)
    if not (path / "model" / "config.json").is_file():
        if (path / "adapter" / adapter_folder.CONFIG).is_file():
            return adapting.opened(path / "adapter", config)[0], config
        raise DataError(str(path), "no model/ yet", "a finished workdir", "run tljax train on it to the end")
    return load_pretrained(str(path / "model")), config


def predict(path: Path, source: str, output: Path, say: Callable[[str], None] = print) -> int:
    """Writes one row for each input, in input order: input, label, probability and the runner-up. Gives their number.

    Args:
      path: a finished workdir.
      source: as `--config.data.train`; labels are not needed.
      output: a CSV file; it appears when it is whole.
      say: is told of every input that has no row, because the run's on_bad is "skip" and it cannot be used.

    Raises:
      ConfigError: the output is one of the inputs.
      DataError, WriteError.
    """
    if output.is_dir():
        raise WriteError(str(output), "a folder", "the name of a CSV file", "take another --output")
    if output.exists() and any(os.path.exists(name) and output.samefile(name) for name in _files(source)):
        raise ConfigError("--output", f"{output} is the input too", "another file")
    model, config = open_model(path)
    records = sources.read_records(source, config.data, config.task, labelled=False)
    _tell_bad(records, say)
    step, layout = make_eval_step(model.backbone), devices.reading(config)
    params = layout.put(model.params)
    partial = output.with_name(f".{output.name}.partial")
    column = config.data.text_column if config.task == "text" else config.data.image_column
    try:
        # Half of a surrogate pair, which JSON can hold, is no character; it is written as \ud83d.
        with (
            open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
            progress.bar("predicting", len(records)) as bar,
        ):
            writer = csv.writer(file)
            writer.writerow([column, *COLUMNS])
            for start in range(0, len(records), CHUNK):
                part = records.take(range(start, min(start + CHUNK, len(records))))
                examples = inputs.make_examples(part, model, config, None)
                probs = outputs(step, params, examples, config.train.eval_batch_size, config.data.threads,
                                      bar.update, layout)  # fmt: skip
                for value, row in zip(part.inputs, probs, strict=True):
                    writer.writerow([getattr(value, "name", value), *_verdict(row, model.labels)])
        os.replace(partial, output)
    except OSError as error:
        raise WriteError(str(output), f"cannot be written ({error.strerror})", fix="take another --output") from None
    finally:
        with contextlib.suppress(OSError):  # the folder may be none; what was wrong has been said
            partial.unlink(missing_ok=True)
    return len(records)


def _files(source: str) -> list[str]:
    return [name.strip() for name in source.split("|")]


def _tell_bad(records: Records, say: Callable[[str], None]) -> None:
    for row in records.bad:
        say(f"WARNING: left out, as --config.data.on_bad=skip of the run says: {row['where']}: {row['reason']}")


def _verdict(probs: np.ndarray, labels: tuple[str, ...]) -> list[str]:
    first, second = np.argsort(-probs, kind="stable")[:2]
    return [labels[first], f"{probs[first]:.4f}", labels[second], f"{probs[second]:.4f}"]


def evaluate(path: Path, source: str = "", say: Callable[[str], None] = print) -> tuple[metrics.Scores, str]:
    """Scores of a finished workdir's model on its own test split, or on another source; and that source's name."""
    model, config = open_model(path)
    source = source or config.data.test or config.data.validation
    if not source:
        raise DataError(str(path), "its config names no test data", "a labelled file", "give one with --data=FILE")
    records = sources.read_records(source, config.data, config.task)
    _tell_bad(records, say)
    examples = inputs.make_examples(records, model, config, model.labels)
    layout = devices.reading(config)
    with progress.bar("evaluating", len(examples)) as bar:
        probs = outputs(make_eval_step(model.backbone), layout.put(model.params), examples,
                              config.train.eval_batch_size, config.data.threads, bar.update, layout)  # fmt: skip
    return metrics.classification(examples.truth, probs, model.labels), source
