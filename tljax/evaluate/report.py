"""report.html: what was trained, how good it is, where it errs, and all that is needed to doubt it."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax.errors import WriteError, printable
from tljax.evaluate import metrics, page, plots
from tljax.evaluate.metrics import ClassScore, Scores, shown

MOST_CLASSES = 20  # rows of the per-class table before the rest is folded away
HEADER = (("class", False), ("precision", True), ("recall", True), ("F1", True), ("examples", True))


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An example that the model got wrong."""

    where: str  # "test.csv, row 7"
    shown: str  # the text, or the image's path
    true: str
    predicted: str
    probability: float  # of the predicted class
    picture: bytes = b""  # a small PNG or JPEG of the image, or none


@dataclasses.dataclass(frozen=True)
class Report:
    """All that a report says. Texts are plain: escaping is done here."""

    title: str
    dataset: str  # the source as in the config
    model: str  # reference and revision of the checkpoint
    strategy: str  # "last_k, k = 2"
    scores: Any  # metrics.Scores, or of evaluate/answers.py
    split: str = "test"
    metric: str = "accuracy"  # the headline, of the scores' summary
    freeze_table: str = ""
    verdict: str = ""  # one sentence: did the transfer pay?
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)  # "device": "8 × cpu", "time": "4 min"
    history: Sequence[Mapping[str, Any]] = ()  # lines of metrics.jsonl: plots.learning_curve says which keys
    mistakes: Sequence[Mistake] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()  # "resumed from an older checkpoint", "3 of 4,500 test texts are in train"


def confident_mistakes(
    labels: np.ndarray, probs: np.ndarray, classes: Sequence[str], inputs: Sequence[object],
    where: Sequence[str] | None = None, most: int = 20,
) -> list[Mistake]:  # fmt: skip
    """The wrong predictions with the highest probability, the surest first; of equals the earlier example.

    Args:
      labels: int (N,). probs: float (N, C). classes: C names.
      inputs: N texts or image paths. where: N places such as "test.csv, row 7"; without: "example 6", from 0.
    """
    labels, probs = np.asarray(labels), np.asarray(probs)
    predicted, sure = probs.argmax(axis=1), probs.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-sure[wrong], kind="stable")][:most]
    return [
        Mistake(where[i] if where is not None else f"example {i}", str(inputs[i]), classes[labels[i]],
                classes[predicted[i]], float(sure[i]))
        for i in map(int, order)
    ]  # fmt: skip


def write(path: Path | str, report: Report) -> None:
    """Writes the report as one file, wholly or not at all.

    Raises:
      WriteError: the place cannot be written.
    """
    path, made = Path(path), ""
    document = render(report).encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            made = file.name
            file.write(document)
        os.chmod(made, 0o644)  # a temporary file is for its owner only; a report is to be looked at
        os.replace(made, path)
    except OSError as error:
        if made:
            Path(made).unlink(missing_ok=True)
        raise WriteError(str(path), f"cannot be written ({error.strerror})",
                         fix="free some space or choose another --workdir") from error  # fmt: skip


def render(report: Report) -> str:
    """The report as an HTML document."""
    scores = report.scores
    parts = [
        page.Markup(f"<header><h1>{page.text(report.title)}</h1></header>"),
        _warnings(report.warnings),
        _headline(report),
        page.section("Run", page.facts([
            ("dataset", report.dataset), ("checkpoint", report.model), ("strategy", report.strategy),
            *report.facts.items(),
        ]), page.folded("What trains and what is frozen", page.lines(report.freeze_table))
            if report.freeze_table else page.Markup("")),
        _curves(report),
        *((_confusion(scores), _per_class(scores), _mistakes(report.mistakes, scores))
          if isinstance(scores, Scores) else ()),
        _origin(report),
    ]  # fmt: skip
    return page.page(report.title, *parts)


def _warnings(warnings: Sequence[str]) -> page.Markup:
    if not warnings:
        return page.Markup("")
    return page.Markup(f"<aside role='note' aria-label='Warnings'><h2>Warnings</h2>{page.bullets(warnings)}</aside>")


