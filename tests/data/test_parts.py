"""Parts of a ledger: times half open, places as Python's slices, shares that add up, and the latest events."""

import itertools

import numpy as np
import pytest

from tljax.data import parts
from tljax.data.ledger import Ledger
from tljax.errors import ConfigError, DataError

DAY = 86400.0


def ledger(sizes: list[int], times: list[float] | None = None) -> Ledger:
    """Entities with so many events each; without times, event i has the time i. Rows of the file run backwards."""
    n, names = sum(sizes), np.array([f"e{i:03d}" for i in range(len(sizes))])
    columns = {"who": np.repeat(names, sizes), "when": np.array(range(n) if times is None else times, np.float64),
               "value": np.arange(n) * 10}  # fmt: skip
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Ledger("mine.csv", columns, "who", "when", np.arange(n)[::-1].astype(np.int64), offsets, names)


JANUARY_2 = 86400.0 * 366  # of 1971
TIMES = [0.0, DAY - 0.5, DAY, 2 * DAY - 1, 2 * DAY, JANUARY_2 - 3600, JANUARY_2, JANUARY_2 + 3600]
BY_TIME = [
    # part, events in it
    ("", range(8)),
    ("..", range(8)),
    ("1..2", [2, 3]),  # days since 1970: the first is in, the second not
    ("..1", [0, 1]),
    ("2..", range(4, 8)),
    ("0..0.5", [0]),
    ("1..1", []),
    ("2..1", []),
    ("-5..1", [0, 1]),
    ("1970-01-02..1970-01-03", [2, 3]),
    ("1970-01-03..1971-01-02", [4, 5]),
    ("1971-01-02..", [6, 7]),
    ("..1971-01-02T00:00:01", range(7)),
    ("1971-01-02T01:00..", [7]),
    ("1971-01-02T00:00+01:00..1971-01-02", [5]),  # an hour before midnight, UTC
    ("1971-01-01T23:00Z..1971-01-02", [5]),
    (" 1 .. 1970-01-03 ", [2, 3]),
]


@pytest.mark.parametrize(("text", "events"), BY_TIME)
def test_parts_by_time(text, events):
    own = ledger([3, 5], TIMES)
    found = parts.part_of(own, text, f"mine.csv#{text}")
    assert np.flatnonzero(found).tolist() == list(events)
    assert found.dtype == bool


def test_neighbouring_parts_share_no_event():
    own = ledger([3, 5], TIMES)
    for bounds in (["1", "2", "366"], ["1970-01-02", "1970-01-03T00:00:00", "1971-01-02"]):
        ends = ["", *bounds, ""]
        made = [parts.part_of(own, f"{low}..{high}", "") for low, high in itertools.pairwise(ends)]
        assert np.array_equal(np.sum(made, axis=0), np.ones(8))


ENDS = ("", "0", "1", "2", "5", "99", "-1", "-2", "-5", "-99")


@pytest.mark.parametrize("low", ENDS)
@pytest.mark.parametrize("high", ENDS)
def test_parts_by_place_are_pythons_slices(low, high):
    sizes = [1, 2, 5, 9]
    own = ledger(sizes)
    found = parts.part_of(own, f"{low}:{high}", "")
    cut = slice(int(low) if low else None, int(high) if high else None)
    expected = [event for begin, size in zip(own.offsets, sizes, strict=False) for event in
                range(begin, begin + size)[cut]]  # fmt: skip
    assert np.flatnonzero(found).tolist() == expected


ODD = [
    ("5", "the part '5' is none"),
    ("a:b", "the part 'a:b' is none"),
    ("1:2:3", "the part '1:2:3' is none"),
    ("1.5:2", "the part '1.5:2' is none"),
    ("yesterday..", "'yesterday' is no time; expected ISO 8601, or days since 1970"),
    ("1..1970-13-01", "'1970-13-01' is no time"),
]


@pytest.mark.parametrize(("text", "words"), ODD)
def test_what_is_no_part(text, words):
    with pytest.raises(DataError) as caught:
        parts.part_of(ledger([3]), text, f"mine.csv#{text}")
    assert words in str(caught.value)
    assert caught.value.where == f"mine.csv#{text}"


def test_a_part_by_time_needs_times():
    own = ledger([3])
    timeless = Ledger(own.name, own.columns, "who", "", own.rows, own.offsets, own.entities)
    with pytest.raises(ConfigError, match=r"--config\.events\.time: none, and mine\.csv#1\.\. is a part by time"):
        parts.part_of(timeless, "1..", "mine.csv#1..")
    assert parts.part_of(timeless, "1:", "").tolist() == [False, True, True]


BOUNDS = [(0.0, 1.0), (0.0, 0.3, 1.0), (0.0, 0.1, 0.2, 0.5, 0.9, 1.0)]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_shares_deal_the_entities_out(bounds):
    sizes = [1 + i % 4 for i in range(2000)]
    own = ledger(sizes)
    made = [parts.of_share(own, "some purpose", low, high) for low, high in itertools.pairwise(bounds)]
    assert np.array_equal(np.sum(made, axis=0), np.ones(len(own)))
    for one, (low, high) in zip(made, itertools.pairwise(bounds), strict=True):
        whole = [len(set(one[begin:end])) == 1 for begin, end in zip(own.offsets, own.offsets[1:], strict=False)]
        assert all(whole)  # an entity is in a share with all of its events
        share = one[own.offsets[:-1]].mean()
        assert share == pytest.approx(high - low, abs=0.05)  # 2,000 draws: 4 standard deviations at the most


def test_a_share_goes_by_names_and_purpose():
    own = ledger([2] * 300)
    half = parts.of_share(own, "a", 0.0, 0.5)[::2]
    later = ledger([1, 5] * 150)  # the same names with other events
    assert np.array_equal(parts.of_share(later, "a", 0.0, 0.5)[later.offsets[:-1]], half)
    other = parts.of_share(own, "b", 0.0, 0.5)[::2]
    assert 0.35 < (half == other).mean() < 0.65  # independent: a half of the entities, ± 5 standard deviations


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_the_latest_events_alone(most):
    sizes = [1, 4, 2, 7]
    own = ledger(sizes)
    cut, keep = parts.latest(own, most)
    expected = [event for begin, size in zip(own.offsets, sizes, strict=False) for event in
                list(range(begin, begin + size))[-most:]]  # fmt: skip
    assert np.flatnonzero(keep).tolist() == expected
    assert (cut.columns["value"] / 10).tolist() == expected
    assert cut.rows.tolist() == own.rows[expected].tolist()  # as in the file still
    assert cut.columns.keys() == own.columns.keys()
    for i, name in enumerate(own.entities.tolist()):
        inside = slice(cut.offsets[i], cut.offsets[i + 1])
        assert set(cut.columns["who"][inside].tolist()) == {name}
    assert cut.offsets[-1] == len(cut) == len(expected)
    assert cut.times.tolist() == [float(event) for event in expected]
    assert (cut.entity, cut.time, cut.name) == (own.entity, own.time, own.name)
    assert len(own) == sum(sizes)
