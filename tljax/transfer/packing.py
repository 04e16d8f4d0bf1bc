"""Several texts in one row: a pass through frozen stages meets next to no padding, and one shape or a few.

Texts keep to themselves: attention stays within each, and positions begin anew (`Backbone.packs`). Bins by best fit,
the longest first. n texts; R rows of L tokens in a batch, m texts, at most M, of up to T.
"""

import bisect
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tljax import trees
from tljax.data import batching
from tljax.models import Backbone
from tljax.transfer import boundary

SHORTEST_ROW = 64  # tokens: shorter rows are filled worse, and attention costs more in longer ones


class Pack(NamedTuple):
    """A batch to be made: the texts in each of its rows (int64), and R, L, M."""

    rows: tuple[np.ndarray, ...]
    shape: tuple[int, int, int]

    @property
    def texts(self) -> np.ndarray:
        """Of all rows, in order."""
        return np.concatenate(self.rows)


def row_lengths(longest: int) -> tuple[int, ...]:
    """Rising lengths of rows; the last holds the longest text.

    >>> row_lengths(200), row_lengths(33)
    ((64, 128, 200), (64,))
    """
    doubled = [SHORTEST_ROW << i for i in range(longest.bit_length()) if SHORTEST_ROW << i < longest]
    return (*doubled, max(longest, SHORTEST_ROW))


