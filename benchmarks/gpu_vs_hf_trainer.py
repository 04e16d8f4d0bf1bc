"""Fine-tuning at base size on GPUs, against transformers' Trainer at its best: examples/s, MFU, peak memory.

    python benchmarks/gpu_vs_hf_trainer.py                              # everything, on the GPU of this machine
    python benchmarks/gpu_vs_hf_trainer.py --families=bert --strategies=full --lengths=real

BERT-base (128 tokens) and ViT-B/16 with random weights, AdamW, dropout as the config of each family has it. tljax:
bfloat16 activations. Trainer: bf16, torch.compile, SDPA, the fused AdamW, TF32 allowed; LoRA by PEFT. Both train on as
many examples, of the same lengths, `full`: all of `length` tokens, or `real`: those of CLINC150's questions, stretched
to `length` (bucketed here; there grouped by length and padded to the longest of a batch). Every side is a process of
its own; they take turns, `repeats` times, and the first steps, which compile, are not counted. MFU is the work that no
way of computing a step can leave out (tljax/transfer/floor.py), per second, over the device's bfloat16 peak. Needs the
`bench` extra, and JAX and PyTorch with CUDA.
"""

import argparse
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

import numpy as np

RESULTS = Path(__file__).parent / "results"
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "A10": 125e12}  # dense bfloat16, NVIDIA's sheets
WARM = 10  # steps before the clock starts
QUESTION_TOKENS = (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 22, 30)  # CLINC150's, by quantile


def lengths_of(options: argparse.Namespace, examples: int) -> np.ndarray:
    """Tokens of each example."""
    if options.lengths == "full":
        return np.full(examples, options.length)
    rng = np.random.default_rng(0)
    drawn = rng.choice(QUESTION_TOKENS, examples) * options.length // max(QUESTION_TOKENS)
    return np.clip(drawn, 4, options.length)


def tljax_side(options: argparse.Namespace) -> dict[str, Any]:
    import jax
    from _networks import CLASSES, batch_of, config_of

    from tljax import mesh, models, trees
    from tljax.config import OptimConfig
    from tljax.data import batching
    from tljax.data.text import Ragged, TextExamples
    from tljax.models.adapters import KINDS, Adapter
    from tljax.run.inputs import TrainFeed
    from tljax.train import cost, optim, state
    from tljax.train.step import make_train_step
    from tljax.transfer import adapters, freeze
    from tljax.transfer.floor import floor

    network = models.build(config_of(options.family, options), num_labels=CLASSES, dtype="bfloat16")
    params = network.init(jax.random.key(0))
    if options.strategy in KINDS:
        network = adapters.adapted(network, Adapter(options.strategy), options.family)
        params = network.started(params, jax.random.key(1))
    last = options.strategy.removeprefix("last_")
    plan = freeze.plan(network, "last_k", k=int(last)) if last.isdecimal() else freeze.plan(network, options.strategy)
    layout = mesh.over(jax.devices())
    settings = OptimConfig()
    optimizer = optim.make(settings, plan, 10_000)
    step = make_train_step(network, plan, optimizer, optim.schedule(settings, 10_000), layout=layout)
    now = layout.put(state.create(trees.unflatten(params), plan, optimizer, jax.random.key(2), "bfloat16"))
    rows = options.batch * layout.count
    count = rows * (options.steps + WARM)
    if options.family == "vit":
        whole = batch_of(network, argparse.Namespace(**{**vars(options), "batch": rows}))
        one = layout.send(whole, training=True)
        shapes, batches = [whole], (one for _ in range(options.steps + WARM))
        work = [floor(network, plan, whole["inputs"]).total] * (options.steps + WARM)
    else:
        lengths = lengths_of(options, count)
        ids = np.random.default_rng(1).integers(1000, 20_000, int(lengths.sum())).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        labels = (np.arange(count) % CLASSES).astype(np.int32)
        examples = TextExamples(Ragged(ids, offsets), labels, str, 0)
        feed = TrainFeed(examples, rows, batching.buckets(lengths, 6), 0, 4, layout=layout)
        shapes, batches = feed.shapes(0), map(feed.send, feed.batches(0, 0, lambda at: 1))
        by_length = {
            shape["inputs"]["input_ids"].shape[1]: floor(network, plan, shape["inputs"]).total for shape in shapes
        }
        work = [by_length[planned.length] for planned in feed._plans(0)]
    programs = step.compile(now, [layout.abstract(shape, training=True) for shape in shapes])
    began, metrics = 0.0, None
    for number, batch in enumerate(batches):
        if number == WARM:
            jax.block_until_ready(metrics)
            began = time.perf_counter()
        now, metrics = step(now, {name: value for name, value in batch.items() if name != "rows"})
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - began
    memory = jax.devices()[0].memory_stats() or {}
    peak = memory.get("peak_bytes_in_use") or max(cost.peak_bytes(*program, now) for program in programs)
    return {"examples_per_s": rows * options.steps / seconds, "peak_bytes": peak, "devices": layout.count,
            "device": jax.devices()[0].device_kind, "flops_per_s": sum(work[WARM:]) / seconds,
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}}  # fmt: skip


