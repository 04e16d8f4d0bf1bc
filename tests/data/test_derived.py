"""Derived fields against brute force, and that the future has no influence, not even on the rounding."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tljax.data.derived import day_of_week, hour_of_day, rolling, since_last
from tljax.errors import ConfigError, DataError

DAY = 86400.0


def brute(keys, times, values, statistic, window, delay, now=True):
    """By the definition, event by event: times that tie come in the order given."""
    found = []
    for i in range(len(keys)):
        chosen = []
        for j in range(len(keys)):
            before = times[j] < times[i] or (times[j] == times[i] and (j < i or (j == i and now)))
            inside = times[i] - (delay + window) < times[j] <= times[i] - delay
            if keys[j] == keys[i] and before and inside:
                chosen.append(1.0 if values is None else float(values[j]))
        found.append(sum(chosen) / (max(len(chosen), 1) if statistic == "mean" else 1))
    return np.array(found)


def events(seed: int, n: int = 120, whole: bool = True):
    """Unsorted, with many ties in time and keys of one to many events."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, rng.integers(1, 9), n) if seed % 2 else rng.choice(["a", "b", "cc"], n)
    times = rng.integers(0, 40, n).astype(np.float64)
    return keys, times, rng.integers(-3, 9, n) if whole else rng.normal(size=n)


@pytest.mark.parametrize("now", [True, False])
@pytest.mark.parametrize("delay", [0.0, 1.0, 7.0, 7.5, 100.0])
@pytest.mark.parametrize("window", [0.5, 1.0, 10.0, np.inf])
@pytest.mark.parametrize("statistic", ["count", "sum", "mean"])
def test_by_definition(statistic, window, delay, now):
    for seed in range(4):
        keys, times, values = events(seed)
        values = None if statistic == "count" else values
        found = rolling(keys, times, values, statistic, window, delay, now)
        assert found.dtype == np.float64
        assert found.tolist() == brute(keys, times, values, statistic, window, delay, now).tolist()


def test_a_delayed_window_is_the_difference_of_two():
    """As the Handbook has it: rolling(delay + window) less rolling(delay), each with the event itself."""
    keys, times, values = events(1, 2000)
    for window, delay in ((1.0, 7.0), (30.0, 7.0), (3.0, 1.0)):
        both = rolling(keys, times, values, "sum", window + delay) - rolling(keys, times, values, "sum", delay)
        assert rolling(keys, times, values, "sum", window, delay).tolist() == both.tolist()


def test_edges_of_the_window():
    """Open on the left, closed on the right, and at the same time what stands before."""
    keys, times, values = np.zeros(5), np.array([0.0, 10.0, 10.0, 20.0, 30.0]), np.array([1, 2, 4, 8, 16])
    for delay, now, expected in (
        (0.0, True, [1, 2, 6, 8, 16]),
        (0.0, False, [0, 0, 2, 0, 0]),
        (10.0, True, [0, 1, 1, 6, 8]),
        (20.0, True, [0, 0, 0, 1, 6]),
    ):
        assert rolling(keys, times, values, "sum", 10.0, delay, now).tolist() == expected


def test_fractions_are_rounded_and_no_more():
    keys, times, values = events(3, 300, whole=False)
    found = rolling(keys, times, values, "mean", 9.0)
    np.testing.assert_allclose(found, brute(keys, times, values, "mean", 9.0, 0.0), atol=1e-13)  # sums of up to 150


def test_whole_numbers_stay_exact_beside_large_ones():
    """A sum over all keys would pass 2^53 and lose the ones."""
    keys = np.repeat(np.arange(5), 4)
    values = np.where(keys < 4, 2**51, 1)
    found = rolling(keys, np.tile(np.arange(4.0), 5), values, "sum", 2.0)
    assert found[16:].tolist() == [1, 2, 2, 2]
    assert found[:4].tolist() == [2**51, 2**52, 2**52, 2**52]


@pytest.mark.parametrize("statistic", ["sum", "mean"])
@pytest.mark.parametrize("delay", [0.0, 3.0, 11.0])
def test_the_future_has_no_influence(statistic, delay):
    """Values later than t - delay are changed, of all keys and by much: not a bit of what stands up to t changes."""
    for seed in range(10):
        keys, times, values = events(seed, 150, whole=False)
        before = rolling(keys, times, values, statistic, 9.0, delay)
        for t in (5.0, 17.0, 30.0):
            changed = np.where(times > t - delay, 1e9 * np.sin(np.arange(150)), values)
            after = rolling(keys, times, changed, statistic, 9.0, delay)
            assert before[times <= t].tolist() == after[times <= t].tolist()
            if delay == 0.0:
                assert before[times > t].tolist() != after[times > t].tolist()


