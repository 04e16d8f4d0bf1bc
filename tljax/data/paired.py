"""Pairs of a labelled source and an unlabelled target example, drawn anew in each epoch, for domain adaptation."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tljax.data import batching
from tljax.data.batching import Targets

PURPOSE = 5  # of the random order of targets (batching.permutation)


class PairedExamples:
    """n pairs, one for each source example; each target example is as likely as any other.

    Args:
      source: labelled examples; or their features.
      target: examples of the other domain, of whom nothing is known but the inputs.
    """

    def __init__(self, source: Any, target: Any):
        self.source, self.target = source, target
        self._length = 0 if target.lengths is None else int(target.lengths.max())

    def __len__(self) -> int:
        return len(self.source)

    @property
    def lengths(self) -> np.ndarray | None:
        return self.source.lengths

    @property
    def where(self) -> Callable[[int], str]:
        return self.source.where

    @property
    def truth(self) -> np.ndarray:
        return self.source.truth

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, np.ndarray]:
        """The source's inputs, and the target's under "target/…"; `seed` draws which belongs to which."""
        m = len(self.target)
        partners = _order(-1 if seed is None else seed, m)[indices % m]
        other = self.target.gather(partners, self._length, seed)
        return {**self.source.gather(indices, length, seed), **{f"target/{name}": x for name, x in other.items()}}

    def targets(self, indices: np.ndarray, length: int, seed: int | None = None) -> Targets:
        return self.source.targets(indices, length, seed)

    def spots(self, indices: np.ndarray, length: int) -> np.ndarray:
        return self.source.spots(indices, length)

    def digest(self) -> str:
        return f"{self.source.digest()} {self.target.digest()}"


class FeatureExamples(batching.OneAnswer):
    """Source examples as the vectors that another network makes of them, (n, D) float32."""

    def __init__(self, features: np.ndarray, of: Any):
        self.features, self.of = features, of
        self.labels = of.labels
        self.lengths = None

    def __len__(self) -> int:
        return len(self.features)

    def where(self, i: int) -> str:
        return self.of.where(i)

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, np.ndarray]:
        return {"source_features": self.features[indices]}

    def digest(self) -> str:
        return self.of.digest()


@functools.lru_cache(maxsize=4)
def _order(seed: int, n: int) -> np.ndarray:
    return np.arange(n) if seed < 0 else batching.permutation(seed, 0, n, PURPOSE)
