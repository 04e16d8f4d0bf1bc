"""From a config's sources to examples: records, classes, splits, and the feed of training batches."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tljax import mesh, models
from tljax.config import Config
from tljax.data import batching, masking, pipeline, sources, text
from tljax.data.events import EventExamples, Histories
from tljax.data.images import ImageExamples
from tljax.data.preprocess import Preprocess
from tljax.data.records import Records
from tljax.errors import DataError, WeightsError
from tljax.mesh import Layout
from tljax.run import ledgers
from tljax.transfer.activations import Activations
from tljax.weights.load import Model

Examples = text.TextExamples | ImageExamples | EventExamples
Split = Records | Histories


@dataclasses.dataclass(frozen=True)
class Tables:
    """The records of a run; validation and test are None where there are none.

    Attributes:
      classes: names, in the order of the logits; none where nothing is classified.
      fields: of config.json, which the data decides: those of an event model.
      files: name -> content, which belong beside the weights.
    """

    train: Split
    validation: Split | None
    test: Split | None
    classes: tuple[str, ...]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def splits(self) -> dict[str, Split]:
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: records for name, records in named.items() if records is not None}

    def shared(self) -> dict[str, int]:
        """How many inputs of each other split are in train too; of events, which are told apart by time, none."""
        train = self.train
        return {} if isinstance(train, Histories) else {
            name: sources.overlap(train, records) for name, records in self.splits().items()
            if name != "train" and isinstance(records, Records)}  # fmt: skip


def read(config: Config) -> Tables:
    """Reads every source of a config and holds out the validation share if that is asked for.

    Raises:
      DataError: see `sources.read_records`; one class only; a class of the test set that train has not.
    """
    data, labelled = config.data, config.objective == "classes"
    if config.task == "events":
        found = ledgers.read(config)
        return Tables(found.splits["train"], found.splits.get("validation"), found.splits.get("test"), found.classes,
                      found.fields, {ledgers.FILE: found.vocabulary.to_json()})  # fmt: skip
    train = sources.read_records(data.train, data, config.task, labelled)
    validation = sources.read_records(data.validation, data, config.task, labelled) if data.validation else None
    test = sources.read_records(data.test, data, config.task, labelled) if data.test else None
    classes = sources.classes_of(train) if labelled else ()
    if labelled and len(classes) < 2:
        raise DataError(train.name, f"one class only ({classes[0]!r})", "at least two",
                        "look at --config.data.label_column")  # fmt: skip
    for other in (validation, test):
        if other is not None and labelled:
            sources.label_ids(other, classes)
    if validation is None and data.validation_fraction:
        seed = config.seed if data.split_seed < 0 else data.split_seed
        rest, validation = hold_out(train, data.validation_fraction, seed)
        train = dataclasses.replace(rest, bad=train.bad, excluded=train.excluded)
    if data.per_class and labelled:
        few = few_of_each(train.labels or [], data.per_class, config.seed)
        train = dataclasses.replace(train.take(few), bad=train.bad, excluded=train.excluded)
    return Tables(train, validation, test, classes)


def hold_out(records: Records, fraction: float, seed: int) -> tuple[Records, Records]:
    """Splits off `fraction` of every class, at random; a class of one example stays in the first part."""
    labels = np.asarray([""] * len(records) if records.labels is None else records.labels)
    order = batching.permutation(seed, 0, len(labels), purpose=3)
    held: list[int] = []
    for name in sorted(set(labels.tolist())):
        own = order[labels[order] == name]
        held += own[: min(max(round(fraction * len(own)), 1), len(own) - 1)].tolist()
    if not held:
        raise DataError(records.name, f"{len(labels)} examples leave none to hold out", "two of a class at least",
                        "give --config.data.validation, or --config.data.validation_fraction=0")  # fmt: skip
    out = set(held)
    return records.take(i for i in range(len(labels)) if i not in out), records.take(sorted(held))


def few_of_each(labels: Sequence[str], count: int, seed: int) -> list[int]:
    """`count` examples of each class, or all where there are fewer, drawn at random; a larger draw holds a smaller."""
    names, order = np.asarray(labels), batching.permutation(seed, 0, len(labels), purpose=4)
    found = [order[names[order] == name][:count] for name in sorted(set(labels))]
    return sorted(np.concatenate(found).tolist())


def make_examples(records: Split, model: Model, config: Config, classes: Sequence[str] | None,
                  training: bool = False) -> Examples:  # fmt: skip
    """Records -> examples as this model takes them; with `classes`, labelled; `training`: to learn from."""
    if isinstance(records, Histories):
        return ledgers.examples(records, model.config, config, training)
    labels = sources.label_ids(records, tuple(classes)) if classes else None
    if config.task == "text":
        tokenizer = text.load_tokenizer(model.folder)
        text.check_vocabulary(tokenizer.vocab_size, model.config.get("vocab_size", tokenizer.vocab_size))
        longest = models.max_tokens(model.config, config.data.max_length)
        inputs: Any = records.inputs
        ids = tokenizer.encode(inputs, longest)
        if config.objective == "next":
            return masking.FollowingExamples(ids, records.where, tokenizer.pad_id)
        if config.objective == "masked":
            if not isinstance(tokenizer, text.FastTokenizer):
                raise WeightsError(model.ref, "no tokenizer.json", "one, to know the pieces of words by")
            return masking.MaskedExamples(ids, records.where, tokenizer.pad_id, tokenizer.words(),
                                          config.pretrain.masked, config.pretrain.whole_words)  # fmt: skip
        return text.TextExamples(ids, labels, records.where, tokenizer.pad_id)
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
