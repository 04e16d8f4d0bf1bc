"""Runs on event tables: pretrained from random values, fine-tuned on few layers, resumed, and opened again."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pages
import pytest
import tiny
from tiny_events import SHOPS, config, downstream

from tljax import cli, trees
from tljax.errors import ConfigError
from tljax.evaluate.predict import outputs
from tljax.run import calibrate, inputs, ledgers, sequences, tasks
from tljax.run.train import train
from tljax.train.step import make_eval_step
from tljax.weights.load import load_pretrained

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def pretrained(root) -> tiny.Run:
    return tiny.run(root, root / "pretrained", config(root, "next"))


@pytest.fixture(scope="module")
def finetuned(root, pretrained) -> tiny.Run:
    return tiny.run(root, root / "finetuned", downstream(root, pretrained.path))


@pytest.fixture(scope="module")
def ranking(root) -> tiny.Run:
    return tiny.run(root, root / "ranking", config(root, "item", train={"best_metric": "ndcg_10"}))


def test_the_next_event_is_foretold(pretrained):
    """Nine of ten shops follow the one before; a guess is right once in five."""
    scores = pretrained.result.scores
    assert pretrained.result.split == "test"
    assert scores.n == 3 * 40
    assert scores.fields.keys() == {"shop"}
    assert scores.accuracy > 0.8
    assert scores.loss < 0.8  # log 5 = 1.61 by chance, 0.39 for who knows the rule
    losses = [line["loss"] for line in pretrained.history("train")]
    assert np.mean(losses[-4:]) < 0.6 * losses[0]


def test_the_next_item_is_ranked(ranking):
    scores = ranking.result.scores
    assert scores.n == 3 * 40
    assert scores.hit_rate_1 > 0.8
    assert scores.hit_rate_10 == 1.0  # of five
    assert ranking.result.validation == pytest.approx(max(line["ndcg_10"] for line in ranking.history("evaluation")))


def test_classes_are_learned_on_what_was_pretrained(finetuned, pretrained):
    scores = finetuned.result.scores
    truth = finetuned.done.tables.test.labels[finetuned.done.tables.test.asked]
    assert 0.5 < 1 - truth.mean() < 0.9
    assert scores.accuracy > 0.95  # 0.8 for who always says no
    assert scores.more["average_precision"] > 0.85  # 0.2 by chance
    assert scores.summary().keys() >= {"roc_auc", "average_precision", "card_precision_100"}
    assert finetuned.done.tables.classes == ("0", "1")
    assert "last_k, k = 1" in finetuned.said
    assert "from random values: score/bias, score/kernel" in finetuned.said
    assert "not used from the checkpoint: next.bias, next.weight" in finetuned.said
    was, now = (load_pretrained(str(run.path / "model"), task=task) for run, task in
                ((pretrained, "language"), (finetuned, "classification")))  # fmt: skip
    before, after = (trees.digests(trees.flatten(model.params)) for model in (was, now))
    same = {path for path in after if before.get(path) == after[path]}
    trained = {path for path in after if path.startswith(("transformer/h/1/", "transformer/ln_f/", "score/"))}
    assert same == after.keys() - trained


RUNS = ["pretrained", "finetuned", "ranking"]


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_leaves(request, name):
    run = request.getfixturevalue(name)
    assert {p.name for p in (run.path / "model").iterdir()} == {
        "README.md", "config.json", "events.json", "model.safetensors"}  # fmt: skip
    page = pages.read((run.path / "report.html").read_text(encoding="utf-8"))
    assert run.result.strategy in page.shown
    (final,) = run.history("final")
    shown = [value for name, value in final.items() if name in ("accuracy", "ndcg_10")]
    assert shown
    assert all(f"{value:.3f}" in page.shown for value in shown)
    assert (run.path / "confusion.png").exists() == (name == "finetuned")
    known = run.done.tables.files["events.json"]
    assert (run.path / "model" / "events.json").read_text(encoding="utf-8") == known
    fields = json.loads((run.path / "model" / "config.json").read_text())
    assert fields["model_type"] == "tljax_events"
    assert fields["fields"] == [["shop", 7, False], ["amount", 2 + 8, True]]
    assert fields["answers"] == {"pretrained": "next", "finetuned": "each", "ranking": "item"}[name]
    card = (run.path / "model" / "README.md").read_text(encoding="utf-8")
    assert "AutoModel" not in card  # transformers has no such network


@pytest.mark.parametrize("name", RUNS)
def test_the_exported_model_answers_as_the_run_did(request, name):
    """Opened from its folder, without kept activations: those of the run come from rows that hold several sequences."""
    run = request.getfixturevalue(name)
    c = dataclasses.replace(run.config, model=dataclasses.replace(run.config.model, ref=str(run.path)))
    tables = inputs.read(c)
    labels = {"labels": tables.classes} if tables.classes else {"task": "language"}
    model = load_pretrained(str(run.path), **labels, fields=tables.fields)
    assert (model.reinitialised, model.dropped) == ((), ())
    assert trees.digests(trees.flatten(model.params)) == trees.digests(trees.flatten(run.done.params))
    examples = inputs.make_examples(tables.test, model, c, tables.classes)
    task = tasks.of(c, model.config, tables.classes, inputs.make_examples(tables.train, model, c, tables.classes))
    found = outputs(make_eval_step(model.backbone, 0, task.objective), model.params, examples, 16)
    np.testing.assert_allclose(found, run.done.probs, rtol=1e-3, atol=1e-4)  # sums over rows of another length
    again, was = task.score(examples, found).summary(), run.result.scores.summary()
    assert again.keys() == was.keys()
    for score, value in was.items():
        assert again[score] == pytest.approx(value, rel=1e-4), score


def test_a_run_goes_on_from_what_is_kept_of_the_frozen_layers(finetuned, root, pretrained):
    """The same scores with the cache off."""
    assert "frozen" in finetuned.said
    off = tiny.run(root, root / "uncached", downstream(root, pretrained.path, cache={"mode": "off"}))
    np.testing.assert_allclose(off.done.probs, finetuned.done.probs, atol=2e-3)  # other sums in each of 24 steps
    assert off.result.scores.accuracy == finetuned.result.scores.accuracy


@pytest.mark.parametrize("answers", ["each", "last"])
@pytest.mark.parametrize("strategy", ["feature_extraction", "lora"])
def test_other_strategies_run(root, pretrained, tmp_path, strategy, answers):
    c = downstream(root, pretrained.path, transfer={"strategy": strategy}, train={"epochs": 1, "best_metric": "loss"},
                   events={"answers": answers}, adapter={"rank": 2})  # fmt: skip
    run = tiny.run(root, tmp_path / "w", c)
    assert run.result.scores.n == (120 if answers == "each" else 40)
    assert np.isfinite(run.result.scores.loss)
    assert ledgers.known(str(run.path), "").to_json() == pretrained.done.tables.files["events.json"]


def test_a_second_start_changes_nothing(finetuned, tmp_path):
    path = tiny.copied(finetuned.path, tmp_path / "w")
    before = (path / "model" / "model.safetensors").read_bytes()
    result = train(finetuned.config, path, lambda text: None)
    assert result.scores.summary() == finetuned.result.scores.summary()
    assert (path / "model" / "model.safetensors").read_bytes() == before


def test_the_shipped_architecture_takes_these_events(root, tmp_path):
    shipped = Path(__file__).resolve().parents[2] / "configs" / "models" / "events"
    c = config(root, "next", model={"ref": str(shipped)}, train={"epochs": 1})
    run = tiny.run(root, tmp_path / "w", c)
    assert np.isfinite(run.result.scores.loss)
    assert run.history("train")[-1]["loss"] < run.history("train")[0]["loss"]


def written(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def of_second(path: Path) -> list[float]:
    """The probability of class 1 in each row."""
    return [float(row["probability"]) if row["label"] == "1" else 1 - float(row["probability"])
            for row in written(path)]  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_eval_gives_the_runs_own_score(request, name, capsys):
    run = request.getfixturevalue(name)
    scores, source = sequences.evaluate(run.path, run.config)
    assert source == run.config.data.test
    assert scores.summary() == pytest.approx(run.result.scores.summary(), rel=1e-4)
    assert cli.main(["eval", f"--workdir={run.path}"]) == 0
    assert capsys.readouterr().out == f"{source}: {tasks.shown(scores)}, 120 answers\n"


def test_each_event_of_a_part_is_classified_in_the_order_of_the_file(finetuned, root, tmp_path):
    source = f"{root}/events.csv#-3:"
    assert cli.main(["predict", f"--workdir={finetuned.path}", f"--input={source}", f"--output={tmp_path}/o.csv"]) == 0
    rows, table = written(tmp_path / "o.csv"), written(root / "events.csv")
    assert [int(row["row"]) for row in rows] == sorted(int(row["row"]) for row in rows)
    assert len(rows) == 120
    for row in rows:
        event = table[int(row["row"]) - 1]
        assert (row["card"], float(row["time"])) == (event["card"], float(event["time"]))
    right = [row["label"] == table[int(row["row"]) - 1]["label"] for row in rows]
    assert np.mean(right) == pytest.approx(finetuned.result.scores.accuracy)


def test_probabilities_of_events_are_calibrated(finetuned, ranking, root, tmp_path):
    path, validation = tiny.copied(finetuned.path, tmp_path / "w"), f"{root}/events.csv#-6:-3"
    before = sequences.evaluate(path, finetuned.config, validation)[0]
    calibrate.calibrate(path, "", "isotonic", lambda text: None)  # on its data.validation
    told = json.loads((path / "calibration.json").read_text())
    assert (told["source"], told["n"]) == (validation, 120)
    after = sequences.evaluate(path, finetuned.config, validation)[0]
    assert after.loss < before.loss
    part = f"{root}/events.csv#-3:"
    sequences.predict(path, finetuned.config, part, tmp_path / "after.csv")
    sequences.predict(finetuned.path, finetuned.config, part, tmp_path / "before.csv")
    was, now = (of_second(tmp_path / f"{when}.csv") for when in ("before", "after"))
    (knots,) = told["isotonic"]
    np.testing.assert_allclose(now, np.interp(was, knots["scores"], knots["probs"]), atol=1e-3)
    assert abs(np.array(now) - was).max() > 0.01
    with pytest.raises(ConfigError, match=r"a model of --config\.objective=item"):
        calibrate.calibrate(ranking.path, validation)


def test_the_most_likely_items_of_each_entity(ranking, root, tmp_path):
    count = sequences.predict(ranking.path, ranking.config, f"{root}/events.csv#-3:", tmp_path / "o.csv")
    rows, last = written(tmp_path / "o.csv"), {}
    for event in written(root / "events.csv"):
        last[event["card"]] = event["shop"]
    assert count == len(rows) == 40
    assert {row["card"] for row in rows} == last.keys()
    following = [row["shop_1"] == SHOPS[(SHOPS.index(last[row["card"]]) + 1) % 5] for row in rows]
    assert np.mean(following) > 0.8
    assert all(sorted(row[f"shop_{n}"] for n in range(1, 6)) == sorted(SHOPS) for row in rows)


def test_few_negatives_leave_the_probabilities_those_of_all(root, pretrained, tmp_path):
    c = downstream(root, pretrained.path, events={"negatives": 0.2}, train={"epochs": 10})
    run = tiny.run(root, tmp_path / "w", c)
    learned = inputs.make_examples(run.done.tables.train, load_pretrained(str(run.path)), c, ("0", "1"), True)
    truth = run.done.tables.test.labels[run.done.tables.test.asked]
    assert learned.truth.mean() > 2 * truth.mean()
    assert run.done.probs[:, 1].mean() == pytest.approx(truth.mean(), abs=0.07)
    sequences.predict(run.path, c, f"{root}/events.csv#-3:", tmp_path / "o.csv")
    assert np.mean(of_second(tmp_path / "o.csv")) == pytest.approx(run.done.probs[:, 1].mean(), abs=1e-4)
    assert sequences.evaluate(run.path, c)[0].loss == pytest.approx(run.result.scores.loss, rel=1e-3)
