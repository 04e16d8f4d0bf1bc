"""Windows of events against brute force, what is asked of each kind, and that nothing that comes later is ever seen."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from tljax.data import batching
from tljax.data.events import EventExamples, Histories, windows
from tljax.data.ledger import Ledger
from tljax.errors import ConfigError

KINDS = ("each", "last", "next", "item")


def ledger(sizes: list[int]) -> Ledger:
    """Entities with so many events each; event i stands in row i of the file."""
    n, names = sum(sizes), np.array([f"e{i}" for i in range(len(sizes))])
    columns = {"who": np.repeat(names, sizes), "when": np.arange(n, dtype=np.float64)}
    return Ledger("mine.csv", columns, "who", "when", np.arange(n), np.concatenate([[0], np.cumsum(sizes)]), names)


def histories(sizes: list[int], asked: np.ndarray, labels: bool = True) -> Histories:
    """Events whose every column says which event it is: "at" (from 1), "twice", and a number."""
    own = ledger(sizes)
    at = np.arange(len(own))
    columns = {"at": (at + 1).astype(np.int32), "twice": (2 * at + 2).astype(np.int32),
               "at.number": (at + 0.5).astype(np.float32)}  # fmt: skip
    return Histories("mine.csv#part", own, asked, columns, (at % 5).astype(np.int32) if labels else None)


def drawn(seed: int) -> tuple[list[int], np.ndarray, int, int]:
    """(events of each entity, which are asked about, length, context)."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, rng.integers(1, 8)).tolist()
    n, length = sum(sizes), int(rng.integers(1, 12))
    asked = [rng.random(n) < rng.random(), np.arange(n) > n // 2, np.ones(n, bool)][seed % 3]
    return sizes, asked, length, int(rng.integers(0, length))


CASES = [drawn(seed) for seed in range(90)]


def entity_of(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize(("sizes", "asked", "length", "context"), CASES)
def test_each_event_that_is_asked_about_is_in_one_window(sizes, asked, length, context):
    offsets, whose = ledger(sizes).offsets, entity_of(sizes)
    found = windows(offsets, asked, length, context)
    often, before = np.zeros(len(asked), int), np.zeros(len(asked), int)
    for start, first, stop in found.tolist():
        assert start <= first < stop <= start + length
        assert len(set(whose[start:stop])) == 1  # never events of another entity
        assert asked[first]
        assert asked[stop - 1]  # and no event after the last that is asked about
        own = first + np.flatnonzero(asked[first:stop])
        often[own] += 1
        before[own] = own - start
    assert np.array_equal(often, asked.astype(int))
    available = np.arange(len(asked)) - offsets[whose]
    assert (before[asked] >= np.minimum(context, available)[asked]).all()
    assert found.shape == (len(found), 3)
    assert (np.diff(found[:, 1]) > 0).all()
    assert found.dtype == np.int64


@pytest.mark.parametrize(("sizes", "asked", "length", "context"), CASES[:30])
def test_windows_are_as_few_as_can_be(sizes, asked, length, context):
    """By trying, for each entity, every way to cut its asked events into runs that fit."""
    offsets = ledger(sizes).offsets
    found = windows(offsets, asked, length, context)
    for i in range(len(sizes)):
        own = np.flatnonzero(asked[offsets[i] : offsets[i + 1]])
        fewest = [0] + [10**9] * len(own)  # for the first so many of them
        for end in range(1, len(own) + 1):
            for begin in range(end):
                if own[end - 1] < max(0, own[begin] - context) + length:
                    fewest[end] = min(fewest[end], fewest[begin] + 1)
        mine = (found[:, 1] >= offsets[i]) & (found[:, 1] < offsets[i + 1])
        assert mine.sum() == fewest[-1]


def test_no_event_asked_about_no_window():
    assert windows(np.array([0, 3, 5]), np.zeros(5, bool), 4, 1).shape == (0, 3)


@pytest.mark.parametrize("context", [4, 5])
def test_a_context_that_leaves_no_room(context):
    with pytest.raises(ConfigError, match="less than") as caught:
        windows(np.array([0, 3]), np.ones(3, bool), 4, context)
    assert f"{context}; expected less than --config.data.max_length=4" in str(caught.value)


def examples(case: tuple[list[int], np.ndarray, int, int], kind: str, **options: Any) -> EventExamples:
    sizes, asked, length, context = case
    asked_for = {"next": ("at", "twice"), "item": ("twice",)}.get(kind, ())
    return EventExamples(histories(sizes, asked), kind, asked_for, length, context, **options)


def expected(case: tuple[list[int], np.ndarray, int, int], kind: str) -> dict[int, Any]:
    """Event at which an answer is given -> the answer, in a loop."""
    sizes, asked, *_ = case
    whose, found = entity_of(sizes), {}
    for event in np.flatnonzero(asked).tolist():
        if kind == "each":
            found[event] = event % 5
        elif kind == "last":
            later = [other for other in np.flatnonzero(asked).tolist() if whose[other] == whose[event]]
            found[max(later)] = max(later) % 5
        elif event and whose[event - 1] == whose[event]:  # what is foretold needs an event before it
            found[event - 1] = [event + 1, 2 * event + 2] if kind == "next" else 2 * event + 2
    return found


def answered(own: EventExamples) -> dict[int, Any]:
    """Event -> the label at it, in batches as an evaluation makes them; and that all parts agree."""
    found, seen = {}, np.zeros(len(own.truth), int)
    if not len(own):
        return {}
    for plan in batching.plan_evaluation(len(own), own.lengths, 4, batching.buckets(own.lengths, 3)):
        batch = batching.collate(own, plan, 4)
        rows = batch["rows"]
        assert not batch["weights"][rows < 0].any()
        spots = own.spots(rows[rows >= 0], plan.length)
        labels, weights = batch["labels"][rows >= 0], batch["weights"][rows >= 0]
        inputs = {name: value[rows >= 0] for name, value in batch["inputs"].items()}
        assert weights.shape == spots.shape == labels.shape[: spots.ndim]
        assert np.array_equal(spots >= 0, weights > 0)
        for row, i in enumerate(rows[rows >= 0].tolist()):
            start, _, stop = own.windows[i].tolist()
            count = stop - start
            assert inputs["attention_mask"][row].tolist() == [1] * count + [0] * (plan.length - count)
            assert inputs["at"][row].tolist() == [*range(start + 1, stop + 1), *[0] * (plan.length - count)]
            assert inputs["at.number"][row, :count].tolist() == [at + 0.5 for at in range(start, stop)]
            assert not inputs["at.number"][row, count:].any()
            for at, spot in enumerate(np.atleast_1d(spots[row]).tolist()):
                if spot >= 0:
                    event = stop - 1 if own.kind == "last" else start + at
                    label = labels[row] if own.kind == "last" else labels[row, at]
                    assert np.array_equal(own.truth[spot], label)
                    assert own.places[spot] == event
                    found[event] = label.tolist()
                    seen[spot] += 1
                elif own.kind != "last":
                    assert not labels[row, at].any()  # what is not asked about is not told
    assert (seen == 1).all()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES[::3] + CASES[1::9])
def test_every_answer_once_and_as_by_hand(kind, case):
    own = examples(case, kind)
    assert answered(own) == expected(case, kind)
    assert own.truth.dtype == np.int32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES[::6])
