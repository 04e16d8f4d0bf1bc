"""`tljax verdict`: pairs of runs that differ in the pretrained weights alone, judged; a second call goes on."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from tljax import cli
from tljax.config import Config, settings
from tljax.errors import ConfigError, DataError, StoppedError, WriteError
from tljax.run import compare, inputs, signals, stages, train, verdict
from tljax.run.workdir import read_config
from tljax.transfer.verdict import curve_sentence, judge

pytestmark = [
    pytest.mark.usefixtures("compiled_once"),
    pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"),
]

FEW, SEEDS = (2, 0), 2
NAMES = ("full", "scratch")
FOLDERS = [f"shots_{k}/{name}/seed_{seed}" for seed in range(SEEDS) for k in FEW for name in NAMES]


def config_of(root: Path, **changes) -> Config:
    base = {"transfer": {"strategy": "full", "layer_decay": 0.9}, "train": {"epochs": 2}}
    return tiny.text_config(root, **{**base, **changes})


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """The runs that are begun, by their folders."""
    seen, begin = [], train.train

    def begun(config, path, *of):
        seen.append("/".join(path.parts[-3:]))
        return begin(config, path, *of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train", begun)
        yield seen


@dataclasses.dataclass(frozen=True)
class Done:
    root: Path
    path: Path
    config: Config
    text: str
    said: list[str]
    runs: list[str]

    def told(self) -> dict:
        return json.loads((self.path / "verdict.json").read_text())

    def scores(self, k: int, name: str, metric: str = "accuracy") -> list[float]:
        return [self.told()["runs"][f"shots_{k}/{name}/seed_{seed}"]["scores"][metric] for seed in range(SEEDS)]


@pytest.fixture(scope="module")
def done(tmp_path_factory, compiled_once) -> Done:
    root, said = tmp_path_factory.mktemp("verdict"), []
    config = config_of(root)
    with watching() as runs:
        text = verdict.verdict(config, root / "w", FEW, SEEDS, say=said.append)
    return Done(root, root / "w", config, text, said, runs)


def test_every_pair_with_every_seed_in_turn(done):
    assert done.runs == FOLDERS
    assert list(done.told()["runs"]) == FOLDERS
    for name, run in done.told()["runs"].items():
        assert (done.path / name / "model" / "config.json").is_file()
        assert 0 < run["training_seconds"] <= run["whole_seconds"]
        assert run["scores"]["n"] == 24


def test_a_pair_differs_in_the_pretrained_weights_alone(done):
    """The same draw of examples, budget and rates; no lower rate for layers that know nothing."""
    for seed in range(SEEDS):
        for k in FEW:
            found, (ours, control) = zip(*(read_config(done.path / f"shots_{k}/{name}/seed_{seed}") for name in NAMES),
                                         strict=True)  # fmt: skip
            before = {name: value for name, _, value in settings(ours)}
            differ = {name: value for name, _, value in settings(control) if value != before[name]}
            assert differ == {"config.transfer.strategy": "scratch", "config.transfer.layer_decay": 1.0}
            assert (ours.seed, ours.data.per_class) == (seed, k)
            assert ours.data.validation_fraction == 0
            ours, control = (one["resolved"]["digests"] for one in found)
            assert ours["train data"] == control["train data"]
            assert ours["weights"]
            assert not control["weights"]


def test_each_seed_draws_examples_of_its_own(done):
    drawn = {read_config(done.path / f"shots_2/full/seed_{seed}")[0]["resolved"]["digests"]["train data"]
             for seed in range(SEEDS)}  # fmt: skip
    assert len(drawn) == SEEDS


def test_what_is_judged_is_what_the_runs_scored(done):
    found = done.told()["verdicts"]
    assert [row["shots"] for row in found] == [2, 0]
    assert [row["examples"] for row in found] == [2, 16]  # of all, the largest class has so many
    judged = [judge(done.scores(k, "full"), done.scores(k, "scratch"), 24) for k in FEW]
    for row, own in zip(found, judged, strict=True):
        assert {name: row[name] for name in dataclasses.asdict(own)} == dataclasses.asdict(own)
    told = curve_sentence(list(zip((2, 16), judged, strict=True)))
    assert told[1:] in done.text
    assert done.text in done.said[-1]
    assert "all (16)" in done.text
    assert (done.path / "few_shot.png").read_bytes()[:4] == b"\x89PNG"


def test_what_the_user_is_told_on_the_way(done):
    heads = [line.strip() for line in done.said if "— run " in line]
    assert heads[0] == "— run 1 of 8: 2 examples a class, full, seed 0 —"
    assert heads[1].startswith("— run 2 of 8: 2 examples a class, scratch, seed 0; about ")
    assert heads[1].endswith(" or more left —")
    assert heads[7].startswith("— run 8 of 8: all examples, scratch, seed 1; about ")
    assert heads[7].endswith(" s left —")
    assert "no example is held out for validation" in done.said[0]
    assert "one rate for all layers" in done.said[1]


def test_a_second_call_runs_nothing_and_says_the_same(done):
    before = done.told()
    with watching() as runs:
        assert verdict.verdict(done.config, done.path, FEW, SEEDS, say=lambda text: None) == done.text
    assert runs == []
    assert done.told() == before


def test_another_metric_needs_no_run(done, tmp_path):
    path = tiny.copied(done.path, tmp_path / "w")
    with watching() as runs:
        text = verdict.verdict(done.config, path, (0,), SEEDS, "macro_f1", say=lambda text: None)
    assert runs == []
    own = judge(done.scores(0, "full", "macro_f1"), done.scores(0, "scratch", "macro_f1"), 0, unit="macro_f1")
    assert "scores: test macro-F1" in text
    assert own.sentence()[1:] in text
    assert json.loads((path / "verdict.json").read_text())["metric"] == "macro_f1"


def test_a_score_that_is_undefined_is_refused(done, tmp_path):
    path = tiny.copied(done.path, tmp_path / "w")
    told = done.told()
    told["runs"]["shots_0/full/seed_1"]["scores"]["accuracy"] = None
    (path / "verdict.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"shots_0/full/seed_1: its accuracy is undefined"):
        verdict.verdict(done.config, path, FEW, SEEDS, say=lambda text: None)


def test_another_setting_is_refused(done):
    before = (done.path / "verdict.json").read_bytes()
    with pytest.raises(ConfigError, match="belongs to a verdict with 1 other") as caught:
        verdict.verdict(compare.changed(done.config, {"train.epochs": 5}), done.path, FEW, SEEDS)
    assert caught.value.details == ("--config.train.epochs: was 2, is 5",)
    assert (done.path / "verdict.json").read_bytes() == before


@pytest.mark.parametrize(("text", "words"), [("{", "no JSON"), ('{"settings": {}}', "no verdict")])
def test_another_file_is_refused(done, tmp_path, text, words):
    (tmp_path / "verdict.json").write_text(text)
    with pytest.raises(WriteError, match=words):
        verdict.verdict(done.config, tmp_path, (0,), 1)


@pytest.mark.parametrize("questions", [0, 3])
def test_stopped_and_called_again_it_ends_the_same(done, tmp_path, questions):
    asked, said = [], []

    @contextlib.contextmanager
    def watched():
        yield lambda: bool(asked.append(1) or len(asked) > questions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "watched", watched)
        with pytest.raises(StoppedError):
            verdict.verdict(done.config, tmp_path / "w", (2,), 1, say=said.append)
    assert said[-1] == "\nno pair of runs is finished yet"
    told = json.loads((tmp_path / "w" / "verdict.json").read_text())
    finished = [name for name, run in told["runs"].items() if "scores" in run]
    with watching() as runs:
        verdict.verdict(done.config, tmp_path / "w", (2,), 1, say=said.append)
    assert len(runs) == 2 - len(finished)
    runs = json.loads((tmp_path / "w" / "verdict.json").read_text())["runs"]
    for name in NAMES:
        place = f"shots_2/{name}/seed_0"
        assert runs[place]["scores"] == done.told()["runs"][place]["scores"]


PREPARED = [  # (name, changes, what all runs have, words)
    ("a share", {}, {"data.validation_fraction": 0.0}, ("no example is held out",)),
    ("nothing is held out", {"data": {"validation_fraction": 0.0}}, {"data.validation_fraction": 0.0}, ()),
    ("data of its own", {"data": {"validation": "v.csv"}}, {"data.validation": "v.csv"}, ()),
    ("patience has nothing to go by", {"train": {"patience": 2}}, {"train.patience": 0}, ("no example",)),
    ("patience has data", {"train": {"patience": 2}, "data": {"validation": "v.csv"}}, {"train.patience": 2}, ()),
    ("few examples already", {"data": {"per_class": 3, "validation": "v.csv"}}, {"data.per_class": 0}, ()),
    ("others beside it", {"transfer": {"beside": "scratch"}}, {"transfer.beside": ""}, ("no example",)),
    ("layer-wise rates", {"transfer": {"layer_decay": 0.5}}, {"transfer.layer_decay": 0.5}, ("no example", "0.5 is")),
]


@pytest.mark.parametrize(("changes", "have", "words"), [r[1:] for r in PREPARED], ids=[r[0] for r in PREPARED])
def test_what_all_runs_share(tmp_path_factory, changes, have, words, done):
    made, told = verdict.prepared(tiny.text_config(done.root, **changes))
    values = {name.removeprefix("config."): value for name, _, value in settings(made)}
    assert {name: values[name] for name in have} == have
    assert len(told) == len(words)
    assert all(word in line for word, line in zip(words, told, strict=True))


WRONG = [
    ("--shots=", "--shots: ''"), ("--shots=1,x", "whole numbers"), ("--shots=-1", "whole numbers"),
    ("--shots=1,5,1", "each once"), ("--shots=0,16", "the largest class has 16 training examples"),
    ("--seeds=0", "at least 1"), ("--seeds=two", "a whole number"), ("--metric=loss", "one of accuracy, macro_f1"),
    ("--metric=auc", "'auc'"), ("--config.data.test=", "--config.data.test: empty"),
    ("--config.transfer.strategy=scratch", "which is the control"),
    ("--config.objective=masked", "0 alone: few examples are drawn of the classes"),
]  # fmt: skip


@pytest.mark.parametrize(("flag", "words"), WRONG)
def test_what_is_wrong_ends_with_64(done, tmp_path, capsys, flag, words):
    file = tiny.config_file(tmp_path / "config.py", config_of(done.root))
    assert cli.main(["verdict", f"--config={file}", f"--workdir={tmp_path / 'w'}", "--shots=1,0", flag]) == 64
    assert words in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_the_command(done, tmp_path, capsys):
    """On a copy of what is finished."""
    path = tiny.copied(done.path, tmp_path / "w")
    file = tiny.config_file(tmp_path / "config.py", done.config)
    assert cli.main(["verdict", f"--config={file}", f"--workdir={path}", "--shots=2, 0", "--seeds=2"]) == 0
    said = capsys.readouterr().out
    assert done.text in said
    assert said.endswith(f"picture  {path}/few_shot.png\n")


class Ranked:
    """What a run of another task comes to."""

    class scores:
        summary = staticmethod(lambda: {"ndcg_10": 0.5, "loss": 1.0, "n": 7})

    training_seconds, trainable = 1.0, 5


def test_a_task_without_classes_has_one_point(done, tmp_path, monkeypatch):
    """What is scored is known after the first run; nothing is drawn, and no curve."""
    config = compare.changed(done.config, {"objective": "masked"})
    monkeypatch.setattr(inputs, "read", lambda config: inputs.Tables(object(), None, object(), ()))
    monkeypatch.setattr(train, "train", lambda *of: Ranked)
    text = verdict.verdict(config, tmp_path / "w", (0,), 2, "ndcg_10", say=lambda text: None)
    assert "no difference found: ndcg_10 0.500 against 0.500 from scratch"[1:] in text
    assert not (tmp_path / "w" / "few_shot.png").exists()
    with pytest.raises(ConfigError, match=r"--metric: 'accuracy'; expected one of ndcg_10"):
        verdict.verdict(config, tmp_path / "other", (0,), 1, "accuracy", say=lambda text: None)


def test_a_stage_of_pretraining_comes_first_and_once(done, tmp_path, monkeypatch):
    """The control has the network that it leaves, and not its weights."""
    begun, after = [], []
    monkeypatch.setattr(
        stages, "pretrained", lambda config, path, say: begun.append(path) or stages.after(config, path)
    )
    monkeypatch.setattr(train, "train", lambda config, *of: after.append(config) or Ranked)
    monkeypatch.setattr(inputs, "read", lambda config: inputs.Tables(object(), None, object(), ()))
    config = compare.changed(done.config, {"objective": "item", "pretrain.data": "more.csv"})
    verdict.verdict(config, tmp_path / "w", (0,), 2, "ndcg_10", say=lambda text: None)
    assert begun == [tmp_path / "w"]
    assert {one.model.ref for one in after} == {str(tmp_path / "w" / "pretrain")}
    assert [one.transfer.strategy for one in after] == [*NAMES, *NAMES]
