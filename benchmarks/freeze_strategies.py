"""What freezing saves: FLOPs, step time, memory and compile time of each strategy, whole and from cached activations.

    python benchmarks/freeze_strategies.py --families=bert --strategies=full,last_1,last_2,last_6 --batch=8 --length=128

Random weights, examples and labels, float32 or bfloat16 activations, AdamW; inputs and activations lie on the device.
All strategies of a family are compiled first and then take turns, a step each, because two equal programs that
run one after the other, minutes apart, differ by 1.5 x on a machine that others share. A speed-up is the median over
turns of (full fine-tuning's median step / the strategy's) within one turn; that of the fastest steps of both is what
other work on the machine disturbs least. Beside them stand two expectations: the rule of thumb 3 L / (3 L - 2 k),
cached 3 L / 3 (L - k), for L equal layers with k frozen; and the ratio of the floors, which count each product
(tljax/transfer/floor.py). Temporaries, arguments and outputs are those of loss and gradient; the update works in place.
Epoch 1 of a cached run computes the activations before it trains on them.
"""

import argparse
import dataclasses
import datetime
import functools
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
from _networks import CLASSES, SIZES, batch_of, config_of
from _speedups import draw

from tljax import models, trees
from tljax.config import OptimConfig
from tljax.errors import TljaxError
from tljax.models.adapters import KINDS, Adapter
from tljax.train import cost, optim, state
from tljax.train.step import Batch, TrainStep, make_train_step
from tljax.transfer import adapters, freeze
from tljax.transfer.floor import floor, theoretical
from tljax.transfer.quantise import quantise

RESULTS = Path(__file__).parent / "results" / "freeze_strategies.jsonl"
STRATEGIES = "full,last_1,last_2,last_6,feature_extraction,bitfit,norms,embeddings_frozen"
FAILURES = (jax.errors.JaxRuntimeError, MemoryError, TljaxError, ValueError)  # out of memory is the first
STEPS_PLANNED = 1000
SETTINGS = ("size", "layers", "width", "batch", "length", "pixels", "dtype", "steps", "repeats", "seed")


def expected(family: str, strategy: str, layers: int, cached: bool) -> float | None:
    """The rule of thumb's speed-up; None where it says nothing: unequal layers, no layer frozen whole, nothing left."""
    strategy = strategy.removesuffix("+int8")
    last = strategy.removeprefix("last_")
    top = int(last) if last != strategy else {"full": layers, "feature_extraction": 0}.get(strategy)
    if top is None or family == "resnet" or not (units := theoretical(layers, layers - top, cached)):
        return None
    return theoretical(layers, 0) / units


@dataclasses.dataclass
class Case:
    """One strategy of one family, ready to step; `turns` collects seconds of a step, a list for each turn."""

    record: dict[str, Any]
    step: TrainStep
    now: state.TrainState
    batch: Batch
    trunk: Any = None  # () -> activations
    turns: list[list[float]] = dataclasses.field(default_factory=list)
    trunk_s: list[float] = dataclasses.field(default_factory=list)

    def turn(self, steps: int) -> None:
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            self.now, _ = self.step(self.now, self.batch)
            jax.block_until_ready(self.now)
            seconds.append(time.perf_counter() - began)
        self.turns.append(seconds)
        if self.trunk is not None:
            began = time.perf_counter()
            jax.block_until_ready(self.trunk())
            self.trunk_s.append(time.perf_counter() - began)

    def steps_s(self) -> list[float]:
        return [second for turn in self.turns for second in turn]


def prepare(backbone: models.Backbone, family: str, params: trees.Flat, batch: Batch, strategy: str,
            cached: bool, full_floor: int, options: argparse.Namespace) -> Case | None:  # fmt: skip
    """Compiles one strategy and takes a first step; None where there is nothing to cache."""
    strategy, _, held = strategy.partition("+")  # lora+int8: over int8 kernels
    if strategy in KINDS:
        backbone = adapters.adapted(backbone, Adapter(strategy), family)
        params = backbone.started(params, jax.random.key(options.seed))
    plan = _plan(backbone, strategy)
    if cached and not plan.lowest:
        return None
    config, start = OptimConfig(), plan.lowest if cached else 0
    optimizer = optim.make(config, plan, STEPS_PLANNED)
    step = make_train_step(backbone, plan, optimizer, optim.schedule(config, STEPS_PLANNED), start=start)
    now = state.create(trees.unflatten(params), plan, optimizer, jax.random.key(options.seed), options.dtype)
    if held == "int8":
        now = dataclasses.replace(now, frozen=quantise(now.frozen)[0])
    trunk, reached = None, batch
    if start:
        below = jax.jit(lambda p, x: backbone.run(p, x, 0, start))
        trunk = functools.partial(below, trees.unflatten(now.frozen), batch["inputs"])
        reached = {**batch, "inputs": trunk()}
    began = time.perf_counter()
    programs = step.compile(now, [reached])[0]
    compile_s = time.perf_counter() - began
    found = cost.cost(programs[0])
    least = floor(backbone, plan, reached["inputs"], start).total
    trainable = {path: leaf for path, leaf in params.items() if plan.trains(path)}
    record = {
        "trainable": trees.count(trainable), "compiled_flops": found.flops, "floor_flops": least,
        "flops_over_floor": round(found.flops / least, 4), "floor_speedup": round(full_floor / least, 3),
        "compile_s": round(compile_s, 2), "temp_bytes": found.temp_bytes, "argument_bytes": found.argument_bytes,
        "output_bytes": found.output_bytes, "optimizer_bytes": optim.moments_bytes(now.opt_state),
        "peak_bytes": cost.peak_bytes(*programs, now), "trainable_bytes": trees.nbytes(trainable),
    }  # fmt: skip
    case = Case(record, step, now, reached, trunk)
    case.turn(1)
    case.turns, case.trunk_s = [], []
    return case


