"""Prefix tuning (Li & Liang 2021): learned keys and values before those of the tokens.

B batch, T tokens, M key-value heads, H width of a head, P length of the prefix.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

HEADS = "heads"  # a collection that exists while parameters are inferred, and says where there is attention


class Prefix(nn.Module):
    """Keys and values (B, M, T, H) -> (B, M, P + T, H), where there are parameters `key` and `value` (P, M, H).

    Attention makes one under the name "prefix". Without parameters it is the identity, so that no family needs to know
    of it; its `heads` (M, H) tell which parameters it would take. Rotary positions do not turn a prefix.
    """

    @nn.compact
    def __call__(self, k_BMTH: jax.Array, v_BMTH: jax.Array) -> tuple[jax.Array, jax.Array]:
        B, M, _, H = k_BMTH.shape
        if self.is_initializing():
            self.put_variable(HEADS, "shape", jnp.zeros((M, H)))
        if not self.has_variable("params", "key"):
            return k_BMTH, v_BMTH

        def before(name: str, x: jax.Array) -> jax.Array:
            learned_MPH = self.get_variable("params", name).astype(x.dtype).swapaxes(0, 1)
            return jnp.concatenate([jnp.broadcast_to(learned_MPH[None], (B, *learned_MPH.shape)), x], axis=2)

        return before("key", k_BMTH), before("value", v_BMTH)


def extended(what: jax.Array | None, tokens: int, prefix: int, value: bool | float) -> jax.Array | None:
    """A mask or bias, broadcastable to (B, N, T, T), for keys that `prefix` more come before: `value` there."""
    if what is None or what.ndim == 0 or not prefix:
        return what
    whole = jnp.broadcast_to(what, (*what.shape[:-1], tokens))
    return jnp.pad(whole, [(0, 0)] * (whole.ndim - 1) + [(prefix, 0)], constant_values=value)
