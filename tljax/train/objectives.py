"""What a step minimises, and what an evaluation keeps of an answer. B rows, … places in a row, C classes.

An objective is hashable; equal ones share what is compiled. A batch holds `labels` and `weights` (B, …), as
data/batching.py makes them; `x` is what the network returns.
"""

import dataclasses
import itertools
from collections.abc import Hashable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from tljax.train import blocks
from tljax.transfer import discrepancy

Activations = Mapping[str, jax.Array]
Batch = Mapping[str, Any]


class Objective(Hashable, Protocol):
    """The rule of one kind of learning."""

    def weights(self, batch: Batch) -> jax.Array:
        """What each answer counts; the loss of a batch is divided by their sum, over all its micro-batches."""

    def loss(self, x: Activations, batch: Batch, count: jax.Array) -> jax.Array:
        """The loss (), summed over the answers by `batch["weights"]`.

        Args:
          count: int32 (), the optimizer steps taken.
        """

    def outputs(self, x: Activations, batch: Batch) -> jax.Array:
        """What an evaluation keeps of each answer, float32 (B, …, K)."""


def cross_entropy(logits_BC: jax.Array, labels_B: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-log p of the true class for each row (B, …), with `smoothing` of the mass spread over all classes.

    Args:
      logits_BC: (B, …, C).
      labels_B: int (B, …).
    """
    log_p_BC = jax.nn.log_softmax(logits_BC, axis=-1)
    true_B = jnp.take_along_axis(log_p_BC, labels_B[..., None], axis=-1)[..., 0]
    return -(1.0 - smoothing) * true_B - smoothing * log_p_BC.mean(-1)


@dataclasses.dataclass(frozen=True)
class Classification:
    """One class for each row, or for each place in a row; an evaluation keeps the probabilities.

    Attributes:
      smoothing: mass taken from the true class.
      class_weights: (C,) factors on the answers of each class; None: all count alike.
      shares: (C,), how much of each class is among the training examples, of all; probabilities are those
        of all (Elkan 2001; Dal Pozzolo et al. 2015). None: all are.
    """

    smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    shares: tuple[float, ...] | None = None

    def weights(self, batch: Batch) -> jax.Array:
        if self.class_weights is None:
            return batch["weights"]
        return batch["weights"] * jnp.asarray(self.class_weights, jnp.float32)[batch["labels"]]

    def loss(self, x: Activations, batch: Batch, count: jax.Array) -> jax.Array:
        return (cross_entropy(x["logits"], batch["labels"], self.smoothing) * batch["weights"]).sum()

    def outputs(self, x: Activations, batch: Batch) -> jax.Array:
        logits = x["logits"]
        if self.shares is not None:
            logits -= jnp.expand_dims(jnp.log(jnp.asarray(self.shares, jnp.float32)), range(logits.ndim - 1))
        return jax.nn.softmax(logits, axis=-1)


CLASSIFICATION = Classification()


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is hidden, or comes next: a value for each of F fields, in one row of logits; words are one field.

    An evaluation keeps -log p of each field (nats), and whether its most probable value was right.

    Attributes:
      sizes: how many of the logits (B, …, sum of sizes) belong to each field. Labels are (B, …, F).
    """

    sizes: tuple[int, ...]

    def weights(self, batch: Batch) -> jax.Array:
        return batch["weights"]

    def loss(self, x: Activations, batch: Batch, count: jax.Array) -> jax.Array:
        each = (cross_entropy(logits, batch["labels"][..., i]) for i, logits in enumerate(self._parts(x)))
        return (sum(each, jnp.zeros(())) * batch["weights"]).sum()

    def outputs(self, x: Activations, batch: Batch) -> jax.Array:
        labels, parts = batch["labels"], self._parts(x)
        losses = [cross_entropy(logits, labels[..., i]) for i, logits in enumerate(parts)]
        right = [(logits.argmax(-1) == labels[..., i]).astype(jnp.float32) for i, logits in enumerate(parts)]
        return jnp.stack([*losses, *right], axis=-1)

    def _parts(self, x: Activations) -> list[jax.Array]:
        return jnp.split(x["logits"], list(itertools.accumulate(self.sizes[:-1])), axis=-1)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The one item that comes next, out of all of them; an evaluation keeps the rank of the right one, from 1.

    `x` holds what the scores are the product of (blocks.py).

    An item that scores as high as the right one stands before it: equal scores for all are no first place. Where the
    right one is none that the network knows it is last; where a score is not finite the rank is NaN.

    Attributes:
      reserved: ids below stand for no item and are not ranked.
    """

    reserved: int = 2

    def weights(self, batch: Batch) -> jax.Array:
        return batch["weights"]

    def loss(self, x: Activations, batch: Batch, count: jax.Array) -> jax.Array:
        return blocks.summed_cross_entropy(*self._scored(x), batch["labels"], batch["weights"])

    def outputs(self, x: Activations, batch: Batch) -> jax.Array:
        return blocks.ranks(*self._scored(x), batch["labels"], self.reserved)[..., None]

    def _scored(self, x: Activations) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What scores are made of; x["logits"], the scores themselves, are not read and so not computed."""
        return x["last_hidden_state"], x["items"], x["item_bias"]


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Classes of the source, and what draws the target's features to the source's (transfer/discrepancy.py).

    The classifier's loss is summed as `Classification` does it; the domains' loss of a batch counts as one answer's.

    Attributes:
      method: of `DOMAIN_LOSSES`.
      weight: of the domains' loss.
      steps: of the whole run, over which the strength of DANN and CDAN rises.
      smoothing: as for `Classification`.
    """

    method: str
    weight: float
    steps: int
    smoothing: float = 0.0

    def weights(self, batch: Batch) -> jax.Array:
        return batch["weights"]

    def loss(self, x: Activations, batch: Batch, count: jax.Array) -> jax.Array:
        share = batch["weights"].sum()
        real_B = (batch["weights"] > 0).astype(jnp.float32)
        apart = DOMAIN_LOSSES[self.method](x, real_B, count / self.steps)
        if self.method == "adda":  # the classifier is the source's own and stays
            return self.weight * share * apart
        classes = (cross_entropy(x["logits"], batch["labels"], self.smoothing) * batch["weights"]).sum()
        return classes + self.weight * share * apart

    def outputs(self, x: Activations, batch: Batch) -> jax.Array:
        return jax.nn.softmax(x["logits"], axis=-1)


def _coral(x: Activations, real_B: jax.Array, progress: jax.Array) -> jax.Array:
    return discrepancy.coral(x["pooled"], x["target/pooled"], real_B, real_B)


def _mmd(x: Activations, real_B: jax.Array, progress: jax.Array) -> jax.Array:
    return discrepancy.mmd(x["pooled"], x["target/pooled"], real_B, real_B)


def _told(x: Activations, name: str, real_B: jax.Array, source: float, target: float) -> jax.Array:
    """Mean cross-entropy of a discriminator that says `name`, for these answers to source and target."""
    own = discrepancy.binary_cross_entropy(x[name], jnp.full_like(real_B, source))
    other = discrepancy.binary_cross_entropy(x[f"target/{name}"], jnp.full_like(real_B, target))
    return ((own + other) * real_B).sum() / (2 * jnp.maximum(real_B.sum(), 1.0))


def _reversed(x: Activations, real_B: jax.Array, progress: jax.Array) -> jax.Array:
    """The discriminator learns to tell the domains, and the features, times a rising strength, not to be told: a
    gradient reversal layer (Ganin et al. 2016, eq. 13), as a difference that is 0 and whose gradient is not."""
    still = _told(x, "domain_still", real_B, 1.0, 0.0)
    moving = _told(x, "domain", real_B, 1.0, 0.0)
    return still - discrepancy.reversal_strength(progress) * (moving - still)


def _inverted(x: Activations, real_B: jax.Array, progress: jax.Array) -> jax.Array:
    """The discriminator learns to tell the domains, and the target's features to be taken for the source's (Tzeng et
    al. 2017, ADDA, eq. 9)."""
    wrong = [
        (discrepancy.binary_cross_entropy(x[f"target/{name}"], jnp.ones_like(real_B)) * real_B).sum()
        / jnp.maximum(real_B.sum(), 1.0)
        for name in ("domain", "domain_still")
    ]
    return _told(x, "domain_still", real_B, 1.0, 0.0) + (wrong[0] - wrong[1])


DOMAIN_LOSSES = {"coral": _coral, "mmd": _mmd, "dann": _reversed, "cdan": _reversed, "adda": _inverted}


@dataclasses.dataclass(frozen=True)
class Certainty:
    """Tent (Wang et al. 2021): predictions that are sure, by the entropy of each, without any label."""

    def weights(self, batch: Batch) -> jax.Array:
        return batch["weights"]

    def loss(self, x: Activations, batch: Batch, count: jax.Array) -> jax.Array:
        return (discrepancy.entropy(x["logits"]) * batch["weights"]).sum()

    def outputs(self, x: Activations, batch: Batch) -> jax.Array:
        return jax.nn.softmax(x["logits"], axis=-1)
