"""Every shipped config: it opens, passes its checks, says how it is started, and runs three steps on small data."""

import csv
import math
import re
from collections import Counter
from pathlib import Path

import checkpoints
import jax
import pytest
import tiny

from tljax import cli
from tljax.cli import flags
from tljax.config import Config, settings, validate
from tljax.run.workdir import Workdir

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(CONFIGS.glob("*.py"))
OWN_DATA = {"images", "text"}  # whoever runs these brings --config.data.train
SMALL = {"grocery_mobilenet": checkpoints.DATA / "mobilenet_v2"}  # its rules name the parameters of one family
# ml_collections loads config files by a way that Python is going to drop
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request) -> Path:
    return request.param


def opened(*arguments: str) -> Config:
    """What `tljax train` makes of these arguments."""
    return flags.parse("train", [*arguments, "--workdir=w"], {"workdir": None}, config=True)["config"].value


def test_there_are_configs():
    assert {file.stem for file in FILES} >= {"quickstart", *OWN_DATA}


def test_it_opens_and_passes_its_checks(file):
    own = ["--config.data.train=mine.csv"] if file.stem in OWN_DATA else []
    config = opened(f"--config={file}", *own)
    assert type(config) is Config
    assert validate(config) is config
    assert bool(opened(f"--config={file}").data.train) == (file.stem not in OWN_DATA)


def test_its_docstring_says_how_it_is_started(file):
    doc = re.match(r'"""(.*?)"""', file.read_text(encoding="utf-8"), re.DOTALL)
    assert doc, "the file begins with a docstring"
    commands = re.findall(r"python launch\.py .*?(?=\n\n|\Z)", doc[1], re.DOTALL)
    assert len(commands) == 1
    words = commands[0].replace("\\\n", " ").split()
    assert f"--config=configs/{file.name}" in words
    assert any(word.startswith("--workdir=runs/") for word in words)
    known = {f"--{name}" for name, _, _ in settings(Config())} | {"--config", "--workdir"}
    assert {word.partition("=")[0] for word in words[2:]} <= known
    assert ("--config.data.train" in commands[0]) == (file.stem in OWN_DATA)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("small")
    tiny.text_config(root)
    tiny.image_config(root)
    return root


def test_it_runs_three_steps(file, small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = opened(f"--config={file}")
    if config.task == "events":
        changes = _events(file, small)
    elif config.task == "text":
        changes = {"model.ref": small / "bert", "data.train": small / "train.csv", "data.test": small / "test.csv",
                   "data.label_column": "label", "data.max_buckets": 1, "train.batch_size": 16}  # fmt: skip
    else:
        changes = {"model.ref": SMALL.get(file.stem, small / "vit"), "data.train": small / "photos",
                   "data.test": small / "unseen", "train.batch_size": 8, "model.image_size": 0}  # fmt: skip
    if config.adapt.target:
        changes |= {"adapt.target": small / "unseen", "model.ref": config.model.ref}
    if config.pretrain.data:
        changes |= {"pretrain.data": changes.get("pretrain.data", changes["data.train"]), "pretrain.epochs": 1,
                    "pretrain.batch_size": 16}  # fmt: skip
    changes |= {"data.per_class": 0, "data.validation": "", "data.validation_fraction": 0, "transfer.beside": "",
                "train.epochs": 1, "train.log_every_steps": 1, "train.patience": 0, "model.dropout": 0}  # fmt: skip
    overrides = [f"--config.{name}={value}" for name, value in changes.items()]
    with jax.numpy_dtype_promotion("standard"):  # as users have it; optax's cosine multiplies a float with a step
        code = cli.main(["train", f"--config={file}", "--workdir=runs/w", *overrides])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    lines = Workdir(tmp_path / "runs" / "w").history()
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]
    assert all(math.isfinite(line["loss"]) for line in lines if line["kind"] == "train")
    assert (tmp_path / "runs" / "w" / "model" / "model.safetensors").is_file()
    assert "tljax predict --workdir=runs/w" in shown.out


def _events(file: Path, small: Path) -> dict[str, object]:
    """A table with the columns that the config names, and its own parts of it."""
    if file.stem == "fraud":
        table = tiny.transactions(small / "transactions.npz")
        return {"data.train": f"{table}#115..122", "data.test": f"{table}#129..136", "pretrain.data": f"{table}#..115",
                "data.max_buckets": 1, "train.batch_size": 8}  # fmt: skip
    table = tiny.ratings(small / "ratings.txt")
    return {"data.train": f"{table}#:-2", "data.test": f"{table}#-1:", "data.max_buckets": 1, "train.batch_size": 8}


def tickets(split: str) -> list[dict[str, str]]:
    with open(CONFIGS / "data" / f"support_tickets_{split}.csv", newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table, strict=True))


@pytest.mark.parametrize(("split", "each"), [("train", 36), ("test", 16)])
def test_the_tickets_are_balanced(split, each):
    rows = tickets(split)
    assert all(row.keys() == {"text", "intent"} for row in rows)
    assert all(row["text"].strip() == row["text"] != "" for row in rows)
    counts = Counter(row["intent"] for row in rows)
    assert len(counts) == 14
    assert set(counts.values()) == {each}
    described = re.findall(r"^- `(\w+)`", (CONFIGS / "data" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(counts) == sorted(described)


def test_no_ticket_stands_there_twice():
    texts = [row["text"] for split in ("train", "test") for row in tickets(split)]
    assert [text for text, n in Counter(texts).items() if n > 1] == []
    assert len({" ".join(text.lower().split()) for text in texts}) == len(texts)  # nor with other spaces or capitals
