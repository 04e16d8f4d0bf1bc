"""Checkpoints side by side by their transferability scores: the order, the table, which to begin with."""

import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tljax.errors import printable

# score -> (heading, decimals); higher is better in all of them; the order goes by the first one
HEADINGS = {
    "logme": ("LogME", 4),
    "h_score": ("H-score", 2),
    "transrate": ("TransRate", 3),
    "nearest_neighbours": ("5-NN", 3),
    "ridge_probe": ("ridge", 3),
    "leep": ("LEEP", 3),
    "nce": ("NCE", 3),
}
BY = "logme"
NAME = 28  # characters of a checkpoint's name in a table
WIDTH = 140  # of a table, at most


@dataclasses.dataclass(frozen=True)
class Features:
    """The vectors of one stage: how wide, and their scores; one that there cannot be is left out."""

    stage: str
    width: int
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A checkpoint.

    Attributes:
      stages: from bottom to top; the last one is what the head reads. None where there is an `error`.
      seconds: of the pass.
      error: why it has no scores.
    """

    ref: str
    stages: tuple[Features, ...] = ()
    seconds: float = 0.0
    error: str = ""

    @property
    def top(self) -> Features:
        return self.stages[-1]


def order(entries: Sequence[Entry]) -> list[Entry]:
    """By LogME of what the head reads, highest first (You et al. 2021); what has no scores comes last, as it came."""
    return sorted(entries, key=lambda entry: -entry.top.scores[BY] if entry.stages else float("inf"))


def mean_ranks(rows: Sequence[Features]) -> tuple[list[float], int]:
    """The mean of each row's ranks by the scores that all rows have, 1 the best; and how many scores those are.

    Equal ones share the mean of their ranks.
    """
    shared = [name for name in HEADINGS if all(name in row.scores for row in rows)]

    def rank(name: str, row: Features) -> float:
        own, all_of = row.scores[name], [other.scores[name] for other in rows]
        return sum(other > own for other in all_of) + (sum(other == own for other in all_of) + 1) / 2

    return [sum(rank(name, row) for name in shared) / len(shared) for row in rows], len(shared)


def short(refs: Sequence[str]) -> dict[str, str]:
    """ref -> its last part, or all of it where that does not tell it from another; at most its end.

    >>> short(["a/bert", "b/bert", "c/vit/"])
    {'a/bert': 'a/bert', 'b/bert': 'b/bert', 'c/vit/': 'vit'}
    """
    last = {ref: ref.rstrip("/").rpartition("/")[2] for ref in refs}
    named = {ref: printable(name if list(last.values()).count(name) == 1 else ref, 1000) for ref, name in last.items()}
    return {ref: name if len(name) <= NAME else f"…{name[1 - NAME :]}" for ref, name in named.items()}


def render(entries: Sequence[Entry]) -> str:
    """The table of checkpoints, one of stages for each that has several, and the advice."""
    ordered = order(entries)
    scored, names = [entry for entry in ordered if entry.stages], short([entry.ref for entry in entries])
    tops = [entry.top for entry in scored]
    seconds = [f"{entry.seconds:.1f}" for entry in scored]
    parts = [_table("checkpoint", [names[entry.ref] for entry in scored], tops, {"pass s": seconds})] if scored else []
    parts += [_unscored(names[entry.ref], entry.error) for entry in ordered if not entry.stages]
    for entry in scored:
        if len(entry.stages) > 1:
            rows = _by(entry.stages)
            parts += ["", f"stages of {names[entry.ref]}",
                      _table("stage", [row.stage for row in rows], rows, {})]  # fmt: skip
    return "\n".join([*parts, "", advice(entries)])


def advice(entries: Sequence[Entry]) -> str:
    """One sentence: which checkpoint to begin with, and whether the other scores say the same."""
    scored, names = [entry for entry in order(entries) if entry.stages], short([entry.ref for entry in entries])
    if not scored:
        return "None of them can be scored."
    first, *rest = scored
    said = f"{first.top.scores[BY]:.4f}"
    if not rest:
        sentence = f"{names[first.ref]} alone can be scored: LogME {said}"
    else:
        ranks, count = mean_ranks([entry.top for entry in scored])
        best = [names[entry.ref] for entry, rank in zip(scored, ranks, strict=True) if rank == min(ranks)]
        mean = f"mean rank over {count} scores"
        agrees = f"and by the {mean}" if names[first.ref] in best else f"but {' and '.join(best)} by the {mean}"
        sentence = (f"Begin with {names[first.ref]}: it is first by LogME ({said}; {names[rest[0].ref]} has "
                    f"{rest[0].top.scores[BY]:.4f}), {agrees}")  # fmt: skip
    if (stage := _by(first.stages)[0]) is not first.top:
        sentence += f"; of its stages {stage.stage} has the highest, {stage.scores[BY]:.4f}"
    return f"{sentence}."


def as_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each checkpoint, in order, what the table says of it; `stages` highest first, where there are several."""
    scored = [entry for entry in order(entries) if entry.stages]
    ranks = mean_ranks([entry.top for entry in scored])[0] if scored else []
    found: list[dict[str, Any]] = []
    for number, (entry, mean) in enumerate(zip(scored, ranks, strict=True), 1):
        row = {"model": entry.ref, "rank": number, "mean_rank": mean, **_plain(entry.top), "seconds": entry.seconds}
        if len(entry.stages) > 1:
            stages = _by(entry.stages)
            row["stages"] = [{**_plain(stage), "mean_rank": of}
                             for stage, of in zip(stages, mean_ranks(stages)[0], strict=True)]  # fmt: skip
        found.append(row)
    return found + [{"model": entry.ref, "error": entry.error} for entry in order(entries) if not entry.stages]


def _plain(row: Features) -> dict[str, Any]:
    return {"stage": row.stage, "width": row.width, "scores": {name: row.scores.get(name) for name in HEADINGS}}


def _by(stages: Sequence[Features]) -> list[Features]:
    return sorted(stages, key=lambda row: -row.scores[BY])


def _table(title: str, names: Sequence[str], rows: Sequence[Features], more: Mapping[str, Sequence[str]]) -> str:
    """`more`: heading -> the cells of a further column."""
    from rich import box, console, text
    from rich import table as rich_table

    ranks, _ = mean_ranks(rows)
    held = [name for name in HEADINGS if title == "checkpoint" or all(name in row.scores for row in rows)]
    made = rich_table.Table(title, box=box.SIMPLE, pad_edge=False)
    for heading in ("width", *(HEADINGS[name][0] for name in held), "mean rank", *more):
        made.add_column(heading, justify="right", no_wrap=True)
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        figures = [f"{row.scores[s]:.{HEADINGS[s][1]}f}" if s in row.scores else "–" for s in held]
        made.add_row(text.Text(name), f"{row.width:,}", *figures, f"{ranks[i]:.1f}",
                     *(cells[i] for cells in more.values()))  # fmt: skip
    lines = io.StringIO()
    console.Console(file=lines, width=WIDTH, color_system=None, force_terminal=False).print(made)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines() if line.strip())


def _unscored(name: str, error: str) -> str:
    """A checkpoint's row where there is an error in place of its scores."""
    head = f" {name}  "  # rich begins its lines with a space
    return textwrap.fill(error.splitlines()[0], WIDTH, initial_indent=head, subsequent_indent="    ",
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip
