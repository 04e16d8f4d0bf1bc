"""Strategies side by side: one table, the Pareto front, one sentence of advice, and a picture of score against time."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tljax.evaluate import columns, page, plots
from tljax.evaluate.metrics import interval, shown

WORTH_IT = 0.9  # of the best strategy's time: what takes more is not taken for its speed


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: a strategy with one seed.

    Attributes:
      score: accuracy on `split`, which no choice was made by. `validation`: accuracy on validation data of the epoch
        that was kept; None where there was none.
      examples: of `split`. `held_out`: of validation.
      seconds: of training, the shared pass through the frozen stages not counted.
      trainable: parameters. `peak_bytes`: of the device, in a step. `work`: FLOPs of the compiled step over the floor.
    """

    strategy: str
    seed: int
    score: float
    validation: float | None
    split: str
    examples: int
    seconds: float
    trainable: int
    peak_bytes: int | None
    work: float | None
    held_out: int = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """A strategy over its seeds."""

    strategy: str
    runs: tuple[Run, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(run.score for run in self.runs)

    @property
    def score(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def validations(self) -> tuple[float, ...]:
        return tuple(run.validation for run in self.runs if run.validation is not None)

    @property
    def seconds(self) -> float:
        return statistics.fmean(run.seconds for run in self.runs)


@dataclasses.dataclass(frozen=True)
class Shared:
    """What the runs had in common.

    Attributes:
      seconds: of the passes through frozen stages.
      saved: seconds that the runs would have taken besides, had each made its own pass.
      stages: at whose lower end activations are kept.
    """

    seconds: float = 0.0
    saved: float = 0.0
    stages: tuple[str, ...] = ()


def rows(runs: Sequence[Run]) -> list[Row]:
    """A row for each strategy, in the order of the first runs."""
    names = dict.fromkeys(run.strategy for run in runs)
    return [Row(name, tuple(run for run in runs if run.strategy == name)) for name in names]


def front(table: Sequence[Row]) -> set[str]:
    """The strategies that no other beats in both mean score and mean time (the Pareto front)."""
    return {
        row.strategy
        for row in table
        if not any(
            (other.score >= row.score and other.seconds < row.seconds)
            or (other.score > row.score and other.seconds <= row.seconds)
            for other in table
        )
    }


def advice(table: Sequence[Row]) -> str:
    """One sentence: the fastest strategy that the best one is not clearly better than, and why; the best one, where
    none of them takes a tenth less time.

    Not clearly better: their ranges over seeds overlap; with one seed, the 95 % intervals that the number of examples
    leaves (Wilson 1927). The choice goes by validation scores where there are any, so that the test scores beside it
    flatter nobody.
    """
    if not table:
        return ""
    held_out = all(len(row.validations) == len(row.runs) for row in table)  # else scores of two kinds would be compared

    def chosen(row: Row) -> tuple[float, ...]:
        return row.validations if held_out else row.scores

    def reach(row: Row) -> tuple[float, float]:
        if len(row.runs) > 1:
            return min(chosen(row)), max(chosen(row))
        run = row.runs[0]
        return interval(chosen(row)[0], run.held_out or run.examples if held_out else run.examples)

    best = max(table, key=lambda row: statistics.fmean(chosen(row)))
    within = [row for row in table if reach(row)[1] >= reach(best)[0]]
    pick = min(within, key=lambda row: row.seconds)
    if pick.seconds > WORTH_IT * best.seconds:
        pick = best
    by = "validation" if held_out else best.runs[0].split
    n = len(pick.runs)
    noise = f"the noise of {n} seeds" if n > 1 else "what the number of examples can tell apart"
    mean = statistics.fmean(chosen(pick))
    if pick is best:
        below, level = ([row.strategy for row in table if row.seconds < best.seconds and (row in within) == near]
                        for near in (False, True))  # fmt: skip
        reasons = [f"{_are(below)} faster and clearly below"] if below else []
        reasons += [f"{_are(level)} hardly faster"] if level else []
        why = "; ".join(reasons) or "nothing here is faster"
        return f"Take {pick.strategy}: the best {by} score, {mean:.3f}, and {why}."
    top = statistics.fmean(chosen(best))
    return (f"Take {pick.strategy}: its {by} score, {mean:.3f}, is within {noise} of the best ({best.strategy}, "
            f"{top:.3f}), at {_times(best.seconds / max(pick.seconds, 1e-9))} less time.")  # fmt: skip


def _are(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'are' if len(names) > 1 else 'is'}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 9.5 else f"{ratio:.1f} times"


def cells(row: Row) -> dict[str, str]:
    """What the table says of a row: heading -> text."""
    low, high, first = min(row.scores), max(row.scores), row.runs[0]
    spread = f" [{low:.3f}…{high:.3f}]" if len(row.runs) > 1 else ""
    found = {first.split: f"{row.score:.3f}{spread}"}
    if row.validations:
        found["validation"] = shown(statistics.fmean(row.validations))
    peaks = [run.peak_bytes for run in row.runs if run.peak_bytes is not None]
    works = [run.work for run in row.runs if run.work is not None]
    return found | {
        "seeds": str(len(row.runs)),
        "trainable": f"{first.trainable:,}",
        "seconds": f"{row.seconds:.0f}" if row.seconds >= 10 else f"{row.seconds:.1f}",
        "peak MB": f"{max(peaks) / 1e6:,.0f}" if peaks else "–",
        "FLOPs ÷ floor": f"{max(works):.2f}" if works else "–",
    }


def _columns(table: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The headings, and the cells of each row under them; – where it has none."""
    said = [cells(row) for row in table]
    heads = max((list(cell) for cell in said), key=len)
    return heads, [[cell.get(head, "–") for head in heads] for cell in said]


def render(table: Sequence[Row], shared: Shared) -> str:
    """The table as text; * marks the Pareto front."""
    if not table:
        return "no run is finished yet"
    on_front, (heads, said) = front(table), _columns(table)
    lines = [["* " * (row.strategy in on_front) + row.strategy, *cell] for row, cell in zip(table, said, strict=True)]
    text = columns.aligned(["strategy", *heads], lines)
    return "\n".join([*text, "", "* no other is both better and faster", *notes(table, shared)])


def notes(table: Sequence[Row], shared: Shared) -> list[str]:
    """What goes under the table."""
    found = []
    if shared.stages:
        found.append(f"frozen stages: one pass of {shared.seconds:.1f} s for {' and '.join(shared.stages)}, shared by "
                     f"the runs; had each made its own, {shared.saved:.0f} s more")  # fmt: skip
    return [*found, advice(table)]


def picture(table: Sequence[Row]) -> bytes:
    """A PNG of score against time: a dot for each strategy, its range over seeds, and the Pareto front as a line."""
    from matplotlib import ticker

    figure, axes = plots.new_figure(6.4, 4.2)
    on_front = front(table)
    for row in table:
        colour = plots.ACCENT if row.strategy in on_front else plots.BODY
        low, high = row.score - min(row.scores), max(row.scores) - row.score
        axes.errorbar(_at(row), row.score, [[low], [high]], fmt="o", color=colour, markersize=6, capsize=3)
    line = sorted((_at(row), row.score) for row in table if row.strategy in on_front)
    axes.plot(
        *zip(*line, strict=True), color=plots.ACCENT, linewidth=1, alpha=0.5, label="no other is better and faster"
    )
    if max(map(_at, table)) > 4 * min(map(_at, table)):  # in a narrower span no round number may lie
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(0.18)
    axes.set_xlabel("seconds of training (mean over seeds)")
    axes.set_ylabel(f"{table[0].runs[0].split} accuracy")
    axes.grid(color="#e0e0e0", linewidth=0.6, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 1.0))  # above: no dot is there
    plots.name_dots(figure, axes, [(row.strategy, _at(row), row.score) for row in table])
    return plots.png(figure)


def _at(row: Row) -> float:
    return max(row.seconds, 0.01)  # on a logarithmic axis there is no 0


def web_page(title: str, table: Sequence[Row], shared: Shared, facts: Mapping[str, Any]) -> str:
    """The comparison as one HTML file that works offline."""
    (heads, said), on_front = _columns(table), front(table)
    header = [("strategy", False), *((head, True) for head in heads), ("front", False)]
    body = [(row.strategy, [*(page.cell(text, True) for text in cell),
                            page.cell("yes" if row.strategy in on_front else "")])
            for row, cell in zip(table, said, strict=True)]  # fmt: skip
    return page.page(
        title,
        page.Markup(f"<h1>{page.text(title)}</h1>"),
        page.paragraph(advice(table)),
        page.section("Score against time", page.figure(picture(table), "score against time", "dots: mean over seeds; "
                     "bars: smallest to largest")),
        page.section("Strategies", page.table("front: no other is both better and faster", header, body),
                     page.bullets(notes(table, shared)[:-1])),
        page.section("How it was measured", page.facts([(k, str(v)) for k, v in facts.items()])),
    )  # fmt: skip
