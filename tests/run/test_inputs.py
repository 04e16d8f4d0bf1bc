"""From sources to examples: what is held out, which classes there are, and the feed of batches."""

import dataclasses

import numpy as np
import pytest
import tiny

from tljax.config import Config, DataConfig
from tljax.data.sources import Records, from_arrays
from tljax.errors import DataError, TljaxError, WeightsError
from tljax.run import inputs, tasks
from tljax.weights.load import load_pretrained

SEEDS = range(20)


def records(**counts: int) -> Records:
    """So many texts of each class, in turns."""
    order = [name for i in range(max(counts.values())) for name, n in counts.items() if i < n]
    return from_arrays([f"text {i}" for i in range(len(order))], order, "memory")


def counts(part: Records) -> dict[str, int]:
    names, numbers = np.unique(part.labels, return_counts=True)
    return dict(zip(names.tolist(), numbers.tolist(), strict=True))


HELD = [
    ("a tenth", {"a": 50, "b": 20}, 0.1, {"a": 5, "b": 2}),
    ("rounded", {"a": 14, "b": 16}, 0.1, {"a": 1, "b": 2}),
    ("one at least", {"a": 100, "b": 3}, 0.1, {"a": 10, "b": 1}),
    ("one stays at least", {"a": 2, "b": 3}, 0.9, {"a": 1, "b": 2}),
    ("a class of one stays", {"a": 10, "b": 1}, 0.5, {"a": 5}),
    ("many classes", {f"c{i}": 4 + i for i in range(9)}, 0.25, {f"c{i}": round((4 + i) / 4) for i in range(9)}),
]


@pytest.mark.parametrize(("given", "fraction", "held"), [row[1:] for row in HELD], ids=[row[0] for row in HELD])
def test_hold_out_is_stratified_and_loses_nothing(given, fraction, held):
    everything = records(**given)
    for seed in SEEDS:
        rest, out = inputs.hold_out(everything, fraction, seed)
        assert counts(out) == held
        assert counts(rest) == {name: n - held.get(name, 0) for name, n in given.items()}
        assert sorted(rest.inputs + out.inputs) == sorted(everything.inputs)
        for part in (rest, out):  # in the order of the file, each with its own label and place
            at = [everything.inputs.index(text) for text in part.inputs]
            assert at == sorted(at)
            assert part.labels == [everything.labels[i] for i in at]
            assert [part.where(i) for i in range(len(part))] == [everything.where(i) for i in at]


def test_hold_out_is_a_function_of_the_seed():
    everything = records(a=30, b=30)
    first = [inputs.hold_out(everything, 0.2, seed)[1].inputs for seed in SEEDS]
    again = [inputs.hold_out(everything, 0.2, seed)[1].inputs for seed in SEEDS]
    assert first == again
    assert len({tuple(held) for held in first}) == len(SEEDS)


def test_every_example_is_held_out_as_often_as_any_other():
    everything = records(a=10, b=10)
    held = [text for seed in range(400) for text in inputs.hold_out(everything, 0.2, seed)[1].inputs]
    often = np.array([held.count(text) for text in everything.inputs])
    assert often.sum() == 400 * 4
    assert often.min() > 80 - 4 * 8  # 400 draws at 0.2: 80, standard deviation 8
    assert often.max() < 80 + 4 * 8


def test_hold_out_of_nothing_but_single_examples():
    with pytest.raises(DataError, match="leave none to hold out") as caught:
        inputs.hold_out(records(a=1, b=1), 0.5, 0)
    assert "--config.data.validation_fraction=0" in str(caught.value)


@pytest.fixture
def data(tmp_path) -> DataConfig:
    tiny.table(tmp_path / "train.csv", tiny.texts(30))
    tiny.table(tmp_path / "other.csv", tiny.texts(6, skip=30))
    return DataConfig(train=str(tmp_path / "train.csv"), validation_fraction=0.0)


def read(data: DataConfig, **changes) -> inputs.Tables:
    return inputs.read(Config(data=dataclasses.replace(data, **changes)))


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, {"train": 30}),
        ({"validation_fraction": 0.2}, {"train": 24, "validation": 6}),
        ({"validation_fraction": 0.2, "validation": "other.csv"}, {"train": 30, "validation": 6}),
        ({"validation_fraction": 0.2, "test": "other.csv"}, {"train": 24, "validation": 6, "test": 6}),
        ({"exclude_labels": "sky", "validation": "other.csv"}, {"train": 20, "validation": 4}),
    ],
)
def test_splits(data, tmp_path, changes, sizes):
    at = {name: str(tmp_path / value) if value == "other.csv" else value for name, value in changes.items()}
    tables = read(data, **at)
    assert {name: len(part) for name, part in tables.splits().items()} == sizes
    assert tables.classes == (("fruit", "metal") if "exclude_labels" in changes else ("fruit", "metal", "sky"))


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_bad_rows_are_remembered_also_when_some_are_held_out(data, tmp_path, fraction):
    path = tiny.table(tmp_path / "bad.csv", [*tiny.texts(30), ("", "sky"), ("the apple", "")])
    tables = read(data, train=str(path), validation_fraction=fraction, on_bad="skip")
    assert [(row["where"], row["reason"][:8]) for part in tables.splits().values() for row in part.bad] == [
        (f"{path}, row 32", "the text"), (f"{path}, row 33", "the labe")]  # fmt: skip


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_train_has_not(data, tmp_path, split):
    path = tiny.table(tmp_path / "new.csv", [("the apple", "fruit"), ("near wind", "skye")])
    with pytest.raises(DataError, match="the class 'skye' is unknown") as caught:
        read(data, **{split: str(path)})
    assert f"{path}, row 3" in str(caught.value)
    assert "did you mean 'sky'?" in str(caught.value)


