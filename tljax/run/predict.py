"""`tljax predict` and `tljax eval`: from an exported model and a file to labels and scores."""

import contextlib
import csv
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from tljax import trees
from tljax.config import Config
from tljax.data import sources
from tljax.data.records import Records
from tljax.errors import ConfigError, DataError, WriteError
from tljax.evaluate import calibrator, metrics
from tljax.evaluate.predict import outputs
from tljax.run import adapting, devices, inputs, labelshift, progress
from tljax.run.workdir import read_config
from tljax.train.step import make_eval_step
from tljax.transfer import shift
from tljax.weights import adapter_folder
from tljax.weights.load import Model, load_pretrained

Answer = Callable[..., np.ndarray]
Answered = tuple[Records, np.ndarray]  # probabilities (n, C)
Score = Callable[..., metrics.Scores]
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


def predict(path: Path, source: str, output: Path, say: Callable[[str], None] = print, *, label_shift: str = "",
            labelled: str = "") -> int:  # fmt: skip
    """Writes one row for each input, in input order: input, label, probability and the runner-up. Gives their number.

    Args:
      path: a finished workdir.
      source: as `--config.data.train`; labels are not needed.
      output: a CSV file; it appears when it is whole.
      say: is told of every input that has no row, because the run's on_bad is "skip" and it cannot be used; and of the
        shares of the classes that were estimated.
      label_shift: "em" or "bbse": the probabilities are corrected for shares of the classes in the input that differ
        from those of training (labelshift.py); all of them are then held in memory.
      labelled: a source of labelled examples like those of training, for that.

    Raises:
      ConfigError: the output is one of the inputs; a label shift that cannot be estimated.
      DataError, WriteError.
    """
    if output.is_dir():
        raise WriteError(str(output), "a folder", "the name of a CSV file", "take another --output")
    if output.exists() and any(os.path.exists(name) and output.samefile(name) for name in _files(source)):
        raise ConfigError("--output", f"{output} is the input too", "another file")
    labelshift.check(label_shift, labelled)
    model, config = open_model(path)
    records = sources.read_records(source, config.data, config.task, labelled=False)
    _tell_bad(records, say)
    answer = _calibrated(path, answering(model, config))
    partial = output.with_name(f".{output.name}.partial")
    column = config.data.text_column if config.task == "text" else config.data.image_column
    try:
        # Half of a surrogate pair, which JSON can hold, is no character; it is written as \ud83d.
        with (
            open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
            progress.bar("predicting", len(records)) as bar,
        ):
            parts: Iterable[Answered] = _answered(answer, records, bar.update)
            if label_shift:
                parts = _shifted(label_shift, parts, path, model, config, labelled, answer, say)
            writer = csv.writer(file)
            writer.writerow([column, *COLUMNS])
            for part, probs in parts:
                for value, row in zip(part.inputs, probs, strict=True):
                    writer.writerow([getattr(value, "name", value), *_verdict(row, model.labels)])
        os.replace(partial, output)
    except OSError as error:
        raise WriteError(str(output), f"cannot be written ({error.strerror})", fix="take another --output") from None
    finally:
        with contextlib.suppress(OSError):  # the folder may be none; what was wrong has been said
            partial.unlink(missing_ok=True)
    return len(records)


def answering(model: Model, config: Config) -> Answer:
    """(records, is told how many are through) -> the model's probabilities, float32 (n, C)."""
    step, layout = make_eval_step(model.backbone), devices.reading(config)
    params = layout.put(model.params)

    def answer(records: Records, show: Callable[[int], None] = lambda n: None) -> np.ndarray:
        examples = inputs.make_examples(records, model, config, None)
        return outputs(step, params, examples, config.train.eval_batch_size, config.data.threads, show, layout)

    return answer


def answered(path: Path, source: str, say: Callable[[str], None] = print) -> tuple[np.ndarray, np.ndarray]:
    """(labels int32 (n,), the model's own probabilities (n, C)) of a labelled source, for a calibration."""
    model, config = open_model(path)
    records = sources.read_records(source, config.data, config.task)
    _tell_bad(records, say)
    labels_n = np.asarray(sources.label_ids(records, model.labels), np.int32)
    with progress.bar("answering", len(records)) as bar:
        return labels_n, answering(model, config)(records, bar.update)


def _calibrated(path: Path, answer: Answer) -> Answer:
    """The same, calibrated where `tljax calibrate` has said how."""
    calibration = calibrator.kept(path)
    return lambda *given: calibration(answer(*given))


def _answered(answer: Answer, records: Records, show: Callable[[int], None]) -> Iterator[Answered]:
    for start in range(0, len(records), CHUNK):
        part = records.take(range(start, min(start + CHUNK, len(records))))
        yield part, answer(part, show)


def _shifted(method: str, parts: Iterable[Answered], path: Path, model: Model, config: Config, labelled: str,
             answer: Answer, say: Callable[[str], None]) -> list[Answered]:  # fmt: skip
    """The same with probabilities as they would be, had the network been trained on the shares of these inputs."""
    source = sources.read_records(labelled, config.data, config.task) if labelled else None
    if source is not None:
        _tell_bad(source, say)
    known = list(parts)
    resolved = read_config(path)[0].get("resolved", {})
    found = labelshift.estimate(method, np.concatenate([probs for _, probs in known]), config, resolved, model.labels,
                                source, answer)  # fmt: skip
    say(found.told(method, model.labels))
    return [(part, shift.reweighted(probs, found.weights_C)) for part, probs in known]


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
    answer = _calibrated(path, answering(model, config))
    labels_n = np.asarray(sources.label_ids(records, model.labels), np.int32)
    with progress.bar("evaluating", len(records)) as bar:
        probs_nC = answer(records, bar.update)
    scores = metrics.classification(labels_n, probs_nC, model.labels)
    return dataclasses.replace(scores, more=calibrator.scored(labels_n, probs_nC)), source


def scoring(model: Model, config: Config, records: Records) -> Score:
    """(nested params, is told how many are through) -> the scores of the model's network on labelled records; every
    call runs the same program."""
    examples, layout = inputs.make_examples(records, model, config, model.labels), devices.reading(config)
    step = make_eval_step(model.backbone)

    def score(params: trees.Tree, show: Callable[[int], None] = lambda n: None) -> metrics.Scores:
        probs = outputs(step, layout.put(params), examples, config.train.eval_batch_size, config.data.threads, show,
                        layout)  # fmt: skip
        return metrics.classification(examples.truth, probs, model.labels)

    return score
