"""Scores and training history -> PNG pictures, readable from five classes to hundreds.

C: classes, K: classes that are drawn.
"""

import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax.errors import DataError, printable
from tljax.evaluate.metrics import Scores

MOST_DRAWN = 40  # classes: names below 6 points can no longer be read
MANY_DRAWN = 30  # of more classes than MOST_DRAWN, those with the most frequent confusions
MOST_NUMBERED = 20  # classes: numbers in the cells
DOTS_PER_INCH = 144
# of a name beside its dot: (to the right, points above the dot's height), in the order in which they are tried
PLACES = [(right, up) for up in (4, -11, 16, -23, 28, -35, 40, -47) for right in (True, False)]
BODY, ACCENT = "#2f6db3", "#c2571a"  # blue and orange: told apart with any colour vision


def drawn_classes(confusion: np.ndarray) -> np.ndarray:
    """int (K,): which of the C classes the picture shows, in class order; confusion: int (C, C).

    All of up to 40 classes; of more, the at most 30 that the most frequent confusions are about, or, where nothing
    is confused, the 30 with the most examples.
    """
    if len(confusion) <= MOST_DRAWN:
        return np.arange(len(confusion))
    errors = confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype))
    chosen: dict[int, None] = {}
    for flat in np.argsort(-errors, axis=None, kind="stable"):
        pair = divmod(int(flat), len(errors))
        if not errors[pair] or len(chosen.keys() | set(pair)) > MANY_DRAWN:
            break
        chosen |= dict.fromkeys(pair)
    if not chosen:
        return np.sort(np.argsort(-confusion.sum(axis=1), kind="stable")[:MANY_DRAWN])
    return np.array(sorted(chosen))


