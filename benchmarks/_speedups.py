"""The picture of what freezing saves: python benchmarks/_speedups.py results/freeze_strategies.jsonl draws it again."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax.evaluate import plots

BAR = 0.85  # of the speed-up expected
TICKS = [1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24]


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Measured speed-up over full fine-tuning against the rule of thumb; hollow: against the floor, for want of one."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((record["family"], record["device"]) for record in records))
    figure = Figure(figsize=(6.5 * len(panels), 6), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        own = [r for r in records if (r["family"], r["device"]) == panel and "speedup" in r and drawn(r)]
        points = [(r["theoretical_speedup"] or r["floor_speedup"], r["speedup"]) for r in own]
        for record, (x, y) in zip(own, points, strict=True):
            axes.plot(x, y, "o", color=plots.ACCENT if record["cached"] else plots.BODY,
                      fillstyle="full" if record["theoretical_speedup"] else "none")  # fmt: skip
        ends = np.array([0.9, 1.6 * max((max(point) for point in points), default=1.0)])
        axes.plot(ends, ends, color="grey", linewidth=1, label="as expected")
        axes.plot(ends, BAR * ends, "--", color="grey", linewidth=1, label=f"{BAR:.0%} of it")
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="expected speed-up over full fine-tuning",
                 ylabel="measured", title=f"{panel[0]} on {panel[1]}: whole (blue), cached (orange)")  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(ticker.FixedLocator(TICKS))
            axis.set_major_formatter(ticker.FormatStrFormatter("%g×"))
            axis.set_minor_locator(ticker.NullLocator())
        axes.legend(loc="upper left")
        plots.name_dots(figure, axes, [(r["strategy"], *point) for r, point in zip(own, points, strict=True)])
    path.write_bytes(plots.png(figure))


def drawn(record: dict[str, Any]) -> bool:
    """Not the measure itself, nor cached feature extraction, where nothing is left to compute."""
    return record["strategy"] != "full" and not (record["cached"] and record["strategy"] == "feature_extraction")


if __name__ == "__main__":
    results = Path(sys.argv[1])
    draw([json.loads(line) for line in results.read_text().splitlines()], results.with_suffix(".png"))
