"""A head that tells the domain besides its classes, for adversarial adaptation. B rows, D features, C classes."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax import trees
from tljax.models.backbone import Activations, Backbone, Stage
from tljax.models.layers import Dense

DISCRIMINATOR = "domain_discriminator"
CONDITIONED = ("cdan",)  # on the classes that the network gives
ADVERSARIAL = ("dann", "cdan", "adda")


class Discriminator(nn.Module):
    """Two hidden layers with ReLU, then one logit for each row (B,): above 0, the source (Ganin et al. 2016)."""

    width: int

    @nn.compact
    def __call__(self, x_BD: jax.Array) -> jax.Array:
        x_BD = x_BD.astype(jnp.float32)
        for name in ("dense_0", "dense_1"):
            x_BD = nn.relu(Dense(self.width, (2.0 / x_BD.shape[-1]) ** 0.5, name=name)(x_BD))
        return Dense(1, self.width**-0.5, name="logit")(x_BD)[:, 0]


class DomainHead(nn.Module):
    """A network's own head, and a discriminator that tells the domain from the pooled vector.

    Gives "domain" (B,), and "domain_still" (B,), the same number, of which nothing flows back to the features. Of the
    two an objective makes what each side has to learn (train/objectives.py).

    Attributes:
      conditioned: whether the discriminator sees the pooled vector times the probabilities of the classes, (B, D C), in
        place of the vector (Long et al. 2018, CDAN).
    """

    head: nn.Module
    width: int
    conditioned: bool

    def setup(self) -> None:
        self.domain = Discriminator(self.width)

    def __call__(self, x: Activations, train: bool) -> Activations:
        given = self.head(x, train)
        seen_BD = x["pooled"].astype(jnp.float32)
        if self.conditioned:
            # no gradient through the probabilities, as in the authors' own code
            probs_BC = jax.lax.stop_gradient(jax.nn.softmax(given["logits"], axis=-1))
            seen_BD = (seen_BD[:, :, None] * probs_BC[:, None, :]).reshape(len(seen_BD), -1)
        still_BD = jax.lax.stop_gradient(seen_BD)
        return {**given, "domain": self.domain(seen_BD), "domain_still": self.domain(still_BD)}


def paired(network: Backbone, method: str, width: int) -> Backbone:
    """A network for pairs, with a discriminator in its head where the method has one; it runs on single domains too.

    Args:
      method: as `config.adapt.method`.
      width: of the discriminator's hidden layers.
    """
    if method not in ADVERSARIAL:
        return dataclasses.replace(network, lookups=())  # the target reads other rows of a table
    head = network.stages[-1]
    places = tuple((f"head/{name}".rstrip("/"), path) for name, path in head.places)
    reads = tuple((f"head/{name}", path) for name, path in head.reads)
    module = DomainHead(head.module, width, method in CONDITIONED)
    stage = Stage(head.name, (*places, ("domain", DISCRIMINATOR)), module, reads)
    return dataclasses.replace(network, stages=(*network.stages[:-1], stage), lookups=())


def plain(params: trees.Flat) -> trees.Flat:
    """The parameters of the network itself."""
    return {path: leaf for path, leaf in params.items() if not path.startswith(f"{DISCRIMINATOR}/")}
