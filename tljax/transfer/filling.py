"""How examples fill the batches of a pass: one in each row, or several texts, where the network tells them apart."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from tljax.data import batching
from tljax.mesh import Layout
from tljax.models import Backbone
from tljax.transfer import boundary, packing

BUCKETS = 6  # padded lengths, where a row holds one text
ROWS_PER_BUCKET = 500  # below that many, one more compilation takes longer than the padding that it saves


class Examples(batching.Examples, Protocol):
    """What a trunk is run on (data/text.py, data/images.py)."""

    @property
    def where(self) -> Callable[[int], str]: ...
    def content(self) -> str: ...


class Batch(NamedTuple):
    """A batch that is made.

    Attributes:
      examples: int64 (m,), those in it, in order.
      arguments: of the trunk, behind the parameters; of their rows, those that this process makes.
      places: int (tokens,): where the tokens of the examples lie in the flattened rows, example by example.
    """

    examples: np.ndarray
    arguments: tuple[Any, ...]
    places: np.ndarray


class Filling(Protocol):
    """Batches of groups of examples."""

    @property
    def examples(self) -> Examples: ...
    @property
    def groups(self) -> Sequence[np.ndarray]: ...

    def plans(self, group: int) -> Sequence[Any]:
        """The batches of one group, to be made."""

    def shape(self, plan: Any) -> Any:
        """What a program is compiled for."""

    def small(self, plan: Any) -> Any:
        """A batch of that shape that is soon made."""

    def make(self, plan: Any, seed: int | None) -> Batch:
        """The arrays; `seed`: of augmentation."""

    def trunk(self, backbone: Backbone, stages: tuple[int, ...], dtype: str) -> Callable[..., Any]:
        """(params, *arguments) -> {stage: {name: activations}}, compiled for each shape."""


@dataclasses.dataclass(frozen=True)
class Padded:
    """One example in each of `batch_size` rows, texts padded to a bucket."""

    examples: Examples
    groups: Sequence[np.ndarray]
    batch_size: int
    layout: Layout

    def plans(self, group: int) -> list[batching.Planned]:
        lengths, rows = self.examples.lengths, self.groups[group]
        edges = batching.buckets(lengths, min(BUCKETS, 1 + len(self.examples) // ROWS_PER_BUCKET))
        found = batching.plan_evaluation(len(rows), None if lengths is None else lengths[rows], self.batch_size, edges)
        return [batching.Planned(rows[plan.indices], plan.length) for plan in found]

    def shape(self, plan: batching.Planned) -> int:
        return plan.length

    def small(self, plan: batching.Planned) -> batching.Planned:
        return plan._replace(indices=plan.indices[:1])

    def make(self, plan: batching.Planned, seed: int | None) -> Batch:
        made = batching.collate(self.examples, plan, self.batch_size, seed, self.layout.held(self.batch_size))
        lengths = self.examples.lengths
        sizes = np.zeros(len(plan.indices), np.int64) if lengths is None else lengths[plan.indices]
        places = np.flatnonzero((np.arange(plan.length) < sizes[:, None]).reshape(-1))
        return Batch(plan.indices, (made["inputs"],), places)

    def trunk(self, backbone: Backbone, stages: tuple[int, ...], dtype: str) -> Callable[..., Any]:
        return boundary.make_trunk(backbone, stages, dtype)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Several texts in each row."""

    examples: Examples
    lengths: np.ndarray
    groups: Sequence[np.ndarray]
    packs: Sequence[Sequence[packing.Pack]]
    layout: Layout

    def plans(self, group: int) -> Sequence[packing.Pack]:
        return self.packs[group]

    def shape(self, plan: packing.Pack) -> tuple[int, int, int]:
        return plan.shape

    def small(self, plan: packing.Pack) -> packing.Pack:
        return plan

    def make(self, plan: packing.Pack, seed: int | None) -> Batch:
        texts = plan.texts
        lengths = self.lengths[texts]
        rows, at = packing.packed(self.examples.gather(texts, int(lengths.max()), seed), lengths, plan)
        return Batch(texts, (self._own(rows), self._own(at)), at[at >= 0])

    def _own(self, arrays: Any) -> Any:
        held = self.layout.held(len(jax.tree.leaves(arrays)[0]))
        return arrays if held is None else jax.tree.map(lambda array: array[held], arrays)

    def trunk(self, backbone: Backbone, stages: tuple[int, ...], dtype: str) -> Callable[..., Any]:
        return packing.make_trunk(backbone, stages, dtype)


def chosen(backbone: Backbone, examples: Examples, groups: Sequence[np.ndarray], batch_size: int,
           layout: Layout) -> Filling:  # fmt: skip
    """Texts are packed where the network can tell them apart, into as many tokens as `batch_size` have on average."""
    lengths, rows = examples.lengths, layout.whole(min(batch_size, len(examples)))
    if lengths is None or not getattr(backbone, "packs", False):
        return Padded(examples, groups, rows, layout)
    packs = packing.plan(lengths, groups, round(rows * float(lengths.mean())), layout.whole)
    return Packed(examples, lengths, groups, packs, layout)
