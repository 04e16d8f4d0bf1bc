"""Rotary positions (Su et al. 2021) and the ways to stretch them. T tokens, N heads, H width of a head, F = H / 2."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Rope = Mapping[str, Any]  # rope_type, rope_theta and what the type needs besides


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of rotary positions: `rope_parameters` since transformers 5, two fields before."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = found.pop("type", None) or "default"
    return {"rope_type": kind, "rope_theta": config.get("rope_theta") or 10000.0, **found}


def frequencies(rope: Rope, width: int, longest: int, tokens: int) -> tuple[np.ndarray, float]:
    """Radians that each pair turns by from token to token (F,), float32; and YaRN's factor on cosine and sine.

    Args:
      rope: as `parameters` gives it.
      width: H.
      longest: max_position_embeddings.
      tokens: T.
    """
    return TYPES[rope["rope_type"]](rope, width, longest, tokens)


def _default(rope: Rope, width: int, longest: int, tokens: int) -> tuple[np.ndarray, float]:
    return _plain(float(rope["rope_theta"]), width), 1.0


def _linear(rope: Rope, width: int, longest: int, tokens: int) -> tuple[np.ndarray, float]:
    """Positions divided by a factor (Chen et al. 2023)."""
    return _plain(float(rope["rope_theta"]), width) / np.float32(rope["factor"]), 1.0


def _dynamic(rope: Rope, width: int, longest: int, tokens: int) -> tuple[np.ndarray, float]:
    """A larger base for texts that are longer than those of the training (dynamic NTK)."""
    factor, over = float(rope["factor"]), max(tokens, longest) / longest
    stretch = (factor * over - (factor - 1)) ** (width / (width - 2))
    return _plain(float(rope["rope_theta"]) * stretch, width), 1.0


def _llama3(rope: Rope, width: int, longest: int, tokens: int) -> tuple[np.ndarray, float]:
    """Low frequencies are divided by a factor, high ones kept, those between mixed (Llama 3.1)."""
    plain = _plain(float(rope["rope_theta"]), width)
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(rope["original_max_position_embeddings"]) * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - kept) * plain / factor + kept * plain).astype(np.float32), 1.0


def _yarn(rope: Rope, width: int, longest: int, tokens: int) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al. 2023)."""
    factor, theta = float(rope["factor"]), float(rope["rope_theta"])
    original = float(rope.get("original_max_position_embeddings") or longest)

    def pair(turns: float) -> float:
        """The pair that turns so often over the length of the training."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(float(rope.get("beta_fast") or 32)), pair(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    divided = np.clip((np.arange(width // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0, 1)
    plain = _plain(theta, width)
    return (plain / factor * divided + plain * (1 - divided)).astype(np.float32), _magnitude(rope, factor)


def _magnitude(rope: Rope, factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(float(rope["mscale"])) / scale(float(rope["mscale_all_dim"]))
    return scale(1.0)


def _plain(theta: float, width: int) -> np.ndarray:
    return (1.0 / theta ** (np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)


TYPES: dict[str, Callable[[Rope, int, int, int], tuple[np.ndarray, float]]] = {
    "default": _default,
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def rotate(x_BNTH: jax.Array, frequencies_F: np.ndarray, scale: float = 1.0) -> jax.Array:
    """Turns each pair (i, i + F) of a head's numbers by position times frequency, computed in float32."""
    angle_TF = jnp.arange(x_BNTH.shape[2], dtype=jnp.float32)[:, None] * frequencies_F[None, :]
    cos, sin = (turn(angle_TF)[None, None] * scale for turn in (jnp.cos, jnp.sin))
    one, two = jnp.split(x_BNTH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1).astype(x_BNTH.dtype)
