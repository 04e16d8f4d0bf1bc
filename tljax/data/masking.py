"""Texts whose own words are what is learned: hidden at random (Devlin et al. 2019), or told from those before.

What is hidden is a function of (seed, example) alone: anew in each epoch, and the same on any number of hosts and after
any resume. n texts, B in a batch, T tokens, M places that are asked about, V ids.
"""

import functools
from collections.abc import Callable

import numpy as np

from tljax.data.batching import Targets
from tljax.data.text import Ragged, TextExamples, Words

KEPT, SWAPPED = 0.1, 0.1  # shares of the hidden tokens that are shown as they are, or as another token
EVALUATION = 0x5EED  # the seed where none is given: an evaluation hides the same words each time


class MaskedExamples(TextExamples):
    """n tokenised texts of which `rate` of the tokens are asked about.

    Args:
      ragged, where, pad_id: as for `TextExamples`.
      words: of the tokenizer.
      rate: share of the tokens that are no special ones; at least one of each text.
      whole: whether all pieces of a word are hidden together.
    """

    def __init__(self, ragged: Ragged, where: Callable[[int], str], pad_id: int, words: Words, rate: float,
                 whole: bool):  # fmt: skip
        super().__init__(ragged, None, where, pad_id)
        self.words, self.rate, self.whole = words, rate, whole

    def places(self, length: int) -> int:
        """M: how many places a text of at most so many tokens is asked about."""
        return max(int(self.rate * length), 1)

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, np.ndarray]:
        """As of texts, with tokens hidden; and "predicted", int32 (B, M): the places that are asked about."""
        made = super().gather(indices, length)
        asked_BM, real_BM = self._drawn(made["input_ids"], indices, seed)
        rows, which = np.nonzero(real_BM)
        at, ids = asked_BM[rows, which], made["input_ids"].copy()
        draw = _unit(_hash(_key(seed), indices[rows], at, 1))
        other = (_hash(_key(seed), indices[rows], at, 2) % np.uint64(len(self.words.special))).astype(np.int32)
        swapped = np.where(draw < KEPT + SWAPPED, other, np.int32(self.words.mask))
        ids[rows, at] = np.where(draw < KEPT, ids[rows, at], swapped)
        return {**made, "input_ids": ids, "predicted": asked_BM.astype(np.int32)}

    def targets(self, indices: np.ndarray, length: int, seed: int | None = None) -> Targets:
        """Labels (B, M, 1), the tokens at the places that are asked about; weights (B, M)."""
        ids = super().gather(indices, length)["input_ids"]
        asked_BM, real_BM = self._drawn(ids, indices, seed)
        return Targets(np.take_along_axis(ids, asked_BM, axis=1)[..., None], real_BM.astype(np.float32))

    @property
    def truth(self) -> np.ndarray:
        """Which token each hidden one was; of all texts, one after the other."""
        return self.ragged.ids[self._evaluated[1]]

    def spots(self, indices: np.ndarray, length: int) -> np.ndarray:
        first, _ = self._evaluated
        _, real_BM = self._drawn(super().gather(indices, length)["input_ids"], indices, None)
        return np.where(real_BM, first[indices][:, None] + np.arange(real_BM.shape[1]), -1)

    @functools.cached_property
    def _evaluated(self) -> tuple[np.ndarray, np.ndarray]:
        """The first answer of each text in an evaluation, and where in all ids each answer is."""
        found = []
        for i in range(len(self)):
            asked, real = self._drawn(self.ragged.row(i)[None], np.array([i]), None)
            found.append(self.ragged.offsets[i] + asked[0][real[0]])
        counts = np.array([len(part) for part in found])
        return np.cumsum(counts) - counts, np.concatenate(found)

    def _drawn(self, ids_BT: np.ndarray, indices: np.ndarray, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Places (B, M), rising, and which of them are asked about.

        Words in an order drawn at random, from the first on, as long as their tokens are not more than the rate says;
        then words of one token. Where every word has more, the first tokens of the first one.
        """
        B, T = ids_BT.shape
        column = np.arange(T)[None, :]
        real_BT = (column < self.lengths[indices][:, None]) & ~self.words.special[ids_BT]
        begins_BT = real_BT & ~self.words.goes_on[ids_BT] if self.whole else real_BT
        word_BT = np.cumsum(begins_BT, axis=1)  # 0: a first one that no token marks, as in byte-level BPE
        row_BT = word_BT + np.arange(B)[:, None] * (T + 1)
        size_BT = np.bincount(row_BT[real_BT], minlength=B * (T + 1))[row_BT]
        wanted_B1 = np.maximum((self.rate * real_BT.sum(1, keepdims=True)).astype(np.int64), 1)
        score_BT = _unit(_hash(_key(seed), indices[:, None], word_BT, 0)) + (size_BT > wanted_B1)
        order_BT = np.argsort(np.where(real_BT, score_BT, 2.0), axis=1, kind="stable")
        real_BT, word_BT, size_BT = (np.take_along_axis(x, order_BT, axis=1) for x in (real_BT, word_BT, size_BT))
        first_BT = np.diff(word_BT, axis=1, prepend=-1) != 0
        end_BT = np.maximum.accumulate(np.where(first_BT, column, 0), axis=1) + size_BT
        taken_BT = real_BT & (end_BT <= wanted_B1)
        single_BT = real_BT & ~taken_BT & (size_BT == 1)
        taken_BT |= single_BT & (np.cumsum(single_BT, axis=1) <= wanted_B1 - taken_BT.sum(1, keepdims=True))
        taken_BT |= real_BT & (column < wanted_B1) & ~taken_BT.any(1, keepdims=True)
        rising_BM = np.sort(np.where(taken_BT, order_BT, T), axis=1)[:, : min(self.places(T), T)]
        return np.where(rising_BM < T, rising_BM, 0), rising_BM < T


class FollowingExamples(TextExamples):
    """n tokenised texts of which each token is to be told from those before it."""

    def __init__(self, ragged: Ragged, where: Callable[[int], str], pad_id: int):
        super().__init__(ragged, None, where, pad_id)

    def targets(self, indices: np.ndarray, length: int, seed: int | None = None) -> Targets:
        """Labels (B, T, 1): the token that follows; weights (B, T)."""
        ids = self.gather(indices, length)["input_ids"]
        return Targets(np.roll(ids, -1, axis=1)[..., None], (self.spots(indices, length) >= 0).astype(np.float32))

    @property
    def truth(self) -> np.ndarray:
        first = np.zeros(len(self.ragged.ids), bool)
        first[self.ragged.offsets[:-1]] = True
        return self.ragged.ids[~first]

    def spots(self, indices: np.ndarray, length: int) -> np.ndarray:
        begins = self.ragged.offsets[indices] - indices  # each text before has one token that is no answer
        column = np.arange(length)[None, :]
        return np.where(column < self.lengths[indices][:, None] - 1, begins[:, None] + column, -1)


def _key(seed: int | None) -> int:
    return EVALUATION if seed is None else seed


def _hash(seed: int, *numbers: np.ndarray | int) -> np.ndarray:
    """uint64 random bits as a function of some numbers: rounds of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        state = np.asarray(seed, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for number in numbers:
            state = _mixed(state + np.asarray(number, np.uint64) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(1))
    return state


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _unit(bits: np.ndarray) -> np.ndarray:
    """Uniform numbers from 0 to 1, float64, of 53 bits each."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
