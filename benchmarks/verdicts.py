"""Does transfer pay? Verdicts where the answer is known, and how well scores without training foretell accuracy.

python benchmarks/verdicts.py [--parts=clinc150,fashion,negative,scores] [--seeds=3]

clinc150: MiniLM with 1, 5 and 10 questions of each of 150 classes: it pays. fashion: MobileNetV2 of ImageNet on
Fashion-MNIST with 10 photos of a class, and with all 60,000, where the published figures see no gain (ResNet-50
fine-tuned 93.1, ResNet-18 from scratch 94.9). negative: a network of handwritten digits, frozen but for the head, on
all 60,000 photos of clothes. Each verdict is a line of benchmarks/results/verdicts.jsonl.

scores: every checkpoint on every data set of its kind, by the scores of `tljax rank` and by the accuracy after all of
it was fine-tuned; a line for each pair, and one with the rank correlations (Spearman's), over all pairs and the mean
over the data sets.

The digits of benchmarks/domain_adaptation.py --prepare, and runs/mobilenetv2 (configs/grocery_mobilenet.py) have to be
there. A run that is finished is not run again.
"""

import argparse
import dataclasses
import json
import os
import runpy
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.stats import spearmanr

from tljax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, TransferConfig
from tljax.run import rank, verdict
from tljax.run.compare import changed
from tljax.run.train import train
from tljax.run.workdir import versions

ROOT = Path(__file__).resolve().parent.parent
RUNS, RESULTS = ROOT / "runs" / "verdicts", ROOT / "benchmarks" / "results" / "verdicts.jsonl"
DATA = Path(os.environ.get("TLJAX_TESTDATA") or ROOT.parent / "shared" / "data")
DIGITS = Path(os.environ.get("TLJAX_DIGITS") or ROOT / "runs" / "digits")
FASHION = DATA / "fashion_mnist" / "fashion_mnist.npz"
COMMAND = "python benchmarks/verdicts.py"
TESTED = 2000  # pictures that a pair is scored by


def config(name: str, **changes: Any) -> Config:
    return changed(runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](), changes)


def clinc150() -> dict[str, Any]:
    few = {"data.validation": "", "data.validation_fraction": 0.0, "train.epochs": 10}
    return {"config": config("clinc150_minilm", **few), "shots": (1, 5, 10)}


def fashion() -> dict[str, Any]:
    """At 32 pixels: the pictures have 28. With 10 of a class, 40 passes over 100 pictures."""
    c = config("grocery_mobilenet", **{
        "model.image_size": 32, "data.train": f"{FASHION}#x_train,y_train", "data.test": f"{FASHION}#x_test,y_test",
        "train.eval_batch_size": 256})  # fmt: skip
    return {"few": {"config": changed(c, {"train.epochs": 40, "train.batch_size": 20}), "shots": (10,)},
            "all": {"config": changed(c, {"train.epochs": 6, "train.batch_size": 64}), "shots": (0,)}}  # fmt: skip


def digits() -> Path:
    """A network of handwritten digits, trained here on MNIST's 60,000."""
    place = RUNS / "mnist"
    c = config("digits", **{"data.train": f"{DIGITS}/mnist.npz#x_train,y_train", "data.test": "",
                            "data.per_class": 0, "data.crop_area": 1.0, "train.epochs": 4})  # fmt: skip
    c.adapt = type(c.adapt)()
    train(c, place, lambda text: None)
    return place


def negative() -> dict[str, Any]:
    c = Config(
        task="image",
        model=ModelConfig(ref=str(digits())),
        data=DataConfig(train=f"{FASHION}#x_train,y_train", test=f"{FASHION}#x_test,y_test", validation_fraction=0.0),
        transfer=TransferConfig(strategy="feature_extraction", head_factor=10.0),
        optim=OptimConfig(learning_rate=1e-3, schedule="cosine"),
        train=TrainConfig(batch_size=64, eval_batch_size=256, epochs=4),
    )
    return {"config": c, "shots": (0,)}


def judged(name: str, case: dict[str, Any], seeds: int) -> None:
    place, began = RUNS / name, time.monotonic()
    verdict.verdict(case["config"], place, case["shots"], seeds, "accuracy", lambda text: None)
    told = json.loads((place / "verdict.json").read_text(encoding="utf-8"))
    for found in told["verdicts"]:
        kept = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
        write({"part": "verdict", "case": name, **kept, "epochs": case["config"].train.epochs},
              time.monotonic() - began)  # fmt: skip


