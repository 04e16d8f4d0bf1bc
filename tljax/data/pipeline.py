"""The pipeline: planned batches become arrays in threads, a few ahead of the step that needs them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from tljax.data.batching import Examples, Planned, collate

Plan = TypeVar("Plan")
Made = TypeVar("Made")
PREFETCH = 8  # batches made ahead; enough to ride over a slow image, little enough to hold in memory


def batches(
    examples: Examples,
    plans: Sequence[Planned],
    batch_size: int,
    seed: int | None = None,
    start: int = 0,
    threads: int = 2,
    prefetch: int = PREFETCH,
    held: np.ndarray | None = None,
) -> Iterator[dict[str, Any]]:
    """The batches plans[start:], in order, made by grain's threads.

    What a batch holds is a function of its plan and the seed: neither `start` nor `threads` changes it, so a run
    resumes at batch k with start=k. Making begins at the call, not at the first batch taken. Closing the iterator
    early, or dropping it, stops the threads.

    Args:
      examples: labelled or unlabelled examples.
      plans: from `batching.plan` or `batching.plan_evaluation`.
      seed: of augmentation; None: none.
      threads: 0: everything in the caller's thread.
      prefetch: batches made ahead.
      held: as for `collate`.

    Yields:
      What `batching.collate` returns.

    Raises:
      DataError: an example that cannot be made, when its batch is reached.
    """
    if not 0 <= start <= len(plans):
        raise ValueError(f"start is {start}, expected 0 to {len(plans)}")
    return made(lambda planned: collate(examples, planned, batch_size, seed, held), plans[start:], threads, prefetch)


def made(
    make: Callable[[Plan], Made], plans: Sequence[Plan], threads: int = 2, prefetch: int = PREFETCH
) -> Iterator[Made]:
    """What `make` makes of each plan, in order, as `batches` does it."""
    import grain  # late: 5 s

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
    iterator = iter(grain.MapDataset.source(list(plans)).map(make).to_iter_dataset(options))
    iterator.start_prefetch()
    return _closing(iterator)


def _closing(iterator: Any) -> Iterator[Any]:
    try:
        yield from iterator
    finally:
        iterator.close()