def _plan(backbone: models.Backbone, strategy: str) -> freeze.FreezePlan:
    last = strategy.removeprefix("last_")
    return freeze.plan(backbone, strategy) if last == strategy else freeze.plan(backbone, "last_k", k=int(last))


def measure(family: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record for each strategy of a family on the default device."""
    backbone = models.build(config_of(family, options), num_labels=CLASSES, dtype=options.dtype)
    layers = sum(name.startswith("layer_") for name in backbone.stage_names)
    params, batch = backbone.init(jax.random.key(options.seed)), jax.device_put(batch_of(backbone, options))
    full_floor = floor(backbone, _plan(backbone, "full"), batch["inputs"]).total
    records, cases = [], []
    for strategy in options.strategies.split(","):
        for cached in (False, True):
            said = expected(family, strategy, layers, cached)
            about = {"family": family, "strategy": strategy, "cached": cached, "parameters": trees.count(params),
                     "theoretical_speedup": said}  # fmt: skip
            try:
                case = prepare(backbone, family, params, batch, strategy, cached, full_floor, options)
            except FAILURES as error:
                records.append(about | {"error": f"{type(error).__name__}: {error}"[:500]})
                continue
            if case is not None:
                case.record = about | case.record
                records.append(case.record)
                cases.append(case)
    for _ in range(options.repeats):
        for case in list(cases):
            try:
                case.turn(options.steps)
            except FAILURES as error:
                case.record["error"] = f"{type(error).__name__}: {error}"[:500]
                cases.remove(case)
    full = next((case for case in cases if case.record["strategy"] == "full"), None)
    for case in cases:
        case.record |= timings(case, full, options.batch)
    return records


def timings(case: Case, full: Case | None, rows: int) -> dict[str, Any]:
    """What a case's turns say, against those of full fine-tuning."""
    middle, fastest = statistics.median(case.steps_s()), min(case.steps_s())
    first = middle + (statistics.median(case.trunk_s) if case.trunk_s else 0.0)
    found: dict[str, Any] = {"step_s": round(middle, 5), "fastest_s": round(fastest, 5),
                             "examples_per_s": round(rows / middle, 2),
                             "examples_per_s_first_epoch": round(rows / first, 2)}  # fmt: skip
    if full is not None:
        found["speedup_of_fastest"] = round(min(full.steps_s()) / fastest, 3)
        ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(full.turns, case.turns, strict=True)]
        found["speedup"] = round(statistics.median(ratios), 3)
        found["speedup_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        if said := case.record["theoretical_speedup"]:
            found["share_of_theoretical"] = round(found["speedup"] / said, 3)
    return found


COLUMNS = {
    "strategy": 19, "cached": 7, "step_s": 9, "speedup": 8, "speedup_of_fastest": 19, "theoretical_speedup": 20,
    "floor_speedup": 14, "share_of_theoretical": 21, "flops_over_floor": 17, "compile_s": 10, "temp_bytes": 12,
    "optimizer_bytes": 16, "peak_bytes": 12, "examples_per_s_first_epoch": 27, "examples_per_s": 15,
}  # name: width  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    """The records of a family as text."""
    lines = ["".join(name.rjust(wide) for name, wide in COLUMNS.items())]
    for record in records:
        cells = [record.get(name) for name in COLUMNS]
        shown = ["–" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("".join(cell.rjust(wide) for cell, wide in zip(shown, COLUMNS.values(), strict=True)))
        if "error" in record:
            lines.append(f"    {record['error'].splitlines()[0]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="bert", help="of bert, vit, resnet, gpt2 and their kin")
    parser.add_argument(
        "--strategies",
        default=STRATEGIES,
        help="last_N trains the N top layers; lora and other adapters; lora+int8; full is the measure",
    )
    parser.add_argument("--size", default="base", choices=SIZES)
    parser.add_argument("--layers", type=int, default=0, help="0: as the size has (not for resnet)")
    parser.add_argument("--width", type=int, default=0, help="a multiple of 64; 0: as the size has (not for resnet)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--pixels", type=int, default=224, help="side of a picture")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of activations")
    parser.add_argument("--devices", default="", help="platforms, e.g. cpu,gpu; one device of each; empty: JAX's own")
    parser.add_argument("--steps", type=int, default=1, help="in a turn")
    parser.add_argument("--repeats", type=int, default=10, help="turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    everything = []
    for kind in options.devices.split(","):
        device = (jax.devices(kind) if kind else jax.devices())[0]
        common = {
            "benchmark": "freeze_strategies", "date": datetime.date.today().isoformat(), "device": device.device_kind,
            "cores": os.cpu_count(), "python": platform.python_version(), "jax": jax.__version__,
            **{name: importlib.metadata.version(name) for name in ("flax", "optax")},
            **{name: getattr(options, name) for name in SETTINGS},
            "command": " ".join(["python", "benchmarks/freeze_strategies.py", *sys.argv[1:]]),
        }  # fmt: skip
        for family in options.families.split(","):
            with jax.default_device(device):
                records = measure(family, options)
            gc.collect()  # the states of this family, before those of the next are made
            print(f"{family} on {device.device_kind}, load {os.getloadavg()[0]:.1f}\n{table(records)}", flush=True)
            records = [common | {"load": round(os.getloadavg()[0], 2)} | record for record in records]
            with options.output.open("a") as stream:
                stream.writelines(json.dumps(record) + "\n" for record in records)
            everything += records
    draw(everything, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
