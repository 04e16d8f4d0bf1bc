"""Attention (Vaswani et al. 2017). B batch, T tokens, D width, N heads, M key-value heads, H width of a head."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.layers import Dense, Dropout
from tljax.models.prefix import Prefix, extended

CUDNN = (jnp.bfloat16, jnp.float16)  # what cuDNN's attention computes in


def attend(q_BNTH: jax.Array, k_BMTH: jax.Array, v_BMTH: jax.Array, *, visible: jax.Array | None = None,
           bias: jax.Array | None = None, scale: float | None = None, dropout: float = 0.0,
           train: bool = False) -> jax.Array:  # fmt: skip
    """What each token takes from those it sees, (B, T, N * H); to be called within a module, whose dropout it makes.

    Heads come first, so that the products over (T, H) read rows that lie together: on CPUs 12 % off a ViT-Ti's step
    against (B, T, N, H). On GPUs the work is cuDNN's where it can do it. Where the module has a prefix (prefix.py),
    every token sees that too.

    Args:
      visible: bool, broadcastable to (B, N, T, T): which token (third axis) sees which (fourth).
      bias: added to the scores, broadcastable to (B, N, T, T).
      scale: on the scores; 1 / sqrt(H) where None.
      dropout: rate on the weights; in training only.
    """
    B, N, T, H = q_BNTH.shape
    scale = 1 / math.sqrt(H) if scale is None else scale
    k_BMTH, v_BMTH = Prefix(name="prefix")(k_BMTH, v_BMTH)
    prefix = k_BMTH.shape[2] - T
    visible, bias = extended(visible, T, prefix, True), extended(bias, T, prefix, 0.0)
    dropping = train and dropout > 0
    if not dropping and q_BNTH.dtype in CUDNN and H % 8 == 0 and H <= 128 and jax.default_backend() == "gpu":
        q, k, v = (x.swapaxes(1, 2) for x in (q_BNTH, k_BMTH, v_BMTH))
        bias = None if bias is None else bias.astype(q.dtype)
        out_BTNH = jax.nn.dot_product_attention(q, k, v, bias, visible, scale=scale, implementation="cudnn")
        return out_BTNH.reshape(B, T, N * H)
    if (shared := N // k_BMTH.shape[1]) > 1:
        k_BMTH, v_BMTH = jnp.repeat(k_BMTH, shared, axis=1), jnp.repeat(v_BMTH, shared, axis=1)
    scores_BNTT = jnp.einsum("bnth,bnsh->bnts", q_BNTH, k_BMTH).astype(jnp.float32) * scale
    if bias is not None:
        scores_BNTT = scores_BNTT + bias.astype(jnp.float32)
    if visible is not None:
        scores_BNTT = jnp.where(visible, scores_BNTT, jnp.finfo(jnp.float32).min)
    weights_BNTT = jax.nn.softmax(scores_BNTT, axis=-1).astype(q_BNTH.dtype)
    weights_BNTT = Dropout(dropout)(weights_BNTT, train)
    return jnp.einsum("bnts,bnsh->bnth", weights_BNTT, v_BMTH).transpose(0, 2, 1, 3).reshape(B, T, N * H)


def real(mask_BT: jax.Array | None) -> jax.Array | None:
    """Every token sees the real ones: bool (B, 1, 1, T)."""
    return None if mask_BT is None else _open(mask_BT)


def causal(mask_BT: jax.Array, window: int = 0) -> jax.Array:
    """Each token sees the real ones up to itself, at most the last `window`: bool (B, 1, T, T)."""
    T = mask_BT.shape[1]
    back_TT = jnp.arange(T)[:, None] - jnp.arange(T)[None, :]
    near_TT = (back_TT >= 0) & (back_TT < window) if window else back_TT >= 0
    return near_TT[None, None] & _open(mask_BT)


def near(mask_BT: jax.Array, reach: int) -> jax.Array:
    """Each token sees the real ones at most `reach` away, before and after it: bool (B, 1, T, T)."""
    T = mask_BT.shape[1]
    away_TT = jnp.abs(jnp.arange(T)[:, None] - jnp.arange(T)[None, :])
    return (away_TT <= reach)[None, None] & _open(mask_BT)


def _open(mask: jax.Array) -> jax.Array:
    """(B, T): which tokens may be seen at all, bool (B, 1, 1, T); or (B, T, T): which by which, bool (B, 1, T, T)."""
    return (mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]) != 0


class SelfAttention(nn.Module):
    """Multi-head attention of x (B, T, D) to itself; its parameters are three affine maps by `names`.

    The output projection belongs to the caller, because families name it differently.
    """

    heads: int
    dropout: float
    init_std: float = 0.02
    use_bias: bool = True
    names: tuple[str, str, str] = ("query", "key", "value")

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array | None, train: bool) -> jax.Array:
        B, T, D = x_BTD.shape
        # Three products: as one they take as long on CPUs, and 5 % more of a step where adapters part them again.
        maps = (Dense(D, self.init_std, self.use_bias, name=name)(x_BTD) for name in self.names)
        q, k, v = (x.reshape(B, T, self.heads, D // self.heads).transpose(0, 2, 1, 3) for x in maps)
        return attend(q, k, v, visible=real(mask_BT), dropout=self.dropout, train=train)
