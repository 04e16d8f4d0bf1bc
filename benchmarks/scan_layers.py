"""A BERT of 12 layers of 768: how long full fine-tuning takes to compile and to step, layers unrolled and scanned.

    python benchmarks/scan_layers.py [--batch=8] [--length=128] [--steps=6]

Unrolled is what tljax does: the stages one after the other, equal ones traced once. Scanned stacks the parameters of
the layers inside the program and runs one layer in a jax.lax.scan; both compute loss and gradient from the same
parameters. Compilation is timed once each, the steps take turns.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tljax import models, trees
from tljax.models.backbone import Backbone
from tljax.train.objectives import cross_entropy

RESULTS = Path(__file__).parent / "results" / "scan_layers.jsonl"
BERT = {"model_type": "bert", "vocab_size": 30522}  # the rest is BERT-base's
FIRST, LAYERS = 1, 12  # stages: embeddings, layer_0 … layer_11, pooler, head


def scanned(backbone: Backbone, params: trees.Tree, inputs: Any, key: jax.Array) -> jax.Array:
    """Logits, the layers in a scan over their stacked parameters."""
    x = backbone.run(params, inputs, 0, FIRST, True, key)
    stages = backbone.stages[FIRST : FIRST + LAYERS]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(stage.params(params) for stage in stages))
    keys = jax.random.split(key, LAYERS)

    def layer(x: Any, own: Any) -> tuple[Any, None]:
        return stages[0].module.apply({"params": own[0]}, x, True, rngs={"dropout": own[1]}), None

    x, _ = jax.lax.scan(layer, x, (stacked, keys))
    return backbone.run(params, x, FIRST + LAYERS, None, True, key)["logits"]


def unrolled(backbone: Backbone, params: trees.Tree, inputs: Any, key: jax.Array) -> jax.Array:
    return backbone.run(params, inputs, train=True, key=key)["logits"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    backbone = models.build(BERT, num_labels=2)
    params = trees.unflatten(backbone.init(jax.random.key(0)))
    shape = options.batch, options.length
    inputs = {"input_ids": jnp.full(shape, 7), "attention_mask": jnp.ones(shape, "int32"),
              "token_type_ids": jnp.zeros(shape, "int32")}  # fmt: skip
    labels, key = jnp.arange(options.batch) % 2, jax.random.key(1)
    programs, seconds = {}, {}
    for run in (unrolled, scanned):

        def loss(params: trees.Tree, run: Any = run) -> jax.Array:
            return cross_entropy(run(backbone, params, inputs, key), labels).mean()

        began = time.perf_counter()
        programs[run.__name__] = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        seconds[run.__name__] = {"compile_s": time.perf_counter() - began, "steps_s": []}
    for _ in range(options.steps + 1):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(params))
            seconds[name]["steps_s"].append(time.perf_counter() - began)
    for name, program in programs.items():
        memory = program.memory_analysis()
        line = {
            "benchmark": "scan_layers", "date": datetime.date.today().isoformat(), "layers": name,
            "compile_s": round(seconds[name]["compile_s"], 2),
            "step_s": round(statistics.median(seconds[name]["steps_s"][1:]), 3),
            "temp_bytes": memory.temp_size_in_bytes, "batch": options.batch, "length": options.length,
            "python": platform.python_version(), "jax": jax.__version__, "device": jax.devices()[0].device_kind,
            "command": " ".join(["python", "benchmarks/scan_layers.py", *sys.argv[1:]]),
        }  # fmt: skip
        print(
            f"{name}: compiled in {line['compile_s']} s, {line['step_s']} s a step, {line['temp_bytes'] / 1e6:.0f} MB"
        )
        with RESULTS.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
