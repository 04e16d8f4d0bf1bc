"""Curves of transfer as PNG pictures: score against labels with and without pretrained weights, and between weights."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tljax.errors import DataError, printable
from tljax.evaluate import plots

NARROWEST = 0.055  # of the axis's width: numbers under it that are nearer to each other than this would touch


def few_shot(points: Sequence[tuple[int, Sequence[float], Sequence[float]]], score: str = "accuracy") -> bytes:
    """A PNG of the mean score against examples a class, with a band from the smallest to the largest over seeds.

    Args:
      points: (examples a class, scores of the pretrained model by seed, scores from scratch by seed), in any order;
        of one of the two kinds there may be none.
      score: what the scores are.

    Raises:
      DataError: no points or scores, a number of examples below 1, or one twice.
    """
    from matplotlib import ticker

    sizes = sorted(size for size, _, _ in points)
    if not sizes or sizes[0] < 1 or len(set(sizes)) < len(sizes):
        raise DataError("few-shot curve", f"points at {sizes} examples a class", "some, each once, at least 1")
    if not any(len(own) for _, *pair in points for own in pair):
        raise DataError("few-shot curve", f"no score at any of {len(sizes)} points", "one or more")
    figure, axes = plots.new_figure(6.4, 4.2)
    with_weights, without = ([(size, list(pair[i])) for size, *pair in points if len(pair[i])] for i in (0, 1))
    kinds = ("pretrained", plots.BODY, "o", with_weights), ("from scratch", plots.ACCENT, "s", without)
    for name, colour, marker, rows in kinds:
        if not rows:
            continue
        rows.sort()
        x = [size for size, _ in rows]
        axes.plot(x, [statistics.fmean(scores) for _, scores in rows], color=colour, marker=marker, markersize=5,
                  linewidth=1.6, label=name, zorder=3)  # fmt: skip
        axes.fill_between(x, [min(scores) for _, scores in rows], [max(scores) for _, scores in rows],
                          color=colour, alpha=0.18, linewidth=0)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
    axes.xaxis.set_major_locator(ticker.FixedLocator(_apart(sizes)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(f"examples a class ({_counted([len(scores) for *_, rows in kinds for _, scores in rows])})")
    axes.set_ylabel(score, parse_math=False)
    _dressed(axes)
    return plots.png(figure)


def interpolation(curves: Mapping[str, Sequence[tuple[float, float]]], score: str = "accuracy") -> bytes:
    """A PNG of the score of the weights between two models (transfer/blend.py), against alpha; marked are the ends, as
    squares, and the best of each curve, as a ring.

    Args:
      curves: data set -> (alpha, score) in any order; the target, and a shifted set beside it where there is one.
      score: what the scores are.

    Raises:
      DataError: not one or two data sets, one without points, or an alpha outside 0 to 1.
    """
    bad = [name for name, curve in curves.items() if not curve or not all(0 <= alpha <= 1 for alpha, _ in curve)]
    if bad or not 1 <= len(curves) <= 2:
        found = f"{len(curves)} data sets, {len(bad)} of them without points or with alphas outside 0 to 1"
        raise DataError("interpolation", found, "one or two curves over alphas from 0 to 1", details=bad)
    figure, axes = plots.new_figure(6.4, 4.2)
    ends: dict[int, list[tuple[float, str]]] = {0: [], 1: []}
    best: list[tuple[float, float, str]] = []  # score, alpha, colour
    for (name, given), colour in zip(curves.items(), (plots.BODY, plots.ACCENT), strict=False):
        curve = sorted(given)
        axes.plot(*zip(*curve, strict=True), color=colour, marker=".", markersize=5, linewidth=1.6,
                  label=printable(name, 40), zorder=3)  # fmt: skip
        for alpha in ends:
            ends[alpha] += [(value, colour) for at, value in curve if at == alpha]
        at, value = max(curve, key=lambda point: point[1])
        best.append((value, at, colour))
    for alpha, marks in ends.items():
        for row, (value, colour) in enumerate(sorted(marks, reverse=True)):
            axes.plot(alpha, value, "s", color=colour, markersize=7, zorder=4)
            across = (9, "left") if alpha else (-9, "right")
            up = (0, "center") if len(marks) == 1 else (-1, "top") if row else (1, "bottom")
            _number(axes, alpha, value, colour, across, up)
    for row, (value, at, colour) in enumerate(sorted(best, reverse=True)):
        axes.plot(at, value, "o", markersize=11, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.8)
        if at not in ends:
            _number(axes, at, value, colour, (0, "center"), (-9, "top") if row else (9, "bottom"))
    axes.set_xlim(-0.13, 1.13)  # room for the numbers beside the ends
    axes.margins(y=0.15)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0\npretrained", "0.2", "0.4", "0.6", "0.8", "1\nfine-tuned"])
    axes.set_xlabel("alpha, the share of the fine-tuned weights (ring: the best)")
    axes.set_ylabel(score, parse_math=False)
    _dressed(axes)
    return plots.png(figure)


def _number(axes: Any, at: float, value: float, colour: str, across: tuple[int, str], up: tuple[int, str]) -> None:
    """A score in the colour of its curve; across, up: points away from the mark, and what of the text lies there."""
    axes.annotate(f"{value:.3f}", (at, value), (across[0], up[0]), textcoords="offset points", fontsize=9, color=colour,
                  horizontalalignment=across[1], verticalalignment=up[1])  # fmt: skip


def _apart(sizes: Sequence[int]) -> list[int]:
    """The measured sizes that can be written under a logarithmic axis: both ends, and between them what has room."""
    width = math.log(sizes[-1] / sizes[0]) or 1.0
    kept = [sizes[0]]
    for size in sizes[1:-1]:
        if min(math.log(size / kept[-1]), math.log(sizes[-1] / size)) >= NARROWEST * width:
            kept.append(size)
    return kept if len(sizes) == 1 else [*kept, sizes[-1]]


def _counted(seeds: Sequence[int]) -> str:
    if max(seeds, default=1) == 1:
        return "one seed"
    least = "" if min(seeds) == max(seeds) else f"{min(seeds)} to "
    return f"band: smallest to largest of {least}{max(seeds)} seeds"


def _dressed(axes: Any) -> None:
    """Grid, no frame, and the legend above, where no curve is; names side by side if they are short enough."""
    axes.grid(color="#e0e0e0", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    names = axes.get_legend_handles_labels()[1]
    legend = axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2,
                         ncols=len(names) if len("".join(names)) < 60 else 1)  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
