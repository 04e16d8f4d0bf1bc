"""How a step scales over devices: step time and traffic on 1, 2, 4, 8 of them, weak and strong, by strategy.

    python benchmarks/scaling.py --devices=1,2,4,8 --strategies=full,last_2,lora,feature_extraction
    python benchmarks/scaling.py --devices=1,2,4 --processes

Weak: each device has `batch` rows, however many devices there are; strong: all of them together have. Random weights
and examples, AdamW. Devices are this machine's; on CPUs they are as many as asked for, and share its cores: there the
ratio of examples/s says what dividing costs, and not what another device brings. With --processes each device is a
process of its own (gloo between CPUs), started as launch.py starts them. The cases of one strategy take turns.
Bytes are read off the compiled program: of the arrays that a step adds up or gathers.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _networks import CLASSES, SIZES, batch_of, config_of

from tljax import mesh, models, trees
from tljax.config import OptimConfig
from tljax.launch.start import free_port
from tljax.models.adapters import KINDS, Adapter
from tljax.run import cluster
from tljax.train import collectives, cost, optim, state
from tljax.train.step import make_train_step
from tljax.transfer import adapters, freeze

RESULTS = Path(__file__).parent / "results" / "scaling.jsonl"
SETTINGS = ("size", "layers", "width", "batch", "length", "pixels", "dtype", "steps", "repeats", "seed")


@dataclasses.dataclass
class Case:
    """One strategy on one number of devices."""

    record: dict[str, Any]
    step: Any
    now: state.TrainState
    batch: Any
    seconds: list[float] = dataclasses.field(default_factory=list)

    def turn(self, steps: int) -> None:
        began = time.perf_counter()
        for _ in range(steps):
            self.now, metrics = self.step(self.now, self.batch)
        jax.block_until_ready(metrics)
        self.seconds.append((time.perf_counter() - began) / steps)


def prepare(strategy: str, count: int, scaling: str, mode: str, options: argparse.Namespace) -> Case:
    """Compiles one strategy for so many devices and takes a first step."""
    network = models.build(config_of(options.family, options), num_labels=CLASSES, dtype=options.dtype)
    params = network.init(jax.random.key(options.seed))
    if strategy in KINDS:
        network = adapters.adapted(network, Adapter(strategy), options.family)
        params = network.started(params, jax.random.key(options.seed))
    last = strategy.removeprefix("last_")
    plan = freeze.plan(network, strategy) if last == strategy else freeze.plan(network, "last_k", k=int(last))
    layout = mesh.over(jax.devices()[:count], mode)
    if mode == "fsdp" and count > 1:
        network = dataclasses.replace(network, gather=layout.everywhere)
    rows = options.batch * (count if scaling == "weak" else 1)
    host = batch_of(network, argparse.Namespace(**{**vars(options), "batch": rows}))
    held = layout.held(rows)
    own = host if held is None else jax.tree.map(lambda a: a[held], host)
    settings = OptimConfig()
    optimizer = optim.make(settings, plan, 1000)
    step = make_train_step(network, plan, optimizer, optim.schedule(settings, 1000), layout=layout)
    now = state.create(trees.unflatten(params), plan, optimizer, jax.random.key(options.seed), options.dtype)
    now = layout.put(now)
    programs = step.compile(now, [layout.abstract(host, training=True)])[0]
    sent = collectives.of(programs[0].as_text())
    record = {
        "strategy": strategy, "devices": count, "processes": jax.process_count(), "scaling": scaling, "parallel": mode,
        "rows": rows, "trainable_bytes": trees.nbytes(now.trainable), "peak_bytes": cost.peak_bytes(*programs, now),
        **{f"{kind.replace('-', '_')}_bytes": moved.nbytes for kind, moved in sent.items()},
    }  # fmt: skip
    case = Case(record, step, now, layout.send(own, training=True))
    case.turn(1)
    case.seconds.clear()
    return case


def measure(options: argparse.Namespace, counts: list[int]) -> list[dict[str, Any]]:
    """One record a case."""
    records = []
    for strategy in options.strategies.split(","):
        for scaling in options.scaling.split(","):
            cases = [prepare(strategy, count, scaling, mode, options)
                     for mode in options.parallel.split(",") for count in counts]  # fmt: skip
            for _ in range(options.repeats):
                for case in cases:
                    case.turn(options.steps)
            for case in cases:
                middle = statistics.median(case.seconds)
                case.record |= {"step_s": round(middle, 5), "examples_per_s": round(case.record["rows"] / middle, 2)}
                records.append(case.record)
    return records


def relative(records: list[dict[str, Any]]) -> None:
    """Adds examples/s over those of one device, which is what scaling is about."""
    ones = {(r["strategy"], r["scaling"]): r["examples_per_s"] for r in records if r["devices"] == 1}
    for record in records:
        if one := ones.get((record["strategy"], record["scaling"])):
            record["over_one_device"] = round(record["examples_per_s"] / one, 3)


COLUMNS = {"strategy": 20, "scaling": 9, "parallel": 10, "devices": 9, "processes": 11, "rows": 6, "step_s": 10,
           "examples_per_s": 16, "over_one_device": 17, "all_reduce_bytes": 18, "all_gather_bytes": 18,
           "trainable_bytes": 17, "peak_bytes": 13}  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    lines = ["".join(name.rjust(wide) for name, wide in COLUMNS.items())]
    for record in records:
        cells = [record.get(name, 0) for name in COLUMNS]
        shown = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("".join(cell.rjust(wide) for cell, wide in zip(shown, COLUMNS.values(), strict=True)))
    return "\n".join(lines)


def in_processes(count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of this benchmark in so many processes, of the first of them."""
    port, gpus = free_port(), len(cluster.visible_gpus(os.environ))
    own = [a for a in sys.argv[1:] if a != "--processes" and not a.startswith("--devices")]
    children = []
    for rank in range(count):
        told = {cluster.COORDINATOR: f"127.0.0.1:{port}", cluster.PROCESSES: str(count), cluster.PROCESS: str(rank)}
        devices = cluster.share(gpus, count, rank)
        told |= {cluster.LOCAL_DEVICES: ",".join(map(str, devices))} if devices else {}
        children.append(subprocess.Popen([sys.executable, __file__, *own, f"--devices={count}", "--child"],
                                         env={**os.environ, **told}, stdout=subprocess.PIPE, text=True))  # fmt: skip
    said = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f"{count} processes: exit codes {[child.returncode for child in children]}")
    return json.loads(said[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="1,2,4,8", help="how many")
    parser.add_argument("--processes", action="store_true", help="each device in a process of its own")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--family", default="bert", help="bert, vit, resnet, gpt2 or their kin")
    parser.add_argument("--strategies", default="full,last_2,lora,feature_extraction")
    parser.add_argument("--scaling", default="weak,strong")
    parser.add_argument("--parallel", default="data", help="of data, fsdp, pmap")
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8, help="rows: of each device (weak), of all together (strong)")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=2, help="in a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    counts = [int(n) for n in options.devices.split(",")]
    if options.child:
        joined = cluster.found(os.environ)
        if joined is not None:
            jax.distributed.initialize(joined.coordinator, joined.processes, joined.process,
                                       local_device_ids=joined.local_devices)  # fmt: skip
        print(json.dumps(measure(options, counts)))
        return
    if options.processes:
        records = [record for count in counts for record in in_processes(count, options)]
        kind = "of each process"
    else:
        if not cluster.visible_gpus(os.environ):
            jax.config.update("jax_num_cpu_devices", max(counts))
        records, kind = measure(options, counts), jax.devices()[0].device_kind
    relative(records)
    common = {
        "benchmark": "scaling", "date": datetime.date.today().isoformat(), "device": kind, "cores": os.cpu_count(),
        "python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__,
        **{name: importlib.metadata.version(name) for name in ("flax", "optax")}, "family": options.family,
        **{name: getattr(options, name) for name in SETTINGS},
        "command": " ".join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
    }  # fmt: skip
    print(table(records))
    with options.output.open("a") as stream:
        stream.writelines(json.dumps(common | record) + "\n" for record in records)


if __name__ == "__main__":
    main()