def test_nothing_later_than_what_is_asked_is_seen(kind, case):
    """A causal network sees a place and those before it: the window up to an answer's place holds no event of the
    answer's time or later that would give it away, of "next" and "item" not even the event that is asked about."""
    own = examples(case, kind)
    if not len(own):
        return
    length = int(own.lengths.max())
    at = np.arange(len(own))
    inputs, spots = own.gather(at, length), own.spots(at, length)
    for row in at:
        for place in range(length):
            spot = (spots[row] if place == own.lengths[row] - 1 else -1) if kind == "last" else spots[row, place]
            if spot < 0:
                continue
            seen = inputs["at"][row, : place + 1] - 1
            assert seen[-1] == seen.max() == own.places[spot]
            if kind == "next":
                assert own.truth[spot].tolist() == [seen[-1] + 2, 2 * seen[-1] + 4]  # the event after all that is seen


def test_shapes_and_dtypes():
    case = ([5, 3], np.ones(8, bool), 4, 1)
    for kind, shape, weights in (("each", (2, 4), (2, 4)), ("last", (2,), (2,)), ("next", (2, 4, 2), (2, 4)),
                                 ("item", (2, 4), (2, 4))):  # fmt: skip
        own = examples(case, kind)
        found = own.targets(np.array([0, 1]), 4)
        assert (found.labels.shape, found.weights.shape) == (shape, weights)
        assert (found.labels.dtype, found.weights.dtype) == (np.int32, np.float32)
        inputs = own.gather(np.array([0, 1]), 4)
        assert {name: value.dtype.name for name, value in inputs.items()} == {
            "at": "int32", "twice": "int32", "at.number": "float32", "attention_mask": "int32"}  # fmt: skip


def test_unlabelled_events_are_of_the_first_class():
    own = EventExamples(histories([3], np.ones(3, bool), labels=False), "each", (), 4, 1)
    assert own.truth.tolist() == [0, 0, 0]
    assert own.targets(np.array([0]), 3).weights.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES[2::12])
def test_a_share_of_the_answers(kind, case):
    chosen = np.arange(len(case[1])) % 3 == 0
    everything, own = expected(case, kind), examples(case, kind, drawn=chosen)
    about = 1 if kind in ("next", "item") else 0  # the event that an answer is about comes after it
    assert answered(own) == {event: label for event, label in everything.items() if chosen[event + about]}


def test_where_a_person_finds_a_window():
    own = examples(([2, 9], np.ones(11, bool), 4, 1), "each")
    assert [own.where(i) for i in range(4)] == [
        "mine.csv#part, who e0, events 1 to 2", "mine.csv#part, who e1, events 1 to 4",
        "mine.csv#part, who e1, events 4 to 7", "mine.csv#part, who e1, events 7 to 9"]  # fmt: skip


def test_digests():
    """`content` is of what a network sees, `digest` of questions and answers too."""
    case = ([5, 3], np.arange(8) > 3, 4, 1)
    own = examples(case, "each")
    same = examples(case, "each")
    assert (own.content(), own.digest()) == (same.content(), same.digest())
    other = dataclasses.replace(own.histories, labels=own.histories.labels + 1)
    relabelled = EventExamples(other, "each", (), 4, 1)
    assert relabelled.content() == own.content()
    assert relabelled.digest() != own.digest()
    numbers = {**own.histories.columns, "at.number": own.histories.columns["at.number"] + 1}
    moved = EventExamples(dataclasses.replace(own.histories, columns=numbers), "each", (), 4, 1)
    assert len({own.content(), moved.content(), examples(([5, 3], np.ones(8, bool), 4, 1), "each").content()}) == 3
    assert len(own.histories) == 4
