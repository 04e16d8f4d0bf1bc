"""The kinds of adapters: what each puts beside a kernel, how it starts, and the structured kernel that it makes.

D inputs, F outputs, r rank; the shape of a kernel is (D, F), or (K, K, C, F) of a convolution.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.errors import ConfigError
from tljax.models import kernels

INIT_STD = 0.02  # of learned tokens and prefixes: BERT's, as every family here has it
Leaves = dict[str, jax.Array]  # name beside the kernel -> array


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is put on a network.

    Attributes:
      kind: a name in `KINDS`.
      rank: r of the low-rank kinds, width of a bottleneck.
      alpha: of the low-rank kinds: the branch counts alpha / r (rsLoRA: alpha / sqrt(r)) times.
      targets: regular expressions over the paths of kernels, joined by commas or "|"; each has to match the end of a
        path, from a "/" on, with or without "/kernel". Empty: the family's own.
      feedforward: of IA3: patterns of the targets that have their inputs scaled, not their outputs. None: the family's.
      layers: how many of the top layers get one; 0: all, and what else the targets name.
      tokens: how many of prefix and prompt.

    Raises ConfigError where these make no sense.
    """

    kind: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    targets: str = ""
    feedforward: str | None = None
    layers: int = 0
    tokens: int = 16

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("adapter, kind", f"{self.kind!r}", f"one of {', '.join(KINDS)}")
        for name, low in (("rank", 1), ("layers", 0), ("tokens", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"adapter, {name}", f"{getattr(self, name)}", f"at least {low}")
        if not 0 < self.alpha < math.inf:
            raise ConfigError("adapter, alpha", f"{self.alpha}", "above 0", "at 0 the adapter would change nothing")
        if self.targets and KINDS[self.kind].on != "kernels":
            raise ConfigError("adapter, targets", f"{self.targets!r} for {self.kind}", "none",
                              f"{self.kind} is put on {KINDS[self.kind].on}, not on kernels")  # fmt: skip

    @property
    def scale(self) -> float:
        """On the low-rank branch; by the root of the rank: rsLoRA (Kalajdzievski 2023)."""
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)


@dataclasses.dataclass(frozen=True)
class Site:
    """Where an adapter sits: the path of a kernel and its shape, or of an attention's module and (heads, width).

    `inputs`: whether IA3 scales what goes in.
    """

    path: str
    shape: tuple[int, ...]
    inputs: bool = False

    @property
    def module(self) -> str:
        return self.path.removesuffix("/kernel")


