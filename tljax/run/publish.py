"""What a finished run leaves for people and for other programs: the exported model, the report, the pictures."""

import dataclasses
from typing import Any

import jax
import numpy as np

from tljax import trees
from tljax.config import Config, to_dict
from tljax.data.records import Records
from tljax.errors import WriteError
from tljax.evaluate import card, metrics, plots, report
from tljax.models import paired
from tljax.models.adapted import AdaptedBackbone
from tljax.run import adapting, tasks
from tljax.run.inputs import Tables
from tljax.run.workdir import Workdir, versions
from tljax.weights import adapter_folder, export
from tljax.weights.load import Model


@dataclasses.dataclass(frozen=True)
class Finished:
    """A trained model and all that is known of it; `probs` (N, K), what it answered, belong to `split`."""

    config: Config
    place: Workdir
    model: Model
    params: trees.Tree
    tables: Tables
    strategy: str
    split: str
    scores: tasks.Scores
    probs: np.ndarray
    freeze_table: str
    warnings: tuple[str, ...]
    seconds: float


def publish(done: Finished) -> None:
    """Writes model/, confusion.png and report.html into the workdir.

    Raises:
      WriteError: one of them cannot be written.
    """
    export_model(done)
    if isinstance(done.scores, metrics.Scores):
        picture = done.place.path / "confusion.png"
        try:
            picture.write_bytes(plots.confusion(done.scores))
        except OSError as error:
            raise WriteError(str(picture), f"cannot be written ({error.strerror})") from None
    report.write(done.place.path / "report.html", _report(done))


def export_model(done: Finished) -> None:
    """The model as a Hugging Face folder: weights, config, tokenizer or preprocessor, card. Adapters stand in a folder
    of their own besides, or alone where they cannot be merged into the weights."""
    model, config, flat = done.model, done.config, paired.plain(trees.flatten(done.params))
    if isinstance(model.backbone, AdaptedBackbone):
        adapter_folder.write(done.place.adapter, model.backbone, flat, base=model.ref, digest=model.digest,
                             labels=done.tables.classes)  # fmt: skip
    plain = adapting.merged(model, flat)
    if plain is None:
        return
    opens = "" if model.pooling == "mean" or config.task == "events" else export.classifier(model.config)
    head, make = ("classifier", card.model_card) if done.tables.classes else ("language", card.pretrained_card)
    text = make(title=done.place.path.name, task=config.task, base_model=model.ref, revision=model.revision,
                           dataset=config.data.train, classes=done.tables.classes, scores=done.scores,
                           strategy=done.strategy, split=done.split, pooling=model.pooling,
                           transformers_class=opens, version=versions().get("tljax", ""))  # fmt: skip
    export.export_hf(
        done.place.model,
        params=plain,
        config=model.config,
        labels=done.tables.classes,
        copy=export.companions(model.folder),
        pooling=model.pooling,
        card=text,
        resize=config.data.resize,
        head=head,
        files=done.tables.files,
    )


def _report(done: Finished) -> report.Report:
    records, mistakes = done.tables.splits()[done.split], []
    if isinstance(records, Records) and done.tables.classes:
        labels = np.asarray([done.tables.classes.index(name) for name in records.labels or ()], np.int32)
        wrong = np.flatnonzero(labels != done.probs.argmax(1))
        where = {int(i): records.where(int(i)) for i in wrong}
        mistakes = report.confident_mistakes(labels, done.probs, done.tables.classes,
                                             [_text(x) for x in records.inputs],
                                             [where.get(i, "") for i in range(len(labels))])  # fmt: skip
    device = jax.devices()[0]
    return report.Report(
        title=done.place.path.name,
        dataset=done.config.data.train,
        model=done.model.ref + (f" at {done.model.revision}" if done.model.revision else ""),
        strategy=done.strategy,
        scores=done.scores,
        split=done.split,
        metric=done.config.train.best_metric,
        freeze_table=done.freeze_table,
        facts={"device": f"{jax.device_count()} × {device.device_kind}", "time": f"{done.seconds:.0f} s",
               "examples": ", ".join(f"{n} {len(r):,}" for n, r in done.tables.splits().items())},
        history=done.place.history(),
        mistakes=mistakes,
        config=to_dict(done.config),
        versions=versions(),
        warnings=done.warnings,
    )  # fmt: skip


def _text(value: Any) -> str:
    return value if isinstance(value, str) else value.name