def test_later_events_have_no_influence():
    keys, times, values = events(5, 200, whole=False)
    whole = rolling(keys, times, values, "mean", 9.0, 2.0)
    past = times <= 20
    assert rolling(keys[past], times[past], values[past], "mean", 9.0, 2.0).tolist() == whole[past].tolist()


def test_nothing_and_one():
    for n in (0, 1):
        keys, times = np.arange(n), np.arange(n) * 1.0
        assert rolling(keys, times, None, "count", 5.0).tolist() == [1.0] * n
        assert rolling(keys, times, times, "mean", 5.0, 5.0).tolist() == [0.0] * n
        assert np.isnan(since_last(keys, times)).tolist() == [True] * n


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ConfigError, "found 'median'; expected one of count, sum, mean", {"statistic": "median"}),
        (ConfigError, "window_s: found 0.0", {"window_s": 0.0}),
        (ConfigError, "window_s: found nan", {"window_s": np.nan}),
        (ConfigError, "delay_s: found -1.0", {"delay_s": -1.0}),
        (ConfigError, "delay_s: found inf", {"delay_s": np.inf}),
        (DataError, "times, index 2: found nan", {"times_n": np.array([0.0, 1.0, np.nan])}),
        (DataError, "values, index 1: found inf", {"values_n": np.array([0.0, np.inf, 1.0])}),
        (ValueError, "values of shape", {"values_n": np.zeros(2)}),
        (ValueError, "times of shape", {"times_n": np.zeros(4)}),
        (ValueError, "no values", {"values_n": None}),
    ],
)
def test_refused(error, words, change):
    usual = {
        "keys_n": np.zeros(3),
        "times_n": np.zeros(3),
        "values_n": np.zeros(3),
        "statistic": "sum",
        "window_s": 1.0,
    }
    with pytest.raises(error, match=words):
        rolling(**{**usual, **change})


def test_since_last():
    for seed in range(10):
        keys, times, _ = events(seed)
        found = since_last(keys, times)
        for i in range(len(keys)):
            earlier = [
                t for j, (k, t) in enumerate(zip(keys, times, strict=True)) if k == keys[i] and (t, j) < (times[i], i)
            ]
            assert np.isnan(found[i]) if not earlier else found[i] == times[i] - max(earlier)


def test_hours_and_days():
    times = np.random.default_rng(0).integers(-(2**31), 2**32, 500)
    dates = [datetime.fromtimestamp(int(t), UTC) for t in times]
    assert hour_of_day(times + 0.75).tolist() == [date.hour for date in dates]
    assert day_of_week(times + 0.75).tolist() == [date.weekday() for date in dates]
    assert hour_of_day(times).dtype == day_of_week(times).dtype == np.int64
    for function in (hour_of_day, day_of_week):
        with pytest.raises(DataError, match="index 0: found nan"):
            function(np.array([np.nan]))


def test_handbook(testdata: Callable[[str], Path]) -> None:
    """Its features by brute force, for the key with the most frauds; and 1.75 million events in time."""
    with np.load(testdata("fraud_handbook") / "fraud_handbook.npz") as raw:
        customer, terminal, amount, when, fraud = (raw[name] for name in (
            "customer_id", "terminal_id", "amount_cents", "time_seconds", "fraud"))  # fmt: skip
    for keys, values, statistic, window, delay in (
        (customer, None, "count", 7 * DAY, 0.0),
        (customer, amount, "mean", 30 * DAY, 0.0),
        (terminal, None, "count", DAY, 7 * DAY),
        (terminal, fraud, "mean", 30 * DAY, 7 * DAY),
    ):
        started = time.process_time()
        found = rolling(keys, when, values, statistic, window, delay)
        assert time.process_time() - started < 2  # 0.8 to 1.0 s on one core that is free
        at = np.flatnonzero(keys == np.bincount(keys[fraud > 0]).argmax())
        some = None if values is None else values[at]
        expected = brute(keys[at], when[at].astype(np.float64), some, statistic, window, delay)
        assert found[at].tolist() == expected.tolist()
        assert len(set(found[at].tolist())) > 2
