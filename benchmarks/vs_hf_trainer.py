"""The same fine-tuning in tljax and in transformers' Trainer (PyTorch), each in a process of its own, taking turns.

    python benchmarks/vs_hf_trainer.py --strategy=full --epochs=3 --precisions=float32,bfloat16
    python benchmarks/vs_hf_trainer.py --strategy=head --epochs=20 --slice=2

Same weights (all-MiniLM-L6-v2, mean pooling, a new linear head), examples (CLINC150, in scope), batch size, epochs,
AdamW with linear schedule and warm-up, weight decay, clipping and dropout. The Trainer pads to the longest text of a
random batch, tljax groups by length: how batches are made is part of what is compared. Seconds are those of training
alone, with compilation and the pass through what is frozen, without imports, tokenising and evaluation. Needs the extra
`bench`.

The processes run one at a time, some seconds each, always the one that is furthest behind, so that they end together:
SIGSTOP and SIGCONT change between them, and only the slices in which a process ran count for it. Run one after the
other, ten minutes apart, two equal programs differ by 1.5 x on a machine that others share.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _turns import take_turns

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = {"full": ("full", 0), "last_2": ("last_k", 2), "head": ("feature_extraction", 0),
              "lora": ("lora", 0)}  # fmt: skip
CACHED = ("last_2", "head")  # of which tljax keeps the frozen part's activations, where that pays
FROZEN = "frozen stages, train"  # the title of that pass
RATE, HEAD_FACTOR, WARMUP, DECAY, BATCH = 1e-4, 30.0, 0.1, 0.01, 32
LONGEST = 64  # tokens
SAVE_STEPS = 500  # the Trainer's default
RANK, ALPHA, ADAPTER_FACTOR = 8, 16.0, 10.0  # of LoRA, on query and value


def run_tljax(options: argparse.Namespace) -> dict[str, Any]:
    """One training in tljax through its own configuration."""
    sys.path.insert(0, str(ROOT / "configs"))
    import clinc150_minilm
    import grain  # noqa: F401  tljax imports it when the first batch is made; imports are not counted

    from tljax.run import progress
    from tljax.run import train as runner
    from tljax.run.training import Training

    span: list[float] = []
    fit, update = Training.fit, progress.Bar.update
    done = dict.fromkeys((FROZEN, "training") if options.strategy in CACHED else ("training",), 0.0)

    def counted(bar: Any, examples: int) -> None:
        update(bar, examples)
        if bar.title == "training" and not done.get(FROZEN, 1.0):
            del done[FROZEN]  # a pass did not pay, and there is none
        if bar.title in done:
            done[bar.title] = bar.done / bar.total
            _tell(options, sum(done.values()) / len(done))

    def timed(training: Any, *arguments: Any) -> Any:
        progress.Bar.update = counted  # type: ignore[method-assign]
        span.append(time.monotonic())
        found = fit(training, *arguments)
        span.append(time.monotonic())
        return found

    Training.fit = timed  # type: ignore[method-assign]
    config = clinc150_minilm.get_config()
    config.seed = options.seed
    config.model.dtype = options.precision
    config.data.validation, config.data.validation_fraction = "", 0.0
    config.transfer.strategy, k = STRATEGIES[options.strategy]
    config.transfer.k, config.transfer.head_factor = k or 1, HEAD_FACTOR
    config.optim.learning_rate, config.optim.warmup_fraction, config.optim.weight_decay = RATE, WARMUP, DECAY
    config.train.batch_size, config.train.epochs, config.train.log_every_steps = BATCH, options.epochs, 100
    config.train.save_every_steps, config.train.keep = SAVE_STEPS, 2
    config.adapter.rank, config.adapter.alpha, config.adapter.factor = RANK, ALPHA, ADAPTER_FACTOR
    with tempfile.TemporaryDirectory() as folder:
        config.cache.folder = f"{folder}/cache"  # nothing of an earlier run is found
        if options.limit:
            config.data.train = _cut(config.data.train, options.limit, Path(folder) / "cut.jsonl")
        result = runner.train(config, Path(folder) / "run", say=lambda line: None)
        tokens = _tokens(config)
    return {"span": span, "accuracy": result.scores.accuracy, "tokens": tokens}


def _tell(options: argparse.Namespace, fraction: float) -> None:
    """Says how much of the training is done, to whoever gives out the turns."""
    Path(options.progress).write_text(f"{fraction:.6f}")


def _tokens(config: Any) -> int:
    """Tokens in one pass over the training examples, padding not counted."""
    from tljax.data import sources, text
    from tljax.weights import hub

    records = sources.read_records(config.data.train, config.data, config.task)
    return len(text.load_tokenizer(hub.resolve(config.model.ref).folder).encode(records.inputs, LONGEST).ids)


def _cut(source: str, limit: int, path: Path) -> str:
    rows = _thinned(_pairs(source), limit)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return str(path)


def _pairs(source: str) -> list[tuple[str, str]]:
    import gzip

    path, _, split = source.partition("#")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)[split]


def _thinned(rows: list[Any], limit: int) -> list[Any]:
    """`limit` rows, evenly spaced, so that every class keeps its share."""
    return [rows[i * len(rows) // limit] for i in range(min(limit, len(rows)))]


def run_trainer(options: argparse.Namespace) -> dict[str, Any]:
    """The same training with transformers' Trainer."""
    sys.path.insert(0, str(ROOT / "configs"))
    import clinc150_minilm
    import torch
    import transformers

    from tljax.weights import hub

    torch.manual_seed(options.seed)
    config = clinc150_minilm.get_config()
    folder = hub.resolve(config.model.ref).folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    train, test = _pairs(config.data.train), _pairs(config.data.test)
    classes = sorted({label for _, label in train})
    if options.limit:
        train = _thinned(train, options.limit)

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
            self.dropout = torch.nn.Dropout(self.bert.config.hidden_dropout_prob)
            self.classifier = torch.nn.Linear(self.bert.config.hidden_size, len(classes))
            self.classifier.weight.data.normal_(0, 0.02)
            self.classifier.bias.data.zero_()

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> dict[str, Any]:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask[:, :, None].to(hidden.dtype)
            logits = self.classifier(self.dropout((hidden * mask).sum(1) / mask.sum(1)))
            loss = None if labels is None else torch.nn.functional.cross_entropy(logits.float(), labels)
            return {"loss": loss, "logits": logits}

    model = Classifier()
    if options.strategy == "lora":
        import peft

        chosen = peft.LoraConfig(r=RANK, lora_alpha=int(ALPHA), lora_dropout=0.0, target_modules=["query", "value"])
        model.bert = peft.get_peft_model(model.bert, chosen)
    elif options.strategy != "full":
        top = 0 if options.strategy == "head" else 2
        layers = len(model.bert.encoder.layer)
        for name, parameter in model.bert.named_parameters():
            parameter.requires_grad = any(f"layer.{i}." in name for i in range(layers - top, layers))

    def encode(rows: list[tuple[str, str]]) -> list[dict[str, Any]]:
        found = tokenizer([text for text, _ in rows], truncation=True, max_length=LONGEST)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": classes.index(label)}
            for ids, mask, (_, label) in zip(found["input_ids"], found["attention_mask"], rows, strict=True)
        ]

    body = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("classifier")]
    rate = RATE * (ADAPTER_FACTOR if options.strategy == "lora" else 1.0)
    groups = [
        {"params": [p for p in body if p.ndim >= 2], "lr": rate, "weight_decay": DECAY},
        {"params": [p for p in body if p.ndim < 2], "lr": rate, "weight_decay": 0.0},
        {"params": [model.classifier.weight], "lr": RATE * HEAD_FACTOR, "weight_decay": DECAY},
        {"params": [model.classifier.bias], "lr": RATE * HEAD_FACTOR, "weight_decay": 0.0},
    ]

    class Telling(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            _tell(options, state.global_step / state.max_steps)

    steps = options.epochs * -(-len(train) // BATCH)
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]])
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)
    with tempfile.TemporaryDirectory() as out:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                out, per_device_train_batch_size=BATCH, per_device_eval_batch_size=128, num_train_epochs=options.epochs,
                max_grad_norm=1.0, logging_steps=100, save_steps=SAVE_STEPS, save_total_limit=2, report_to=[],
                seed=options.seed, bf16=options.precision == "bfloat16", use_cpu=True, disable_tqdm=True,
            ),
            train_dataset=encode(train),
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            optimizers=(optimizer, schedule),
            callbacks=[Telling()],
        )  # fmt: skip
        began = time.monotonic()
        trainer.train()
        span = [began, time.monotonic()]
        logits = trainer.predict(encode(test)).predictions
    right = [int(row.argmax()) == classes.index(label) for row, (_, label) in zip(logits, test, strict=True)]
    return {"span": span, "accuracy": sum(right) / len(right)}


