"""`tljax rank`: checkpoints by how well their frozen features tell the classes of some data apart, without training."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tljax.config import Config
from tljax.data import batching, sources
from tljax.data.records import Records
from tljax.errors import ConfigError, DataError, DivergedError, TljaxError, WeightsError, printable
from tljax.evaluate import transferability
from tljax.evaluate.predict import outputs
from tljax.evaluate.transferability import Entry, Features
from tljax.run import devices, inputs, progress
from tljax.transfer import features, scores
from tljax.weights.load import Model, load_pretrained
from tljax.weights.outline import outline

OF_FEATURES = {
    "logme": scores.logme,
    "h_score": scores.h_score,
    "transrate": scores.transrate,
    "nearest_neighbours": scores.nearest_neighbours,
    "ridge_probe": scores.ridge_probe,
}
OF_HEAD = {"leep": scores.leep, "nce": scores.nce}  # by the classes that the checkpoint itself tells apart
INPUTS = {"pixel_values": "image", "input_ids": "text"}  # of a network -> the task that it is for


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What `rank` found: `heading` says of which examples, and by what the checkpoints are in order."""

    heading: str
    entries: tuple[Entry, ...]


def rank(refs: Sequence[str], config: Config, task: str = "", stages: bool = False, examples: int = 2000,
         say: Callable[[str], None] = print) -> Ranking:  # fmt: skip
    """Scores each checkpoint by one pass over the same examples; one that cannot be scored has its error instead.

    Args:
      refs: checkpoints, as `--config.model.ref`.
      config: data, seed of the draw, devices, and the size, pooling and precision of the networks. The examples are
        those of `data.train`.
      task: "text" or "image"; "": as the first checkpoint that can be opened takes them.
      stages: whether every stage below the head is scored, and not only what the head reads.
      examples: at most so many are drawn, as many of each class as there are.

    Raises:
      ConfigError: a checkpoint that stands twice; fewer examples than classes.
      DataError: see `sources.read_records`; one class only.
      TljaxError: of the kind of the first one, where no checkpoint can be scored.
    """
    if twice := [ref for ref in dict.fromkeys(refs) if refs.count(ref) > 1]:
        raise ConfigError("--models", f"{twice[0]!r} stands twice", "each once")
    if not refs:
        raise ConfigError("--models", "empty", "checkpoints joined by commas")
    config = dataclasses.replace(config, task=task or task_of(refs))
    records = sources.read_records(config.data.train, config.data, config.task)
    for row in records.bad:
        say(f"WARNING: left out, as --config.data.on_bad=skip says: {row['where']}: {row['reason']}")
    classes, total = sources.classes_of(records), len(records)
    if len(classes) < 2:
        raise DataError(records.name, f"one class only ({classes[0]!r})", "at least two", "look at --label_column")
    if examples < len(classes):
        raise ConfigError("--examples", f"{examples} for {len(classes)} classes", f"at least {len(classes)}")
    records = records.take(balanced(np.asarray(sources.label_ids(records, classes)), examples, config.seed))
    entries, failed = [], []
    for ref in refs:
        try:
            entries.append(_scored(ref, config, records, classes, stages))
        except TljaxError as error:
            failed.append(error)
            entries.append(Entry(ref, error=str(error)))
    if len(failed) == len(refs):
        raise _joined(failed)
    heading = (
        f"{printable(records.name)}: {len(classes)} classes, {len(records):,} of {total:,} examples\nin the "
        f"order of LogME; in all scores higher is better; mean rank: by those that all rows have, 1 is best"
    )
    return Ranking(heading, tuple(entries))