def pairs() -> list[tuple[str, str, Config]]:
    """(checkpoint, data, the config of a fine-tuning of all of it)."""
    made = []
    pictures = prepared()
    images = {"mobilenetv2": {"ref": str(ROOT / "runs" / "mobilenetv2"), "image_size": 64},
              "vit_tiny": {"ref": str(DATA / "vit_tiny_tinyimagenet"), "image_size": 64},
              "mnist": {"ref": str(digits())}}  # fmt: skip
    rates = {"mobilenetv2": 3e-4, "vit_tiny": 2e-4, "mnist": 1e-3}
    rules = config("grocery_mobilenet").transfer
    for data, (learned, tested, per_class) in pictures.items():
        for name, model in images.items():
            c = Config(
                task="image",
                model=ModelConfig(**model),
                data=DataConfig(train=learned, test=tested, validation_fraction=0.0, per_class=per_class),
                transfer=rules if name == "mobilenetv2" else TransferConfig(strategy="full", head_factor=10.0),
                optim=OptimConfig(learning_rate=rates[name], schedule="cosine", weight_decay=0.05),
                train=TrainConfig(batch_size=20, eval_batch_size=128, epochs=20),
            )
            made.append((name, data, c))
    few = {"data.validation": "", "data.validation_fraction": 0.0, "data.per_class": 10, "train.epochs": 10}
    made += [(name, "clinc150", config(f"clinc150_{name}", **few)) for name in ("minilm", "stories260k")]
    return made


def prepared() -> dict[str, tuple[str, str, int]]:
    """data -> (training source, test source, examples of a class that are learned from)."""
    RUNS.mkdir(parents=True, exist_ok=True)
    few = RUNS / "fashion.npz"
    if not few.exists():
        with np.load(FASHION) as found:
            np.savez(few, **{name: found[name][:TESTED] if "test" in name else found[name] for name in found})
    photos = DATA / "grocery_store" / "grocery_short128.zip"
    return {"fashion": (f"{few}#x_train,y_train", f"{few}#x_test,y_test", 10),
            "usps": (f"{DIGITS}/usps.npz#x_train,y_train", f"{DIGITS}/usps.npz#x_test,y_test", 10),
            "grocery": (f"{photos}#train.txt|{photos}#val.txt", f"{photos}#test.txt", 5)}  # fmt: skip


def scores() -> None:
    lines = []
    for name, data, c in pairs():
        began = time.monotonic()
        # of the very examples that are learned from, as somebody who has no others would rank
        ranked = dataclasses.replace(c, data=dataclasses.replace(c.data, test="", per_class=0))
        classes = 150 if data == "clinc150" else 81 if data == "grocery" else 10
        found = rank.rank([c.model.ref], ranked, c.task, examples=c.data.per_class * classes, say=lambda text: None)
        taken = time.monotonic() - began
        accuracy = train(c, RUNS / "pairs" / f"{name}_{data}", lambda text: None).scores.summary()["accuracy"]
        values = {key: round(float(value), 4) for key, value in found.entries[0].top.scores.items()}
        lines.append({"checkpoint": name, "data": data, "accuracy": round(float(accuracy or 0.0), 4), "scores": values})
        write({"part": "pair", **lines[-1], "ranking_seconds": round(taken, 1)}, time.monotonic() - began)
    names = [name for name in lines[0]["scores"] if all(name in line["scores"] for line in lines)]
    over_all = {name: correlation(lines, name) for name in names}
    sets = sorted({line["data"] for line in lines})
    within = {name: statistics.fmean(correlation([line for line in lines if line["data"] == data], name)
                                     for data in sets) for name in names}  # fmt: skip
    write({"part": "correlation", "pairs": len(lines), "spearman": rounded(over_all),
           "spearman_within_data": rounded(within)}, 0.0)  # fmt: skip


def correlation(lines: list[dict[str, Any]], name: str) -> float:
    """Spearman's, of a score with the accuracy."""
    return float(spearmanr([line["scores"][name] for line in lines], [line["accuracy"] for line in lines])[0])


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def write(line: dict[str, Any], seconds: float) -> None:
    """Says a line, and appends it."""
    print(json.dumps(line), flush=True)
    whole = {**line, "seconds": round(seconds), "device": jax.devices()[0].device_kind, "versions": versions(),
             "command": COMMAND}  # fmt: skip
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(whole) + "\n")


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--parts", default="clinc150,negative,scores,fashion")
    flags.add_argument("--seeds", type=int, default=3)
    given = flags.parse_args()
    for part in given.parts.split(","):
        if part == "scores":
            scores()
        elif part == "fashion":
            for name, case in fashion().items():
                judged(f"fashion_{name}", case, given.seeds)
        else:
            judged(part, {"clinc150": clinc150, "negative": negative}[part](), given.seeds)


if __name__ == "__main__":
    main()
