"""A workdir: who may take it, what it remembers, and its log."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tljax.config import Config, DataConfig, ModelConfig, TrainConfig, TransferConfig, settings
from tljax.errors import ConfigError, DataError, TljaxError, WriteError
from tljax.run import workdir

CONFIG = Config(model=ModelConfig(ref="m"), data=DataConfig(train="a.csv"))


def made(path: Path, config: Config = CONFIG) -> Path:
    """A workdir of this config."""
    with workdir.opened(path, config) as place:
        place.describe(config, {"classes": ["a", "b"]})
    return path


def reopened(path: Path, config: Config = CONFIG) -> None:
    with workdir.opened(path, config):
        pass


def test_describe_and_read_config(tmp_path):
    config = Config(seed=3, transfer=TransferConfig(strategy="custom", rules=((".*", "body"),)))
    found, again = workdir.read_config(made(tmp_path / "deep" / "w", config))
    assert again == config  # the rules are tuples again
    assert set(found) == {"config", "resolved", "versions"}
    assert found["resolved"] == {"classes": ["a", "b"]}
    assert set(found["versions"]) == {"python", *workdir.PACKAGES}
    assert sorted(p.name for p in (tmp_path / "deep" / "w").iterdir()) == [".lock", "config.json"]


BAD_CONFIGS = [
    ("no folder", None, DataError, "no config.json"),
    ("no JSON", "{", DataError, "cannot be read (JSONDecodeError)"),
    ("a list", "[]", DataError, "cannot be read (TypeError)"),
    ("someone else's", '{"model_type": "bert"}', DataError, "cannot be read (KeyError)"),
    ("another version", '{"config": {"sneed": 1}}', ConfigError, "another version of tljax"),
    ("another version, deeper", '{"config": {"train": {"epoch": 1}}}', ConfigError, "config.json, train.epoch"),
]


@pytest.mark.parametrize(("text", "kind", "words"), [row[1:] for row in BAD_CONFIGS], ids=[r[0] for r in BAD_CONFIGS])
def test_a_config_that_cannot_be_read(tmp_path, text, kind, words):
    path = tmp_path / "w"
    if text is not None:
        path.mkdir()
        (path / "config.json").write_text(text)
    with pytest.raises(kind) as caught:
        workdir.read_config(path)
    assert words in str(caught.value)
    assert "config.json" in str(caught.value)


OWNED = [
    ("missing", [], ""),
    ("empty", ["/"], ""),
    ("a run killed before it was described", [".lock", "config.json.partial", "beside/full/config.json"], ""),
    ("foreign file", ["notes.txt"], "holds 'notes.txt' and no config.json"),
    ("a checkpoint's folder", ["model.safetensors"], "holds 'model.safetensors' and no config.json"),
    ("a log without a run", ["metrics.jsonl"], "holds 'metrics.jsonl' and no config.json"),
    ("checkpoints without a run", ["checkpoints/3/DONE.json"], "holds 'checkpoints' and no config.json"),
]


@pytest.mark.parametrize(("there", "words"), [row[1:] for row in OWNED], ids=[row[0] for row in OWNED])
def test_whose_folder_it_is(tmp_path, there, words):
    path = tmp_path / "w"
    for name in there:
        file = path / name.strip("/")
        (file if name.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            file.write_text("x")
    if not words:
        return reopened(path)
    with pytest.raises(WriteError, match="holds") as caught:
        reopened(path)
    assert words in str(caught.value)
    assert all((path / name).read_text() == "x" for name in there)


def test_every_setting_that_changed_is_listed(tmp_path):
    path = made(tmp_path / "w")
    other = Config(seed=5, model=ModelConfig(ref="m"), data=DataConfig(train="b.csv"), train=TrainConfig(epochs=9))
    with pytest.raises(ConfigError, match="a run with 3 other setting") as caught:
        reopened(path, other)
    assert caught.value.details == ("--config.seed: was 0, is 5", "--config.data.train: was 'a.csv', is 'b.csv'",
                                    "--config.train.epochs: was 3, is 9")  # fmt: skip


def test_what_no_result_depends_on_may_change(tmp_path):
    path = made(tmp_path / "w")
    assert {name for name, _, _ in settings(CONFIG)} >= workdir.FREE_TO_CHANGE
    free = Config(
        model=CONFIG.model,
        data=DataConfig(train="a.csv", threads=7),
        transfer=TransferConfig(beside="scratch"),
        train=TrainConfig(log_every_steps=7, save_every_steps=7, keep=7),
    )
    reopened(path, free)


def test_a_held_workdir_names_its_holder(tmp_path):
    with workdir.opened(tmp_path / "w", CONFIG), pytest.raises(ConfigError, match="in use") as caught:
        reopened(tmp_path / "w")
    assert f"in use by process {os.getpid()} on " in str(caught.value)
    reopened(tmp_path / "w")  # and is free afterwards


HOLD = """
import sys
from pathlib import Path
from tljax.config import Config
from tljax.run import workdir
with workdir.opened(Path(sys.argv[1]), Config()):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_workdir_held_by_another_process_that_is_then_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "w")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match=f"in use by process {holder.pid} on "):
                reopened(tmp_path / "w")
        finally:
            holder.kill()
    reopened(tmp_path / "w")  # a lock dies with its holder