def trainer_side(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers
    from _networks import CLASSES, config_of

    fields = {name: value for name, value in config_of(options.family, options).items() if name != "model_type"}
    kind = {"bert": transformers.BertConfig, "vit": transformers.ViTConfig}[options.family]
    make = {"bert": transformers.AutoModelForSequenceClassification,
            "vit": transformers.AutoModelForImageClassification}[options.family]  # fmt: skip
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = make.from_config(kind(**fields, num_labels=CLASSES), attn_implementation="sdpa")
    last = options.strategy.removeprefix("last_")
    if options.strategy == "lora":
        import peft

        targets = ["query", "value", "q_proj", "v_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets,
                                                           modules_to_save=["classifier"]))  # fmt: skip
    elif options.strategy != "full":
        kept = int(last) if last.isdecimal() else 0
        layers = fields["num_hidden_layers"]
        tops = tuple(f"layer.{layers - 1 - i}." for i in range(kept))
        for name, parameter in model.named_parameters():
            parameter.requires_grad = (
                name.startswith("classifier") or "pooler" in name or any(top in name for top in tops)
            )
    cuda = torch.cuda.is_available()
    devices = max(torch.cuda.device_count(), 1)
    count = options.batch * devices * (options.steps + WARM)
    lengths = lengths_of(options, count)
    generator = np.random.default_rng(1)
    picture = torch.from_numpy(generator.normal(size=(3, options.pixels, options.pixels)).astype(np.float32))

    class Examples(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> dict[str, Any]:
            label = index % CLASSES
            if options.family == "vit":
                return {"pixel_values": picture, "labels": label}
            ids = np.random.default_rng(index).integers(1000, 20_000, lengths[index])
            return {"input_ids": ids.tolist(), "attention_mask": [1] * int(lengths[index]), "labels": label}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        labels = torch.tensor([row["labels"] for row in rows])
        if options.family == "vit":
            return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}
        longest = max(len(row["input_ids"]) for row in rows)
        padded = {name: torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in rows])
                  for name in ("input_ids", "attention_mask")}  # fmt: skip
        return padded | {"labels": labels}

    class Clock(transformers.TrainerCallback):
        began = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM:
                if cuda:
                    torch.cuda.synchronize()
                self.began = time.perf_counter()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            self.ended = time.perf_counter()

    grouped = {"train_sampling_strategy": "group_by_length"} if options.lengths == "real" else {}
    arguments = transformers.TrainingArguments(
        output_dir=str(options.scratch), per_device_train_batch_size=options.batch, max_steps=options.steps + WARM,
        bf16=True, torch_compile=cuda, optim="adamw_torch_fused" if cuda else "adamw_torch", logging_strategy="no",
        save_strategy="no", report_to=[], disable_tqdm=True, dataloader_num_workers=4 if cuda else 0,
        use_cpu=not cuda, **grouped)  # fmt: skip
    clock = Clock()
    transformers.Trainer(model, arguments, data_collator=collate, train_dataset=Examples(), callbacks=[clock]).train()
    return {"examples_per_s": options.batch * devices * options.steps / (clock.ended - clock.began), "devices": devices,
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")}}  # fmt: skip


def once(side: str, family: str, strategy: str, options: argparse.Namespace) -> dict[str, Any]:
    """What one side, in a process of its own, has measured."""
    own = [a for a in sys.argv[1:] if not a.startswith(("--families", "--strategies"))]
    command = [sys.executable, __file__, *own, f"--side={side}", f"--family={family}", f"--strategy={strategy}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"error": f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="bert,vit")
    parser.add_argument("--strategies", default="full,last_2,lora")
    parser.add_argument("--lengths", default="full", choices=["full", "real"], help="of texts")
    parser.add_argument("--size", default="base", choices=["base", "small"])
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64, help="rows on each GPU")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--steps", type=int, default=200, help="that are timed")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None, help="results/<device>.jsonl")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/gpu_vs_hf_trainer"))
    for name in ("side", "family", "strategy"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps({"tljax": tljax_side, "trainer": trainer_side}[options.side](options)))
        return
    for family in options.families.split(","):
        for strategy in options.strategies.split(","):
            runs: dict[str, list[dict[str, Any]]] = {"tljax": [], "trainer": []}
            for _ in range(options.repeats):
                for side, found in runs.items():
                    found.append(once(side, family, strategy, options))
            record: dict[str, Any] = {
                "benchmark": "gpu_vs_hf_trainer", "date": datetime.date.today().isoformat(), "family": family,
                "strategy": strategy, "lengths": options.lengths, "batch": options.batch, "length": options.length,
                "steps": options.steps, "cores": os.cpu_count(), "python": platform.python_version(), "runs": runs,
                "command": " ".join(["python", "benchmarks/gpu_vs_hf_trainer.py", *sys.argv[1:]]),
            }  # fmt: skip
            speeds = {side: [run["examples_per_s"] for run in found if "examples_per_s" in run]
                      for side, found in runs.items()}  # fmt: skip
            device = next((run["device"] for run in runs["tljax"] if "device" in run), "unknown")
            if all(speeds.values()):
                middle = {side: statistics.median(found) for side, found in speeds.items()}
                record["ratio"] = round(middle["tljax"] / middle["trainer"], 3)
                peak = next((flops for name, flops in PEAKS.items() if name in device), None)
                ours = next(run for run in runs["tljax"] if "flops_per_s" in run)
                if peak:
                    mfu = ours["flops_per_s"] / (peak * ours["devices"])
                    record["mfu"] = {"tljax": round(mfu, 3), "trainer": round(mfu / record["ratio"], 3)}
            print(json.dumps({name: value for name, value in record.items() if name != "runs"}), flush=True)
            output = options.output or RESULTS / f"{device.lower().replace(' ', '_')}.jsonl"
            with output.open("a") as stream:
                stream.write(json.dumps(record | {"device": device}) + "\n")


if __name__ == "__main__":
    main()
