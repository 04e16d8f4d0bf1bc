"""What a setting is made of: its default, what it means, its unit, and the check that it has to pass; all settings of a
config by name."""

import dataclasses
import difflib
import math
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

Check = Callable[[Any], str]  # the empty string, or what is expected instead


def setting(default: Any, help: str, unit: str = "", check: Check | None = None) -> Any:
    """A dataclass field with its documentation and its check."""
    return dataclasses.field(default=default, metadata={"help": help, "unit": unit, "check": check})


def one_of(*choices: str) -> Check:
    def check(value: Any) -> str:
        if value in choices:
            return ""
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"(did you mean {near[0]!r}?) " if near else ""  # first: of a long list the end is cut off
        return f"{hint}one of {', '.join(choices)}"

    return check


def number(low: float, high: float = math.inf, above: bool = False) -> Check:
    """low <= value <= high, or low < value where `above`; infinities and NaN never pass."""
    span = f"a number {'above' if above else 'of at least'} {low:g}" + (
        "" if high == math.inf else f", at most {high:g}"
    )

    def check(value: Any) -> str:
        fits = abs(value) <= sys.float_info.max and value <= high and (value > low if above else value >= low)
        return "" if fits else span

    return check


def rate_or_unset(value: Any) -> str:
    """A dropout rate, or -1 where the checkpoint's own rates stand."""
    return "" if value == -1 or 0 <= value <= 0.99 else "-1, or a number of at least 0, at most 0.99"


def pairs(value: Any) -> str:
    """(pattern, group) pairs of strings."""
    fits = all(isinstance(v, tuple | list) and len(v) == 2 and all(isinstance(x, str) for x in v) for v in value)
    return "" if fits else "pairs of a pattern and frozen, body or head"


def settings(config: Any, prefix: str = "config.") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """(name on the command line, field, value) of every setting, in order of definition."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value


def _fits(value: Any, hint: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple | list)
    return isinstance(value, hint)


def faults(config: Any) -> Iterator[str]:
    """Each setting that does not pass its check, with what was found and expected."""
    for name, field, value in settings(config):
        if not _fits(value, field.type):
            kind = getattr(field.type, "__name__", field.type)
            yield f"--{name}: found {value!r} ({type(value).__name__}), expected {kind}"
        elif (check := field.metadata["check"]) and (expected := check(value)):
            yield f"--{name}: found {value!r}, expected {expected}"
