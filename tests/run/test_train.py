"""A whole run in this process: what it leaves, that it learns, and that it can be done again and built upon."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from tljax import trees
from tljax.config import Config, TransferConfig
from tljax.data import sources
from tljax.data.text import TextExamples
from tljax.errors import DivergedError, WeightsError, WriteError
from tljax.evaluate.predict import outputs
from tljax.run import inputs, predict, train, workdir
from tljax.train import checkpoint
from tljax.train.step import TrainStep, make_eval_step
from tljax.train.stretch import Stretch
from tljax.weights.load import load_pretrained

WORKDIR = {".lock", "checkpoints", "config.json", "confusion.png", "metrics.jsonl", "model", "report.html"}
MODELS = {
    "text": {"1_Pooling", "2_Dense", "README.md", "config.json", "model.safetensors", "modules.json", "tokenizer.json"},
    "image": {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"},
}


@pytest.fixture(params=["text", "image"])
def finished(request) -> tiny.Run:
    return request.getfixturevalue(f"{request.param}_run")


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_what_a_run_leaves(finished):
    assert names(finished.path) == WORKDIR
    assert names(finished.path / "model") == MODELS[finished.config.task]
    for step in (finished.path / "checkpoints").iterdir():
        assert names(step) == {"state", "DONE.json"}
    assert (finished.path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    page = (finished.path / "report.html").read_text(encoding="utf-8")
    assert finished.result.strategy in page
    assert finished.done.freeze_table.splitlines()[1].split()[1] in page  # parameters of the embeddings


def test_config_json_says_what_ran(finished):
    found, config = workdir.read_config(finished.path)
    assert config == finished.config
    resolved = found["resolved"]
    assert resolved["classes"] == list(finished.done.tables.classes) == sorted(resolved["classes"])
    assert resolved["model"] == finished.config.model.ref
    splits = {"text": ["test", "train", "validation"], "image": ["test", "train"]}[config.task]
    assert sorted(resolved["digests"]) == [*(f"{name} data" for name in splits), "weights"]
    assert all(len(digest) == 64 for digest in resolved["digests"].values())


def test_metrics_lines(finished):
    spe, epochs = 3, finished.config.train.epochs  # 39 texts by 16, 24 photos by 8
    lines = workdir.Workdir(finished.path).history()
    order = [("train", s) for s in range(1, epochs * spe + 1)] + [("evaluation", e * spe) for e in range(1, epochs + 1)]
    expected = [*sorted(order, key=lambda line: (line[1], line[0] != "train")), ("final", lines[-1]["step"])]
    assert [(line["kind"], line["step"]) for line in lines] == expected
    scores = {"accuracy", "macro_f1", "loss", "n"}
    keys = {
        "train": {"kind", "step", "loss", "grad_norm", "learning_rate", "examples_per_s"},
        "evaluation": {"kind", "step", "epoch", *(scores if finished.config.task == "text" else ())},
        "final": {"kind", "step", "split", *scores},
    }
    assert all(line.keys() == keys[line["kind"]] for line in lines)
    assert [line["epoch"] for line in finished.history("evaluation")] == list(range(1, epochs + 1))


def test_it_learns(finished):
    losses = [line["loss"] for line in finished.history("train")]
    assert np.mean(losses[-3:]) < 0.5 * losses[0]
    assert finished.result.split == "test"
    assert finished.result.scores.accuracy > 0.8  # 0.33 by chance
    assert finished.result.scores.n == {"text": 24, "image": 12}[finished.config.task]


def test_the_scores_are_the_same_everywhere(finished):
    (final,) = finished.history("final")
    summary = finished.result.scores.summary()
    assert {name: final[name] for name in summary} == summary
    assert f"{summary['accuracy']:.3f}" in (finished.path / "report.html").read_text(encoding="utf-8")
    assert f"{summary['accuracy']:.3f}" in (finished.path / "model" / "README.md").read_text(encoding="utf-8")


def test_the_exported_model_opens_with_the_same_probabilities(finished):
    model = load_pretrained(str(finished.path / "model"))
    assert model.labels == finished.done.tables.classes
    assert (model.reinitialised, model.dropped) == ((), ())
    assert trees.digests(trees.flatten(model.params)) == trees.digests(trees.flatten(finished.done.params))
    config = finished.config
    records = sources.read_records(config.data.test, config.data, config.task)
    examples = inputs.make_examples(records, model, config, model.labels)
    probs = outputs(make_eval_step(model.backbone), model.params, examples, config.train.eval_batch_size)
    # the run's are of kept activations, from batches that hold several texts in a row
    np.testing.assert_allclose(probs, finished.done.probs, rtol=2e-5)
    assert np.mean(probs.argmax(1) == examples.labels) == finished.result.scores.accuracy


def test_the_best_model_is_the_one_that_is_kept(text_run):
    scores = [line["accuracy"] for line in text_run.history("evaluation")]
    best = 3 * (1 + scores.index(max(scores)))  # the first of equals
    assert best < 3 * text_run.config.train.epochs  # else this test shows nothing
    assert f"the best accuracy was at step {best}" in text_run.said
    assert text_run.history("final")[0]["step"] == best
    saved = json.loads((text_run.path / "checkpoints" / str(best) / "DONE.json").read_text())["digests"]
    own = trees.digests(trees.flatten(text_run.done.params))
    trained = {path.removeprefix("trainable/"): d for path, d in saved.items() if path.startswith("trainable/")}
    assert {path: own[path] for path in trained} == trained


def test_what_does_not_train_is_the_checkpoints_own(text_run):
    base = trees.digests(trees.flatten(load_pretrained(text_run.config.model.ref, pooling="mean").params))
    own = trees.digests(trees.flatten(text_run.done.params))
    frozen = {path for path in own if path.startswith(("bert/embeddings/", "bert/encoder/layer/0/"))}
    assert {path for path in own if own[path] == base.get(path)} >= frozen
    moved = {path for path in own if own[path] != base.get(path)}
    assert {path.split("/")[3] for path in moved if path.startswith("bert/")} == {"1"}
    assert len(frozen) > 10


def test_no_warning_where_all_is_well(finished):
    assert "WARNING" not in finished.said
    assert finished.done.warnings == ()


def test_the_same_command_again_changes_nothing(text_run, tmp_path):
    path = tiny.copied(text_run.path, tmp_path / "run")
    again = tiny.run(text_run.root, path, text_run.config)
    steps = 3 * text_run.config.train.epochs
    assert f"going on from step {steps} of {steps}" in again.said
    assert again.result.scores.summary() == text_run.result.scores.summary()
    np.testing.assert_array_equal(again.result.scores.confusion, text_run.result.scores.confusion)
    timed = {"report.html", ".lock"}  # how long it took; which process

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*")
                if p.is_file() and p.name not in timed}  # fmt: skip

    before, after = contents(text_run.path), contents(path)
    assert sorted(before) == sorted(after)
    assert [name for name in before if before[name] != after[name]] == []
    assert names(path) == WORKDIR


@pytest.fixture(scope="module")
def built_upon(text_run, tmp_path_factory) -> tiny.Run:
    """One epoch from the finished run, on a table with bad rows; of its test set four texts are in train."""
    root = tmp_path_factory.mktemp("upon")
    bad = [("", "sky"), ("see the wind", ""), ("  ", "fruit")]
    rows = tiny.texts(48)
    train_csv = tiny.table(root / "train.csv", [*rows[:5], *bad[:2], *rows[5:], bad[2]])
    test_csv = tiny.table(root / "test.csv", [*rows[:4], ("", "sky"), *tiny.texts(20, skip=48)])
    data = {"train": str(train_csv), "test": str(test_csv), "on_bad": "skip"}
    config = tiny.text_config(text_run.root, model={"ref": str(text_run.path)}, data=data, train={"epochs": 1})
    return tiny.run(root, root / "run", config)


def test_a_finished_workdir_is_a_checkpoint(text_run, built_upon):
    assert "from random values" not in built_upon.said  # the head too: the classes are the same
    first, before = built_upon.history("train")[0]["loss"], text_run.history("train")
    assert first < 0.5 * before[0]["loss"]
    found, _ = workdir.read_config(built_upon.path)
    assert (
        found["resolved"]["digests"]["weights"]
        != workdir.read_config(text_run.path)[0]["resolved"]["digests"]["weights"]
    )


def test_bad_rows_are_left_out_and_listed(built_upon):
    lines = [json.loads(line) for line in (built_upon.path / "bad_rows.jsonl").read_text().splitlines()]
    train_csv, test_csv = built_upon.config.data.train, built_upon.config.data.test
    assert [(line["split"], line["where"]) for line in lines] == [
        ("train", f"{train_csv}, row 7"), ("train", f"{train_csv}, row 8"), ("train", f"{train_csv}, row 52"),
        ("test", f"{test_csv}, row 6")]  # fmt: skip
    assert all(line["reason"] for line in lines)
    assert "WARNING: 3 rows of train cannot be used" in built_upon.said
    assert "WARNING: 1 rows of test cannot be used" in built_upon.said
    assert {name: len(part) for name, part in built_upon.done.tables.splits().items()} == {
        "train": 39, "validation": 9, "test": 24}  # fmt: skip
    assert names(built_upon.path) == {*WORKDIR, "bad_rows.jsonl"}


def test_overlap_of_train_and_test_is_counted(built_upon):
    held_out = {text for text, _ in tiny.texts(4)} & set(built_upon.done.tables.validation.inputs)
    warning = f"{4 - len(held_out)} of 24 test inputs are in train too: the score flatters"
    assert f"WARNING: {warning}" in built_upon.said
    assert warning in built_upon.done.warnings
    assert warning in (built_upon.path / "report.html").read_text(encoding="utf-8")


def test_what_patience_ended_is_not_compiled_for_again(tmp_path, monkeypatch):
    compiled = []
    for kind in (TrainStep, Stretch):  # small batches of one shape go many at a time

        def counted(self, *given, compile_=kind.compile):
            compiled.append(1)
            return compile_(self, *given)

        monkeypatch.setattr(kind, "compile", counted)
    config = tiny.text_config(tmp_path, optim={"learning_rate": 1e-12}, train={"epochs": 4, "patience": 1})
    first = tiny.run(tmp_path, tmp_path / "run", config)
    assert len(first.history("evaluation")) == 2
    again = tiny.run(tmp_path, tmp_path / "run", config)
    assert "going on from step 6 of 12" in again.said
    assert compiled == [1]


DESCRIPTIONS = [
    (TransferConfig(), "full"),
    (TransferConfig(strategy="last_k", k=2), "last_k, k = 2"),
    (TransferConfig(strategy="bitfit", k=7, head_factor=30.0), "bitfit, head_factor = 30"),
    (TransferConfig(layer_decay=0.8, l2sp=0.001), "full, layer_decay = 0.8, l2sp = 0.001"),
]


@pytest.mark.parametrize(("transfer", "words"), DESCRIPTIONS, ids=[words for _, words in DESCRIPTIONS])
def test_describe(transfer, words):
    assert train.describe(Config(transfer=transfer)) == words


def test_a_full_disk_at_the_start_spoils_nothing(text_run, tmp_path, monkeypatch):
    """The same command goes on once there is room."""
    monkeypatch.setattr(checkpoint.Checkpoints, "_free", lambda self: 3)
    for _ in range(2):
        with pytest.raises(WriteError, match="3 bytes free"):
            train.train(text_run.config, tmp_path / "w", lambda text: None)


def test_other_data_is_refused_as_long_as_it_is_other_data(text_run, tmp_path, monkeypatch):
    """config.json keeps saying what the checkpoints were made with, so the second try is refused like the first."""
    path = tiny.copied(text_run.path, tmp_path / "run")
    before = (path / "config.json").read_bytes()
    digest = TextExamples.digest
    monkeypatch.setattr(TextExamples, "digest", lambda self: "other" + digest(self))
    for _ in range(2):
        with pytest.raises(WeightsError, match="made with other train data"):
            tiny.run(text_run.root, path, text_run.config)
    assert (path / "config.json").read_bytes() == before


def test_where_the_best_checkpoint_is_damaged_the_last_model_is_kept(text_run, tmp_path):
    path = tiny.copied(text_run.path, tmp_path / "run")
    (best,) = {line["step"] for line in text_run.history("final")}
    shutil.rmtree(path / "checkpoints" / str(best) / "state")
    again = tiny.run(text_run.root, path, text_run.config)
    assert again.history("final")[0]["step"] == 3 * text_run.config.train.epochs != best
    (warning,) = again.done.warnings
    assert f"checkpoints/{best}" in warning
    assert "the last model is kept instead" in warning


FAILURES = [("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes", DivergedError, "batch_size"),
            ("INTERNAL: something else", jax.errors.JaxRuntimeError, "INTERNAL")]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "words"), FAILURES)
def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch, text, kind, words):
    class Broken:
        def __init__(self, *arguments):
            raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(train, "_Run", Broken)
    with pytest.raises(kind) as caught:
        train.train(tiny.text_config(tmp_path), tmp_path / "w", lambda text: None)
    assert words in str(caught.value)


def test_the_running_mean_is_what_is_scored_and_exported(tmp_path):
    """The same steps with and without it; the mean lies between the start and the end."""
    plain, meant = (tiny.run(tmp_path, tmp_path / f"w{ema}", tiny.text_config(
        tmp_path, optim={"ema": ema}, train={"epochs": 3})) for ema in (0.0, 0.95))  # fmt: skip
    losses = [[line["loss"] for line in run.history("train")] for run in (plain, meant)]
    assert losses[0] == losses[1]
    start, end, mean = (trees.flatten(load_pretrained(str(path), labels=tuple(tiny.KEYWORDS)).params)
                        for path in (tmp_path / "bert", plain.path, meant.path))  # fmt: skip
    moved = [path for path in end if path in start and path.startswith("bert/") and (start[path] != end[path]).any()]
    assert moved
    whole, part = (np.concatenate([np.asarray(other[path] - start[path]).reshape(-1) for path in moved])
                   for other in (end, mean))  # fmt: skip
    assert 0.1 < float(part @ whole / (whole @ whole)) < 0.99
    again = predict.evaluate(meant.path)[0]
    assert again.loss == pytest.approx(meant.result.scores.loss, rel=1e-4)
    assert abs(again.loss - plain.result.scores.loss) > 1e-3
