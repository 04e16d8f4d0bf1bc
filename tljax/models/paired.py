"""A network on pairs of a source and a target example, for domain adaptation: the same stages run on both.

B pairs, D features, C classes. Names of a target's activations begin with "target/".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax import trees
from tljax.models.backbone import Activations, Backbone, Stage
from tljax.models.layers import Dense

TARGET = "target/"
FEATURES = "source_features"  # (B, D): a source example as another network has it, in place of its inputs
DISCRIMINATOR = "domain_discriminator"
CONDITIONED = ("cdan",)  # on the classes that the network gives
ADVERSARIAL = ("dann", "cdan", "adda")
DOMAINS = 1 << 20  # folded into the key for the target's dropout; above any number of a stage


class Discriminator(nn.Module):
    """Two hidden layers with ReLU, then one logit for each row (B,): above 0, the source (Ganin et al. 2016)."""

    width: int

    @nn.compact
    def __call__(self, x_BD: jax.Array) -> jax.Array:
        std = (2.0 / self.width) ** 0.5
        for name in ("dense_0", "dense_1"):
            x_BD = nn.relu(Dense(self.width, std, name=name)(x_BD.astype(jnp.float32)))
        return Dense(1, std, name="logit")(x_BD)[:, 0]


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


@dataclasses.dataclass(frozen=True)
class PairedBackbone(Backbone):
    """A network that also takes batches with a target's inputs beside the source's; without them it is as it was.

    Each domain goes through by itself, so that a batch normalisation sees one at a time. What moves are the statistics
    of the target, for which the network is made.
    """

    def _through(self, params: Mapping[str, Any], x: Activations, start: int, stop: int | None, train: bool,
                 key: jax.Array | None, stats: trees.Flat) -> tuple[Activations, trees.Flat]:  # fmt: skip
        target = {name.removeprefix(TARGET): value for name, value in x.items() if name.startswith(TARGET)}
        if not target:
            return super()._through(params, x, start, stop, train, key, stats)
        source = {name: value for name, value in x.items() if not name.startswith(TARGET)}
        other = None if key is None else jax.random.fold_in(key, DOMAINS)
        features = source.pop(FEATURES, None)
        if features is None:
            source, _ = super()._through(params, source, start, stop, train, key, stats)
        elif stop is None or stop == len(self.stages):
            given = {"pooled": features, "last_hidden_state": features}
            source, _ = super()._through(params, given, len(self.stages) - 1, None, train, key, {})
        else:
            source = {FEATURES: features}
        target, stats = super()._through(params, target, start, stop, train, other, stats)
        return {**source, **{TARGET + name: value for name, value in target.items()}}, stats


def paired(network: Backbone, method: str, width: int) -> PairedBackbone:
    """A network for pairs, with a discriminator in its head where the method has one.

    Args:
      method: as `config.adapt.method`.
      width: of the discriminator's hidden layers.
    """
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(Backbone)}
    if method in ADVERSARIAL:
        head = network.stages[-1]
        places = tuple((f"head/{name}".rstrip("/"), path) for name, path in head.places)
        reads = tuple((f"head/{name}", path) for name, path in head.reads)
        module = DomainHead(head.module, width, method in CONDITIONED)
        stage = Stage(head.name, (*places, ("domain", DISCRIMINATOR)), module, reads)
        fields["stages"] = (*network.stages[:-1], stage)
    return PairedBackbone(**{**fields, "lookups": ()})


def plain(params: trees.Flat) -> trees.Flat:
    """The parameters of the network itself."""
    return {path: leaf for path, leaf in params.items() if not path.startswith(f"{DISCRIMINATOR}/")}