def _headline(report: Report) -> page.Markup:
    scores, values = report.scores, report.scores.summary()
    names = [name for name in values if name != "n"]
    order = sorted(names, key=lambda name: name != report.metric)
    cards = "".join(
        f"<div{' class=first' if name == report.metric else ''}><dt>{page.text(metrics.NAMES.get(name, name))}</dt>"
        f"<dd>{shown(values[name])}</dd></div>"
        for name in order
    )
    count = f"On the {scores.n:,} answers of {report.split}."
    if isinstance(scores, Scores):
        count = f"On the {scores.n:,} examples of {report.split}, {len(scores.per_class)} classes."
        if scores.accuracy is not None:
            low, high = metrics.interval(scores.accuracy, scores.n)
            count += f" 95 % interval of the accuracy for this number of examples: {low:.3f} to {high:.3f} (Wilson);"
            count += " other seeds of the training vary besides."
        unseen = [row.name for row in scores.per_class if not row.support]
        if unseen and scores.n:
            count += f" {len(unseen)} classes have no example: their recall is undefined."
    verdict = page.paragraph(report.verdict) if report.verdict else ""
    return page.section("Score", page.Markup(f"<dl class='scores'>{cards}</dl>{verdict}"),
                        page.paragraph(count, "quiet"))  # fmt: skip


def _curves(report: Report) -> page.Markup:
    steps, values = plots.series(report.history, "train", "loss")
    if not steps:
        return page.Markup("")
    alt = f"Training loss from {values[0]:.3g} at step {steps[0]} to {values[-1]:.3g} at step {steps[-1]}"
    steps, values = plots.series(report.history, "evaluation", report.metric)
    if steps:
        alt += f"; validation {report.metric} from {values[0]:.3f} to {values[-1]:.3f}"
    picture = plots.learning_curve(report.history, report.metric)
    return page.section("Learning curve", page.figure(picture, alt, f"{alt}."))


def _confusion(scores: Scores) -> page.Markup:
    if scores.accuracy is None:
        return page.Markup("")
    pairs = metrics.confused_pairs(scores, 10)
    alt = f"Confusion matrix over {len(scores.per_class)} classes"
    alt += f"; the most frequent confusion is {pairs[0][0]} taken for {pairs[0][1]}" if pairs else "; no confusions"
    caption = "Colour: share of the true class, on a square-root scale. Grey: no examples."
    rows = [(true, (page.cell(predicted), page.cell(f"{count:,} of {of:,}", number=True)))
            for true, predicted, count, of in pairs]  # fmt: skip
    listed = page.table("Most frequent confusions", (("true", False), ("taken for", False), ("how often", True)), rows)
    return page.section("Confusions", page.figure(plots.confusion(scores), alt, caption),
                        listed if pairs else page.Markup(""))  # fmt: skip


def _per_class(scores: Scores) -> page.Markup:
    def rows(classes: Sequence[ClassScore]) -> list[tuple[str, list[page.Markup]]]:
        return [
            (row.name, [page.bar(shown(score), score) for score in (row.precision, row.recall, row.f1)]
             + [page.cell(f"{row.support:,}", number=True)])
            for row in classes
        ]  # fmt: skip

    whole = page.table(f"All {len(scores.per_class)} classes", HEADER, rows(scores.per_class))
    if len(scores.per_class) <= MOST_CLASSES:
        return page.section("Classes", whole)
    worst = page.table(f"The {MOST_CLASSES} with the lowest F1", HEADER, rows(metrics.worst(scores, MOST_CLASSES)))
    return page.section("Classes", worst, page.folded(f"All {len(scores.per_class)} classes", whole))


def _mistakes(mistakes: Sequence[Mistake], scores: Scores) -> page.Markup:
    if not mistakes:
        right = "Every example was classified correctly." if scores.accuracy == 1 else "None were recorded."
        return page.section("Most confident mistakes", page.paragraph(right))
    pictures = any(m.picture for m in mistakes)
    header = (("where", False), *((("image", False),) if pictures else ()), ("input", False), ("true", False),
              ("predicted", False), ("probability", True))  # fmt: skip
    rows = []
    for m in mistakes:
        shot = page.Markup(f"<td class='picture'>{page.picture(m.picture, printable(m.shown))}</td>")
        rows.append((m.where, [*([shot] if pictures else []), page.cell(m.shown), page.cell(m.true),
                               page.cell(m.predicted), page.cell(f"{m.probability:.3f}", number=True)]))  # fmt: skip
    caption = f"Wrong predictions that the model was surest of: {len(rows)}"
    note = "These are the first to look at: wrong labels in the data gather here too."
    return page.section("Most confident mistakes", page.paragraph(note, "quiet"), page.table(caption, header, rows))


def _origin(report: Report) -> page.Markup:
    config = json.dumps(report.config, indent=2, ensure_ascii=True, default=str)
    versions = page.facts(sorted(report.versions.items()))
    return page.section("How it was made", page.folded("Configuration", page.lines(config)),
                        page.folded("Versions", versions))  # fmt: skip