def test_free_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="within"), workdir.opened(tmp_path / "w", CONFIG):
        raise ValueError("within")
    reopened(tmp_path / "w")


def test_log_history_and_rewind(tmp_path):
    place = workdir.Workdir(tmp_path)
    assert place.history() == []
    lines = [{"kind": "train", "step": 2}, {"kind": "evaluation", "step": 2}, {"kind": "train", "step": 4},
             {"kind": "final", "step": 2}]  # fmt: skip
    for line in lines:
        place.log(line)
    assert place.history() == lines
    with open(place.metrics, "a") as file:
        file.write('{"kind": "train", "st')  # a kill cut it short
    assert place.history() == lines
    place.rewind(2)
    assert [json.loads(line) for line in place.metrics.read_text().splitlines()] == lines[:2]
    place.rewind(-1)
    assert place.metrics.read_text() == ""
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_bad_rows_are_listed_once(tmp_path):
    place = workdir.Workdir(tmp_path)
    place.list_bad({"train": [], "test": []})
    assert list(tmp_path.iterdir()) == []
    bad = {"train": [{"where": "a.csv, row 3", "reason": "empty"}], "test": [{"where": "b.csv, row 2", "reason": "é"}]}
    for _ in range(2):  # a run that goes on writes the same again
        place.list_bad(bad)
    assert [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()] == [
        {"split": "train", "where": "a.csv, row 3", "reason": "empty"},
        {"split": "test", "where": "b.csv, row 2", "reason": "é"},
    ]


def test_what_cannot_be_written_is_named(tmp_path):
    place = workdir.Workdir(tmp_path)
    for name in ("metrics.jsonl", "metrics.partial", "config.json.partial", "bad_rows.partial"):
        (tmp_path / name).mkdir()  # where a file should go; root may write into anything else
    attempts = [("metrics.jsonl", lambda: place.log({"step": 1})), ("metrics.jsonl", lambda: place.rewind(0)),
                ("config.json", lambda: place.describe(CONFIG, {})),
                ("bad_rows.jsonl", lambda: place.list_bad({"train": [{"where": "x"}]}))]  # fmt: skip
    for name, attempt in attempts:
        with pytest.raises(WriteError, match="cannot be written") as caught:
            attempt()
        assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("place", ["file", "file/w", "/proc/w"])
def test_a_workdir_where_none_can_be(tmp_path, place):
    (tmp_path / "file").write_text("here already")
    with pytest.raises(WriteError, match="take another --workdir"):
        reopened(tmp_path / place)
    assert (tmp_path / "file").read_text() == "here already"


def test_a_refused_workdir_is_released(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for _ in range(2):
        with pytest.raises(TljaxError, match="holds 'notes"):
            reopened(tmp_path)