def balanced(labels_n: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rising indices of at most `count` examples, drawn in turn from every class that has any left."""
    order = batching.permutation(seed, 0, len(labels_n), purpose=4)
    turn, place = np.empty_like(order), np.empty_like(order)
    place[order] = np.arange(len(order))
    for label in np.unique(labels_n):
        own = order[labels_n[order] == label]
        turn[own] = np.arange(len(own))
    return np.sort(np.lexsort((place, turn))[:count])


def task_of(refs: Sequence[str]) -> str:
    """ "text" or "image", as the first checkpoint that can be opened takes them; an error where none can."""
    failed: list[TljaxError] = []
    for ref in refs:
        try:
            names = outline(ref, 2)[1].example()
        except TljaxError as error:
            failed.append(error)
            continue
        return next((task for name, task in INPUTS.items() if name in names), "text")
    raise _joined(failed)


def _joined(failed: Sequence[TljaxError]) -> TljaxError:
    """One error for all, of the kind of the first; itself where it is alone."""
    if len(failed) == 1:
        return failed[0]
    return type(failed[0])("--models", f"none of {len(failed)} can be scored",
                           details=[str(error).splitlines()[0] for error in failed])  # fmt: skip


def _scored(ref: str, config: Config, records: Records, classes: tuple[str, ...], stages: bool) -> Entry:
    # Without labels the checkpoint's own head stays, which LEEP and NCE read; below it nothing depends on labels.
    model = opened(ref, config)
    network, head = model.backbone, len(model.backbone.stages) - 1
    wanted = tuple(range(head)) if stages else (head - 1,)
    wanted += (head,) if _has_head(model) else ()
    found_N, seconds = vectors(model, wanted, config, records, classes)
    labels_n = np.asarray(sources.label_ids(records, classes))
    found = features.split(found_N, features.widths(network, wanted))
    source = found.pop(network.stage_names[head], None)
    own = {} if source is None else {name: score(source, labels_n, len(classes)) for name, score in OF_HEAD.items()}
    rows = []
    for stage, own_nD in found.items():
        known = {name: score(own_nD, labels_n, len(classes)) for name, score in OF_FEATURES.items()}
        rows.append(Features(stage, own_nD.shape[1], known | (own if stage == network.stage_names[head - 1] else {})))
    return Entry(ref, tuple(rows), seconds)


def _has_head(model: Model) -> bool:
    """Whether the checkpoint brought a head that tells classes apart."""
    head = model.backbone.stages[-1]
    return len(model.labels) > 1 and not any(head.owns(path) for path in model.reinitialised)


def opened(ref: str, config: Config) -> Model:
    """A checkpoint with its own head; WeightsError where it is not for the task."""
    own = config.model
    model = load_pretrained(ref, revision=own.revision, pooling=own.pooling, seed=config.seed,
                            dtype=jnp.dtype(own.dtype), image_size=own.image_size or None)  # fmt: skip
    taken = model.backbone.example()
    if not any(INPUTS.get(name) == config.task for name in taken):
        other = next((task for name, task in INPUTS.items() if name in taken), "another kind of")
        raise WeightsError(ref, f"a network for {other} input", f"one for {config.task}", "look at --task")
    return model


def vectors(model: Model, wanted: tuple[int, ...], config: Config, records: Records,
            classes: tuple[str, ...] | None) -> tuple[np.ndarray, float]:  # fmt: skip
    """The vectors of these stages side by side, in the order of the records; and the seconds that took. `classes`: of
    labelled records."""
    examples, layout = inputs.make_examples(records, model, config, classes), devices.reading(config)
    began = time.monotonic()
    step = features.make_step(model.backbone, wanted)
    try:
        with progress.bar(transferability.short([model.ref])[model.ref], len(records)) as bar:
            found_N = outputs(step, layout.put(model.params), examples, config.train.eval_batch_size,
                              config.data.threads, bar.update, layout)  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fix = "lower --config.train.eval_batch_size"
        raise DivergedError(model.ref, f"device memory is used up ({printable(error)})", fix=fix) from error
    seconds = time.monotonic() - began
    if bad := np.flatnonzero(~np.isfinite(found_N).all(1)).tolist():
        raise DivergedError(model.ref, f"features of {len(bad)} examples are not finite",
                            details=[examples.where(i) for i in bad[:20]])  # fmt: skip
    return found_N, seconds
