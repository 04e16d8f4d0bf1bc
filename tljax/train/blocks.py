"""Cross-entropy and ranks over more classes than the logits of a batch have room for: a block of places at a time.

Legend: B rows, T places in a row, D width, V classes. Logits of 128 rows of 50 places over 24,000 items are 600 MB, and
writing and reading them takes longer than the products. Those of a block stay in a CPU's caches. The pass forward makes
the gradient too (as Liger Kernel, Hsu et al. 2024), so that no product is computed twice.
"""

from typing import Any

import jax
import jax.numpy as jnp

from tljax.models.layers import affine

BLOCK_BYTES = 32 << 20  # of logits, float32

Block = tuple[jax.Array, ...]


def summed_cross_entropy(hidden_BTD: jax.Array, table_VD: jax.Array, bias_V: jax.Array, labels_BT: jax.Array,
                         weights_BT: jax.Array) -> jax.Array:  # fmt: skip
    """-log softmax(hidden table' + bias) of the labels, summed by the weights; float32 ().

    Differentiable by the first three.
    """
    return _summed(table_VD, bias_V, _cut(len(table_VD), hidden_BTD, labels_BT, weights_BT))


def ranks(hidden_BTD: jax.Array, table_VD: jax.Array, bias_V: jax.Array, labels_BT: jax.Array,
          reserved: int) -> jax.Array:  # fmt: skip
    """Of each label the place, from 1, that its score has among those of ids from `reserved` on; float32 (B, T).

    Others that score as high stand before it. A label below `reserved` is last; where a score is not finite the rank is
    NaN. Blocks without any label above 0 are passed over: at an evaluation of last items most are.
    """
    V = len(table_VD)

    def ranked(hidden: jax.Array, labels: jax.Array) -> jax.Array:
        logits = affine(hidden, table_VD.T, bias_V).astype(jnp.float32)
        own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
        place = (logits[..., reserved:] >= own).sum(-1).astype(jnp.float32)
        place = jnp.where(labels < reserved, float(V - reserved), place)
        return jnp.where(jnp.isfinite(logits).all(-1), place, jnp.nan)

    def one(_: None, block: Block) -> tuple[None, jax.Array]:
        nothing = jnp.full(block[1].shape, float(V - reserved), jnp.float32)
        return None, jax.lax.cond((block[1] > 0).any(), ranked, lambda *_: nothing, *block)

    _, found_NBt = jax.lax.scan(one, None, _cut(V, hidden_BTD, labels_BT))
    return found_NBt.swapaxes(0, 1).reshape(labels_BT.shape)


def _cut(V: int, *arrays: jax.Array) -> Block:
    """(B, T, …) -> (N, B, t, …), N blocks of t places. Rows stay whole: they may lie on several devices."""
    B, T = arrays[0].shape[:2]
    most = max(1, BLOCK_BYTES // (4 * B * V))
    t = max(n for n in range(1, T + 1) if T % n == 0 and n <= most)
    return tuple(a.reshape(B, T // t, t, *a.shape[2:]).swapaxes(0, 1) for a in arrays)


def _loss(hidden: jax.Array, table_VD: jax.Array, bias_V: jax.Array, labels: jax.Array, weights: jax.Array,
          ) -> jax.Array:  # fmt: skip
    logits = affine(hidden, table_VD.T, bias_V).astype(jnp.float32)
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return ((jax.nn.logsumexp(logits, axis=-1) - own) * weights).sum()


@jax.custom_vjp
def _summed(table_VD: jax.Array, bias_V: jax.Array, blocks: Block) -> jax.Array:
    def one(total: jax.Array, block: Block) -> tuple[jax.Array, None]:
        return total + _loss(block[0], table_VD, bias_V, *block[1:]), None

    return jax.lax.scan(one, jnp.zeros(()), blocks)[0]


def _forward(table_VD: jax.Array, bias_V: jax.Array, blocks: Block) -> tuple[jax.Array, Any]:
    take = jax.value_and_grad(_loss, argnums=(0, 1, 2))

    def one(so_far: Any, block: Block) -> tuple[Any, jax.Array]:
        loss, (by_hidden, *shared) = take(block[0], table_VD, bias_V, *block[1:])
        return jax.tree.map(jnp.add, so_far, (loss, *shared)), by_hidden

    zero = jnp.zeros(()), jnp.zeros_like(table_VD), jnp.zeros_like(bias_V)
    (total, by_table, by_bias), by_hidden = jax.lax.scan(one, zero, blocks)
    return total, (by_table, by_bias, by_hidden)


def _backward(found: Any, by_loss: jax.Array) -> tuple[Any, ...]:
    table, bias, hidden = jax.tree.map(lambda a: a * by_loss.astype(a.dtype), found)
    return table, bias, (hidden, None, None)


_summed.defvjp(_forward, _backward)
