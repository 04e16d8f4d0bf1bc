"""Fields that are computed from the past of a key: counts, sums and means over windows with a delay.

With a delay they are what is known of a key when news of its events come late: the risk of a terminal is the share of
frauds in a window that ends a week ago, because it takes a week to find a fraud (Le Borgne et al. 2022, Reproducible
Machine Learning for Credit Card Fraud Detection, "Baseline feature transformation").

Legend: n events, in any order. Keys are numbers or str (n,); times are seconds since 1970 (n,).
"""

import math

import numpy as np

from tljax.errors import ConfigError, DataError

STATISTICS = ("count", "sum", "mean")
HOUR, DAY = 3600, 86400  # seconds


def rolling(keys_n: np.ndarray, times_n: np.ndarray, values_n: np.ndarray | None, statistic: str, window_s: float,
            delay_s: float = 0.0, include_now: bool = True) -> np.ndarray:  # fmt: skip
    """A statistic over the events of the same key in a window of time that ends `delay_s` before each event.

    Event i, at t, looks at the events j of its key with t - (delay_s + window_s) < t_j <= t - delay_s, and without a
    delay only at those that do not come after it in the order given. These are the windows of pandas'
    `rolling(window)` and, with a delay, of `rolling(delay + window)` less `rolling(delay)`. Nothing later has any
    influence, not even on the rounding: sums are made key by key, and never subtracted across keys.

    Args:
      keys_n, times_n: whose event it is, and when.
      values_n: finite numbers (n,); None for "count".
      statistic: "count", "sum" or "mean"; a sum or mean over no event is 0.
      window_s: seconds, inf for all of the past.
      delay_s: seconds.
      include_now: whether without a delay the event itself counts; events before it at the same time always do.

    Returns:
      float64 (n,); exact where the values are whole and their sums below 2^53, else rounded as the sum over all of
      the key's past is.

    Raises:
      ConfigError: an unknown statistic, or a window or delay that is none.
      DataError: times or values that are not finite.

    >>> rolling(np.array([7, 7, 7]), np.array([0.0, 5.0, 10.0]), np.array([1.0, 2.0, 4.0]), "sum", 10.0)
    array([1., 3., 6.])
    """
    if statistic not in STATISTICS:
        raise ConfigError("statistic", f"found {statistic!r}", f"one of {', '.join(STATISTICS)}")
    if not window_s > 0:
        raise ConfigError("window_s", f"found {window_s}", "seconds above 0")
    if not 0 <= delay_s < math.inf:
        raise ConfigError("delay_s", f"found {delay_s}", "seconds, 0 or more")
    if statistic != "count" and values_n is None:
        raise ValueError(f"the {statistic} of no values")
    order, begins, times = _sorted(keys_n, times_n)
    moments, moment = np.unique(times, return_inverse=True)
    # Key and time as one whole number, in which a search looks at exact times and stays within the key.
    base = np.cumsum(np.arange(len(times)) == begins) * len(moments)
    place = base + moment

    def until(back_s: float) -> np.ndarray:
        """How many events, of all that stand before, are of earlier keys or not after t - back_s."""
        return np.searchsorted(place, base + np.searchsorted(moments, moments - back_s, "right")[moment])

    low = until(delay_s + window_s)
    high = until(delay_s) if delay_s else np.arange(len(times)) + int(include_now)
    count = np.maximum(high - low, 0).astype(np.float64)
    found = count
    if statistic != "count" and values_n is not None:
        total = _totals(_finite("values", values_n, len(times))[order], begins)
        found = np.where(count > 0, total[np.maximum(high - 1, 0)] - np.where(low > begins, total[low - 1], 0.0), 0.0)
        if statistic == "mean":
            found = found / np.maximum(count, 1.0)
    result = np.empty(len(times))
    result[order] = found
    return result


def since_last(keys_n: np.ndarray, times_n: np.ndarray) -> np.ndarray:
    """Seconds since the key's previous event, float64 (n,): NaN for its first, 0 at the same time, never negative.

    Raises:
      DataError: times that are not finite.
    """
    order, begins, times = _sorted(keys_n, times_n)
    result = np.empty(len(times))
    result[order] = np.where(np.arange(len(times)) == begins, np.nan, np.diff(times, prepend=np.nan))
    return result


def hour_of_day(times_n: np.ndarray) -> np.ndarray:
    """0 to 23, UTC: int64 (n,). Raises DataError for times that are not finite.

    >>> hour_of_day(np.array([0, 3600, -1]))
    array([ 0,  1, 23])
    """
    return np.floor(_finite("times", times_n, len(times_n)) % DAY / HOUR).astype(np.int64)


def day_of_week(times_n: np.ndarray) -> np.ndarray:
    """0, which is Monday, to 6, UTC: int64 (n,). Raises DataError for times that are not finite.

    >>> day_of_week(np.array([0, 86400 * 4]))  # 1970 began on a Thursday
    array([3, 0])
    """
    return (np.floor(_finite("times", times_n, len(times_n)) / DAY).astype(np.int64) + 3) % 7


def _finite(what: str, array: np.ndarray, n: int) -> np.ndarray:
    """As float64."""
    if array.shape != (n,):
        raise ValueError(f"{what} of shape {array.shape}, expected ({n},)")
    wide = array.astype(np.float64)
    if len(odd := np.flatnonzero(~np.isfinite(wide))):
        raise DataError(f"{what}, index {odd[0]}", f"found {wide[odd[0]]}", "a finite number")
    return wide


def _sorted(keys_n: np.ndarray, times_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the order by key, time and place; in that order, where the key of each event begins, and the times)."""
    times = _finite("times", times_n, len(keys_n))
    distinct, key = np.unique(keys_n, return_inverse=True)
    order = np.lexsort((times, key))
    key = key[order]
    return order, np.searchsorted(key, np.arange(len(distinct)))[key], times[order]


def _totals(values: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The sums over the events of each key up to and with each, by doubling (Hillis & Steele 1986): each is made of
    values of its own key, and in a number of steps that grows with the logarithm of their number."""
    nth = np.arange(len(values)) - begins
    total, step = values.copy(), 1
    while step <= nth.max(initial=0):
        total[step:] += np.where(nth[step:] >= step, total[:-step], 0.0)
        step *= 2
    return total
