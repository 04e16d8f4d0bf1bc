"""One vector for each example from every stage of a network, out of one forward pass.

Legend: B rows in a batch, T tokens, H x W pixels, D width of a stage, C classes of the checkpoint's head, N examples.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import trees
from tljax.models import Backbone
from tljax.transfer import boundary

TOKENS = 3  # of the batch that widths are found with; none depends on it


def pooled(x: Mapping[str, jax.Array]) -> jax.Array:
    """What a stage gives, as one vector for each row, float32.

    Of the head the probabilities (B, C); of the stage below it what the head reads (B, D); of others the mean over the
    real tokens (B, T, D), over all of them where there is no mask, or over the picture (B, H, W, D). Of decoders too:
    the last token, which their head reads, is one word's embedding at the bottom.
    """
    if "logits" in x:
        return jax.nn.softmax(x["logits"].astype(jnp.float32), axis=-1)
    if "pooled" in x:
        return x["pooled"].astype(jnp.float32)
    hidden = x["hidden"].astype(jnp.float32)
    if hidden.ndim == 4:
        return hidden.mean((1, 2))
    if "attention_mask" not in x:
        return hidden.mean(1)
    real_BT1 = x["attention_mask"].astype(jnp.float32)[:, :, None]
    return (hidden * real_BT1).sum(1) / jnp.maximum(real_BT1.sum(1), 1.0)


def of_stages(backbone: Backbone, stages: Sequence[int], params: trees.Tree,
              inputs: Mapping[str, Any]) -> dict[str, jax.Array]:  # fmt: skip
    """Stage name -> `pooled` of what it gives, for stages by number, rising; each runs once, none above the last."""
    x, at, found = dict(inputs), 0, {}
    for stage in stages:
        x, at = backbone.run(params, x, at, stage + 1), stage + 1
        found[backbone.stage_names[stage]] = pooled(x)
    return found


@functools.lru_cache(maxsize=8)
def make_step(backbone: Backbone, stages: tuple[int, ...]) -> Callable[..., jax.Array]:
    """Compiles (nested params, inputs) -> the vectors of `of_stages` side by side, (B, sum of widths) float32."""

    @jax.jit
    def step(params: trees.Tree, inputs: dict[str, Any], labels: Any = None) -> jax.Array:
        return jnp.concatenate(list(of_stages(backbone, stages, params, inputs).values()), axis=1)

    return step


def widths(backbone: Backbone, stages: Sequence[int]) -> dict[str, int]:
    """Stage name -> width of its vector, without computing one."""
    found = jax.eval_shape(lambda p, x: of_stages(backbone, stages, trees.unflatten(p), x), backbone.shapes(),
                           boundary.inputs(backbone, TOKENS))  # fmt: skip
    return {name: found[name].shape[1] for name in (backbone.stage_names[stage] for stage in stages)}


def split(found_N: np.ndarray, wide: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The inverse of standing side by side: (N, sum of widths) -> stage name -> (N, D), views."""
    if found_N.shape[1] != sum(wide.values()):
        raise ValueError(f"{found_N.shape[1]} columns, expected {sum(wide.values())}: {dict(wide)}")
    ends = np.cumsum(list(wide.values()))
    return {name: found_N[:, end - size : end] for (name, size), end in zip(wide.items(), ends, strict=True)}
