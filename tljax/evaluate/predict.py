"""Class probabilities of every example, each exactly once."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tljax import mesh
from tljax.data import batching, pipeline
from tljax.mesh import Layout

EvalStep = Callable[[Any, dict[str, Any]], Any]  # (params, inputs) -> probabilities (B, C)
BUCKETS = 3  # padded lengths: a forward pass is cheap, a compilation is not
ROWS_PER_BUCKET = 500  # below that many, one more compilation takes longer than the padding that it saves


def stream(step: EvalStep, params: Any, examples: Any, batch_size: int, threads: int,
           layout: Layout | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Gives (rows, probabilities) a batch at a time, one batch behind the device so that neither waits.

    Every row of `examples` comes once; rows that fill up a batch do not come at all.

    Args:
      layout: where `params` lie; batches are divided likewise, and every process gives all rows. None: on one device.
    """
    layout = layout or mesh.single()
    batch_size = layout.whole(batch_size)
    edges = batching.buckets(examples.lengths, min(BUCKETS, 1 + len(examples) // ROWS_PER_BUCKET))
    plans = batching.plan_evaluation(len(examples), examples.lengths, batch_size, edges)
    waiting: tuple[np.ndarray, Any] | None = None
    held = layout.held(batch_size)
    for batch in pipeline.batches(examples, plans, batch_size, threads=threads, held=held):
        sent = step(params, layout.send(batch["inputs"]))
        if waiting is not None:
            yield _real(*waiting)
        waiting = (batch["rows"], sent)
    if waiting is not None:
        yield _real(*waiting)


def _real(rows: np.ndarray, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    return rows[rows >= 0], mesh.fetch(probabilities)[rows >= 0]


def probabilities(step: EvalStep, params: Any, examples: Any, batch_size: int, threads: int = 2,
                  show: Callable[[int], None] = lambda n: None,
                  layout: Layout | None = None) -> np.ndarray:  # fmt: skip
    """Probabilities (n, C) float32 in the order of the examples.

    Args:
      show: is told how many examples are through, for a progress bar.
      layout: as for `stream`.

    Raises:
      RuntimeError: an example came twice or not at all; a metric over such a pass would be wrong.
    """
    seen = np.zeros(len(examples), np.int64)
    result: np.ndarray | None = None
    for rows, probs in stream(step, params, examples, batch_size, threads, layout):
        if result is None:
            result = np.full((len(examples), probs.shape[1]), np.nan, np.float32)
        result[rows] = probs
        np.add.at(seen, rows, 1)
        show(len(rows))
    if result is None or not (seen == 1).all():
        raise RuntimeError(f"evaluation saw {int((seen != 1).sum())} examples more or less than once")
    return result
