"""Whether devices wait for data: the speed of each part of the pipeline, and a step with real data over one without.

    python benchmarks/input_pipeline.py --config=configs/clinc150_minilm.py
    python benchmarks/input_pipeline.py --config=configs/grocery_vit_tiny.py --pixels=224 --resave=256 --crop --steps=20

Parts, each alone, in examples/s: reading (files to records), making (tokenising texts, or decoding pictures, in as many
threads as the config has), batching, and sending to the device. --resave=N trains on the pictures as JPEGs with a short
side of N pixels, --crop with random crops, so that every picture is decoded anew in every epoch. Then the train step of
the config, in turns of `steps`: on batches as a run makes them, and on batches that lie on the device already, of the
same shapes in the same order. The ratio of the two step times is what the pipeline costs. `waits_for_data` is the part
of a step's time that the loop stood waiting for a batch.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from PIL import Image

from tljax import trees
from tljax.config import Config, validate
from tljax.data import batching
from tljax.run import adapting, devices, inputs, memory
from tljax.train import optim, state
from tljax.train.step import make_train_step
from tljax.transfer import phases

FILLING = 2  # steps of a turn that are not timed: the threads make some batches ahead of the first
RESULTS = Path(__file__).parent / "results" / "input_pipeline.jsonl"


def opened(options: argparse.Namespace) -> Config:
    """The config of a file, with what the flags change."""
    spec = importlib.util.spec_from_file_location("config_file", options.config)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{options.config}: no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(options.config).parent))
    spec.loader.exec_module(module)
    config = module.get_config()
    config.transfer.strategy = options.strategy or config.transfer.strategy
    config.model.image_size = options.pixels or config.model.image_size
    config.train.batch_size = options.batch or config.train.batch_size
    config.data.threads = options.threads or config.data.threads
    if options.resave:
        config.data = dataclasses.replace(config.data, train=str(resaved(config, options)), validation="", test="",
                                          validation_fraction=0.0)  # fmt: skip
    if options.crop:
        config.data = dataclasses.replace(config.data, crop_area=0.25, flip=True)
    return validate(config)


def resaved(config: Config, options: argparse.Namespace) -> Path:
    """A folder of the first training pictures as JPEGs of another size."""
    folder, train = Path(tempfile.mkdtemp(prefix="jpegs-")), inputs.read(config).train
    for i in range(min(options.examples, len(train))):
        ref, label = train.inputs[i], train.labels[i]
        with ref.open() as raw, Image.open(raw) as picture:
            scale = options.resave / min(picture.size)
            made = picture.convert("RGB").resize(
                [round(side * scale) for side in picture.size], Image.Resampling.BICUBIC
            )
        (folder / label).mkdir(exist_ok=True)
        made.save(folder / label / f"{i}.jpg", quality=90)
    return folder


def per_second(examples: int, work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return round(examples / (time.perf_counter() - began), 1)


def parts(
    config: Config, feed: inputs.TrainFeed, records: Any, model: Any, classes: Any, most: int
) -> dict[str, float]:
    """Examples/s of each part alone."""
    some = records.take(range(min(most, len(records))))
    plans = feed._plans(0)[: max(most // feed.batch_size, 1)]
    rows = sum(len(plan.indices) for plan in plans)
    batches = list(feed.batches(0, 0, lambda at: 1))[: len(plans)]
    found = {
        "making" if config.task == "text" else "listing":
            per_second(len(some), lambda: inputs.make_examples(some, model, config, classes)),
        "batching" if config.task == "text" else "decoding_and_batching":
            per_second(rows, lambda: list(itertools.islice(feed.batches(1, 0, lambda at: 1), len(plans)))),
        "batching_in_one_thread":
            per_second(rows, lambda: [batching.collate(feed.examples, plan, feed.batch_size, 1) for plan in plans]),
        "sending": per_second(rows, lambda: jax.block_until_ready(
            [{k: v for k, v in feed.send(batch).items() if k != "rows"} for batch in batches])),
    }  # fmt: skip
    return found


@dataclasses.dataclass
class Steps:
    """The train step, on one batch after another."""

    run: Any
    now: state.TrainState

    def take(self, batches: Iterator[Any], steps: int) -> tuple[float, float]:
        """Seconds of a step, and of these those of waiting for a batch."""
        waited, metrics, began = 0.0, None, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = {name: value for name, value in next(batches).items() if name != "rows"}
            waited += time.perf_counter() - asked
            self.now, metrics = self.run(self.now, batch)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / steps, waited / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--strategy", default="", help="empty: the config's")
    parser.add_argument("--batch", type=int, default=0, help="0: the config's")
    parser.add_argument("--pixels", type=int, default=0, help="0: the config's")
    parser.add_argument("--threads", type=int, default=0, help="0: the config's")
    parser.add_argument(
        "--resave", type=int, default=0, help="short side of JPEGs to train on; 0: the files as they are"
    )
    parser.add_argument("--crop", action="store_true", help="random crops and flips")
    parser.add_argument("--examples", type=int, default=2000, help="for the parts")
    parser.add_argument("--steps", type=int, default=30, help="in a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    memory.keep_freed()
    config = opened(options)
    began = time.perf_counter()
    tables = inputs.read(config)
    reading = round(sum(map(len, tables.splits().values())) / (time.perf_counter() - began), 1)
    model, layout = adapting.load(config, tables.classes), devices.layout(config)
    examples = inputs.make_examples(tables.train, model, config, tables.classes)
    edges = batching.buckets(examples.lengths, config.data.max_buckets)
    feed = inputs.TrainFeed(examples, config.train.batch_size, edges, config.seed, config.data.threads, layout=layout)
    speeds = {"reading": reading, **parts(config, feed, tables.train, model, tables.classes, options.examples)}
    plan = phases.of(model.backbone, config.transfer, config.train.epochs)[0].plan
    optimizer = optim.make(config.optim, plan, 1000)
    run = make_train_step(model.backbone, plan, optimizer, optim.schedule(config.optim, 1000), layout=layout)
    now = layout.put(state.create(model.params, plan, optimizer, jax.random.key(0), config.model.dtype))
    run.compile(now, [layout.abstract(shape, training=True) for shape in feed.shapes(0)])
    steps, real, synthetic, waits = Steps(run, now), [], [], []
    kept: dict[Any, Any] = {}
    for turn in range(options.repeats + 1):
        same = []
        for batch in itertools.islice(feed.batches(turn, 0, lambda at: 1), options.steps):
            shape = str(jax.tree.map(lambda a: a.shape, batch["inputs"]))
            if shape not in kept:
                kept[shape] = jax.block_until_ready({k: v for k, v in feed.send(batch).items() if k != "rows"})
            same.append(shape)
        count = len(same) - FILLING
        alone, _ = steps.take((dict(kept[shape]) for shape in same[FILLING:]), count)
        batches = map(feed.send, feed.batches(turn, 0, lambda at: 1))
        steps.take(batches, FILLING)
        fed, waited = steps.take(batches, count)
        if turn:  # the first one warms up
            real.append(fed)
            synthetic.append(alone)
            waits.append(waited / fed)
    ratios = [a / b for a, b in zip(real, synthetic, strict=True)]
    record = {
        "benchmark": "input_pipeline", "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "python": platform.python_version(),
        "jax": jax.__version__, "config": options.config, "strategy": config.transfer.strategy,
        "batch": config.train.batch_size, "threads": config.data.threads, "examples_per_s": speeds,
        "step_s": round(statistics.median(real), 5), "step_s_without_data": round(statistics.median(synthetic), 5),
        "ratio": round(statistics.median(ratios), 4), "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "waits_for_data": round(statistics.median(waits), 4), "trainable": trees.count(now.trainable),
        "command": " ".join(["python", "benchmarks/input_pipeline.py", *sys.argv[1:]]),
    }  # fmt: skip
    print(json.dumps(record, indent=1))
    with options.output.open("a") as stream:
        stream.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
