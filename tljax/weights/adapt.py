"""Parameters for another image size, other channels or more words than the checkpoint was trained with."""

import math
import re
from collections.abc import Callable, Collection

import numpy as np

from tljax.weights.rules import Family

Shape = tuple[int, ...]
Change = Callable[[np.ndarray], np.ndarray]
STEM = r"[^/]+/(embeddings|embedder|conv_stem/first_conv)/.*kernel"  # what reads the pixels, (h, w, channels, out)
WORDS = r".*/(word_embeddings|wte|embed_tokens|tok_embeddings)/embedding"  # (words, D)
NEXT_TOKEN = r"lm_head/kernel"  # (D, words)
KINDS = ("positions", "channels", "words")


def change(path: str, have: Shape, want: Shape, family: Family, kinds: Collection[str]) -> Change | None:
    """How a parameter of shape `have` becomes one of shape `want`, in tljax's layout; None where it may not or cannot.

    Args:
      path: the parameter.
      family: knows which parameters are positions.
      kinds: of `KINDS`, what may change.
    """
    if len(have) != len(want):
        return None
    if (
        "positions" in kinds
        and re.fullmatch(family.positions, path)
        and (*have[:-2], have[-1]) == (*want[:-2], want[-1])
    ):
        patches = [shape[-2] - family.prefix for shape in (have, want)]
        if all(n > 0 and math.isqrt(n) ** 2 == n for n in patches):
            return lambda old: resize_positions(old, want[-2], family.prefix, family.antialias)
    if "channels" in kinds and re.fullmatch(STEM, path) and (*have[:2], *have[3:]) == (*want[:2], *want[3:]):
        return lambda old: change_channels(old, want[2])
    if "words" in kinds and re.fullmatch(WORDS, path) and have[1] == want[1] and want[0] > have[0]:
        return lambda old: add_words(old, want[0])
    if "words" in kinds and re.fullmatch(NEXT_TOKEN, path) and have[0] == want[0] and want[1] > have[1]:
        return lambda old: add_words(old.T, want[1]).T
    return None


def resize_positions(positions: np.ndarray, tokens: int, prefix: int = 1, antialias: bool = False) -> np.ndarray:
    """Position embeddings (…, prefix + n^2, D) for another grid (…, tokens, D); the first `prefix` stay as they are.

    Bicubic as torch.nn.functional.interpolate(mode="bicubic", align_corners=False) computes it, which is what
    transformers' `interpolate_pos_encoding` uses.
    """
    kept, patches = positions[..., :prefix, :], positions[..., prefix:, :]
    old, new = math.isqrt(patches.shape[-2]), math.isqrt(tokens - prefix)
    matrix = (_antialiased if antialias else _bicubic)(old, new)
    grid = np.einsum("oi,pj,ijd->opd", matrix, matrix, patches.reshape(old, old, -1), optimize=True)
    grid = grid.reshape(*patches.shape[:-2], new * new, -1)
    return np.concatenate([kept, grid], axis=-2).astype(positions.dtype)


def change_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A kernel (h, w, C, out) for other channels, such that equal channels give what they gave before.

    One channel gets the sum of the kernel's; more repeat it in turn, scaled by C / channels (the rule of timm).
    """
    old = kernel.shape[2]
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    return np.take(kernel, np.arange(channels) % old, axis=2) * np.asarray(old / channels, kernel.dtype)


def add_words(table: np.ndarray, words: int) -> np.ndarray:
    """A table (V, D) with rows for new words, each the mean of the old ones (Hewitt 2021)."""
    mean = table.mean(0, keepdims=True, dtype=np.float64).astype(table.dtype)
    return np.concatenate([table, np.repeat(mean, words - len(table), axis=0)])


def _keys(x: float, a: float) -> float:
    """Keys' cubic kernel (1981) with parameter a."""
    x = abs(x)
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0


def _bicubic(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix that resamples one axis: a = -0.75, the border repeated."""
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        first = math.floor(centre)
        for tap in range(first - 1, first + 3):
            matrix[row, min(max(tap, 0), old - 1)] += _keys(centre - tap, -0.75)
    return matrix


def _antialiased(old: int, new: int) -> np.ndarray:
    """The same with antialias=True: a = -0.5, the kernel widened to what a new position covers, and no border."""
    matrix, wide = np.zeros((new, old)), max(old / new, 1.0)
    for row in range(new):
        centre = (row + 0.5) * old / new
        first, last = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), old)
        for tap in range(first, last):
            matrix[row, tap] = _keys((tap - centre + 0.5) / wide, -0.5)
    return matrix / matrix.sum(1, keepdims=True)
