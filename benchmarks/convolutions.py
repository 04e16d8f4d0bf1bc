"""Convolutions and max pooling on CPUs: as sums over the places of a kernel (models/places.py), and as XLA has them.

    python benchmarks/convolutions.py [--rounds=5]

Forward, and forward with the gradients to kernel and picture, for shapes of ResNets; the best of several rounds in
which the two take turns. Appends a line for each shape to benchmarks/results/convolutions.jsonl.
"""

import argparse
import datetime
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.models import places
from tljax.run.workdir import versions

RESULTS = Path(__file__).parent / "results" / "convolutions.jsonl"
# (rows, side, channels, size of the kernel, features, stride); no features: a pool
SHAPES = [
    (32, 56, 64, 3, 64, 1), (32, 28, 128, 3, 128, 1), (32, 14, 256, 3, 256, 1), (32, 7, 512, 3, 512, 1),
    (32, 28, 128, 3, 256, 2), (32, 14, 256, 1, 512, 2), (32, 14, 256, 1, 512, 1), (32, 2, 512, 3, 512, 1),
    (32, 1, 512, 3, 512, 1), (32, 112, 64, 3, 0, 2),
]  # fmt: skip


def pair(shape: tuple[int, ...]) -> tuple[tuple[Any, ...], dict[str, Callable[..., Any]]]:
    """(the arguments, what is compared)."""
    rows, side, channels, size, features, stride = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, side, side, channels)), jnp.float32)
    if not features:
        return (x,), {name: functools.partial(pool, size=size, stride=stride)
                      for name, pool in (("places", places.pooled), ("xla", places.own_pool))}  # fmt: skip
    kernel = jnp.asarray(rng.normal(size=(size, size, channels, features)), jnp.float32)
    padding = ((size // 2, size // 2),) * 2
    return (x, kernel), {name: functools.partial(product, stride=stride, padding=padding)
                         for name, product in (("places", places.summed), ("xla", places.own))}  # fmt: skip


def measured(shape: tuple[int, ...], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each, forward and with the gradients."""
    arguments, compared = pair(shape)
    programs = {}
    for name, function in compared.items():
        squares = functools.partial(lambda own, *a: jnp.square(own(*a)).sum(), function)
        taken = jax.jit(jax.grad(squares, argnums=tuple(range(len(arguments)))))
        programs |= {(name, "forward"): jax.jit(function), (name, "both"): taken}
    best = dict.fromkeys(programs, float("inf"))
    for program in programs.values():
        jax.block_until_ready(program(*arguments))
    for _ in range(rounds):
        for key, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            best[key] = min(best[key], time.perf_counter() - began)
    return {name: {way: round(best[name, way], 5) for way in ("forward", "both")} for name in compared}


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--rounds", type=int, default=5)
    given = flags.parse_args()
    for shape in SHAPES:
        found = measured(shape, given.rounds)
        ratios = {way: round(found["xla"][way] / found["places"][way], 2) for way in ("forward", "both")}
        names = ("rows", "side", "channels", "kernel", "features", "stride")
        line = {**dict(zip(names, shape, strict=True)), "seconds": found, "xla_over_places": ratios}
        print(json.dumps(line), flush=True)
        whole = {**line, "device": jax.devices()[0].device_kind, "versions": versions(),
                 "date": datetime.date.today().isoformat(),
                 "command": f"python benchmarks/convolutions.py --rounds={given.rounds}"}  # fmt: skip
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(whole) + "\n")


if __name__ == "__main__":
    main()
