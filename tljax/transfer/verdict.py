"""Whether the transfer paid: paired scores with and without pretrained weights -> a verdict with its evidence.

k: seeds, n: test examples, d: the mean difference, pretrained less from scratch.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from tljax.errors import DataError

PAYS, NONE, NEGATIVE = "transfer pays", "no difference found", "negative transfer"
SAID = {PAYS: "transfer pays", NONE: "no difference is found", NEGATIVE: "transfer is negative"}  # within a sentence
RANK = {NEGATIVE: -1, NONE: 0, PAYS: 1}
# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2), and of the
# normal distribution, which is taken for more.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
         2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
         2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
Z_975 = 1.96
ROUNDING = 1e-12  # what two floats of one share may be apart


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the pretrained weights bought.

    Attributes:
      words: `PAYS`, `NONE` or `NEGATIVE`.
      difference: d. `low`, `high`: its 95 % interval; infinite where nothing is known about it.
      seeds: k. `n`: test examples; 0 where their share is left out.
      transferred, control: the mean scores.
      by_seeds, by_examples: half widths of the interval's two parts; None where one is left out.
      unit: of the scores.
    """

    words: str
    difference: float
    low: float
    high: float
    seeds: int
    n: int
    transferred: float
    control: float
    by_seeds: float | None
    by_examples: float | None
    unit: str = "accuracy"

    def sentence(self) -> str:
        """The verdict with its evidence, and in a second sentence what the interval leaves out."""
        unit = "" if self.unit == "accuracy" else f"{self.unit} "
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        evidence = f"{seeds}, {self.n:,} test examples" if self.n else seeds
        within = f"95 % interval {_signless(self.low)} to {_signless(self.high)}, {evidence}"
        left_out = ""
        if self.by_seeds is None and self.by_examples is None:
            within = f"{seeds} and no count of test examples, so no interval"
        elif self.by_seeds is None:
            left_out = " It is the verdict of one seed: what another would change is not in the interval."
        elif self.by_examples is None:
            left_out = " The interval is over seeds: what other test examples would change is not in it."
        return (f"{self.words}: {unit}{self.transferred:.3f} against {self.control:.3f} from scratch at the same "
                f"budget, {_signed(self.difference)} ({within}).{left_out}")  # fmt: skip

    def advice(self, tried: Collection[str] = ()) -> str:
        """What to try next, the most promising first; empty where nothing needs to change.

        Args:
          tried: keys of `ADVICE` that are not to be named, being tried already or out of the question.

        Raises:
          ValueError: a key that `ADVICE` does not have.
        """
        if unknown := set(tried) - {row.key for row in ADVICE}:
            raise ValueError(f"tried: {sorted(unknown)}, expected some of {sorted({row.key for row in ADVICE})}")
        left = [row.text for row in ADVICE if row.words == self.words and row.key not in tried and row.when(self)]
        return f"To try: {'; '.join(left)}." if left else ""


class Try(NamedTuple):
    """A thing to try after a verdict of these words, where `when` holds."""

    words: str
    key: str
    text: str
    when: Callable[[Verdict], bool] = lambda verdict: True


