"""Event tables, an event network, and settings for them, so small that a run takes seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny

from tljax.config import (
    Config,
    DataConfig,
    DeviceConfig,
    EventsConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    TransferConfig,
)

# 64 wide: XLA unrolls the products of narrower networks and takes longer to compile them.
NETWORK = {"model_type": "tljax_events", "n_embd": 64, "n_head": 2, "n_layer": 2, "n_inner": 64, "n_positions": 24,
           "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.1}  # fmt: skip
SHOPS = "abcde"


def table(path: Path, cards: int = 40, events: int = 18, seed: int = 0) -> Path:
    """Events whose shop follows the one before, mostly; a label is 1 where the shop before it was "a"."""
    rng, rows = np.random.default_rng(seed), []
    for card in range(cards):
        shop, when = int(rng.integers(5)), float(rng.integers(0, 86400))
        for _ in range(events):
            before = shop
            shop = (shop + 1) % 5 if rng.random() < 0.9 else int(rng.integers(5))
            rows.append([f"c{card}", when, SHOPS[shop], round(float(rng.exponential(10)), 2), int(before == 0)])
            when += float(rng.integers(3600, 90000))
    return tiny.table(path, rows, ("card", "time", "shop", "amount", "label"))


def config(root: Path, objective: str, **changes: Any) -> Config:
    if not (root / "network").exists():
        (root / "network").mkdir(parents=True)
        (root / "network" / "config.json").write_text(json.dumps(NETWORK))
        table(root / "events.csv")
    file = root / "events.csv"
    made = Config(
        task="events",
        objective=objective,
        model=ModelConfig(ref=str(root / "network")),
        data=DataConfig(train=f"{file}#:-6", validation=f"{file}#-6:-3", test=f"{file}#-3:", max_length=16,
                        max_buckets=1),
        events=EventsConfig(entity="card", time="time", fields=(("shop", "category"), ("amount", "number")),
                            item="shop", foretold="shop", bins=8, context=8),
        transfer=TransferConfig(strategy="scratch"),
        optim=OptimConfig(learning_rate=5e-3, warmup_fraction=0.1),
        train=TrainConfig(batch_size=10, eval_batch_size=16, epochs=10, log_every_steps=1, best_metric="loss"),
        device=DeviceConfig(count=1),
    )  # fmt: skip
    return tiny.changed(made, **changes)


def downstream(root: Path, ref: Path, **changes: Any) -> Config:
    made = config(root, "classes", model={"ref": str(ref)}, transfer={"strategy": "last_k", "k": 1},
                  train={"epochs": 6, "best_metric": "average_precision"})  # fmt: skip
    return tiny.changed(made, **changes)