def plan(lengths: np.ndarray, groups: Sequence[np.ndarray], tokens: int,
         whole: Callable[[int], int] = lambda size: size) -> list[list[Pack]]:  # fmt: skip
    """The batches of each group, which hold each of its texts exactly once; all batches of one L have one shape.

    Args:
      lengths: int (n,), at least 1.
      groups: the texts (int64) that are batched together.
      tokens: of a batch at most, padding included, where a row is no longer.
      whole: how many rows and texts to make room for where there are so many (`Layout.whole`).
    """
    edges = row_lengths(int(lengths.max()))
    filled = [_filled(lengths[group], edges) for group in groups]
    batches: list[list[Pack]] = [[] for _ in groups]
    for length in edges:
        most = max(len(rows.get(length, ())) for rows in filled)
        if not most:
            continue
        count = whole(-(-most // -(-most // max(tokens // length, 1))))  # as few batches as may be, all as large
        cut: list[tuple[int, tuple[np.ndarray, ...]]] = []
        for number, group in enumerate(groups):
            rows = [group[row] for row in filled[number].get(length, ())]
            # by chance, or the last ones, of many short texts, would be together and M be theirs
            mixed = [rows[i] for i in batching.permutation(0, 0, len(rows))]
            cut += [(number, tuple(mixed[at : at + count])) for at in range(0, len(mixed), count)]
        texts = whole(max(sum(map(len, rows)) for _, rows in cut))
        for number, some in cut:
            batches[number].append(Pack(some, (count, length, texts)))
    return batches


def _filled(lengths: np.ndarray, edges: Sequence[int]) -> dict[int, list[np.ndarray]]:
    """L -> rows, each of the places in `lengths` of the texts in it."""
    sizes = [int(size) for size in np.unique(lengths)]
    waiting = {size: list(np.flatnonzero(lengths == size)[::-1]) for size in sizes}
    found: dict[int, list[np.ndarray]] = {}
    while sizes:
        length = room = next(edge for edge in edges if edge >= sizes[-1])
        row = []
        while at := bisect.bisect_right(sizes, room):
            size = sizes[at - 1]
            row.append(waiting[size].pop())
            room -= size
            if not waiting[size]:
                del sizes[at - 1]
        found.setdefault(length, []).append(np.array(row, np.int64))
    return found


def packed(
    inputs: Mapping[str, np.ndarray], lengths: np.ndarray, pack: Pack
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The arrays of a batch from those of its texts.

    Args:
      inputs: name -> (m, T), a text a row, as `Examples.gather` gives them for `pack.texts`.
      lengths: int (m,).

    Returns name -> (R, L), with `position_ids` and, in place of the mask, the number of the text in its row that a
    token belongs to (from 1; 0: none); and where each token of each text lies in the flattened rows, int32 (M, L), -1
    behind it.
    """
    R, L, M = pack.shape
    counts = np.array([len(row) for row in pack.rows])
    row_m = np.repeat(np.arange(len(counts)), counts)
    first_m = np.repeat(np.cumsum(counts) - counts, counts)  # the first text of the row
    before_m = np.cumsum(lengths) - lengths
    begin_m = row_m * L + before_m - before_m[first_m]
    column_T = np.arange(next(iter(inputs.values())).shape[1], dtype=np.int32)
    real_mT = column_T < lengths[:, None]
    places = (begin_m[:, None] + column_T)[real_mT]
    at_ML = np.full((M, L), -1, np.int32)
    at_ML[: len(lengths), : len(column_T)][real_mT] = places
    numbers_m = (np.arange(len(lengths)) - first_m + 1).astype(np.int32)
    own = {"position_ids": np.broadcast_to(column_T, real_mT.shape),
           "attention_mask": np.broadcast_to(numbers_m[:, None], real_mT.shape)}  # fmt: skip
    flat = {}
    for name, value in (dict(inputs) | own).items():
        flat[name] = np.zeros(R * L, value.dtype)
        flat[name][places] = value[real_mT]
    return {name: value.reshape(R, L) for name, value in flat.items()}, at_ML


@functools.lru_cache(maxsize=8)
def make_trunk(backbone: Backbone, stages: tuple[int, ...], dtype: str = "") -> Callable[..., Any]:
    """As `boundary.make_trunk`, of what `packed` returns: (nested params, inputs, at (M, L)) -> {stage: {name: array}}.

    Tokens are (R, L, …), as they lie in the rows; what there is once of a text is (M, …).
    """
    wanted = {stage: boundary.layout(backbone, stage, dtype) for stage in stages}
    top = len(backbone.stages) - 2  # the stage that makes one of the tokens of a text

    @jax.jit
    def trunk(params: trees.Tree, inputs: dict[str, Any], at_ML: jax.Array) -> dict[int, dict[str, jax.Array]]:
        text_RL = inputs["attention_mask"]
        mask = {"attention_mask": (text_RL != 0).astype(jnp.int32)}
        same_RLL = (text_RL[:, :, None] == text_RL[:, None, :]).astype(jnp.int32)
        x, at, found = {**inputs, "attention_mask": same_RLL}, 0, {}
        for stage in stages:
            if at <= top < stage:
                x, at = _apart(backbone, backbone.run(params, x, at, top), at_ML), top
            x, at = backbone.run(params, x, at, stage), stage
            apart = [leaf.name for leaf in wanted[stage] if leaf.ragged and stage > top]
            given = x | {name: _together(x[name], at_ML, text_RL.shape) for name in apart}
            given |= mask if stage <= top else {}
            found[stage] = {leaf.name: given[leaf.name].astype(leaf.dtype) for leaf in wanted[stage]}
        return found

    return trunk


def _together(value_ML: jax.Array, at_ML: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Tokens (M, L, …), a text a row -> (R, L, …), as they lie in the rows; zeros where there is none."""
    R, L = shape
    blank = jnp.zeros((R * L, *value_ML.shape[2:]), value_ML.dtype)
    at = jnp.where(at_ML < 0, R * L, at_ML)  # what is out of range is dropped
    return blank.at[at].set(value_ML, mode="drop").reshape(R, L, *value_ML.shape[2:])


def _apart(backbone: Backbone, x: Mapping[str, jax.Array], at_ML: jax.Array) -> dict[str, jax.Array]:
    """Tokens (R, L, …) -> (M, L, …), a text a row again."""
    names = [leaf.name for leaf in boundary.layout(backbone, len(backbone.stages) - 2)]
    rows = {name: x[name].reshape(-1, *x[name].shape[2:]) for name in names if name != "attention_mask"}
    apart = {name: jnp.take(value, jnp.maximum(at_ML, 0), axis=0) for name, value in rows.items()}
    return apart | {"attention_mask": (at_ML >= 0).astype(jnp.int32)}
