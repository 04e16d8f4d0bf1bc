"""A network with adapters, behind the same contract: its parameters are the plain network's and the adapters' own."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax import trees
from tljax.errors import ConfigError
from tljax.models.adapters import KINDS, Adapter, Site
from tljax.models.backbone import Activations, Backbone


@dataclasses.dataclass(frozen=True)
class AdaptedBackbone(Backbone):
    """A `Backbone` whose kernels have adapters beside them (…/query/kernel, …/query/lora_a, …/query/lora_b).

    A leaf belongs to the stage of its kernel, so that freezing, checkpoints and digests find it by its path. All that
    is a number (the scale) lives here and not among the parameters; equal ones share what is compiled.

    Attributes:
      adapter: what was put on.
      sites: where, from bottom to top.
      plain: the network without.
    """

    adapter: Adapter = dataclasses.field(default_factory=Adapter)
    sites: tuple[Site, ...] = ()
    plain: Backbone = dataclasses.field(kw_only=True, compare=False)

    @property
    def grafted(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of every parameter that the plain network does not have."""
        own = {path: shape for site in self.sites for path, shape in self._leaves(site).items()}
        inserted = [stage for stage in self.stages if stage.name == "prompt"]
        return own | {path: leaf.shape for stage in inserted for path, leaf in self._plain_shapes().items()
                      if stage.owns(path)}  # fmt: skip

    def shapes(self) -> trees.Flat:
        """As `Backbone.shapes`, in sorted order."""
        own = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for site in self.sites
               for path, shape in self._leaves(site).items()}  # fmt: skip
        return trees.join(self._plain_shapes(), own)

    def init(self, key: jax.Array, only: Callable[[str], bool] = lambda path: True) -> trees.Flat:
        """As `Backbone.init`. An adapter that starts from its kernel starts from the random one."""
        read = {site.path for site in self.sites if KINDS[self.adapter.kind].needs_kernel}
        flat = super().init(key, lambda path: path in read or only(path))
        flat = self.started(flat, jax.random.fold_in(key, len(self.stages)))
        return {path: flat[path] for path in sorted(flat) if only(path)}

    def started(self, flat: Mapping[str, Any], key: jax.Array) -> trees.Flat:
        """Parameters of the plain network -> those of this one, in sorted order.

        Args:
          flat: path -> array. PiSSA keeps what it does not train of a kernel in the kernel's place.
          key: of the values that are random.
        """
        flat, kind = dict(flat), KINDS[self.adapter.kind]
        for index, site in enumerate(self.sites):
            kernel = flat.get(site.path, jnp.zeros(()))
            leaves, kept = kind.start(self.adapter, site, jax.random.fold_in(key, index), kernel)
            flat |= {f"{site.module}/{name}": leaf for name, leaf in leaves.items()}
            if kept is not kernel:
                flat[site.path] = kept
        for index, stage in enumerate(self.stages):
            if stage.name == "prompt" and not any(stage.owns(path) for path in flat):
                flat |= super().init(jax.random.fold_in(key, index), stage.owns)
        return {path: flat[path] for path in sorted(flat)}

    def merged(self, flat: Mapping[str, Any]) -> trees.Flat:
        """Parameters of this network -> float32 ones of the plain network with the same outputs, in sorted order.

        Raises:
          ConfigError: a kind of adapter of which no plain network gives the same.
        """
        if reason := KINDS[self.adapter.kind].unmergeable:
            raise ConfigError(f"adapter {self.adapter.kind}", f"cannot be merged: {reason}", "lora, dora, ia3 or pissa")
        flat = dict(flat)
        for site in self.sites:
            bias = f"{site.module}/bias"
            kernel, moved = self._structured(site, flat).merged(flat.get(bias))
            for path in self._leaves(site):
                del flat[path]
            flat[site.path] = kernel
            if moved is not None:
                flat[bias] = moved
        return {path: flat[path] for path in sorted(flat)}

    def _through(self, params: Mapping[str, Any], x: Activations, start: int, stop: int | None, train: bool,
                 key: jax.Array | None, stats: trees.Flat) -> tuple[Activations, trees.Flat]:  # fmt: skip
        return super()._through(self._assembled(params, start, stop), x, start, stop, train, key, stats)

    def _assembled(self, params: Mapping[str, Any], start: int, stop: int | None) -> trees.Tree:
        """The parameters with a structured kernel in the place of each kernel of these stages that has an adapter."""
        flat, run = trees.flatten(params), self.stages[start:stop]
        for site in self.sites:
            if not any(stage.owns(site.path) for stage in run):
                continue
            if missing := [path for path in self._leaves(site) if path not in flat]:
                raise ValueError(f"{missing[0]}: missing; give the parameters of the plain network to `start` first")
            if KINDS[self.adapter.kind].kernel:
                flat[site.path] = self._structured(site, flat)
        return trees.unflatten(flat)

    def _structured(self, site: Site, flat: Mapping[str, Any]) -> Any:
        leaves = {name: flat[f"{site.module}/{name}"] for name in self._names(site)}
        make: Any = KINDS[self.adapter.kind].kernel
        return make(self.adapter, site, flat[site.path], leaves)

    def _names(self, site: Site) -> dict[str, tuple[int, ...]]:
        return KINDS[self.adapter.kind].shapes(self.adapter, site)

    def _leaves(self, site: Site) -> dict[str, tuple[int, ...]]:
        """Path -> shape of what the adapter has at a site."""
        return {f"{site.module}/{name}": shape for name, shape in self._names(site).items()}

    def _plain_shapes(self) -> trees.Flat:
        return super().shapes()