Start = Callable[[Adapter, Site, jax.Array, jax.Array], tuple[Leaves, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """Attributes:

    shapes: name -> shape of each leaf at a site.
    start: (adapter, site, key, kernel) -> the leaves' first values, and the kernel that stays beside them. `kernel` is
      empty where the site is none.
    kernel: (adapter, site, kernel, leaves) -> the structured kernel.
    on: what it is put on.
    needs_kernel: whether `start` reads the kernel.
    unmergeable: why no plain kernel gives the same; "" where one does.
    """

    shapes: Callable[[Adapter, Site], dict[str, tuple[int, ...]]]
    start: Start
    kernel: Callable[[Adapter, Site, Any, Mapping[str, Any]], kernels.Adapted] | None = None
    on: str = "kernels"
    needs_kernel: bool = False
    unmergeable: str = ""


def _low_rank(a: Adapter, s: Site) -> dict[str, tuple[int, ...]]:
    return {"lora_a": (*s.shape[:-1], a.rank), "lora_b": (a.rank, s.shape[-1])}


def _lora_start(a: Adapter, s: Site, key: jax.Array, kernel: jax.Array) -> tuple[Leaves, jax.Array]:
    """A as PyTorch draws a layer's weights, B zero: the network is what it was."""
    bound = 1 / math.sqrt(math.prod(s.shape[:-1]))
    drawn = jax.random.uniform(key, (*s.shape[:-1], a.rank), jnp.float32, -bound, bound)
    return {"lora_a": drawn, "lora_b": jnp.zeros((a.rank, s.shape[-1]))}, kernel


def _dora_start(a: Adapter, s: Site, key: jax.Array, kernel: jax.Array) -> tuple[Leaves, jax.Array]:
    leaves, _ = _lora_start(a, s, key, kernel)
    return {**leaves, "lora_magnitude": kernels.column_norms(kernel)}, kernel


def _pissa_start(a: Adapter, s: Site, key: jax.Array, kernel: jax.Array) -> tuple[Leaves, jax.Array]:
    """The r largest singular values train, the rest stays (Meng et al. 2024)."""
    wide = jnp.asarray(kernel, jnp.float32)
    u, values, v = jnp.linalg.svd(wide.reshape(-1, wide.shape[-1]), full_matrices=False)
    root_r = jnp.sqrt(values[: a.rank] / a.scale)
    lora_a = (u[:, : a.rank] * root_r[None]).reshape(*kernel.shape[:-1], a.rank)
    lora_b = root_r[:, None] * v[: a.rank]
    return {"lora_a": lora_a, "lora_b": lora_b}, (wide - a.scale * (lora_a @ lora_b)).astype(kernel.dtype)


def _factors(a: Adapter, s: Site) -> dict[str, tuple[int, ...]]:
    return {"ia3": (s.shape[-2] if s.inputs else s.shape[-1],)}


def _ones(a: Adapter, s: Site, key: jax.Array, kernel: jax.Array) -> tuple[Leaves, jax.Array]:
    return {name: jnp.ones(shape) for name, shape in _factors(a, s).items()}, kernel


def _narrow(a: Adapter, s: Site) -> dict[str, tuple[int, ...]]:
    wide = s.shape[-1]
    return {"adapter_down": (wide, a.rank), "adapter_down_bias": (a.rank,),
            "adapter_up": (a.rank, wide), "adapter_up_bias": (wide,)}  # fmt: skip


def _narrow_start(a: Adapter, s: Site, key: jax.Array, kernel: jax.Array) -> tuple[Leaves, jax.Array]:
    """Up is zero, not Houlsby's near zero: the network is what it was."""
    zeros = {name: jnp.zeros(shape) for name, shape in _narrow(a, s).items()}
    bound = 1 / math.sqrt(s.shape[-1])
    return {**zeros, "adapter_down": jax.random.uniform(key, (s.shape[-1], a.rank), jnp.float32, -bound, bound)}, kernel


def _pairs(a: Adapter, s: Site) -> dict[str, tuple[int, ...]]:
    return {f"prefix/{name}": (a.tokens, *s.shape) for name in ("key", "value")}


def _pairs_start(a: Adapter, s: Site, key: jax.Array, kernel: jax.Array) -> tuple[Leaves, jax.Array]:
    keys = jax.random.split(key)
    shapes = _pairs(a, s).items()
    return {name: INIT_STD * jax.random.normal(keys[i], shape) for i, (name, shape) in enumerate(shapes)}, kernel


def _lora(a: Adapter, s: Site, base: Any, x: Mapping[str, Any]) -> kernels.Adapted:
    return kernels.LowRank(base, x["lora_a"], x["lora_b"], a.scale)


def _dora(a: Adapter, s: Site, base: Any, x: Mapping[str, Any]) -> kernels.Adapted:
    return kernels.DoRA(base, x["lora_a"], x["lora_b"], a.scale, x["lora_magnitude"])


def _scaled(a: Adapter, s: Site, base: Any, x: Mapping[str, Any]) -> kernels.Adapted:
    return kernels.Scaled(base, x["ia3"], s.inputs)


def _bottleneck(a: Adapter, s: Site, base: Any, x: Mapping[str, Any]) -> kernels.Adapted:
    return kernels.Bottleneck(base, *(x[name] for name in _narrow(a, s)))


KINDS: dict[str, Kind] = {
    "lora": Kind(_low_rank, _lora_start, _lora),
    "rslora": Kind(_low_rank, _lora_start, _lora),
    "dora": Kind(lambda a, s: {**_low_rank(a, s), "lora_magnitude": s.shape[-1:]}, _dora_start, _dora,
                 needs_kernel=True),
    "pissa": Kind(_low_rank, _pissa_start, _lora, needs_kernel=True),
    "ia3": Kind(_factors, _ones, _scaled),
    "bottleneck": Kind(_narrow, _narrow_start, _bottleneck,
                       unmergeable="its activation stands between two affine maps"),
    "prefix": Kind(_pairs, _pairs_start, on="attention", unmergeable="its keys and values belong to no token"),
    "prompt": Kind(lambda a, s: {}, _lora_start, on="the embeddings", unmergeable="its tokens stand beside the text's"),
}  # fmt: skip
LOW_RANK = ("lora", "rslora", "dora", "pissa")


def check_site(adapter: Adapter, site: Site) -> str:
    """What forbids an adapter at a kernel; "" where nothing does."""
    if adapter.kind in (*LOW_RANK, "bottleneck") and len(site.shape) == 4 and site.shape[-2] == 1:
        if adapter.kind != "bottleneck":
            return f"{site.path} {site.shape}: each channel has a kernel of its own, with nothing to share"
    sides = {"bottleneck": site.shape[-1:]} | dict.fromkeys(LOW_RANK, (math.prod(site.shape[:-1]), site.shape[-1]))
    smaller = min(sides.get(adapter.kind, (adapter.rank,)))
    if adapter.rank > smaller:
        return f"{site.path} {site.shape}: rank {adapter.rank}, at most {smaller}"
    return ""
