"""What a compiled step sends between devices: read off the program that the compiler made."""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_PLACE = re.compile(r'op_name="([^"]*)"')
_BODY = re.compile(r"body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|to_apply|condition|branch_computations|true_computation|false_computation)="
                     r"(?:\{([^}]*)\}|%?([\w.-]+))")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Moved:
    """The collectives of one kind in a step.

    Attributes:
      count: how many run.
      nbytes: of the arrays that a device has before (reduce-scatter) or after (all others); how often each byte
        crosses a link is the matter of the algorithm.
      largest: bytes of each array, falling.
    """

    count: int
    nbytes: int
    largest: tuple[int, ...]

    def joined(self, other: "Moved") -> "Moved":
        """Those of two programs."""
        largest = tuple(sorted(self.largest + other.largest, reverse=True))
        return Moved(self.count + other.count, self.nbytes + other.nbytes, largest)


def of(hlo: str) -> dict[str, Moved]:
    """Collectives by kind, of the text of a compiled program (`jax.stages.Compiled.as_text`)."""
    bodies, entry = _computations(hlo)
    found: dict[str, list[int]] = {}
    # TPUs take one in pieces, between other work: several lines then speak of it. A channel alone is not enough to tell
    # by, because what the compiler copies, such as equal layers, keeps its channel; the place in the source is another.
    seen = set[tuple[str, str]]()
    for kind, size, times, channel in _walk(entry, bodies, 1):
        if channel not in seen:
            found.setdefault(kind, []).extend([size] * times)
        seen |= {channel} if channel[0] else set()
    return {kind: Moved(len(sizes), sum(sizes), tuple(sorted(sizes, reverse=True)))
            for kind, sizes in sorted(found.items())}  # fmt: skip


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of each computation, and the name of the one that is entered."""
    bodies: dict[str, list[str]] = {}
    name, entry = "", ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            name = match.group(1)
            bodies[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _walk(name: str, bodies: dict[str, list[str]], times: int) -> Iterator[tuple[str, int, int, tuple[str, str]]]:
    """(kind, bytes, how often, (channel, place in the source)) of what a computation and those that it calls send."""
    for line in bodies.get(name, ()):
        if match := _OPERATION.search(line):
            channel, place = (found.group(1) if (found := what.search(line)) else "" for what in (_CHANNEL, _PLACE))
            yield match.group(2), _bytes(match, line), times, (channel, place)
            continue  # what it applies adds two numbers
        if body := _BODY.search(line):
            trips = _TRIPS.search(line)
            yield from _walk(body.group(1), bodies, times * int(trips.group(1) if trips else 1))
        for several, one in _CALLED.findall(line):
            for called in (several or one).split(","):
                yield from _walk(called.strip().lstrip("%"), bodies, times)


def _bytes(operation: re.Match[str], line: str) -> int:
    result, kind, start = operation.groups()
    if kind == "reduce-scatter":  # its operands, which are larger
        result = line[line.index(f"{kind}{start or ''}(") :].partition("),")[0]
    shapes = [math.prod(map(int, filter(None, sizes.split(",")))) * _bits(dtype) // 8
              for dtype, sizes in _SHAPE.findall(result)]  # fmt: skip
    if start and kind in ("all-gather", "collective-permute") and len(shapes) > 1:
        shapes = shapes[len(shapes) // 2 :] if kind == "all-gather" else shapes[:1]  # (what went in, what comes out)
    return sum(shapes)


def _bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits.group()) if digits else 8
