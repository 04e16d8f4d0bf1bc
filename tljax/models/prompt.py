"""Learned tokens among the embeddings (prompt tuning, Lester et al. 2021; for images VPT-shallow, Jia et al. 2022).

Where attention has a window (Mistral, half of ModernBERT's layers) only the tokens near them see them.
B batch, T tokens, P learned ones, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.adapters import INIT_STD
from tljax.models.backbone import Activations, Stage


class Inserted(nn.Module):
    """hidden (B, T, D) -> (B, T + P, D): learned tokens, that every token may see, `after` so many of the others."""

    tokens: int
    after: int

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        B, _, D = x["hidden"].shape
        learned_PD = self.param("tokens", nn.initializers.normal(INIT_STD), (self.tokens, D))
        learned_BPD = jnp.broadcast_to(learned_PD[None], (B, self.tokens, D))
        added = {"hidden": learned_BPD}
        if "attention_mask" in x:
            added["attention_mask"] = jnp.ones((B, self.tokens))
        return {**x, **{name: self._between(x[name], more) for name, more in added.items()}}

    def _between(self, x: jax.Array, more: jax.Array) -> jax.Array:
        return jnp.concatenate([x[:, : self.after], more.astype(x.dtype), x[:, self.after :]], axis=1)


class Removed(nn.Module):
    """hidden (B, T + P, D) -> (B, T, D): what stands above the layers, be it a mean, sees the tokens that it knows."""

    tokens: int
    after: int

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        def rest(y: jax.Array) -> jax.Array:
            return jnp.concatenate([y[:, : self.after], y[:, self.after + self.tokens :]], axis=1)

        return {**x, **{name: rest(x[name]) for name in ("hidden", "attention_mask") if name in x}}


def stages(plain: tuple[Stage, ...], tokens: int, after: int, top: int) -> tuple[Stage, ...]:
    """The stages with learned tokens in all those above the first and up to number `top`."""
    put = Stage("prompt", "prompt", Inserted(tokens, after))
    taken = dataclasses.replace(put, name="prompt_end", path="prompt_end", module=Removed(tokens, after))
    return (plain[0], put, *plain[1 : top + 1], taken, *plain[top + 1 :])
