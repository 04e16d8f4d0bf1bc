"""`tljax adapt`: a finished classifier, adapted to unlabelled examples of a target, as a workdir of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax import trees
from tljax.config import Config, OptimConfig
from tljax.data import batching, pipeline, sources
from tljax.errors import ConfigError, DataError, DivergedError, printable
from tljax.models import Backbone
from tljax.run import inputs, progress, remade
from tljax.train import objectives, optim, state, step
from tljax.transfer import testtime
from tljax.weights.load import Model

METHODS = ("adabn", "tent")
TENT_RATE = 1e-3  # of Adam, as its authors have it for ImageNet-C


def adapt(path: Path, target: str, output: Path, method: str, say: Callable[[str], None] = print) -> None:
    """Writes the adapted model: output/model and a config.json, so that `tljax eval` and `predict` take it.

    Args:
      path: a finished workdir.
      target: a source, as `--config.data.train`; labels are not needed and not read.
      output: a new folder.

    Raises:
      ConfigError: an unknown method, a network that it has nothing to do on, a run whose adapters cannot be merged, or
        the output exists.
      DataError, WriteError.
    """
    if method not in METHODS:
        raise ConfigError("--method", f"{method!r}", f"one of {', '.join(METHODS)}")
    remade.check_new(output)
    model, c = remade.opened(path)
    records = sources.read_records(target, c.data, c.task, labelled=False)
    examples = inputs.make_examples(records, model, c, None)
    moved = METHOD[method](c, model, examples)
    flat = trees.flatten(model.params) | moved
    change = {path: float(np.abs(np.asarray(flat[path]) - np.asarray(leaf)).mean())
              for path, leaf in trees.flatten(model.params).items() if path in moved}  # fmt: skip
    note = f"Adapted by {method} to {len(records):,} unlabelled examples of `{printable(target)}`."
    remade.write(output, path, model, c, flat, {"adapted": {"method": method, "target": target}}, note)
    say(f"{method} on {len(records):,} examples: {len(moved)} arrays moved by {np.mean(list(change.values())):.3g} on "
        f"average; model in {output}/model")  # fmt: skip


def _batches(c: Config, examples: Any) -> Iterator[dict[str, Any]]:
    """Full batches, in a random order; what is left of the last one is left out."""
    size = min(c.train.eval_batch_size, len(examples))
    edges = batching.buckets(examples.lengths, c.data.max_buckets)
    plans = [p for p in batching.plan(c.seed, 0, len(examples), examples.lengths, size, edges)
             if len(p.indices) == size]  # fmt: skip
    if not plans:
        raise DataError("--target", f"{len(examples)} examples", "at least one batch")
    return pipeline.batches(examples, plans, size, threads=c.data.threads)


def _adabn(c: Config, model: Model, examples: Any) -> trees.Flat:
    return _statistics(c, model.backbone, model.params, examples)


def _statistics(c: Config, network: Backbone, params: trees.Tree, examples: Any) -> trees.Flat:
    with progress.bar("statistics of the target", len(examples)) as bar:
        batches = (batch["inputs"] for batch in _batches(c, examples))
        return testtime.statistics(network, params, batches, bar.update)


def _tent(c: Config, model: Model, examples: Any) -> trees.Flat:
    """One pass over the target, from the source's weights (the episode of the paper without resets)."""
    plan = testtime.tent_plan(model.backbone)
    settings = OptimConfig(learning_rate=TENT_RATE, schedule="constant", warmup_fraction=0.0, weight_decay=0.0,
                           clip_norm=0.0)  # fmt: skip
    rate = optim.schedule(settings, 1)
    optimizer = optim.make(settings, plan, rate)
    taken = step.make_train_step(model.backbone, plan, optimizer, rate, objective=objectives.Certainty())
    now = state.create(model.params, plan, optimizer, jax.random.key(c.seed))
    with progress.bar("tent", len(examples)) as bar:
        for batch in _batches(c, examples):
            rows = batch.pop("rows")
            now, metrics = taken(now, jax.device_put(batch))
            if not bool(metrics["finite"]):
                raise DivergedError("tent", "the entropy or its gradient is not finite", fix="use --method=adabn")
            bar.update(len(rows))
    if not now.batch_stats:
        return now.trainable
    # A pass moves the running statistics part of the way alone; each of its batches was normalised by its own.
    params = trees.unflatten(trees.flatten(model.params) | now.trainable)
    return now.trainable | _statistics(c, model.backbone, params, examples)


METHOD = {"adabn": _adabn, "tent": _tent}
