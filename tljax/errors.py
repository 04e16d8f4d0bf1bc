"""One error family: a sentence that names the place, the fault and the remedy, and an exit code."""

from collections.abc import Iterable


def printable(text: object, limit: int = 200) -> str:
    """`text` on one line: control characters and lone surrogates escaped, cut at `limit` characters.

    >>> printable("a\\tb\\x00")
    'a\\\\tb\\\\x00'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return shown if len(shown) <= limit else f"{shown[:limit]}… ({len(shown)} characters)"


class TljaxError(Exception):
    """An error that a user can act on.

    `where` is the file, row, parameter or setting; `found` what is there; `expected` what should be;
    `fix` what to do. Long lists of problems go into `details`, one a line, so that nothing has to be
    repaired one run at a time.
    """

    exit_code = 1

    def __init__(self, where: str, found: str, expected: str = "", fix: str = "", details: Iterable[str] = ()):
        self.where, self.found, self.expected, self.fix = where, found, expected, fix
        self.details = tuple(details)
        sentence = f"{where}: {found}"
        sentence += f"; expected {expected}" if expected else ""
        sentence += f"; {fix}" if fix else ""
        super().__init__("\n".join([f"{sentence}.", *(f"  {printable(line)}" for line in self.details)]))


class ConfigError(TljaxError):
    """A setting that is unknown, of the wrong type, out of range, or at odds with another (exit 64)."""

    exit_code = 64


class DataError(TljaxError):
    """Input data that cannot be read or does not fit the task (exit 65)."""

    exit_code = 65


class WeightsError(TljaxError):
    """Weights or a checkpoint that are damaged, missing, or of another shape (exit 66)."""

    exit_code = 66


class LostError(TljaxError):
    """A process, host or coordinator that is not there, or no longer (exit 69)."""

    exit_code = 69


class DivergedError(TljaxError):
    """Numbers that are no longer finite, or a device out of memory (exit 70)."""

    exit_code = 70


class WriteError(TljaxError):
    """A place that cannot be written: read-only, full, or in use (exit 74)."""

    exit_code = 74


class StoppedError(TljaxError):
    """Stopped by a signal, with everything saved: the same command goes on (exit 75)."""

    exit_code = 75
