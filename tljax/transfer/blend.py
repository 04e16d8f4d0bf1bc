"""Models between models: weights of one architecture, averaged into one model that costs no more to run."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tljax.errors import ConfigError, DivergedError, WeightsError, printable
from tljax.trees import Flat

BLOCK = 1 << 20  # numbers of each model that are held in float64 at a time


def interpolated(pretrained: Mapping[str, Any], finetuned: Mapping[str, Any], alpha: float) -> Flat:
    """(1 - alpha) pretrained + alpha finetuned, leaf by leaf (WiSE-FT, Wortsman et al. 2022, Robust fine-tuning of
    zero-shot models): often more robust to a shift than the fine-tuned end, at little or no loss on the target.

    Computed in float64 and cast to the leaf's dtype, so that a leaf of float32 or narrower that training left alone
    stays as it is, bit for bit.

    Running statistics of a normalisation (mean, var) are interpolated as any leaf is. They are then not those of the
    blended network: measure them anew on training data where they count. The factors of an adapter are no weights of
    the network: merge them first, or their product is not what lies between the two.

    Args:
      pretrained: path -> array, from which `finetuned` was trained: with its head, if that is to be blended too
        (a zero-shot head, or that of a linear probe; a random one is no end worth going to).
      finetuned: path -> array: the same paths, shapes and dtypes.
      alpha: 0 to 1. At 0 and 1 the leaves of that end come back themselves, not copies.

    Returns:
      path -> np.ndarray in sorted order; at the ends leaves as they were given.

    Raises:
      ConfigError: alpha outside 0 to 1.
      WeightsError: leaves that only one has, that differ in shape or dtype, or are not floating; all of them.
    """
    if not 0 <= alpha <= 1:  # nor NaN
        raise ConfigError("alpha", f"{alpha}", "0 (pretrained) to 1 (fine-tuned)")
    _check([("pretrained", pretrained), ("finetuned", finetuned)])
    if alpha in (0, 1):
        end = finetuned if alpha else pretrained
        return {path: end[path] for path in sorted(end)}
    return {path: _between(np.asarray(pretrained[path]), np.asarray(finetuned[path]), alpha)
            for path in sorted(pretrained)}  # fmt: skip


def averaged(models: Sequence[Mapping[str, Any]]) -> Flat:
    """The mean of each leaf over the models: the uniform soup (Wortsman et al. 2022, Model soups).

    Each number's values are sorted before they are added in float64, so that the order of the models does not
    matter for a single bit. Means something for models that were fine-tuned from the same weights; of running
    statistics holds what `interpolated` says of them.

    Args:
      models: path -> array each, at least one; the same paths, shapes and dtypes.

    Returns:
      path -> np.ndarray of the leaf's dtype, in sorted order.

    Raises:
      ConfigError: no model.
      WeightsError: leaves that do not fit together, as for `interpolated`.
    """
    _check([(f"model {number}", model) for number, model in enumerate(models)])
    return {path: _mean([np.asarray(model[path]) for model in models]) for path in sorted(models[0])}


def greedy(
    models: Sequence[tuple[str, Mapping[str, Any]]], score: Callable[[Flat], float]
) -> tuple[list[str], Flat, float]:
    """The greedy soup (Wortsman et al. 2022, Model soups, recipe 1): best model first, the others in the order of
    their own scores; one stays in the average where the score of that does not fall.

    The score is at least that of the best single model; as the choice went by it, it flatters: report another split.

    Args:
      models: (name, path -> array), at least one, names of their own.
      score: held-out score of a model, the higher the better; called at most twice a model. One that is not a
        number is never good enough.

    Returns:
      The names that were taken in that order, their average, and its score.

    Raises:
      ConfigError: no model, or a name twice.
      WeightsError: leaves that do not fit together, as for `interpolated`.
      DivergedError: no model has a score that is a number.
    """
    named = dict(models)
    if len(named) < len(models):
        raise ConfigError("soup", f"{len(models)} models with {len(named)} names", "names of their own")
    _check(models)
    own = {name: float(score(averaged([model]))) for name, model in models}
    order = sorted((name for name in own if not math.isnan(own[name])), key=lambda name: (-own[name], name))
    if not order:
        raise DivergedError("soup", f"the scores of all {len(models)} models are not numbers", "a number for one")
    taken, best = order[:1], own[order[0]]
    soup = averaged([named[order[0]]])
    for name in order[1:]:
        tried = averaged([named[other] for other in (*taken, name)])
        found = float(score(tried))
        if found >= best:
            taken, soup, best = [*taken, name], tried, found
    return taken, soup, best


def _between(start: np.ndarray, end: np.ndarray, alpha: float) -> np.ndarray:
    made, a, b = np.empty(start.size, start.dtype), start.reshape(-1), end.reshape(-1)
    for at in range(0, start.size, BLOCK):
        part = slice(at, at + BLOCK)
        made[part] = (1 - alpha) * a[part].astype(np.float64) + alpha * b[part].astype(np.float64)
    return made.reshape(start.shape)


def _mean(leaves: Sequence[np.ndarray]) -> np.ndarray:
    made = np.empty(leaves[0].size, leaves[0].dtype)
    flat = [leaf.reshape(-1) for leaf in leaves]
    for at in range(0, made.size, BLOCK):
        rows = np.sort([leaf[at : at + BLOCK].astype(np.float64) for leaf in flat], axis=0)
        total = rows[0]
        for row in rows[1:]:  # one after the other: np.sum may pair them up as it likes
            total = total + row
        made[at : at + BLOCK] = total / len(leaves)
    return made.reshape(leaves[0].shape)


def _check(models: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """All that keeps models from being blended, at once; the first model is what the others are compared with."""
    if not models:
        raise ConfigError("soup", "no model", "at least one")
    (first, reference), problems = models[0], []
    for path, leaf in sorted(reference.items()):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jax.dtypes.issubdtype(dtype, np.floating):
            problems.append(f"{path}: {dtype or type(leaf).__name__}, expected floating numbers")
    for name, model in models[1:]:
        problems += [f"{path}: in {first}, not in {name}" for path in sorted(reference.keys() - model.keys())]
        problems += [f"{path}: in {name}, not in {first}" for path in sorted(model.keys() - reference.keys())]
        for path in sorted(reference.keys() & model.keys()):
            kinds = [_kind(leaf) for leaf in (reference[path], model[path])]
            if kinds[0] != kinds[1]:
                problems.append(f"{path}: {kinds[0]} in {first}, {kinds[1]} in {name}")
    if problems:
        some = " and ".join(printable(name, 40) for name, _ in models[:2])
        raise WeightsError(f"{some} and {len(models) - 2} more" if len(models) > 2 else some,
                           f"{len(problems)} leaves cannot be blended",
                           "the same floating leaves in each", details=problems)  # fmt: skip


def _kind(leaf: Any) -> str:
    return f"{getattr(leaf, 'dtype', type(leaf).__name__)} {tuple(np.shape(leaf))}"
