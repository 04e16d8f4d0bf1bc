"""Which activations a run keeps, and the examples of each phase made of them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from tljax import mesh, trees
from tljax.config import Config
from tljax.data import batching
from tljax.mesh import Layout
from tljax.models import Backbone
from tljax.run import inputs, progress
from tljax.transfer import phases, worth
from tljax.transfer.activations import Activations
from tljax.transfer.cache import Cache, Pass


@dataclasses.dataclass(frozen=True)
class Chosen:
    """At which stages activations are kept (none: nowhere), in what, and why, in one line."""

    cache: Cache
    stages: tuple[int, ...] = ()
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Kept:
    """The activations of a run.

    Attributes:
      starts: for each phase, the stage that batches enter at; 0: the inputs themselves.
      why: what was decided, in one line; "" where nothing is frozen below the lowest stage that trains, or a
        comparison has said it.
    """

    config: Config
    backbone: Backbone
    examples: Mapping[str, inputs.Examples]
    plans: Sequence[phases.FreezePlan]
    starts: tuple[int, ...]
    cache: Cache
    why: str
    stopping: Callable[[], bool]
    layout: Layout

    def of(self, number: int, params: trees.Flat, split: str,
           also: Iterable[int] = ()) -> Activations | inputs.Examples:  # fmt: skip
        """The examples of a split as phase `number` takes them: itself, or the activations where it starts.

        Args:
          params: path -> array as they are now; what they are below the stage is what the activations are of.
          also: other stages, whose activations are kept from the same pass.
        """
        examples, start = self.examples[split], self.starts[number]
        if not start:
            return examples
        drawn = seeds(self.config, split)
        with progress.bar(f"frozen stages, {split}", len(examples) * len(drawn)) as bar:
            made = passing(self.config, self.backbone, params, bar.update, self.stopping, self.layout)(
                self.cache, examples, sorted({start, *also}), drawn)  # fmt: skip
        return made[start]

    def ahead(self, number: int) -> set[int]:
        """Where later phases start, as far as no phase before them trains below."""
        return {later for n, later in enumerate(self.starts)
                if n > number and later and phases.untouched(self.plans, n, number)}  # fmt: skip

    def views(self, number: int) -> tuple[int, ...]:
        """The seeds of the views of each training example that phase `number` goes round; none: drawn anew."""
        return tuple(s for s in seeds(self.config, "train") if s is not None) if self.starts[number] else ()


def plan(config: Config, backbone: Backbone, examples: Mapping[str, inputs.Examples], planned: Sequence[phases.Phase],
         chosen: Chosen | None, stopping: Callable[[], bool], layout: Layout) -> Kept:  # fmt: skip
    """Decides for all phases of a run at once.

    Args:
      chosen: for several runs by their caller; None: as the settings say.
    """
    plans = [phase.plan for phase in planned]
    stages = sorted({p.lowest for p in plans if p.lowest})
    passes = {stage: sum(phase.epochs for phase in planned if phase.plan.lowest == stage) for stage in stages}
    chosen = chosen or choose(config, backbone, examples, passes)
    starts = tuple(p.lowest if p.lowest in chosen.stages else 0 for p in plans)
    return Kept(config, backbone, examples, plans, starts, chosen.cache, chosen.why, stopping, layout)


def choose(config: Config, backbone: Backbone, examples: Mapping[str, inputs.Examples],
           passes: Mapping[int, int]) -> Chosen:  # fmt: skip
    """As the settings say, and for `auto` by what it saves and the room there is.

    Args:
      passes: stage -> how many passes through what lies below would be made without.
    """
    if not passes:
        return Chosen(Cache())
    sizes = [(len(e), 0 if e.lengths is None else int(e.lengths.sum()))
             for e in sorted(examples.values(), key=lambda e: e is not examples["train"])]  # fmt: skip
    views = config.cache.views if augmented(config) else 1
    stages = sorted(passes)
    if config.cache.mode == "auto":  # some pay and some do not: gradual unfreezing ends right above the embeddings
        stages = worth.worthwhile(backbone, stages, stored_dtype(config), sizes[0]) or stages
    load = worth.load_of(backbone, stages, stored_dtype(config), sizes, sum(passes[stage] for stage in stages), views,
                         augmented(config))  # fmt: skip
    folder = worth.default_folder(config.cache)
    decision = worth.decide(config.cache, load, folder)
    mode, why = mesh.agreed([decision.mode, decision.why])  # the room that each host has may differ
    cache = Cache(folder if mode == "disk" else None, int(config.cache.limit_gb * 1e9))
    return Chosen(cache, tuple(stages) if mode != "off" else (), why)


def passing(config: Config, backbone: Backbone, params: trees.Flat, show: Callable[[int], None],
            stopping: Callable[[], bool], layout: Layout) -> Pass:  # fmt: skip
    """A pass through the frozen stages, as the settings say."""
    return Pass(backbone, params, config.train.eval_batch_size, config.data.threads, stored_dtype(config), show,
                stopping, layout)  # fmt: skip


def seeds(config: Config, split: str) -> list[int | None]:
    """Of the views that are kept of a split's examples; [None]: they are not drawn at random."""
    if split != "train" or not augmented(config):
        return [None]
    seed = config.seed if config.data.split_seed < 0 else config.data.split_seed  # the same for all of a comparison
    return [batching.epoch_seed(seed, view) for view in range(config.cache.views)]


def raised(kept: Kept, stage: int, passes: int) -> tuple[Kept, int, str]:
    """What is kept when all below a stage has settled during training: where, the stage that batches enter at, why."""
    chosen = choose(kept.config, kept.backbone, kept.examples, {stage: passes})
    return dataclasses.replace(kept, cache=chosen.cache), stage if chosen.stages else 0, chosen.why


def augmented(config: Config) -> bool:
    """Whether training examples are drawn anew: images cropped or mirrored at random, words hidden, pairs made."""
    if config.objective == "masked" or config.adapt.target:
        return True
    return config.task == "image" and (config.data.flip or config.data.crop_area < 1)


def stored_dtype(config: Config) -> str:
    return "" if config.cache.dtype == "same" else config.cache.dtype