def test_one_class_only(data):
    with pytest.raises(DataError, match=r"one class only \('sky'\)"):
        read(data, exclude_labels="fruit|metal")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return load_pretrained(str(tiny.checkpoint(tmp_path_factory.mktemp("bert") / "bert", "bert")))


CUTS = [("as the config says", 6, 6), ("as many as the network has places", 128, 16)]


@pytest.mark.parametrize(("most", "longest"), [row[1:] for row in CUTS], ids=[row[0] for row in CUTS])
def test_long_texts_are_cut(bert, most, longest):
    long = from_arrays(["the apple " * 40, "see"], ["a", "b"], "memory")
    examples = inputs.make_examples(long, bert, Config(data=DataConfig(max_length=most)), ("a", "b"))
    assert list(examples.lengths) == [longest, 3]
    assert list(examples.labels) == [0, 1]


def test_unlabelled_examples(bert):
    assert inputs.make_examples(from_arrays(["see"], None, "memory"), bert, Config(), None).labels is None


def test_a_tokenizer_larger_than_the_embeddings(bert):
    small = dataclasses.replace(bert, config={**bert.config, "vocab_size": 5})
    with pytest.raises(WeightsError) as caught:
        inputs.make_examples(records(a=1, b=1), small, Config(), ("a", "b"))
    assert "5" in str(caught.value)
    assert isinstance(caught.value, TljaxError)


def whole_epoch(start):
    """Nothing is looked at before an epoch's end."""
    return 1 << 30


def test_the_feed_goes_on_where_it_was_stopped(bert):
    examples = inputs.make_examples(records(a=6, b=5), bert, Config(), ("a", "b"))
    feed = inputs.TrainFeed(examples, 4, (4,), 7, 2)
    assert feed.steps_per_epoch == 3
    for epoch in (0, 1):
        whole = list(feed.batches(epoch, 0, whole_epoch))
        assert sorted(row for batch in whole for row in batch["rows"] if row >= 0) == list(range(11))
        rest = list(feed.batches(epoch, 1, whole_epoch))
        assert [list(b["rows"]) for b in rest] == [list(b["rows"]) for b in whole[1:]]
        counts = [11 * epoch, *(int((batch["rows"] >= 0).sum()) for batch in whole)]
        assert [feed.seen(3 * epoch + at) for at in range(4)] == np.cumsum(counts).tolist()
    first, second = ([list(b["rows"]) for b in feed.batches(epoch, 0, whole_epoch)] for epoch in (0, 1))
    assert first != second
    assert feed.describe([2, 0]) == f"{examples.where(2)}; {examples.where(0)}"


def test_class_weights_make_classes_equal():
    labels = np.array([0, 0, 0, 1, 2, 2], np.int32)
    weights = tasks.class_weights(labels, 4)
    assert list(weights) == [6 / 12, 6 / 4, 6 / 8, 6 / 4]
    totals = [weights[c] * (labels == c).sum() for c in range(3)]
    assert totals == [1.5, 1.5, 1.5]


def test_the_shapes_of_an_epoch_are_those_of_its_batches(bert):
    texts = [" ".join(["see"] * n) for n in (1, 2, 2, 4, 5, 5, 5, 7, 7)]
    examples = inputs.make_examples(from_arrays(texts, ["a"] * 5 + ["b"] * 4, "memory"), bert, Config(), ("a", "b"))
    feed = inputs.TrainFeed(examples, 2, (4, 6, 7, 9, 64), 7, 2)

    def shapes(batch):
        arrays = {**batch["inputs"], "labels": batch["labels"], "weights": batch["weights"]}
        return {name: (arrays[name].shape, arrays[name].dtype) for name in sorted(arrays)}

    found = [shapes(batch) for batch in feed.shapes(1)]
    met = [shapes(batch) for batch in feed.batches(1, 0, whole_epoch)]
    assert len(found) > 1
    assert sorted(map(str, found)) == sorted({str(shape) for shape in met})
