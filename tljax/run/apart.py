"""How far two sources of data are apart, by the frozen features of a checkpoint (transfer/distance.py)."""

import dataclasses
from collections.abc import Callable

from tljax.config import Config, DataConfig
from tljax.data import batching, sources
from tljax.data.records import Records
from tljax.errors import printable
from tljax.run import rank
from tljax.transfer import distance

MOST = 2000  # examples of a source: the kernel of MMD is of all pairs


def apart(ref: str, source: str, target: str, data: DataConfig | None = None, revision: str = "", seed: int = 0,
          most: int = MOST, say: Callable[[str], None] = print) -> str:  # fmt: skip
    """The distance in a line, on what the head of the checkpoint reads; labels are not needed and not read.

    Args:
      source, target: as `--config.data.train`.
      data: the columns; the defaults otherwise.
      seed: of the examples that are drawn where there are more than `most`, and of the distances.

    Raises:
      DataError: see `sources.read_records`; fewer than 10 examples.
      WeightsError: a checkpoint for other inputs.
    """
    c = Config(task=rank.task_of([ref]), seed=seed, data=data or DataConfig())
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, ref=ref, revision=revision))
    drawn = [_drawn(sources.read_records(name, c.data, c.task, labelled=False), seed, most, say)
             for name in (source, target)]  # fmt: skip
    model = rank.opened(ref, c)
    below = len(model.backbone.stages) - 2
    first, second = (rank.vectors(model, (below,), c, records, None)[0] for records in drawn)
    sizes = " and ".join(f"{len(records):,} of {printable(records.name, 60)}" for records in drawn)
    return (f"distance of domains at {model.backbone.stage_names[below]}, {sizes}: "
            f"{distance.between(first, second, seed).sentence()}")  # fmt: skip


def _drawn(records: Records, seed: int, most: int, say: Callable[[str], None]) -> Records:
    for row in records.bad:
        say(f"WARNING: left out: {row['where']}: {row['reason']}")
    return records.take(sorted(batching.permutation(seed, 0, len(records), purpose=4)[:most].tolist()))
