"""How long the runs that are left may take, by those that are finished."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Asked(NamedTuple):
    """A run: `shots` examples a class (0: all), a strategy, a seed."""

    shots: int
    name: str
    seed: int

    @property
    def place(self) -> str:
        """The folder below the workdir, which is its name in verdict.json too."""
        return f"shots_{self.shots}/{self.name}/seed_{self.seed}"


def left(asked: Sequence[Asked], taken: Mapping[Asked, float], size: Callable[[int], int]) -> str:
    """How long the runs that are left may take, by the seconds of those that are finished; "" while none is.

    A run takes as long as those of its kind. Where none of them is finished, as one of the nearest number of examples,
    of its own strategy if there is one; it may well take longer, and that is said.
    """
    known: dict[tuple[int, str], list[float]] = {}
    for run, seconds in taken.items():
        known.setdefault((run.shots, run.name), []).append(seconds)
    if not known:
        return ""
    total, guessed = 0.0, False
    for run in asked:
        if run in taken:
            continue

        def far(kind: tuple[int, str], run: Asked = run) -> tuple[bool, float]:
            return kind[1] != run.name, abs(math.log(size(kind[0]) / size(run.shots)))

        kind = min(known, key=far)
        guessed |= kind != (run.shots, run.name)
        total += statistics.fmean(known[kind])
    return f"about {clock(total)}{' or more' * guessed} left"


def clock(seconds: float) -> str:
    """A time for people.

    >>> clock(59), clock(61), clock(5400)
    ('59 s', '1 min', '1.5 h')
    """
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min" if seconds < 3600 else (
        f"{seconds / 3600:.1f} h")  # fmt: skip
