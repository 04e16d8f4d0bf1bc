"""Whether activations are worth keeping, and where: the work they save against the bytes they take."""

import dataclasses
import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax

from tljax.config import CacheConfig
from tljax.errors import ConfigError
from tljax.models import Backbone
from tljax.transfer import boundary, freeze
from tljax.transfer.floor import floor

# Products that a device computes while it could have been sent one byte of activations: some 100 GFLOP/s and 2 GB/s
# between memory and cores; some 100 TFLOP/s and 10 GB/s between host and GPU or TPU.
PRODUCTS_PER_BYTE = {"cpu": 50.0}
PRODUCTS_PER_BYTE_ELSEWHERE = 10_000.0
SHARE_OF_MEMORY, SHARE_OF_DISK = 0.4, 0.5  # of what is free, that a cache may take unasked


@dataclasses.dataclass(frozen=True)
class Decision:
    """Where activations are kept ("memory", "disk", "off"), and the reason in one line."""

    mode: str
    why: str


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked of a cache.

    Attributes:
      names: of the stages at whose lower end activations would be kept.
      nbytes: of all of them, for all examples.
      products: FLOPs below the lowest of the stages, of one example, and `each`: bytes of one example there.
      passes: how many times the frozen part would be run on the training examples without a cache.
      views: how many times it is with one.
      augmented: whether the training examples are drawn anew in each epoch.
    """

    names: tuple[str, ...]
    nbytes: int
    products: float
    each: float
    passes: int
    views: int
    augmented: bool


def decide(c: CacheConfig, load: Load, folder: Path) -> Decision:
    """Chooses by the settings, the load and the room there is.

    Raises:
      ConfigError: a place was asked for that has no room, or a cache of examples that are drawn anew.
    """
    asked, size = c.mode, shown(load.nbytes)
    at = " and ".join(load.names)
    if asked == "off":
        return Decision("off", "cache: off, as asked")
    if load.augmented and not c.views:
        if asked != "auto":
            raise ConfigError("--config.cache.mode", f"{asked!r} with random crops or flips",
                              "auto, off, or --config.cache.views=V: train on V views of each image")  # fmt: skip
        return Decision("off", "cache: off, because examples are drawn anew in every epoch (of images "
                               "--config.cache.views=V keeps V views of each)")  # fmt: skip
    if asked == "auto":
        if load.passes <= load.views:
            return Decision("off", f"cache: off, because the frozen part is run on the examples {load.passes} x anyway")
        least = PRODUCTS_PER_BYTE.get(jax.default_backend(), PRODUCTS_PER_BYTE_ELSEWHERE)
        if load.products < least * load.each:
            found = f"{load.products / max(load.each, 1):.0f} products a byte"
            return Decision("off", f"cache: off, because what is frozen below {load.names[0]} is sooner computed than "
                                   f"read ({found})")  # fmt: skip
    rooms = {"disk": room_on_disk(folder, c.limit_gb), "memory": room_in_memory()}
    saves = f"instead of {load.passes} passes through what is frozen, {load.views}"
    for place in ("disk", "memory") if asked == "auto" else (asked,):
        if load.nbytes <= rooms[place]:
            where = f"on disk ({folder})" if place == "disk" else "in memory"
            return Decision(place, f"cache: activations at {at}, {size} {where}: {saves}")
    if asked == "auto":
        found = f"{shown(rooms['disk'])} on disk, {shown(rooms['memory'])} in memory"
        return Decision("off", f"cache: off, because activations at {at} take {size} and there is room for {found}")
    fix = "a larger --config.cache.limit_gb, or --config.cache.mode=auto" if asked == "disk" else "mode=disk or auto"
    raise ConfigError("--config.cache.mode", f"{asked!r}, and room for {shown(rooms[asked])}", f"{size} for {at}", fix)


def products(backbone: Backbone, stage: int, tokens: int) -> float:
    """FLOPs of the products in stages 0 to `stage` for an example of so many tokens (transfer/floor.py)."""
    return float(sum(_forward(backbone, tokens)[:stage]))


@functools.lru_cache(maxsize=8)
def _forward(backbone: Backbone, tokens: int) -> tuple[float, ...]:
    batch = boundary.inputs(backbone, tokens)
    rows = next(iter(batch.values())).shape[0]
    least = floor(backbone, freeze.plan(backbone, "full"), batch)
    return tuple(work.forward / rows for work in least.stages.values())


def worthwhile(backbone: Backbone, stages: Sequence[int], dtype: str, examples: tuple[int, int]) -> list[int]:
    """Those of `stages` at which an example is sooner read than computed; `examples`: as the first of `load_of`."""
    least = PRODUCTS_PER_BYTE.get(jax.default_backend(), PRODUCTS_PER_BYTE_ELSEWHERE)
    loads = {stage: load_of(backbone, [stage], dtype, [examples], 0, 1, False) for stage in stages}
    return [stage for stage, load in loads.items() if load.products >= least * load.each]


def default_folder(c: CacheConfig) -> Path:
    """Where activations go on disk."""
    return (Path(c.folder).absolute() if c.folder else home()) / "activations"


def home() -> Path:
    """Where what can be made again is kept between runs."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("TLJAX_CACHE") or os.path.join(caches, "tljax")).absolute()


def room_on_disk(folder: Path, limit_gb: float) -> int:
    """Bytes that may be written below a folder; 0 where that is not allowed."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(there, os.W_OK):
        return 0
    return min(int(limit_gb * 1e9), int(SHARE_OF_DISK * shutil.disk_usage(there).free))


def room_in_memory() -> int:
    """Bytes of the host's memory that may be taken; a share of all of it where the system does not say what is free."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return int(SHARE_OF_MEMORY * free)


def shown(size: float) -> str:
    """Bytes for people.

    >>> shown(254_000_000)
    '254 MB'
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:,.0f} {unit}" if size >= 100 * factor else f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.0f} kB"


def load_of(backbone: Backbone, stages: Sequence[int], dtype: str, examples: Sequence[tuple[int, int]], passes: int,
            views: int, augmented: bool) -> Load:  # fmt: skip
    """The load of keeping the activations at `stages`.

    Args:
      examples: (number of examples, of tokens) of each split; first that of training, which is kept `views` times.
    """
    wanted = {stage: boundary.layout(backbone, stage, dtype) for stage in stages}
    times = [views, *[1] * (len(examples) - 1)]
    nbytes = sum(n * leaf.nbytes(*split) for n, split in zip(times, examples, strict=True)
                 for leaves in wanted.values() for leaf in leaves)  # fmt: skip
    lowest, (count, tokens) = min(stages), examples[0]
    each = sum(leaf.nbytes(count, tokens) for leaf in wanted[lowest]) / count
    work = products(backbone, lowest, max(round(tokens / count), 1))
    names = tuple(backbone.stage_names[stage] for stage in sorted(stages))
    return Load(names, nbytes, work, each, passes, views, augmented)
