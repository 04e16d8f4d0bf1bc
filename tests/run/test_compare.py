"""`tljax compare`: one pass for all strategies, a table, and a second call that goes on where the first was stopped."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from tljax import cli
from tljax.config import Config, validate
from tljax.errors import ConfigError, StoppedError, WriteError
from tljax.evaluate import comparison
from tljax.run import compare, inputs, signals, train
from tljax.transfer.cache import Pass

pytestmark = [
    pytest.mark.usefixtures("compiled_once"),
    pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"),
]

ASKED, SEEDS = "head,last_1,lora:adapter.layers=1,gradual", 2
NAMES = ASKED.split(",")


def config_of(root: Path, **changes) -> Config:
    base = {"transfer": {"k": 1}, "train": {"epochs": 2}, "cache": {"mode": "disk"}}
    return tiny.text_config(root, **{**base, **changes})


@contextlib.contextmanager
def watching() -> Iterator[dict[str, list]]:
    """Counts the examples that go through frozen stages, and the runs that are begun."""
    seen: dict[str, list] = {"passed": [], "runs": []}
    shard, begin = Pass._shard, train.train

    def counted(self, filling, number, *of):
        seen["passed"].append(len(filling.groups[number]))
        return shard(self, filling, number, *of)

    def begun(config, path, *of):
        seen["runs"].append(f"{path.parent.name}/{path.name}")
        return begin(config, path, *of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pass, "_shard", counted)
        patch.setattr(train, "train", begun)
        yield seen


@dataclasses.dataclass(frozen=True)
class Done:
    root: Path
    path: Path
    config: Config
    table: str
    said: str
    passed: list[int]
    runs: list[str]

    def told(self) -> dict:
        return json.loads((self.path / "compare.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory, compiled_once) -> Done:
    root = tmp_path_factory.mktemp("compare")
    config, said = config_of(root, cache={"mode": "disk", "folder": str(root / "cache")}), []
    with watching() as seen:
        table = compare.compare(config, root / "w", ASKED, SEEDS, say=said.append)
    return Done(root, root / "w", config, table, "\n".join(said), seen["passed"], seen["runs"])


def folders() -> list[str]:
    return [f"{compare.folder(name)}/seed_{seed}" for seed in range(SEEDS) for name in NAMES]


def test_every_strategy_with_every_seed_in_turn(done):
    assert done.runs == folders()
    assert list(done.told()["runs"]) == [f"{name}, seed {seed}" for seed in range(SEEDS) for name in NAMES]
    for name, run in done.told()["runs"].items():
        assert 0.0 <= run["score"] <= 1.0, name
        assert 0 <= run["validation"] <= 1
        assert (run["split"], run["examples"], run["held_out"]) == ("test", 24, 9)
        assert 0 < run["seconds"] <= run["whole_seconds"]
        assert run["trainable"] > 0
        assert run["peak_bytes"] > 0
        assert 0.9 < run["work"] < 1.5, name


def test_what_is_frozen_is_computed_once(done):
    """Train, validation and test go through the trunk once for all strategies, phases and seeds."""
    assert sum(done.passed) == 48 + 24
    assert "frozen stages: one pass of" in done.table
    assert done.said.count("cache: ") == 1, "decided once, for all runs"


def test_what_is_left_for_people(done):
    assert done.table in done.said
    for name in NAMES:
        assert name in done.table
    assert comparison.advice(comparison.rows([])) == ""
    assert done.table.splitlines()[-1].startswith("Take ")
    assert (done.path / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert "Strategies on w" in (done.path / "compare.html").read_text()


def test_folders_have_safe_names(done):
    assert sorted(p.name for p in done.path.iterdir() if p.is_dir()) == sorted(map(compare.folder, NAMES))
    assert compare.folder("lora:adapter.layers=1") == "lora_adapter.layers=1"
    assert compare.folder("full:data.train=/a/../b c|d") == "full_data.train=_a_.._b_c_d"


def test_each_run_is_the_run_that_train_makes(done, tmp_path):
    """Sharing changes nothing: the same settings alone give the same model."""
    (config,) = compare.strategies(compare.changed(done.config, {"data.split_seed": 0, "seed": 1}), "last_1").values()
    alone = train.train(config, tmp_path / "alone", lambda text: None)
    shared = done.path / "last_1" / "seed_1" / "model" / "model.safetensors"
    assert (alone.model / "model.safetensors").read_bytes() == shared.read_bytes()


def test_a_second_call_runs_nothing_and_says_the_same(done):
    before, said = done.told(), []
    with watching() as seen:
        assert compare.compare(done.config, done.path, ASKED, SEEDS, say=said.append) == done.table
    assert (seen["passed"], seen["runs"]) == ([], [])
    assert done.told() == before


def test_a_part_of_the_strategies_gives_a_part_of_the_table(done):
    with watching() as seen:
        table = compare.compare(done.config, done.path, "gradual,head", 1, say=lambda text: None)
    assert seen["runs"] == []
    assert "last_1" not in table


@pytest.mark.parametrize(("changes", "line"), [
    ({"optim.learning_rate": 1e-3}, "--config.optim.learning_rate: was 0.005, is 0.001"),
    ({"seed": 7}, "--config.seed: was 0, is 7"), ({"train.epochs": 5}, "--config.train.epochs: was 2, is 5"),
])  # fmt: skip
def test_another_setting_is_refused(done, changes, line):
    before = (done.path / "compare.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        compare.compare(compare.changed(done.config, changes), done.path, ASKED, SEEDS)
    assert line in caught.value.details
    assert (done.path / "compare.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "compare.json").write_text(text)
    with pytest.raises(WriteError, match=r"compare\.json: no JSON"):
        compare.compare(config_of(tmp_path), tmp_path / "w", "head", 1)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"settings": 3, "runs": {}, "pass": {}}'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "compare.json").write_text(text)
    with pytest.raises(WriteError, match=r"compare\.json: no comparison"):
        compare.compare(config_of(tmp_path), tmp_path / "w", "head", 1)


WRONG = [
    ("--strategies=hed", "'hed'"), ("--strategies=head,full,head", "'head' stands twice"), ("--strategies=,", "empty"),
    ("--strategies=last_x", "'last_x'"), ("--strategies=last_9", "1 to 2, the layers of this network"),
    ("--strategies=full:optim.rate=1", "'optim.rate=1'"), ("--strategies=full:optim.learning_rate=fast", "type float"),
    ("--strategies=full:data.flip=maybe", "type bool"), ("--strategies=full:optim.learning_rate=-1", "learning_rate"),
    ("--strategies=full:transfer.rules=a", "STRATEGY:section.setting=value"),
    ("--strategies=head --seeds=0", "at least 1"), ("--strategies=head --seeds=x", "a whole number"),
    ("--strategies=head --seeds=-1", "a whole number"), ("--strategies=head --minutes=soon", "a number"),
    ("--strategies=head --minutes=-1", "0 or more"), ("--strategies=head --minutes=nan", "0 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), WRONG)
def test_what_is_wrong_ends_with_64(tmp_path_factory, tmp_path, capsys, flags, words, shared_root):
    file = tiny.config_file(tmp_path / "config.py", config_of(shared_root))
    assert cli.main(["compare", f"--config={file}", f"--workdir={tmp_path / 'w'}", *flags.split(" ")]) == 64
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("w/*/seed_*"))


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.mark.parametrize(("asked", "changes"), [
    ("head", {"transfer.strategy": "feature_extraction"}), ("last_2", {"transfer.strategy": "last_k", "transfer.k": 2}),
    ("last_k", {"transfer.strategy": "last_k"}),
    ("lora:adapter.rank=4", {"transfer.strategy": "lora", "adapter.rank": 4}),
    ("full:optim.learning_rate=1e-3:data.flip=true",
     {"transfer.strategy": "full", "optim.learning_rate": 1e-3, "data.flip": True}),
    ("surgical:transfer.stages=layer_0", {"transfer.strategy": "surgical", "transfer.stages": "layer_0"}),
])  # fmt: skip
def test_names_and_settings(shared_root, asked, changes):
    base = validate(config_of(shared_root))
    assert compare.strategies(base, f" {asked} ,") == {asked: compare.changed(base, changes)}


def test_how_kernels_are_held_and_computed_is_nothing_to_the_examples(shared_root, tmp_path, monkeypatch):
    """Texts are tokenised once for each split, not once for each precision."""
    made, make = [], inputs.make_examples
    monkeypatch.setattr(inputs, "make_examples", lambda *of: made.append(1) or make(*of))
    config = config_of(shared_root, train={"epochs": 1}, cache={"mode": "memory"})
    asked = "lora,lora:model.frozen=int8,head:model.dtype=bfloat16"
    compare.compare(config, tmp_path / "w", asked, 1, say=lambda text: None)
    assert len(made) == 3
    compare.compare(config, tmp_path / "longer", "head,head:data.max_length=4", 1, say=lambda text: None)
    assert len(made) == 3 + 6


@contextlib.contextmanager
def stopped_after(questions: int) -> Iterator[None]:
    """A signal that comes when it was asked for so many times, in the whole of the comparison."""
    asked = []

    @contextlib.contextmanager
    def watched():
        yield lambda: bool(asked.append(1) or len(asked) > questions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "watched", watched)
        yield


@pytest.mark.parametrize("questions", [0, 5, 25])
def test_stopped_and_called_again_it_ends_the_same(shared_root, tmp_path, questions):
    config = config_of(shared_root, train={"epochs": 2}, cache={"mode": "disk", "folder": str(tmp_path / "cache")})
    said = []
    with stopped_after(questions), pytest.raises(StoppedError), watching() as first:
        compare.compare(config, tmp_path / "w", "head,gradual", SEEDS, say=said.append)
    told = json.loads((tmp_path / "w" / "compare.json").read_text()) if first["runs"] else {"runs": {}}
    finished = [name for name, run in told["runs"].items() if "score" in run]
    assert ("no run is finished yet" in "\n".join(said)) == (not finished)
    with watching() as second:
        table = compare.compare(config, tmp_path / "w", "head,gradual", SEEDS, say=said.append)
    assert len(second["runs"]) == 4 - len(finished)
    again = sum(first["passed"] + second["passed"]) - (48 + 24)
    assert again in (0, 39, 9, 24)  # at most the one shard that was stopped in
    runs = json.loads((tmp_path / "w" / "compare.json").read_text())["runs"]
    assert {name: run["score"] for name, run in runs.items()} == whole(shared_root, tmp_path)
    begun = [name for name, run in told["runs"].items() if run["seconds"] and "score" not in run]
    assert all(runs[name]["seconds"] > told["runs"][name]["seconds"] for name in begun)  # what was lost counts
    assert "Take " in table


_whole: dict[str, float] = {}


def whole(root: Path, path: Path) -> dict[str, float]:
    """The scores of a comparison that nobody stops, made once."""
    if not _whole:
        config = config_of(root, train={"epochs": 2}, cache={"mode": "memory"})
        compare.compare(config, path / "whole", "head,gradual", SEEDS, say=lambda text: None)
        runs = json.loads((path / "whole" / "compare.json").read_text())["runs"]
        _whole.update({name: run["score"] for name, run in runs.items()})
    return _whole


def test_a_budget_leaves_whole_rounds_and_says_what_was_not_begun(shared_root, tmp_path, monkeypatch):
    """Each run takes 70 s by a clock of our own; of four minutes, the fourth run would end too late."""
    now = [0.0]
    monkeypatch.setattr(compare.time, "monotonic", lambda: now[0])

    def slow(config, path, say, together):
        now[0] += 70.0
        return dataclasses.replace(made, strategy=config.transfer.strategy)

    made = train.train(config_of(shared_root, train={"epochs": 1}), tmp_path / "one", lambda text: None)
    monkeypatch.setattr(train, "train", slow)
    config = config_of(shared_root)
    table = compare.compare(config, tmp_path / "w", "head,last_1", 3, minutes=4, say=lambda text: None)
    runs = json.loads((tmp_path / "w" / "compare.json").read_text())["runs"]
    assert [name for name, run in runs.items() if "score" in run] == ["head, seed 0", "last_1, seed 0", "head, seed 1"]
    assert table.splitlines()[-1] == "not begun, for want of time: last_1, seed 1; head, seed 2; last_1, seed 2"
    table = compare.compare(config, tmp_path / "w", "head,last_1", 3, say=lambda text: None)
    assert "not begun" not in table
