"""Examples as the activations at one stage, without padding, and batches of them.

A shard holds the rows of some examples: for each leaf an array (tokens, …) where it is ragged, else (examples, …), and
`offsets` int64 (examples + 1,) of each example's tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from tljax.data.batching import Targets
from tljax.transfer.boundary import Leaf
from tljax.transfer.filling import Examples

Shards = list[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Activations:
    """n examples as the activations at one stage; batches are made of them as of the examples themselves.

    Attributes:
      leaves: what an example consists of.
      views: seed of an augmentation (None: none) -> its shards, of `per_shard` examples each.
      of: the examples, of whose inputs the activations are.
    """

    leaves: tuple[Leaf, ...]
    views: Mapping[int | None, Shards]
    per_shard: int
    of: Examples

    @property
    def lengths(self) -> np.ndarray | None:
        """Of the examples, also where nothing is ragged any more: the same ones stand together in a batch with and
        without a cache."""
        return self.of.lengths

    @property
    def where(self) -> Callable[[int], str]:
        return self.of.where

    @property
    def truth(self) -> np.ndarray:
        return self.of.truth

    def targets(self, indices: np.ndarray, length: int, seed: int | None = None) -> Targets:
        return self.of.targets(indices, length, seed)

    def spots(self, indices: np.ndarray, length: int) -> np.ndarray:
        return self.of.spots(indices, length)

    def __len__(self) -> int:
        return sum(len(shard["offsets"]) - 1 for shard in next(iter(self.views.values())))

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, np.ndarray]:
        """{name: (B, T, …) with T = length where the leaf is ragged, else (B, …)}; zeros after an example's tokens.

        Args:
          seed: of the view; where there is one view alone it is that.
        """
        own = self.views[seed] if seed in self.views else next(iter(self.views.values()))
        number, inside = np.divmod(indices, self.per_shard)
        made = {leaf.name: np.zeros((len(indices), *((length,) if leaf.ragged else ()), *leaf.shape),
                                    own[0][leaf.name].dtype) for leaf in self.leaves}  # fmt: skip
        for shard in np.unique(number):
            rows = np.flatnonzero(number == shard)
            for name, part in _rows(own[shard], self.leaves, inside[rows], length).items():
                made[name][rows] = part
        return made


def _rows(shard: Mapping[str, np.ndarray], leaves: Sequence[Leaf], rows: np.ndarray,
          length: int) -> dict[str, np.ndarray]:  # fmt: skip
    offsets = shard["offsets"]
    column = np.arange(length)[None, :]
    real = column < (offsets[rows + 1] - offsets[rows])[:, None]
    at = np.where(real, offsets[rows][:, None] + column, 0)
    found = {}
    for leaf in leaves:
        if leaf.ragged:
            found[leaf.name] = shard[leaf.name][at]
            found[leaf.name][~real] = 0
        else:
            found[leaf.name] = shard[leaf.name][rows]
    return found


def empty(leaf: Leaf, offsets: np.ndarray) -> np.ndarray:
    """Room for one leaf of a shard."""
    dtype = np.dtype(getattr(ml_dtypes, leaf.dtype, leaf.dtype))
    return np.empty((offsets[-1] if leaf.ragged else len(offsets) - 1, *leaf.shape), dtype)


def put(target: np.ndarray, found: np.ndarray, leaf: Leaf, rows: np.ndarray, offsets: np.ndarray,
        places: np.ndarray) -> None:  # fmt: skip
    """Writes one leaf of a batch to a shard.

    Args:
      found: (B, T, …) where the leaf is ragged, else (B, …) with the examples first.
      rows: int (m,), those of the shard that the batch holds.
      places: of their tokens in the flattened (B * T, …), example by example.
    """
    if not leaf.ragged:
        target[rows] = found[: len(rows)]
        return
    sizes = offsets[rows + 1] - offsets[rows]
    at = np.repeat(offsets[rows] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    target[at] = found.reshape(-1, *found.shape[2:])[places]