# A source far from the target hurts (Wang et al. 2019, Characterizing and Avoiding Negative Transfer); higher layers
# are the more specific to the source, and frozen ones cannot adapt (Yosinski et al. 2014); with labels and time enough
# training from scratch catches up (He et al. 2019, Rethinking ImageNet Pre-training).
ADVICE = (
    Try(NEGATIVE, "scratch", "train from scratch, which is the better of the two here"),
    Try(NEGATIVE, "source", "a checkpoint whose training data are nearer to the target"),
    Try(NEGATIVE, "layers", "fewer frozen layers, or none: the upper ones are the most specific to their source"),
    Try(NEGATIVE, "rate", "a larger learning rate for the pretrained layers, so that they move further"),
    Try(NONE, "cheaper", "take the cheaper of the two"),
    Try(NONE, "seeds", "more seeds, to see what another changes", lambda verdict: verdict.seeds == 1),
    Try(NONE, "seeds", "more seeds, which make up most of the interval's width",
        lambda verdict: (verdict.by_seeds or 0) > (verdict.by_examples or 0)),
    Try(NONE, "examples", "more test examples, which make up most of the interval's width",
        lambda verdict: (verdict.by_examples or 0) >= (verdict.by_seeds or 0) and verdict.n > 0),
    Try(NONE, "labels", "fewer labels: where they are scarce, pretrained weights may make the difference"),
    Try(NONE, "source", "a checkpoint whose training data are nearer to the target"),
    Try(PAYS, "seeds", "two more seeds, before anything is built on one", lambda verdict: verdict.seeds == 1),
)  # fmt: skip


def judge(transferred: Sequence[float], control: Sequence[float], n: int, *, unit: str = "accuracy") -> Verdict:
    """Compares a pretrained model with its control from scratch at the same budget, on the same test examples.

    d is the mean of the paired differences. Its 95 % interval has two parts, which are independent and add up as
    sqrt(by_seeds^2 + by_examples^2):

    * by_seeds = t(k - 1) sd / sqrt(k), of the k paired differences (Student 1908); one seed has none.
    * by_examples = 1.96 sqrt((p1 q1 + p2 q2) / n), as if each model had test examples of its own: of the same examples
      two models answer alike more often than not, so this is too wide rather than too narrow. All seeds share the n
      examples, so k does not lessen it. p is (p n + 1) / (n + 2), or a score of 0 or 1 would count as certain however
      few the examples (Agresti & Caffo 2000); over n it is never narrower than with the plain p.

    Args:
      transferred: k scores of the pretrained model by seed, the higher the better.
      control: k scores from scratch: in the same order, of the same seeds and draws of data.
      n: test examples that the scores are shares of; 0 for scores that are no shares (AUC, NDCG): left out.
      unit: what the scores are.

    Raises:
      DataError: scores that are not in pairs, not finite, or no shares where n is given.

    >>> found = judge([0.86, 0.87, 0.86], [0.31, 0.32, 0.31], 4500)
    >>> found.words, round(found.difference, 3), round(found.low, 3), round(found.high, 3)
    ('transfer pays', 0.55, 0.533, 0.567)
    """
    k = len(transferred)
    _check(transferred, control, n, unit)
    differences = [a - b for a, b in zip(transferred, control, strict=True)]
    means = statistics.fmean(transferred), statistics.fmean(control)
    d = statistics.fmean(differences)
    by_seeds = quantile(k - 1) * statistics.stdev(differences) / math.sqrt(k) if k > 1 else None
    by_examples = None
    if n:
        variances = [p * (1 - p) for p in ((mean * n + 1) / (n + 2) for mean in means)]
        by_examples = Z_975 * math.sqrt(sum(variances) / n)
    parts = [part for part in (by_seeds, by_examples) if part is not None]
    half = math.hypot(*parts) if parts else math.inf
    low, high = d - half, d + half
    words = PAYS if low > ROUNDING else NEGATIVE if high < -ROUNDING else NONE
    if n:  # shares differ by no more than 1
        low, high = max(low, -1.0), min(high, 1.0)
    return Verdict(words, d, low, high, k, n, *means, by_seeds, by_examples, unit)


def quantile(df: int) -> float:
    """The 97.5 % quantile of Student's t: exact to 3 decimals up to 30 degrees of freedom, the normal's above."""
    return T_975[df - 1] if df <= len(T_975) else Z_975


