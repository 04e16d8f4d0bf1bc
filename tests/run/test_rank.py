"""`tljax rank`: who knows the task is first, who cannot be opened costs the others nothing, rows keep their labels."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from tljax import cli
from tljax.config import Config, DataConfig, TrainConfig
from tljax.data import sources
from tljax.errors import ConfigError, DataError, WeightsError
from tljax.run import inputs, rank
from tljax.transfer import scores
from tljax.weights import files
from tljax.weights.load import load_pretrained

# ml_collections loads config files by a way that Python is going to drop
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """bert/, headless/ (no classifier), vit/, texts.csv, photos/."""
    root = tmp_path_factory.mktemp("rank")
    tiny.checkpoint(root / "bert", "bert")
    tiny.checkpoint(root / "vit", "vit", ("a", "b", "c", "d"))
    headless(tiny.checkpoint(root / "headless", "bert"))
    tiny.table(root / "texts.csv", tiny.texts(48))
    tiny.photos(root / "photos", 6)
    return root


def headless(folder: Path) -> Path:
    weights = files.open_weights(folder)
    kept = {name: weights.read(name) for name in weights.tensors if not name.startswith("classifier")}
    files.write_safetensors(folder / files.SAFETENSORS, kept)
    return folder


def settings(source: Path | str, **data) -> Config:
    return Config(data=DataConfig(train=str(source), max_length=12, **data), train=TrainConfig(eval_batch_size=16))


def test_the_one_that_was_trained_on_it_is_first(text_run):
    refs = [str(text_run.root / "bert"), str(text_run.path)]
    random, trained = rank.rank(refs, settings(text_run.root / "test.csv")).entries
    assert trained.top.scores["logme"] > random.top.scores["logme"] + 0.2
    # Not the others: 24 texts in 64 directions can be told apart by a line, and a class in one point has a short code.
    for score in ("nearest_neighbours", "leep", "nce"):
        assert trained.top.scores[score] > random.top.scores[score], score


@pytest.mark.parametrize("stages", [False, True])
def test_scores_are_those_of_the_network_and_rows_stay_with_their_labels(place, stages):
    """Batches are made by length; here all texts go through at once."""
    config = settings(place / "texts.csv")
    entry = rank.rank([str(place / "bert")], config, stages=stages).entries[0]
    model = load_pretrained(str(place / "bert"))
    records = sources.read_records(config.data.train, config.data, "text")
    classes = sources.classes_of(records)
    examples = inputs.make_examples(records, model, config, classes)
    assert len(set(examples.lengths.tolist())) > 1
    batch = examples.gather(np.arange(48), int(examples.lengths.max()))
    names = model.backbone.stage_names
    assert [row.stage for row in entry.stages] == list(names[:-1] if stages else names[-2:-1])
    reached = model.backbone.run(model.params, batch, 0, len(names) - 1)
    read_nD = np.asarray(reached["pooled"])
    source_nZ = np.asarray(jax.nn.softmax(model.apply(model.params, batch).logits))
    labels = np.asarray(sources.label_ids(records, classes))
    for name, score in {**rank.OF_FEATURES, **rank.OF_HEAD}.items():
        of = source_nZ if name in rank.OF_HEAD else read_nD
        assert entry.top.scores[name] == pytest.approx(score(of, labels, 3), rel=1e-3, abs=1e-3), name  # other sums
    assert not any(name in row.scores for row in entry.stages[:-1] for name in rank.OF_HEAD)
    if stages:
        first = model.backbone.run(model.params, batch, 0, 1)
        real_nT1 = batch["attention_mask"][:, :, None]
        mean_nD = (np.asarray(first["hidden"]) * real_nT1).sum(1) / real_nT1.sum(1)
        assert entry.stages[0].scores["logme"] == pytest.approx(scores.logme(mean_nD, labels, 3), abs=1e-4)


def test_without_a_head_of_its_own_there_is_neither_leep_nor_nce(place):
    entry = rank.rank([str(place / "headless")], settings(place / "texts.csv")).entries[0]
    assert entry.top.scores.keys() == rank.OF_FEATURES.keys()


def test_a_bad_one_does_not_lose_the_others(place, tmp_path):
    broken = tiny.copied(place / "bert", tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    refs = [str(tmp_path / "nothing"), str(broken), str(place / "vit"), str(place / "bert")]
    found = rank.rank(refs, settings(place / "texts.csv"), task="text")
    assert [entry.ref for entry in found.entries] == refs
    words = ("no such folder", "cannot be read as a tokenizer", "a network for image input; expected one for text", "")
    for entry, word in zip(found.entries, words, strict=True):
        assert word in entry.error
        assert bool(entry.error) == (not entry.stages)
    assert found.entries[-1].top.width == 64


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_task_is_that_of_the_first_that_opens(place, tmp_path, order):
    refs = [str(place / "vit"), str(tmp_path / "nothing")]
    found = rank.rank([refs[i] for i in order], settings(place / "photos"), examples=12)
    assert {entry.ref: bool(entry.error) for entry in found.entries} == {refs[0]: False, refs[1]: True}
    assert "3 classes, 12 of 18 examples" in found.heading


REFUSED = [
    # (models, data, examples, error, words)
    ("bert,bert", "texts.csv", 2000, ConfigError, "stands twice"),
    ("nothing,nowhere", "texts.csv", 2000, WeightsError, "none of 2 can be scored"),
    ("nothing", "texts.csv", 2000, WeightsError, "no such folder"),
    ("bert", "texts.csv", 2, ConfigError, "2 for 3 classes"),
    ("bert", "missing.csv", 2000, DataError, "no such file"),
    ("bert", "one.csv", 2000, DataError, "one class only ('sky')"),
]


@pytest.mark.parametrize(("models", "source", "examples", "error", "words"), REFUSED)
def test_what_is_refused(place, models, source, examples, error, words):
    tiny.table(place / "one.csv", [("wind", "sky"), ("cloud", "sky")])
    refs = [str(place / name) for name in models.split(",")]
    with pytest.raises(error) as caught:
        rank.rank(refs, settings(place / source), examples=examples)
    assert words in str(caught.value)


def test_where_all_fail_each_has_its_line(place, tmp_path):
    with pytest.raises(WeightsError) as caught:
        rank.rank([str(place / "bert"), str(place / "headless")], settings(place / "photos"), task="image")
    assert [line.split("a network")[0].strip(" :") for line in str(caught.value).splitlines()[1:]] == [
        str(place / "bert"), str(place / "headless")]  # fmt: skip


DRAWS = [
    # (sizes of the classes, how many are drawn, how many of each class)
    ([10, 10], 6, [3, 3]),
    ([100, 4, 1], 12, [7, 4, 1]),
    ([3, 3, 3], 4, None),  # one of them has two
    ([2, 1], 2000, [2, 1]),
]


@pytest.mark.parametrize(("sizes", "count", "wanted"), DRAWS)
def test_classes_are_drawn_in_turn(sizes, count, wanted):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    drawn = [rank.balanced(labels, count, seed) for seed in range(4)]
    for own in drawn:
        assert (np.diff(own) > 0).all()
        held = np.bincount(labels[own], minlength=len(sizes))
        assert held.sum() == min(count, len(labels))
        assert held.tolist() == wanted if wanted else np.ptp(held) <= 1
    assert (len({tuple(own) for own in drawn}) > 1) == (count < len(labels))
    np.testing.assert_array_equal(rank.balanced(labels, count, 3), drawn[3])


def test_rows_that_are_left_out_are_said(place, tmp_path):
    source = tiny.table(tmp_path / "t.csv", [*tiny.texts(9), ("", "sky")])
    said: list[str] = []
    found = rank.rank([str(place / "bert")], settings(source, on_bad="skip"), say=said.append)
    assert "9 of 9 examples" in found.heading
    assert [f"{source}, row 11: the text is empty" in line for line in said] == [True]


def test_the_command(place, tmp_path, capsys):
    source = tiny.table(tmp_path / "t.csv", tiny.texts(24), ("frage", "thema"))
    models = f"--models={place / 'headless'}, {tmp_path / 'nothing'},{place / 'bert'}"
    command = ["rank", models, f"--data={source}", "--text_column=frage", "--label_column=thema", "--examples=12"]
    assert cli.main([*command, "--stages"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{source}: 3 classes, 12 of 24 examples\nin the order of LogME")
    for words in (
        "\n nothing  ",
        "no such folder",
        "stages of bert",
        "stages of headless",
        "embeddings",
        "\nBegin with",
    ):
        assert words in said
    assert cli.main([*command, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["model"].rpartition("/")[2]: "error" in row for row in rows} == {
        "bert": False, "headless": False, "nothing": True}  # fmt: skip
    assert rows[0]["scores"]["logme"] >= rows[1]["scores"]["logme"]


def test_a_config_file_says_what_the_columns_are(place, tmp_path, capsys):
    source = tiny.table(tmp_path / "t.csv", tiny.texts(24), ("frage", "thema"))
    config = tiny.text_config(place, data={"text_column": "frage", "label_column": "wrong", "test": str(source)})
    file = tiny.config_file(tmp_path / "run.py", config)
    command = ["rank", f"--models={place / 'bert'}", f"--data={source}", f"--config={file}"]
    assert cli.main([*command, "--label_column=thema"]) == 0
    assert "24 of 24 examples" in capsys.readouterr().out
    assert cli.main([*command, "--config.data.label_column=thema"]) == 0
    assert cli.main(command) == 65
    assert "no column 'wrong'" in capsys.readouterr().err


FLAGS = [
    "--task=events",
    "--examples=many",
    "--seed=-1",
    "--config.data.encoding=utf-8",
    "--config=missing.py",
    "--stagse",
]


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_that_are_refused(place, flag, capsys):
    assert cli.main(["rank", f"--models={place / 'bert'}", f"--data={place / 'texts.csv'}", flag]) == 64
    assert flag.partition("=")[0].partition(".")[0] in capsys.readouterr().err
