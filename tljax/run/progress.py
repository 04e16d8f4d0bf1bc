"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

import contextlib
import sys
import time
from collections.abc import Iterator

from tljax import mesh

LINE_EVERY_S = 30.0  # in a log file


_last = [time.monotonic()]


def made() -> None:
    """Notes that there is progress."""
    _last[0] = time.monotonic()


def since() -> float:
    """Seconds since there was progress."""
    return time.monotonic() - _last[0]


class Bar:
    """What, how far, how fast, how long still."""

    def __init__(self, title: str, total: int, done: int = 0):
        from tqdm import tqdm  # late: 0.1 s

        self.title, self.total, self.done = title, total, done
        self.last = self.start = time.monotonic()
        self.first = done
        self.text = ""
        self.terminal = sys.stderr.isatty()
        self.silent = not mesh.lead()
        shape = "{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} [{elapsed}, {remaining} left, {rate_fmt}{postfix}]"
        self.bar = tqdm(total=total, initial=done, desc=title, unit="ex", leave=True, dynamic_ncols=True,
                        disable=not self.terminal or self.silent, bar_format=shape)  # fmt: skip

    def update(self, examples: int) -> None:
        made()
        self.done += examples
        self.bar.update(examples)
        now = time.monotonic()
        if not self.terminal and not self.silent and (now - self.last > LINE_EVERY_S or self.done >= self.total):
            rate = (self.done - self.first) / max(now - self.start, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            print(f"{self.title}: {self.done:,} of {self.total:,} examples, {rate:,.0f}/s, {left:,.0f} s left"
                  f"{', ' if self.text else ''}{self.text}", file=sys.stderr, flush=True)  # fmt: skip
            self.last = now

    def show(self, text: str) -> None:
        self.text = text
        self.bar.set_postfix_str(text)


@contextlib.contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    made = Bar(title, total, done)
    try:
        yield made
    finally:
        made.bar.close()
