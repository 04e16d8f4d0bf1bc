"""Unsupervised domain adaptation on digits: MNIST to USPS and back, one small network, every method, several seeds.

python benchmarks/domain_adaptation.py --prepare     puts the digits into runs/digits/
python benchmarks/domain_adaptation.py [--seeds=3] [--methods=dann,cdan] [--directions=mnist_usps,usps_mnist]

Appends a line for each direction and method to benchmarks/results/domain_adaptation.jsonl: accuracy on the target's
test set, which no choice was made by but those of the settings below. A run that is finished is not run again.
"""

import argparse
import json
import os
import runpy
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from tljax.config import AdaptConfig, Config
from tljax.run import predict, testtime
from tljax.run.compare import changed
from tljax.run.train import train
from tljax.run.workdir import versions

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "domain_adaptation"
DIGITS = Path(os.environ.get("TLJAX_DIGITS") or ROOT / "runs" / "digits")
RESULTS = ROOT / "benchmarks" / "results" / "domain_adaptation.jsonl"
USPS_TRAIN = 7291  # of 9,298; the rest is its test set
PUBLISHED = {"mnist_usps": {"source_only": 75.2, "dann": 77.1, "adda": 89.4},
             "usps_mnist": {"source_only": 57.1, "dann": 73.0, "adda": 90.1}}  # fmt: skip # Tzeng et al. 2017, table 2
DIRECTIONS = {
    "mnist_usps": {"data.train": "mnist.npz#x_train,y_train", "data.test": "usps.npz#x_test,y_test",
                   "data.per_class": 1000, "train.epochs": 5, "target": "usps.npz#x_train"},
    "usps_mnist": {"data.train": "usps.npz#x_train,y_train", "data.test": "mnist.npz#x_test,y_test",
                   "data.per_class": 0, "train.epochs": 10, "target": "mnist.npz#x_train"},
}  # fmt: skip
METHODS: dict[str, dict[str, object]] = {
    "source_only": {},
    "adabn": {},
    "coral": {"adapt.weight": 10.0},
    "mmd": {"adapt.weight": 1.0},
    "dann": {"adapt.weight": 0.3},
    "cdan": {"adapt.weight": 0.3},
    # Longer or faster it collapses: the discriminator wins, and nothing keeps the classes apart in the target.
    "adda": {"optim.learning_rate": 2e-5, "adapt.discriminator_factor": 10.0, "data.crop_area": 1.0, "train.epochs": 1},
}


def prepare() -> None:
    """The digits as .npz files, from the sets' own formats."""
    from scipy.io import loadmat

    folder = Path(os.environ.get("TLJAX_TESTDATA") or ROOT.parent / "shared" / "data") / "mnist_usps"
    DIGITS.mkdir(parents=True, exist_ok=True)
    rows = loadmat(folder / "usps_all.mat")["usps_all"]
    images, labels = rows[:, :256].reshape(-1, 16, 16), rows[:, 256] - 1
    np.savez(DIGITS / "usps.npz", x_train=images[:USPS_TRAIN], y_train=labels[:USPS_TRAIN],
             x_test=images[USPS_TRAIN:], y_test=labels[USPS_TRAIN:])  # fmt: skip
    with np.load(folder / "mnist_train60k_test3k.npz", allow_pickle=False) as found:
        np.savez(DIGITS / "mnist.npz", x_train=found["x"], y_train=found["y"], x_test=found["x_test3000"],
                 y_test=found["y_test3000"])  # fmt: skip
    print(f"mnist.npz and usps.npz in {DIGITS}")


def config_of(direction: str, method: str, seed: int) -> Config:
    where = DIRECTIONS[direction]
    paths = {name: str(DIGITS / str(where[name])) for name in ("data.train", "data.test")}
    own = {**paths, **{name: where[name] for name in ("data.per_class", "train.epochs")}, "seed": seed,
           **METHODS[method]}  # fmt: skip
    adapts = method not in ("source_only", "adabn")
    base = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]()
    base.adapt = AdaptConfig(method=method, target=str(DIGITS / str(where["target"]))) if adapts else AdaptConfig()
    if method == "adda":
        own |= {"model.ref": str(RUNS / direction / "source_only" / f"seed_{seed}"), "transfer.strategy": "full"}
    return changed(base, own)


def one(direction: str, method: str, seed: int) -> tuple[float, float]:
    """(accuracy on the target's test set, seconds)."""
    place, began = RUNS / direction / method / f"seed_{seed}", time.monotonic()
    source = RUNS / direction / "source_only" / f"seed_{seed}"
    if method in ("adabn", "adda") and not (source / "model").is_dir():
        one(direction, "source_only", seed)
    if method == "adabn":
        if not place.exists():
            testtime.adapt(source, str(DIGITS / str(DIRECTIONS[direction]["target"])), place, "adabn")
        scores, _ = predict.evaluate(place)
        return float(scores.accuracy or 0.0), time.monotonic() - began
    result = train(config_of(direction, method, seed), place, lambda text: None)
    return float(result.scores.summary()["accuracy"] or 0.0), time.monotonic() - began


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--prepare", action="store_true")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--methods", default=",".join(METHODS))
    flags.add_argument("--directions", default=",".join(DIRECTIONS))
    given = flags.parse_args()
    if given.prepare:
        prepare()
        return
    for direction in given.directions.split(","):
        for method in given.methods.split(","):
            found = [one(direction, method, seed) for seed in range(given.seeds)]
            accuracies = [accuracy for accuracy, _ in found]
            line = {
                "direction": direction, "method": method, "accuracy": round(statistics.fmean(accuracies), 4),
                "seeds": [round(x, 4) for x in accuracies], "seconds": round(sum(s for _, s in found)),
                "published": PUBLISHED[direction].get(method), "settings": METHODS[method],
                "device": jax.devices()[0].device_kind, "versions": versions(),
                "command": f"python benchmarks/domain_adaptation.py --seeds={given.seeds}",
            }  # fmt: skip
            print(json.dumps({k: line[k] for k in ("direction", "method", "accuracy", "seeds", "seconds")}), flush=True)
            with open(RESULTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
