"""Tiny checkpoints with random weights, tiny data that can be learned, and configs for them: all that a run needs."""

import csv
import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tljax import models
from tljax.config import (
    Config,
    DataConfig,
    DeviceConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    TransferConfig,
    to_dict,
)
from tljax.run import publish
from tljax.run.train import Result, train
from tljax.run.workdir import Workdir
from tljax.weights import convert, files

# 64 wide: XLA unrolls the products of narrower networks and takes longer to compile them.
TRUNK = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
         "initializer_range": 0.1}  # fmt: skip
KEYWORDS = {"fruit": ("apple", "pear", "plum"), "metal": ("iron", "copper", "zinc"), "sky": ("cloud", "storm", "wind")}
FILLERS = ("again", "near", "old", "see", "the", "big")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = (*SPECIAL, *FILLERS, *itertools.chain.from_iterable(KEYWORDS.values()), "[MASK]")
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (210, 40, 50)}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": len(VOCABULARY),
             "max_position_embeddings": 16, "pad_token_id": 0, **TRUNK},
    "vit": {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 16, "patch_size": 4,
            **TRUNK},
}  # fmt: skip
PREPROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2,
                "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # fmt: skip
_tensors: dict[tuple[str, int], dict[str, np.ndarray]] = {}  # made once in a process


def checkpoint(folder: Path, family: str, labels: Sequence[str] = ("no", "yes")) -> Path:
    """A Hugging Face folder of a network with two layers: config.json, model.safetensors, tokenizer or preprocessor."""
    if (family, len(labels)) not in _tensors:
        backbone = models.build(CONFIGS[family], num_labels=len(labels))
        _tensors[family, len(labels)] = convert.to_safetensors(backbone.init(jax.random.key(1)), family)
    folder.mkdir(parents=True)
    config = {**CONFIGS[family], "id2label": {str(i): name for i, name in enumerate(labels)}}
    (folder / "config.json").write_text(json.dumps(config))
    files.write_safetensors(folder / files.SAFETENSORS, _tensors[family, len(labels)])
    if family == "vit":
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    else:
        _tokenizer(folder / "tokenizer.json")
    return folder


def _tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate(VOCABULARY)}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    made.add_special_tokens([*SPECIAL, "[MASK]"])
    made.save(str(path))


