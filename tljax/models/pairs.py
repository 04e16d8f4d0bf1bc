"""Batches of pairs of a source and a target example, for domain adaptation: the same stages run on both.

B pairs, D features. Names of a target's activations begin with "target/".
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

Activations = Mapping[str, jax.Array]
Once = Callable[..., tuple[dict[str, jax.Array], dict[str, Any]]]  # (x, start, stop, key, stats) -> (x, stats)

TARGET = "target/"
FEATURES = "source_features"  # (B, D): a source example as another network has it, in place of its inputs
DOMAINS = 1 << 20  # folded into the key for the target's dropout; above any number of a stage


def are(x: Activations) -> bool:
    """Whether activations are of pairs."""
    return any(name.startswith(TARGET) for name in x)


def through(once: Once, x: Activations, start: int, stop: int, head: int, key: jax.Array | None,
            stats: dict[str, Any]) -> tuple[dict[str, jax.Array], dict[str, Any]]:  # fmt: skip
    """Runs stages start..stop on both domains, each by itself, so that a batch normalisation sees one at a time.

    What moves are the statistics of the target, for which the network is made.

    Args:
      once: runs stages on the activations of one domain.
      head: the number of the last stage.
    """
    target = {name.removeprefix(TARGET): value for name, value in x.items() if name.startswith(TARGET)}
    source = {name: value for name, value in x.items() if not name.startswith(TARGET)}
    other = None if key is None else jax.random.fold_in(key, DOMAINS)
    features = source.pop(FEATURES, None)
    if features is None:
        source, _ = once(source, start, stop, key, stats)
    elif stop > head:
        source, _ = once({"pooled": features, "last_hidden_state": features}, head, stop, key, {})
    else:
        source = {FEATURES: features}
    target, stats = once(target, start, stop, other, stats)
    return {**source, **{TARGET + name: value for name, value in target.items()}}, stats