def confusion(scores: Scores) -> bytes:
    """A PNG of the confusion matrix: colour is the share of the true class, so that every row sums to 1.

    The colour scale goes by the square root, or a confusion of one in twenty would be invisible beside the diagonal.
    A class without examples has a grey row.
    """
    from matplotlib import colors

    which = drawn_classes(scores.confusion)
    support = scores.confusion.sum(axis=1, keepdims=True)
    share = np.ma.masked_invalid(np.where(support > 0, scores.confusion / np.maximum(support, 1), np.nan))
    share_KK, counts_KK = share[np.ix_(which, which)], scores.confusion[np.ix_(which, which)]
    names = [_short(scores.per_class[i].name) for i in which]

    k = len(which)
    inches = 0.17 * k + 0.11 * max(map(len, names)) if k > MOST_NUMBERED else 0.36 * k + 0.11 * max(map(len, names))
    figure, axes = new_figure(max(4.6, inches + 1.6), max(3.8, inches))
    axes.set_facecolor("#d8d8d8")
    image = axes.pcolormesh(share_KK, cmap="Blues", norm=colors.PowerNorm(0.5, 0, 1),
                            edgecolors="#e6e6e6", linewidth=0.4)  # fmt: skip
    axes.set_aspect("equal")
    axes.invert_yaxis()
    size = 9 if k <= 12 else 8 if k <= MOST_NUMBERED else 7
    axes.set_xticks(np.arange(k) + 0.5, names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(np.arange(k) + 0.5, names, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if k < len(scores.confusion):
        axes.set_title(f"{k} of {len(scores.confusion)} classes: the most confused", fontsize=10)
    if k <= MOST_NUMBERED:
        for i, j in np.argwhere(counts_KK > 0):
            axes.text(j + 0.5, i + 0.5, f"{counts_KK[i, j]}", ha="center", va="center",
                      fontsize=size - 1 - len(f"{counts_KK.max()}") // 4,
                      color="white" if share_KK[i, j] > 0.4 else "#111111")  # fmt: skip
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return png(figure)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. A last line that was cut when the run was killed is left out.

    Raises:
      DataError: another line is no JSON object, with its number.
    """
    history = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            history.append(row)
        elif number < len(lines):
            raise DataError(f"{path}, line {number}", f"no JSON object: {printable(line, 60)}", "one object a line")
    return history


def series(history: Iterable[Mapping[str, Any]], kind: str, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one key in rows of one kind, by step.

    A step that was run again after a resume counts once, as it went last; an undefined value is left out.

    >>> rows = [{"kind": "train", "step": 1, "loss": loss} for loss in (3.0, 2.5)]
    >>> series(rows, "train", "loss"), series(rows, "evaluation", "loss")
    (([1], [2.5]), ([], []))
    """
    found = {int(row["step"]): row.get(key) for row in history if row.get("kind") == kind and "step" in row}
    defined = sorted((step, float(value)) for step, value in found.items() if value is not None)
    return [step for step, _ in defined], [value for _, value in defined]


def learning_curve(history: Sequence[Mapping[str, Any]], score: str = "accuracy") -> bytes:
    """A PNG of the loss in training and validation, and of the validation score, by step.

    Args:
      history: lines of metrics.jsonl: {"kind": "train", "step", "loss"} and
        {"kind": "evaluation", "step", "loss", "accuracy", "macro_f1"}.
      score: what chose the model: accuracy, macro_f1 or loss.
    """
    loss, validation_loss = series(history, "train", "loss"), series(history, "evaluation", "loss")
    scored = series(history, "evaluation", score) if score != "loss" else ([], [])
    panels = _panels(2 if scored[0] else 1)
    left = panels[1][0]
    left.plot(*loss, color=BODY, linewidth=1.4, label="training")
    if validation_loss[0]:
        left.plot(*validation_loss, color=ACCENT, marker="o", markersize=4, linewidth=1.4, label="validation")
        left.legend(frameon=False, fontsize=9)
    left.set_ylabel("loss (nats)")
    left.set_ylim(bottom=0)
    if scored[0]:
        right, steps, values = panels[1][1], *scored
        right.plot(steps, values, color=ACCENT, marker="o", markersize=4, linewidth=1.4)
        best = int(np.argmax(values))
        right.annotate(f"{values[best]:.3f}", (steps[best], values[best]), textcoords="offset points",
                       xytext=(0, -14), ha="right", fontsize=9)  # fmt: skip
        right.set_ylabel(f"validation {score.replace('_', '-')}")
    for axes in panels[1]:
        axes.set_xlabel("optimizer step")
        axes.grid(color="#e0e0e0", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return png(panels[0])


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """One pair of axes of its own: no pyplot, so no state that other code shares, and no window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * count, 3.2), layout="constrained")
    return figure, [figure.add_subplot(1, count, i + 1) for i in range(count)]


def name_dots(figure: Any, axes: Any, dots: Sequence[tuple[str, float, float]]) -> None:
    """Writes the name of each dot (name, x, y) beside it, in the first place where no other name is in the way.

    To be called last: the axes must not move any more.
    """
    from matplotlib import patheffects
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the axes take their place, and names do not move them again
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform([dot[1:] for dot in dots])]
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]  # over a line
    for name, *place in sorted(dots, key=lambda dot: dot[2], reverse=True):
        text = axes.annotate(printable(name, 40), place, (0, 0), textcoords="offset points",
                             fontsize=9, parse_math=False, in_layout=False, path_effects=halo)  # fmt: skip
        for right, up in PLACES:
            text.set(position=(7 if right else -7, up), horizontalalignment="left" if right else "right")
            box = text.get_window_extent(canvas.get_renderer())
            if box.x0 > 0 and box.x1 < figure.bbox.x1 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with warnings.catch_warnings():
        # A class name in a script that the font does not have is drawn as boxes; the tables beside it spell it out.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_figure(buffer, dpi=DOTS_PER_INCH, format="png")
    return buffer.getvalue()


def _short(name: str, limit: int = 24) -> str:
    """A class name on one line, its middle left out where it is long: beginnings and ends tell classes apart."""
    name = printable(name)
    return name if len(name) <= limit else f"{name[: limit - 11]}…{name[-10:]}"