def products(options: argparse.Namespace, tokens: int) -> float:
    """Seconds that the parameter products alone would take at this machine's measured rate (float32).

    For `tokens` tokens without padding, through 6 layers of 1.77 M weights: 2 FLOPs a weight and token forward, as
    many for the gradient to the input and for the weights, as far as the strategy needs them.
    """
    import jax
    import jax.numpy as jnp

    a, b = jnp.ones((512, 384)), jnp.ones((384, 1536))
    product = jax.jit(lambda a, b: a @ b)
    product(a, b).block_until_ready()
    best = min(_timed(lambda: product(a, b).block_until_ready()) for _ in range(200))
    rate = 2 * 512 * 384 * 1536 / best
    layer = 4 * 384 * 384 + 2 * 384 * 1536
    passes = {"full": 18, "last_2": 2 + 2 + 1, "head": 0, "lora": 12}[options.strategy]  # in each epoch
    once = {"last_2": 4, "head": 6}.get(options.strategy, 0)  # what is frozen below
    return 2 * layer * (passes * options.epochs + once) * tokens / rate


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--strategy", choices=STRATEGIES, default="full")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--precisions", default="float32", help="of the Trainer; tljax runs in float32")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--limit", type=int, default=0, help="training examples; 0: all 15,000")
    parser.add_argument("--slice", type=float, default=8.0, help="seconds of a turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=("tljax", "trainer"), help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--progress", default=os.devnull, help=argparse.SUPPRESS)
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "vs_hf_trainer.jsonl"))
    options = parser.parse_args()
    if options.side:
        print(json.dumps((run_tljax if options.side == "tljax" else run_trainer)(options)))
        return
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeats):
        sides = [("tljax", "float32"), *(("trainer", precision) for precision in options.precisions.split(","))]
        commands = {f"{side} {precision}": _command(side, precision, options) for side, precision in sides}
        for name, found in take_turns(commands, options.slice).items():
            runs.setdefault(name, []).append(found)
            print(f"{name}: {found['seconds']:.1f} s, accuracy {found['accuracy']:.4f}", flush=True)
    ours = min(r["seconds"] for r in runs["tljax float32"])
    ratios = {name: min(r["seconds"] for r in found) / ours for name, found in runs.items()}
    share = products(options, runs["tljax float32"][0]["tokens"]) / ours
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} x the time of tljax")
    print(f"the matrix products alone would take {100 * share:.0f} % of tljax's time")
    from importlib.metadata import version

    record = {"benchmark": "vs_hf_trainer", "date": datetime.date.today().isoformat(), "strategy": options.strategy,
              "epochs": options.epochs, "limit": options.limit, "seed": options.seed, "runs": runs, "ratios": ratios,
              "share_of_matrix_products": share, "cores": os.cpu_count(), "machine": platform.machine(),
              "cpu": _cpu(), "versions": {n: version(n) for n in ("jax", "flax", "optax", "torch", "transformers")},
              "command": " ".join(["python", "benchmarks/vs_hf_trainer.py", *_asked()])}  # fmt: skip
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    with open(options.output, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _command(side: str, precision: str, options: argparse.Namespace) -> list[str]:
    return [sys.executable, __file__, f"--side={side}", f"--precision={precision}", f"--strategy={options.strategy}",
            f"--epochs={options.epochs}", f"--limit={options.limit}", f"--seed={options.seed}"]  # fmt: skip


def _asked() -> list[str]:
    return [argument for argument in sys.argv[1:] if not argument.startswith("--output")]


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    extra = [f for f in ("avx512f", "avx512_bf16", "amx_bf16") if f in flags.split()]
    return f"{names[0] if names else platform.processor()} ({', '.join(extra)})"


if __name__ == "__main__":
    main()