def texts(rows: int = 48, skip: int = 0) -> list[tuple[str, str]]:
    """(text, class) of 4 to 6 words, of which two tell the class; all different, classes in turn.

    Args:
      skip: how many to pass over: texts(48) and texts(24, skip=48) have none in common.
    """
    frames = list(itertools.product(itertools.permutations(range(3), 2), itertools.permutations(FILLERS, 2)))
    order = np.random.default_rng(0).permutation(len(frames))
    made = []
    for i in range(skip, skip + rows):
        name = list(KEYWORDS)[i % 3]
        (one, other), (first, last) = frames[order[i // 3]]
        words = (first, KEYWORDS[name][one], KEYWORDS[name][other], last, *["the"] * (i // 3 % 3))
        made.append((" ".join(words), name))
    return made


def table(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("text", "label")) -> Path:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)
    return path


def photos(folder: Path, each: int = 8, seed: int = 0) -> Path:
    """An image folder: three colours, `each` PNG of 16 x 16 noisy pixels in every class."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            noisy = np.clip(np.array(colour) + rng.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name / f"{i}.png")
    return folder


def transactions(path: Path, cards: int = 24, days: int = 140) -> Path:
    """The columns of the Fraud Detection Handbook's set: a transaction of each card on most days, few of them frauds,
    which are the large ones."""
    rng = np.random.default_rng(0)
    card, day = (x.reshape(-1) for x in np.meshgrid(np.arange(cards), np.arange(days), indexing="ij"))
    keep = rng.random(len(card)) < 0.8
    card, time = card[keep], (day[keep] * 86400 + rng.integers(0, 86400, keep.sum()))
    amount = rng.integers(100, 10000, len(card))
    fraud = amount > 9000
    order = np.argsort(time, kind="stable")
    np.savez(path, customer_id=card[order].astype(np.uint16), time_seconds=time[order].astype(np.uint32),
             terminal_id=rng.integers(0, 9, len(card)).astype(np.uint16), amount_cents=amount[order].astype(np.uint32),
             fraud=fraud[order].astype(np.uint8))  # fmt: skip
    return path


def ratings(path: Path, users: int = 24) -> Path:
    """Lines 'user item' in order of time: each user goes round the items from one of their own."""
    lines = [f"{user} {(user + step) % 7 + 1}" for step in range(6) for user in range(users)]
    path.write_text("\n".join(lines) + "\n")
    return path


def text_config(root: Path, **changes: dict[str, Any]) -> Config:
    """A run on `root`/bert, train.csv and test.csv, which are made where they are missing; `changes` by section."""
    if not (root / "bert").exists():
        checkpoint(root / "bert", "bert")
        table(root / "train.csv", texts(48))
        table(root / "test.csv", texts(24, skip=48))
    config = Config(
        task="text",
        model=ModelConfig(ref=str(root / "bert"), pooling="mean", dropout=0.0),
        data=DataConfig(
            train=str(root / "train.csv"), test=str(root / "test.csv"), validation_fraction=0.2, max_length=12,
            max_buckets=1,
        ),
        transfer=TransferConfig(strategy="last_k", k=1),
        optim=OptimConfig(learning_rate=5e-3, warmup_fraction=0.0),
        train=TrainConfig(batch_size=16, eval_batch_size=16, epochs=6, log_every_steps=1),
        device=DeviceConfig(count=1),
    )  # fmt: skip
    return changed(config, **changes)


def image_config(root: Path, **changes: dict[str, Any]) -> Config:
    """A run on `root`/vit, photos/ and unseen/, which are made where they are missing; `changes` by section."""
    if not (root / "vit").exists():
        checkpoint(root / "vit", "vit")
        photos(root / "photos", 8, 0)
        photos(root / "unseen", 4, 1)
    config = Config(
        task="image",
        model=ModelConfig(ref=str(root / "vit")),
        data=DataConfig(train=str(root / "photos"), test=str(root / "unseen"), validation_fraction=0.0, flip=True),
        transfer=TransferConfig(strategy="full", layer_decay=0.8),
        optim=OptimConfig(learning_rate=2e-3, warmup_fraction=0.0),
        train=TrainConfig(batch_size=8, eval_batch_size=8, epochs=4, log_every_steps=1),
        device=DeviceConfig(count=1),
    )
    return changed(config, **changes)


def changed(config: Config, **changes: Any) -> Config:
    """A copy with some settings replaced: changed(config, data={"train": "a.csv"}, seed=3)."""
    parts = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **parts)


def config_file(path: Path, config: Config) -> Path:
    """A file for --config that gives this config."""
    path.write_text(
        f"from tljax.config import from_dict\n\n\ndef get_config():\n    return from_dict({to_dict(config)!r})\n"
    )
    return path


def finished(folder: Path, config: Config) -> Path:
    """A workdir as a finished run leaves it, as far as predict, eval and export look; its model is not trained."""
    family, labels = ("bert", tuple(KEYWORDS)) if config.task == "text" else ("vit", tuple(COLOURS))
    checkpoint(folder / "model", family, labels)
    Workdir(folder).describe(config, {})
    return folder


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that has ended: `root` holds checkpoint and data, `path` is the workdir, `said` what the user was told."""

    root: Path
    path: Path
    config: Config
    result: Result
    done: publish.Finished
    said: str

    def history(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in Workdir(self.path).history() if line["kind"] == kind]


def run(root: Path, path: Path, config: Config) -> Run:
    """Trains in this process, and keeps what the run publishes."""
    said: list[str] = []
    done: list[publish.Finished] = []
    real = publish.publish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "publish", lambda finished: (done.append(finished), real(finished)))
        result = train(config, path, said.append)
    return Run(root, path, config, result, done[0], "\n".join(said))


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder, to be broken."""
    shutil.copytree(source, target)
    return target
