"""Fraud by the Fraud Detection Handbook's protocol: pretrained against from scratch and gradient boosting, by labels.

python benchmarks/fraud.py [--seeds=3] [--labels=1,0.1,0.01]

Pretrains once (configs/fraud.py), then fine-tunes on all, a tenth and a hundredth of the week's labels, each with every
seed, which draws the labels too. Gradient boosting is scikit-learn's HistGradientBoostingClassifier with its own
settings on the handbook's features, computed as the network's are, and the same labels. Appends lines to
benchmarks/results/fraud.jsonl. A run that is finished is not run again.
"""

import argparse
import json
import runpy
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from tljax.config import Config
from tljax.data import derived
from tljax.data.events import EventExamples
from tljax.run import inputs, ledgers, rare, stages
from tljax.run.compare import changed
from tljax.run.train import train
from tljax.run.workdir import versions

ROOT = Path(__file__).resolve().parent.parent
RUNS, RESULTS = ROOT / "runs" / "fraud", ROOT / "benchmarks" / "results" / "fraud.jsonl"
SHOWN = ("roc_auc", "average_precision", "card_precision_100")
FIRST_DAY = 1522540800  # 2018-04-01, a Sunday: the file's second 0
PUBLISHED = {"logistic regression": (0.871, 0.606, 0.291), "random forest": (0.867, 0.658, 0.287),
             "XGBoost": (0.862, 0.639, 0.273), "neural net": (0.864, 0.653, 0.286)}  # fmt: skip # all labels
METHODS: dict[str, dict[str, Any]] = {
    "pretrained, full": {},
    "pretrained, last_1": {"transfer.strategy": "last_k", "transfer.k": 1},
    "from scratch": {"transfer.strategy": "scratch"},
}


def boosting(c: Config, seed: int) -> dict[str, float | None]:
    """scikit-learn's gradient boosting on the handbook's 15 features and the labels that the network gets."""
    tables = inputs.read(changed(c, {"pretrain.data": ""}))
    fields, drawn = tables.fields | {"n_positions": 256}, changed(c, {"seed": seed})
    found = {name: ledgers.examples(part, fields, drawn, name == "train") for name, part in tables.splits().items()}
    own = tables.train.ledger  # the same for both
    columns = [own.columns["amount_cents"] / 100.0, derived.day_of_week(own.times + FIRST_DAY) >= 5,
               derived.hour_of_day(own.times) <= 6]  # fmt: skip
    columns += [derived.rolling(own.columns[key], own.times, own.columns[column].astype(np.float64) if column else None,
                                statistic, window * derived.DAY, delay * derived.DAY)
                for _, statistic, column, key, window, delay in c.events.derived]  # fmt: skip
    rows_nF = np.stack(columns, axis=1).astype(np.float64)
    model = HistGradientBoostingClassifier(random_state=seed)
    model.fit(rows_nF[found["train"].places], found["train"].truth)
    probs = model.predict_proba(rows_nF[found["test"].places])
    return chosen(rare.scores(found["train"], found["test"], probs, tables.classes, True).summary())


def chosen(scores: Any) -> dict[str, float | None]:
    return {name: scores[name] for name in SHOWN}


def labels_of(c: Config, seed: int) -> tuple[int, int]:
    """How many labels there are to learn from, and how many of them are frauds."""
    tables = inputs.read(changed(c, {"pretrain.data": ""}))
    found: EventExamples = ledgers.examples(tables.train, tables.fields | {"n_positions": 256},
                                            changed(c, {"seed": seed}), True)  # fmt: skip
    return len(found.truth), int(found.truth.sum())


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--labels", default="1,0.1,0.01")
    given = flags.parse_args()
    base = runpy.run_path(str(ROOT / "configs" / "fraud.py"))["get_config"]()
    began = time.monotonic()
    fresh = not (RUNS / stages.FOLDER / "model").is_dir()
    after = stages.pretrained(base, RUNS)
    pretraining = round(time.monotonic() - began) if fresh else None
    for share in map(float, given.labels.split(",")):
        c = changed(after, {"events.labelled": share})
        counts = [labels_of(c, seed) for seed in range(given.seeds)]
        for method, own in (*METHODS.items(), ("gradient boosting", None)):
            scores, began = [], time.monotonic()
            for seed in range(given.seeds):
                place = RUNS / f"labels_{share:g}" / method.replace(", ", "_").replace(" ", "_") / f"seed_{seed}"
                if own is None:
                    scores.append(boosting(c, seed))
                else:
                    result = train(changed(c, {"seed": seed, **own}), place, lambda text: None)
                    scores.append(chosen(result.scores.summary()))
            line: dict[str, Any] = {
                "labels": share, "counts": counts, "method": method,
                **{name: round(statistics.fmean(s[name] or 0.0 for s in scores), 4) for name in SHOWN},
                "seeds": {name: [round(s[name] or 0.0, 4) for s in scores] for name in SHOWN},
                "seconds": round(time.monotonic() - began), "pretraining_seconds": pretraining,
                "published": PUBLISHED if share == 1 else None, "settings": own,
                "device": jax.devices()[0].device_kind, "versions": versions(),
                "command": f"python benchmarks/fraud.py --seeds={given.seeds}",
            }  # fmt: skip
            print(json.dumps({k: line[k] for k in ("labels", "method", *SHOWN, "seeds", "seconds")}), flush=True)
            with open(RESULTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
