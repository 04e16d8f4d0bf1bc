"""The rows of a table that a batch reads, in place of the table. V rows of width D, N ids in the batch."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from tljax import trees


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """A (V, D) table that is known only where N ids point; as a gradient, one that is zero everywhere else.

    A BERT's word table has 30,522 rows, a batch reads some 400. Differentiated as a table, its gradient is 47 MB of
    zeros that are written, summed for the norm and read by the optimizer in every step; as rows it is a few, and
    the zeros appear only within the optimizer's loop. The gradient is the same to the bit.

    Attributes:
      values: (N, D). Of equal ids the first stands for all; the others' gradient is zero.
      place: int32 (V,): where in `values` a row of the table lies; V for a row that no id names.
    """

    values: jax.Array
    place: jax.Array

    def take(self, ids: jax.Array) -> jax.Array:
        """ids (...) -> rows (..., D); NaN for an id that was not among the N."""
        return jnp.take(self.values, jnp.take(self.place, ids), axis=0)

    def padded(self) -> "Rows":
        """With rows of zeros up to `capacity`, so that what takes a gradient is compiled once for all lengths."""
        missing = capacity(len(self.place)) - len(self.values)
        return Rows(jnp.pad(self.values, ((0, missing), (0, 0))), self.place)

    def dense(self) -> jax.Array:
        """The table (V, D), zero where no id pointed."""
        known_V = self.place < len(self.place)
        return jnp.where(known_V[:, None], self.values.at[self.place].get(mode="clip"), 0)


def capacity(table_rows: int) -> int:
    """How many ids may read a table of so many rows as `Rows`: an eighth; above that little is saved."""
    return table_rows // 8


def read(table_VD: jax.Array, ids: jax.Array) -> Rows:
    """The rows of a table that `ids` (any shape, N < V in all) name."""
    ids_N = ids.reshape(-1)
    places_N = jnp.arange(len(ids_N), dtype=jnp.int32)
    place_V = jnp.full(len(table_VD), len(table_VD), jnp.int32).at[ids_N].min(places_N)
    return Rows(jnp.take(table_VD, ids_N, axis=0), place_V)


def narrowed(params: trees.Flat, inputs: Mapping[str, jax.Array],
             lookups: Iterable[tuple[str, str]]) -> tuple[trees.Flat, trees.Flat]:  # fmt: skip
    """Parameters with the rows that a batch reads in place of a table, and the `place` of each such table.

    Args:
      params: path -> array; some of `lookups` may be missing.
      inputs: the batch.
      lookups: as `Backbone.lookups`.
    """
    found = {
        path: read(params[path], inputs[name])
        for path, name in lookups
        if path in params and inputs[name].size <= capacity(len(params[path]))
    }
    return params | {path: r.values for path, r in found.items()}, {path: r.place for path, r in found.items()}


def placed(values: trees.Flat, places: trees.Flat) -> trees.Flat:
    """What `narrowed` gave, or its gradient, with `Rows` for each table that was narrowed."""
    return values | {path: Rows(values[path], place) for path, place in places.items()}
