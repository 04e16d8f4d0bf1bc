"""Frozen activations, computed once: one pass through the frozen stages, and training starts above them.

A key is a digest of all that the activations depend on (weights and networks below the stage, contents of the examples,
preprocessing, augmentation), so what is found under it may be used, and what has changed is never found.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tljax import mesh, trees
from tljax.data import pipeline
from tljax.errors import StoppedError
from tljax.mesh import Layout
from tljax.models import Backbone
from tljax.transfer import boundary, shards
from tljax.transfer.activations import Activations, Shards, empty, put
from tljax.transfer.boundary import Leaf
from tljax.transfer.filling import Batch, Examples, Filling, chosen

SHARD_BYTES = 128 * 2**20  # of one stage; what a stopped pass may lose
MOST_PER_SHARD = 8192


class Store(Protocol):
    """The shards of one key."""

    def read(self, number: int) -> dict[str, np.ndarray] | None: ...
    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None: ...
    def finish(self, said: Mapping[str, Any]) -> None: ...


class InMemory:
    """A store that ends with the process."""

    def __init__(self) -> None:
        self._shards: dict[int, dict[str, np.ndarray]] = {}

    def read(self, number: int) -> dict[str, np.ndarray] | None:
        return self._shards.get(number)

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        self._shards[number] = dict(arrays)

    def finish(self, said: Mapping[str, Any]) -> None:
        pass


class Cache:
    """Where activations are kept; runs that share one share what they have in common.

    Args:
      folder: None: in memory, until the process ends.
      limit: bytes that the folder may hold; what was not used for longest goes.
    """

    def __init__(self, folder: Path | None = None, limit: int = 2**63):
        self.folder, self.limit = folder, limit
        self._memory: dict[str, InMemory] = {}
        self._used: set[str] = set()

    def store(self, key: str) -> Store:
        if self.folder is None:
            return self._memory.setdefault(key, InMemory())
        self._used.add(key)
        entry = shards.Entry(self.folder / key)
        entry.touch()
        return entry

    def make_room(self, needed: int) -> None:
        if self.folder is not None:
            shards.make_room(self.folder, needed, self.limit, frozenset(self._used))


def key_of(trunk: str, content: str, seed: int | None, leaves: tuple[Leaf, ...], per_shard: int) -> str:
    """The digest under which activations are kept.

    Args:
      trunk: `boundary.identity`.
      content: `Examples.content`.
      seed: of the augmentation.
      leaves, per_shard: how they are laid out.
    """
    said = {"format": shards.FORMAT, "trunk": trunk, "data": content, "augmentation": seed,
            "leaves": [dataclasses.astuple(leaf) for leaf in leaves], "per_shard": per_shard}  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:40]


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass of examples through a trunk.

    Attributes:
      backbone, params: the network, path -> array; nothing above the highest of the stages is read.
      batch_size, threads: of the pass.
      dtype: that activations are stored in; "": as they are.
      show: is told how many examples are through; `stopping` whether a signal asked to stop.
      layout: the devices that a batch is divided among. Every process has all activations in the end.
    """

    backbone: Backbone
    params: trees.Flat
    batch_size: int
    threads: int = 2
    dtype: str = ""
    show: Callable[[int], None] = lambda n: None
    stopping: Callable[[], bool] = lambda: False
    layout: Layout = dataclasses.field(default_factory=mesh.single)

    def __call__(self, cache: Cache, examples: Examples, stages: Sequence[int],
                 seeds: Sequence[int | None] = (None,)) -> dict[int, Activations]:  # fmt: skip
        """The activations at each of `stages`, from one forward pass to the highest for what is not in the cache.

        Args:
          seeds: of augmentation, for one view each; (None,): one view without.

        Raises:
          StoppedError: a signal; shards that were written to a disk stay for the next time.
          WriteError: the disk is full.
        """
        tokens = 0 if examples.lengths is None else int(examples.lengths.sum())
        wanted = {stage: boundary.layout(self.backbone, stage, self.dtype) for stage in sorted(set(stages))}
        per_shard = self._per_shard(len(examples), tokens)
        content = examples.content()
        weights = trees.digests(boundary.below(self.backbone, self.params, max(wanted)))
        keys = {
            (stage, seed): key_of(boundary.identity(self.backbone, weights, stage), content, seed, leaves, per_shard)
            for stage, leaves in wanted.items()
            for seed in seeds
        }
        size = sum(leaf.nbytes(len(examples), tokens) for leaves in wanted.values() for leaf in leaves) * len(seeds)
        stores = {at: cache.store(key) for at, key in keys.items()}
        views: dict[int, dict[int | None, Shards]] = {stage: {} for stage in wanted}
        groups = [np.arange(at, min(at + per_shard, len(examples))) for at in range(0, len(examples), per_shard)]
        filling: Filling | None = None
        ready = set[Any]()  # what is compiled
        for seed in seeds:
            for number in range(len(groups)):
                found = {stage: stores[stage, seed].read(number) for stage in wanted}
                # what one process lacks all compute, because all devices are needed for it
                lacking = mesh.gathered([arrays is None for arrays in found.values()]).sum(0)
                missing = {stage: wanted[stage] for stage, lacks in zip(found, lacking, strict=True) if lacks}
                if missing:
                    if filling is None:
                        cache.make_room(size)
                        filling = chosen(self.backbone, examples, groups, self.batch_size, self.layout)
                    for stage, made in self._shard(filling, number, missing, seed, ready).items():
                        stores[stage, seed].write(number, made)
                        found[stage] = stores[stage, seed].read(number) or made
                for stage, arrays in found.items():
                    views[stage].setdefault(seed, []).append(arrays)  # type: ignore[arg-type]
            for stage in wanted:
                stores[stage, seed].finish({"stage": self.backbone.stage_names[stage], "examples": len(examples)})
        return {
            stage: Activations(leaves, views[stage], per_shard, examples)
            for stage, leaves in wanted.items()
        }  # fmt: skip

    def _per_shard(self, examples: int, tokens: int) -> int:
        """As many for each shard, by network and examples alone, so that a pass to other stages finds its shards."""
        most = max(SHARD_BYTES // boundary.largest(self.backbone, max(round(tokens / examples), 1)), 64)
        count = -(-examples // min(most, MOST_PER_SHARD))
        return -(-examples // count)

    def _shard(self, filling: Filling, number: int, wanted: Mapping[int, tuple[Leaf, ...]], seed: int | None,
               ready: set[Any]) -> dict[int, dict[str, np.ndarray]]:  # fmt: skip
        rows, lengths = filling.groups[number], filling.examples.lengths
        sizes = np.zeros(len(rows), np.int64) if lengths is None else lengths[rows].astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        made = {
            stage: {leaf.name: empty(leaf, offsets) for leaf in leaves} | {"offsets": offsets}
            for stage, leaves in wanted.items()
        }
        for batch, found in self._forward(filling, number, tuple(wanted), seed, ready):
            inside = batch.examples - rows[0]
            for stage, leaves in wanted.items():
                for leaf in leaves:
                    array = mesh.fetch(found[stage][leaf.name])
                    put(made[stage][leaf.name], array, leaf, inside, offsets, batch.places)
            self.show(len(inside))
        return made

    def _forward(self, filling: Filling, number: int, stages: tuple[int, ...], seed: int | None,
                 ready: set[Any]) -> Iterator[tuple[Batch, Any]]:  # fmt: skip
        """Batches and their activations, one behind the device."""
        trunk = filling.trunk(self.backbone, stages, self.dtype)
        params = self.layout.put(trees.unflatten(boundary.below(self.backbone, self.params, max(stages))))
        plans = filling.plans(number)
        new = {(stages, filling.shape(plan)): plan for plan in plans if (stages, filling.shape(plan)) not in ready}
        small = [filling.make(filling.small(plan), seed).arguments for plan in new.values()]
        _compile(trunk, params, [self.layout.send(arguments) for arguments in small])
        ready |= new.keys()
        waiting: tuple[Batch, Any] | None = None
        for batch in pipeline.made(lambda plan: filling.make(plan, seed), plans, self.threads):
            if self.stopping():
                raise StoppedError("signal", "stopped in the pass through the frozen stages",
                                   fix="run the same command again to go on")  # fmt: skip
            sent = trunk(params, *self.layout.send(batch.arguments))
            if waiting is not None:
                yield waiting
            waiting = (batch, sent)
        if waiting is not None:
            yield waiting


def _compile(trunk: Any, params: trees.Tree, arguments: Sequence[tuple[Any, ...]]) -> None:
    """Compiles for batches of these shapes, two at a time: a compilation uses one core for most of its time."""
    with ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(trunk.lower(params, *of_batch).compile) for of_batch in arguments]
        for done in begun:
            done.result()
