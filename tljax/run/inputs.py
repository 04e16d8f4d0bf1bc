"""From a config's sources to examples: records, classes, splits, and the feed of training batches."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from tljax import mesh, models
from tljax.config import Config
from tljax.data import batching, pipeline, sources, text
from tljax.data.images import ImageExamples
from tljax.data.preprocess import Preprocess
from tljax.data.records import Records
from tljax.errors import DataError, WeightsError
from tljax.mesh import Layout
from tljax.transfer.activations import Activations
from tljax.weights.load import Model

Examples = text.TextExamples | ImageExamples


@dataclasses.dataclass(frozen=True)
class Tables:
    """The records of a run; validation and test are None where there are none."""

    train: Records
    validation: Records | None
    test: Records | None
    classes: tuple[str, ...]

    def splits(self) -> dict[str, Records]:
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: records for name, records in named.items() if records is not None}


def read(config: Config) -> Tables:
    """Reads every source of a config and holds out the validation share if that is asked for.

    Raises:
      DataError: see `sources.read_records`; one class only; a class of the test set that train has not.
    """
    data = config.data
    train = sources.read_records(data.train, data, config.task)
    validation = sources.read_records(data.validation, data, config.task) if data.validation else None
    test = sources.read_records(data.test, data, config.task) if data.test else None
    classes = sources.classes_of(train)
    if len(classes) < 2:
        raise DataError(train.name, f"one class only ({classes[0]!r})", "at least two",
                        "look at --config.data.label_column")  # fmt: skip
    for other in (validation, test):
        if other is not None:
            sources.label_ids(other, classes)
    if validation is None and data.validation_fraction:
        seed = config.seed if data.split_seed < 0 else data.split_seed
        rest, validation = hold_out(train, data.validation_fraction, seed)
        train = dataclasses.replace(rest, bad=train.bad, excluded=train.excluded)
    return Tables(train, validation, test, classes)


def hold_out(records: Records, fraction: float, seed: int) -> tuple[Records, Records]:
    """Splits off `fraction` of every class, at random; a class of one example stays in the first part."""
    labels = np.asarray(records.labels)
    order = batching.permutation(seed, 0, len(labels), purpose=3)
    held: list[int] = []
    for name in sorted(set(records.labels or ())):
        own = order[labels[order] == name]
        held += own[: min(max(round(fraction * len(own)), 1), len(own) - 1)].tolist()
    if not held:
        raise DataError(records.name, f"{len(labels)} examples leave none to hold out", "two of a class at least",
                        "give --config.data.validation, or --config.data.validation_fraction=0")  # fmt: skip
    out = set(held)
    return records.take(i for i in range(len(labels)) if i not in out), records.take(sorted(held))


def make_examples(records: Records, model: Model, config: Config, classes: Sequence[str] | None) -> Examples:
    """Records -> examples as this model takes them; with `classes`, labelled."""
    labels = None if classes is None else sources.label_ids(records, tuple(classes))
    if config.task == "text":
        tokenizer = text.load_tokenizer(model.folder)
        text.check_vocabulary(tokenizer.vocab_size, model.config.get("vocab_size", tokenizer.vocab_size))
        longest = models.max_tokens(model.config, config.data.max_length)
        inputs: Any = records.inputs
        return text.TextExamples(tokenizer.encode(inputs, longest), labels, records.where, tokenizer.pad_id)
    if (channels := model.config.get("num_channels", 3)) != 3:
        raise WeightsError(model.ref, f"a network for {channels} channel(s)", "3: images are read as RGB")
    preprocess = Preprocess.from_folder(model.folder, model.config["image_size"], config.data)
    if "resample" in model.config:  # of a checkpoint without preprocessor_config.json
        preprocess = dataclasses.replace(preprocess, resample=model.config["resample"])
    images: Any = records.inputs
    return ImageExamples(images, labels, records.where, preprocess)


@dataclasses.dataclass(frozen=True)
class TrainFeed:
    """Batches of the training examples, as the loop asks for them (train/loop.py).

    `stretch`: how many batches may come as one stack, where all have one shape.
    `views`: the seeds of the drawings of each example that there are, to be gone round; none: a new one in every epoch.
    `layout`: the devices that a batch is divided among; a process makes its own rows alone.
    `accumulate`: the micro-batches that a step cuts a batch into.
    """

    examples: Examples | Activations
    batch_size: int
    buckets: tuple[int, ...]
    seed: int
    threads: int
    views: tuple[int, ...] = ()
    stretch: int = 1
    layout: Layout = dataclasses.field(default_factory=mesh.single)
    accumulate: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def seen(self, step: int) -> int:
        """How many examples a run goes through before a step; a batch may be partial in each bucket."""
        epoch, position = divmod(step, self.steps_per_epoch)
        begun = self._plans(epoch)[:position] if position else []
        return epoch * len(self.examples) + sum(len(planned.indices) for planned in begun)

    def batches(self, epoch: int, start: int, looks: Callable[[int], int]) -> Iterator[dict[str, Any]]:
        seed = self.views[epoch % len(self.views)] if self.views else batching.epoch_seed(self.seed, epoch)
        if self.stretch > 1:
            return self._stacks(self._plans(epoch), seed, start, looks)
        return pipeline.batches(self.examples, self._plans(epoch), self.batch_size, seed, start, self.threads,
                                held=self._held)  # fmt: skip

    def send(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch, or a stack of them, on the devices; `rows` stay on the host."""
        arrays = {name: value for name, value in batch.items() if name != "rows"}
        return {**self.layout.send(arrays, int(self.stretch > 1), training=True), "rows": batch["rows"]}

    @property
    def _held(self) -> np.ndarray | None:
        return self.layout.held(self.batch_size, self.accumulate)

    def _stacks(self, plans: list[batching.Planned], seed: int, start: int,
                looks: Callable[[int], int]) -> Iterator[dict[str, Any]]:  # fmt: skip
        """Batches in stacks of `stretch`, filled up with the last; made here, because looking up takes no thread."""
        while start < len(plans):
            steps = min(self.stretch, looks(start), len(plans) - start)
            own = plans[start : start + steps]
            filled = own + own[-1:] * (self.stretch - steps)
            made = batching.stack(self.examples, filled, self.batch_size, seed, self._held)
            yield {**made, "steps": np.int32(steps), "rows": made["rows"][:steps]}
            start += steps

    def shapes(self, epoch: int) -> list[dict[str, Any]]:
        """The batches of an epoch, one of each shape, as jax.ShapeDtypeStruct and in rising order; whole, and not as
        they lie on the devices (`Layout.abstract`)."""
        known = self.examples.lengths
        shortest = np.array([0 if known is None else int(np.argmin(known))])
        lengths = sorted({planned.length for planned in self._plans(epoch)})
        made = [batching.collate(self.examples, batching.Planned(shortest, n), self.batch_size) for n in lengths]
        batches = [{name: _abstract(batch[name]) for name in ("inputs", "labels", "weights")} for batch in made]
        return [batch for i, batch in enumerate(batches) if batch not in batches[:i]]  # pooled: one shape for all

    def describe(self, rows: Sequence[int]) -> str:
        return "; ".join(self.examples.where(int(row)) for row in rows)

    def _plans(self, epoch: int) -> list[batching.Planned]:
        n = len(self.examples)
        return batching.plan(self.seed, epoch, n, self.examples.lengths, self.batch_size, self.buckets)


def _abstract(arrays: Any) -> Any:
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), arrays)


def class_weights(labels: np.ndarray, classes: int) -> list[float]:
    """n / (classes * n_c) for each class, so that the rows of each class weigh the same together."""
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * np.maximum(counts, 1))).tolist()
