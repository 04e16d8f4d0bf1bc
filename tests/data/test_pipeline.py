"""The pipeline: the same batches on any number of threads, from any start; errors arrive; closing ends it."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from tljax.data.batching import OneAnswer, collate, plan
from tljax.data.pipeline import batches
from tljax.errors import DataError


class Slow(OneAnswer):
    """100 examples with seeded content; some are slow, one may be broken."""

    labels = np.arange(100, dtype=np.int32)

    def __init__(self, broken: int = -1, delay: float = 0.0):
        self.broken, self.delay, self.made = broken, delay, 0

    def __len__(self) -> int:
        return 100

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, Any]:
        self.made += 1
        if self.broken in indices:
            raise DataError("photos.csv, row 41", "image x.jpg: damaged or cut off")
        time.sleep(self.delay * (indices[0] % 3))
        noise = [np.random.default_rng([seed or 0, i]).integers(1000) for i in indices]
        return {"x": np.array(noise, np.int32), "i": indices.astype(np.int32)}


PLANS = plan(0, 0, 100, None, 8, (0,))


def as_lists(found: Any) -> list[Any]:
    return [{**{k: v.tolist() for k, v in b["inputs"].items()}, "rows": b["rows"].tolist()} for b in found]


EXPECTED = as_lists(collate(Slow(), p, 8, 5) for p in PLANS)


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
@pytest.mark.parametrize("prefetch", [1, 8])
def test_batches_do_not_depend_on_threads(threads: int, prefetch: int) -> None:
    assert as_lists(batches(Slow(delay=0.002), PLANS, 8, 5, 0, threads, prefetch)) == EXPECTED


@pytest.mark.parametrize("start", range(len(PLANS) + 1))
def test_resume_is_the_suffix(start: int) -> None:
    assert as_lists(batches(Slow(), PLANS, 8, 5, start)) == EXPECTED[start:]


@pytest.mark.parametrize("start", [-1, len(PLANS) + 1])
def test_start_out_of_range(start: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 13"):
        batches(Slow(), PLANS, 8, start=start)


@pytest.mark.parametrize("threads", [0, 2])
def test_error_arrives_as_itself_when_its_batch_is_reached(threads: int) -> None:
    at = next(i for i, p in enumerate(PLANS) if 40 in p.indices)
    found = batches(Slow(broken=40), PLANS, 8, 5, threads=threads)
    assert as_lists(next(found) for _ in range(at)) == EXPECTED[:at]
    with pytest.raises(DataError, match=r"photos\.csv, row 41") as caught:
        next(found)
    assert caught.value.exit_code == 65


def ended(before: int) -> bool:
    """Whether the threads that were started since go away within 4 s."""
    for _ in range(200):
        if threading.active_count() <= before:
            return True
        time.sleep(0.02)
    return False


def test_closing_early_ends_the_threads() -> None:
    before = threading.active_count()
    examples = Slow(delay=0.05)
    found = batches(examples, PLANS, 8, 5, threads=1, prefetch=len(PLANS))
    next(found)
    began = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 1
    made = examples.made
    assert ended(before)
    assert examples.made <= made + 1  # the one in hand is finished, the ones that wait are not begun


def test_dropped_before_the_first_batch() -> None:
    before = threading.active_count()
    found = batches(Slow(delay=0.01), PLANS, 8, threads=2)
    del found
    assert ended(before)


def test_batches_are_made_ahead() -> None:
    examples = Slow()
    found = batches(examples, PLANS, 8, threads=2, prefetch=4)
    for _ in range(200):
        if examples.made == 4:
            break
        time.sleep(0.02)
    assert examples.made == 4  # none was taken yet, and no more than `prefetch` are made
    assert len(list(found)) == len(PLANS)