def _check(transferred: Sequence[float], control: Sequence[float], n: int, unit: str) -> None:
    if len(transferred) != len(control) or not len(transferred):
        found = f"{len(transferred)} scores of the pretrained model and {len(control)} from scratch"
        raise DataError("verdict", found, "one of each for every seed, at least one")
    if n < 0:
        raise DataError("verdict", f"{n} test examples", "at least 0")
    kinds = {"pretrained": transferred, "from scratch": control}
    if bad := [f"{kind}, seed {i}: {score}" for kind, scores in kinds.items() for i, score in enumerate(scores)
               if not math.isfinite(score) or (n and not 0 <= score <= 1)]:  # fmt: skip
        fix = "for scores that are no shares leave the test examples out (n=0)" if n else ""
        expected = f"{unit} from 0 to 1" if n else "finite numbers"
        raise DataError("verdict", f"{len(bad)} scores out of range", expected, fix, bad)


def curve_sentence(points: Sequence[tuple[int, Verdict]]) -> str:
    """A few-shot curve in words: up to how many examples a class transfer pays, and what is found from where on.

    Where the verdicts do not run in one direction, no limit is claimed: they are told one after the other.

    Args:
      points: (examples a class, verdict), in any order; with none there is nothing to say ("").

    Raises:
      DataError: numbers of examples below 1, or one twice.
    """
    ordered = sorted(points, key=lambda point: point[0])
    sizes = [size for size, _ in ordered]
    if len(set(sizes)) < len(sizes) or (sizes and sizes[0] < 1):
        raise DataError("few-shot curve", f"points at {', '.join(map(str, sizes))} examples a class",
                        "each number once, at least 1")  # fmt: skip
    if not ordered:
        return ""
    if len(ordered) == 1:
        told = f"{SAID[ordered[0][1].words]} at {_examples(sizes)} ({_signed(ordered[0][1].difference)})"
        return f"{told}; no other number was measured. {_seeds(ordered)}"
    runs = [list(run) for _, run in itertools.groupby(ordered, key=lambda point: point[1].words)]
    said = [SAID[run[0][1].words] for run in runs]
    if len(runs) == 1:
        told = f"{said[0]} at each of {len(sizes)} numbers, {sizes[0]:,} to {_examples(sizes[-1:])} ({_ends(ordered)})"
        return f"{told}; beyond them nothing was measured. {_seeds(ordered)}"
    ranks = [RANK[run[0][1].words] for run in runs]
    if sorted(ranks) in (ranks, ranks[::-1]):
        told = f"{said[0]} up to {_examples([runs[0][-1][0]])} ({_ends(runs[0])})"
        rest = [f"from {run[0][0]:,} on {words} ({_ends(run)})" for run, words in zip(runs[1:], said[1:], strict=True)]
        return f"{'; '.join([told, *rest])}. {_seeds(ordered)}"
    told = "; ".join(f"{words} at {_examples([size for size, _ in run])} ({_ends(run)})"
                     for run, words in zip(runs, said, strict=True))  # fmt: skip
    return (f"{told}. The verdicts do not run in one direction, so no limit is claimed: of {len(sizes)} intervals of "
            f"95 % each, one may miss by chance. {_seeds(ordered)}")  # fmt: skip


def _ends(points: Sequence[tuple[int, Verdict]]) -> str:
    """The differences at the two ends of a run: "+0.552 at 1, +0.034 at 10"."""
    ends = dict([points[0], points[-1]])
    return ", ".join(f"{_signed(verdict.difference)} at {size:,}" for size, verdict in ends.items())


def _examples(sizes: Sequence[int]) -> str:
    *first, last = (f"{size:,}" for size in sizes)
    named = f"{', '.join(first)} and {last}" if first else last
    return f"{named} example{'' if named == '1' else 's'} a class"


def _seeds(points: Sequence[tuple[int, Verdict]]) -> str:
    low, high = (pick(verdict.seeds for _, verdict in points) for pick in (min, max))
    counted = f"{low} to {high} seeds" if low < high else "one seed" if high == 1 else f"{high} seeds"
    return f"Measured with {counted} each."


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # + 0.0: no "-0.000"


def _signless(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"
