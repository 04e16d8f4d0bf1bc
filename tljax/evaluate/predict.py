"""What a network answers to every example, each answer exactly once. N answers, K numbers kept of each."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tljax import mesh
from tljax.data import batching, pipeline
from tljax.data.batching import Examples
from tljax.mesh import Layout

EvalStep = Callable[[Any, dict[str, Any], Any], Any]  # (params, inputs, labels) -> outputs (B, …, K)
BUCKETS = 3  # padded lengths: a forward pass is cheap, a compilation is not
ROWS_PER_BUCKET = 500  # below that many, one more compilation takes longer than the padding that it saves


def stream(step: EvalStep, params: Any, examples: Examples, batch_size: int, threads: int,
           layout: Layout | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:  # fmt: skip
    """Gives (examples, answers (A,), outputs (A, K)) a batch at a time, one batch behind the device so that neither
    waits.

    Every answer that `examples` ask for comes once; rows that fill up a batch do not come at all.

    Args:
      layout: where `params` lie; batches are divided likewise, and every process gives all rows. None: on one device.
    """
    layout = layout or mesh.single()
    batch_size = layout.whole(batch_size)
    edges = batching.buckets(examples.lengths, min(BUCKETS, 1 + len(examples) // ROWS_PER_BUCKET))
    plans = batching.plan_evaluation(len(examples), examples.lengths, batch_size, edges)
    waiting: tuple[np.ndarray, int, Any] | None = None
    held = layout.held(batch_size)
    made = pipeline.batches(examples, plans, batch_size, threads=threads, held=held)
    for plan, batch in zip(plans, made, strict=True):
        sent = step(params, *layout.send((batch["inputs"], batch["labels"])))
        if waiting is not None:
            yield _real(examples, *waiting)
        waiting = (batch["rows"], plan.length, sent)
    if waiting is not None:
        yield _real(examples, *waiting)


def _real(examples: Examples, rows: np.ndarray, length: int, outputs: Any) -> tuple[int, np.ndarray, np.ndarray]:
    own = rows[rows >= 0]
    spots = examples.spots(own, length)
    return len(own), spots[spots >= 0], mesh.fetch(outputs)[rows >= 0][spots >= 0]


def outputs(step: EvalStep, params: Any, examples: Examples, batch_size: int, threads: int = 2,
            show: Callable[[int], None] = lambda n: None,
            layout: Layout | None = None) -> np.ndarray:  # fmt: skip
    """What is kept of each answer, (N, K) float32 in the order of `examples.truth`: of a classification the
    probabilities (n, C).

    Args:
      show: is told how many examples are through, for a progress bar.
      layout: as for `stream`.

    Raises:
      RuntimeError: an answer came twice or not at all; a metric over such a pass would be wrong.
    """
    seen = np.zeros(len(examples.truth), np.int64)
    result: np.ndarray | None = None
    for count, spots, found in stream(step, params, examples, batch_size, threads, layout):
        if result is None:
            result = np.full((len(seen), found.shape[-1]), np.nan, np.float32)
        result[spots] = found
        np.add.at(seen, spots, 1)
        show(count)
    if result is None or not (seen == 1).all():
        raise RuntimeError(f"evaluation saw {int((seen != 1).sum())} answers more or less than once")
    return result
