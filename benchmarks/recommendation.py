"""Next-item recommendation with full ranking: the model, popularity and item-kNN; and what pretraining on others buys.

python benchmarks/recommendation.py [--parts=all,transfer] [--interactions=1,5,20]

all: the model from scratch on all users (configs/recommendation.py), the most popular items, and the nearest neighbours
of a user's items, on every user's last item. transfer: pretrained on half of the users, adapted to the other half of
whom so many interactions are known, by head, last_1 and full, against from scratch at the same budget. All 23,715 items
are ranked, those that a user has had too: what is left out of a ranking flatters it. Appends lines to
benchmarks/results/recommendation.jsonl. A run that is finished is not run again.
"""

import argparse
import dataclasses
import json
import runpy
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax.config import Config, PretrainConfig
from tljax.data.events import EventExamples
from tljax.evaluate import neighbours, ranking
from tljax.run import inputs, ledgers, stages
from tljax.run.compare import changed
from tljax.run.train import train
from tljax.run.workdir import versions

ROOT = Path(__file__).resolve().parent.parent
RUNS, RESULTS = ROOT / "runs" / "recommendation", ROOT / "benchmarks" / "results" / "recommendation.jsonl"
BLOCK = 512  # users scored at a time
STRATEGIES: dict[str, dict[str, Any]] = {
    "pretrained, as it is": {"transfer.strategy": "full", "train.epochs": 1, "optim.learning_rate": 1e-9},
    "pretrained, head": {"transfer.strategy": "feature_extraction", "transfer.head_factor": 10.0},
    "pretrained, last_1": {"transfer.strategy": "last_k", "transfer.k": 1},
    "pretrained, full": {"transfer.strategy": "full"},
    "from scratch": {"transfer.strategy": "scratch", "optim.learning_rate": 2e-3},
}


def asked(c: Config) -> dict[str, EventExamples]:
    tables = inputs.read(c)
    return {name: ledgers.examples(part, tables.fields | {"n_positions": 256}, c, False)
            for name, part in tables.splits().items()}  # fmt: skip


def baselines(c: Config) -> dict[str, dict[str, float | None]]:
    """Scores of popularity and of item-kNN, each user's last item from all that came before."""
    test, item = asked(c)["test"], c.events.item
    own = test.histories
    ids, offsets = own.columns[item].astype(np.int64) - 2, own.ledger.offsets
    entity = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    known = ~own.asked
    items = int(ids.max()) + 1
    users = entity[test.places]
    histories = [ids[offsets[u] : p + 1] for u, p in zip(users, test.places, strict=True)]
    near = neighbours.item_knn(entity[known], ids[known], len(offsets) - 1, items)
    count = ranking.popularity(ids[known], items)
    true, ranked = test.truth.astype(np.int64) - 2, {"popularity": [], "item-kNN": []}
    for at in range(0, len(true), BLOCK):
        part = slice(at, at + BLOCK)
        ranked["popularity"].append(ranking.ranks(np.tile(count, (len(true[part]), 1)), true[part]))
        ranked["item-kNN"].append(ranking.ranks(near.score(histories[part]), true[part]))
        # what a user has had already is left out here: a neighbour of an item is most often an item beside it
        ranked.setdefault("item-kNN, seen left out", []).append(
            ranking.ranks(near.score(histories[part]), true[part], histories[part]))  # fmt: skip
    return {name: scores(np.concatenate(parts)) for name, parts in ranked.items()}


def scores(ranks_n: np.ndarray) -> dict[str, float | None]:
    return {"ndcg_10": ranking.ndcg(ranks_n, 10), "hit_rate_10": ranking.hit_rate(ranks_n, 10)}


def write(line: dict[str, Any], seconds: float, command: str) -> None:
    """Says a line, and appends it."""
    own = {name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}
    print(json.dumps(own), flush=True)
    whole = {**own, "seconds": round(seconds), "device": jax.devices()[0].device_kind, "versions": versions(),
             "command": command}  # fmt: skip
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(whole) + "\n")


def run(c: Config, place: Path) -> dict[str, float | None]:
    found = train(c, place, lambda text: None).scores.summary()
    return {name: found[name] for name in ("ndcg_10", "hit_rate_10")}


def whole(c: Config, command: str) -> None:
    for name, found in baselines(c).items():
        write({"part": "all", "method": name, **found}, 0.0, command)
    began = time.monotonic()
    write({"part": "all", "method": "from scratch", **run(c, RUNS / "all")}, time.monotonic() - began, command)


def transfer(c: Config, interactions: list[int], command: str) -> None:
    file = c.data.train.partition("#")[0]
    data = dataclasses.replace(c.data, train=f"{file}#:-1", validation="", test=f"{file}#-1:", validation_fraction=0.0)
    c = dataclasses.replace(c, data=data, pretrain=PretrainConfig(
        data=file, objective="item", strategy="scratch", epochs=c.train.epochs, batch_size=c.train.batch_size,
        learning_rate=c.optim.learning_rate, entities=(0.0, 0.5)))  # fmt: skip
    base = stages.pretrained(c, RUNS / "half")
    for count in interactions:
        for name, own in STRATEGIES.items():
            # test and the item before it stand beyond what is known: `count` transitions are learned from
            one = changed(base, {"events.entities": (0.5, 1.0), "events.recent": count + 2, "train.epochs": 8,
                                 "optim.learning_rate": 5e-4, **own})  # fmt: skip
            began = time.monotonic()
            place = RUNS / f"known_{count}" / name.replace(", ", "_").replace(" ", "_")
            found = run(one, place)
            write({"part": "transfer", "interactions": count, "method": name, **found, "settings": own},
                  time.monotonic() - began, command)  # fmt: skip


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--parts", default="all,transfer")
    flags.add_argument("--interactions", default="1,5,20")
    given = flags.parse_args()
    c = runpy.run_path(str(ROOT / "configs" / "recommendation.py"))["get_config"]()
    command = "python benchmarks/recommendation.py"
    if "all" in given.parts:
        whole(c, command)
    if "transfer" in given.parts:
        transfer(c, [int(n) for n in given.interactions.split(",")], command)


if __name__ == "__main__":
    main()
