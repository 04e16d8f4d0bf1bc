"""`tljax wiseft`: scores of the weights between by hand, a choice by validation alone, and the model that it leaves."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from tljax import cli, trees
from tljax.data import sources
from tljax.errors import ConfigError, DataError, WeightsError
from tljax.evaluate import metrics
from tljax.run import inputs, predict, remade, wiseft
from tljax.run.workdir import read_config
from tljax.train.step import make_eval_step
from tljax.weights import files
from tljax.weights.load import load_pretrained

pytestmark = pytest.mark.usefixtures("compiled_once")
HEAD = ("classifier/bias", "classifier/kernel")


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_once) -> tiny.Run:
    """All layers move, at a rate that leaves some between the ends better than others."""
    root = tmp_path_factory.mktemp("wiseft")
    config = tiny.text_config(root, transfer={"strategy": "full"}, train={"epochs": 3}, optim={"learning_rate": 2e-3})
    return tiny.run(root, root / "run", config)


@pytest.fixture(scope="module")
def done(run) -> tuple[str, list[str], dict]:
    """The table, what was said and wiseft.json, of 5 points with a shifted set."""
    said: list[str] = []
    text = wiseft.wiseft(run.path, shifted=str(shifted(run.root)), points=5, say=said.append)
    return text, said, json.loads((run.path / "wiseft.json").read_text())


def shifted(root: Path) -> Path:
    """Other words between the ones that tell the class."""
    return tiny.table(root / "shifted.csv", [(text.replace("the", "old"), name) for text, name in tiny.texts(24, 80)])


def by_hand(run: tiny.Run, alpha: float, source: str) -> metrics.Scores:
    """The network's own answers with every number between the two, in one batch."""
    before = load_pretrained(run.config.model.ref, labels=run.done.tables.classes, pooling="mean")
    model = load_pretrained(str(run.path / "model"))
    start, end = trees.flatten(before.params), trees.flatten(model.params)
    flat = {path: leaf if path in HEAD else ((1 - alpha) * np.float64(start[path]) + alpha * np.float64(leaf))
            .astype(np.float32) for path, leaf in end.items()}  # fmt: skip
    records = sources.read_records(source, run.config.data, "text")
    examples = inputs.make_examples(records, model, run.config, model.labels)
    batch = examples.gather(np.arange(len(examples)), int(examples.lengths.max()))
    probs = jax.nn.softmax(jax.jit(model.apply)(trees.unflatten(flat), batch).logits)
    return metrics.classification(examples.truth, np.asarray(probs), model.labels)


def test_scores_are_those_of_the_numbers_between(run, done):
    _, _, told = done
    assert [row["alpha"] for row in told["scores"]] == [0, 0.25, 0.5, 0.75, 1]
    for row in told["scores"]:
        for name, source in (("test", run.config.data.test), ("shifted", str(run.root / "shifted.csv"))):
            want = by_hand(run, row["alpha"], source).summary()
            assert row[name] == pytest.approx(want, rel=1e-4), (row["alpha"], name)  # other batches, other sums
    ends = told["scores"][0]["test"]["accuracy"], told["scores"][-1]["test"]["accuracy"]
    assert ends[1] > ends[0] + 0.3


def test_the_fine_tuned_end_is_the_run(run, done):
    assert done[2]["scores"][-1]["test"] == pytest.approx(run.result.scores.summary(), rel=2e-5)
    assert done[2]["scores"][-1]["validation"]["accuracy"] == run.result.validation


def test_what_the_user_is_told(run, done):
    text, said, told = done
    assert said[:3] == [f"validation: {run.root}/train.csv, 9 examples", f"test: {run.root}/test.csv, 24 examples",
                        f"shifted: {run.root}/shifted.csv, 24 examples"]  # fmt: skip
    assert said[3].endswith("no zero-shot head here: classifier/bias, classifier/kernel")
    assert said[4] == "\n" + text
    assert told["of the fine-tuned model at every alpha"] == list(HEAD)
    rows = text.splitlines()[1:6]
    assert text.splitlines()[0].split() == ["alpha", "validation", "test", "shifted"]
    for row, scores in zip(rows, told["scores"], strict=True):
        shown = [f"{scores[name]['accuracy']:.3f}" for name in ("validation", "test", "shifted")]
        assert row.removeprefix("* ").split() == [f"{scores['alpha']:.3g}", *shown]
    assert [row.startswith("* ") for row in rows].index(True) == told["chosen"] * 4
    assert (run.path / "wiseft.png").read_bytes()[:4] == b"\x89PNG"


def test_validation_chooses_and_never_the_test_data(run, done, tmp_path):
    """With labels that make the worst weights look best."""

    def key(row: dict) -> tuple[float, float]:
        return row["validation"]["accuracy"], -row["validation"]["loss"]

    best = max(done[2]["scores"], key=key)["alpha"]
    assert done[2]["chosen"] == best > 0
    turned = {"fruit": "metal", "metal": "sky", "sky": "fruit"}
    wrong = tiny.table(tmp_path / "wrong.csv", [(text, turned[name]) for text, name in tiny.texts(24, 48)])
    path = tiny.copied(run.path, tmp_path / "w")
    wiseft.wiseft(path, str(wrong), points=5, say=lambda text: None)
    told = json.loads((path / "wiseft.json").read_text())
    assert max(told["scores"], key=lambda row: row["test"]["accuracy"])["alpha"] != best
    assert told["chosen"] == best


def test_one_program_for_all_weights(run, tmp_path):
    path = tiny.copied(run.path, tmp_path / "w")
    step = make_eval_step(remade.opened(path)[0].backbone)
    wiseft.wiseft(path, points=2, say=lambda text: None)
    before = step._cache_size()
    assert before
    wiseft.wiseft(path, points=6, say=lambda text: None)
    assert step._cache_size() == before


def test_the_model_that_is_left(run, tmp_path, monkeypatch):
    """The weights between, in a workdir that eval and predict take."""

    def middle(own):
        return max(range(len(own)), key=lambda i: -abs(i - 1))

    path, output = tiny.copied(run.path, tmp_path / "w"), tmp_path / "out"
    monkeypatch.setattr(wiseft, "chosen", middle)
    wiseft.wiseft(path, points=5, output=output, say=lambda text: None)
    told = json.loads((path / "wiseft.json").read_text())
    assert told["chosen"] == 0.25
    scores, source = predict.evaluate(output)
    assert source == run.config.data.test
    expected = told["scores"][1]["test"]
    assert {name: scores.summary()[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    found, config = read_config(output)
    assert config == run.config
    assert found["resolved"]["wiseft"] == {"alpha": 0.25, "from": str(path)}
    assert found["resolved"]["classes"] == list(run.done.tables.classes)
    start = trees.flatten(load_pretrained(run.config.model.ref, pooling="mean").params)
    end, made = (trees.flatten(load_pretrained(str(p / "model")).params) for p in (run.path, output))
    for name, leaf in made.items():
        want = end[name] if name in HEAD else 0.75 * np.float64(start[name]) + 0.25 * np.float64(end[name])
        np.testing.assert_array_equal(leaf, np.asarray(want, np.float32), err_msg=name)
    card = (output / "model" / "README.md").read_text()
    assert card.endswith("WiSE-FT: 0.75 of the pretrained weights and 0.25 of the fine-tuned ones. "
                         "The scores above are of the model before that.\n")  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "w"]
    with pytest.raises(ConfigError, match=r"--output: .*out exists"):
        wiseft.wiseft(path, output=output)


def test_without_validation_data_nothing_is_chosen(run, tmp_path):
    path = rewritten(run, tmp_path / "w", "data", validation_fraction=0.0)
    text = wiseft.wiseft(path, points=2, say=lambda text: None)
    assert text.endswith("No alpha is chosen: the run held out no validation data, and the test data choose none.")
    assert json.loads((path / "wiseft.json").read_text())["chosen"] is None
    with pytest.raises(ConfigError, match="held out no validation data to choose by"):
        wiseft.wiseft(path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rewritten(run: tiny.Run, path: Path, section: str, **values) -> Path:
    """A copy of the run whose config.json says something else."""
    tiny.copied(run.path, path)
    told = json.loads((path / "config.json").read_text())
    told["config"][section] |= values
    (path / "config.json").write_text(json.dumps(told))
    return path


def test_a_checkpoint_with_a_head_of_these_classes_keeps_it(run, tmp_path):
    """A run that goes on from another: both ends have a head of their own."""
    first = tiny.copied(run.path, tmp_path / "first")
    weights = files.open_weights(run.path / "model")
    tensors = {name: weights.read(name) for name in weights.tensors}
    files.write_safetensors(first / "model" / files.SAFETENSORS, {n: x * np.float32(0.9) for n, x in tensors.items()})
    path = rewritten(run, tmp_path / "w", "model", ref=str(first))
    told = json.loads((path / "config.json").read_text())
    del told["resolved"]["digests"]
    (path / "config.json").write_text(json.dumps(told))
    before, borrowed = wiseft.pretrained(path, *reversed(remade.opened(path)))
    assert borrowed == ()
    np.testing.assert_array_equal(before["classifier/bias"],
                                  load_pretrained(str(first / "model")).params["classifier"]["bias"])  # fmt: skip
    said: list[str] = []
    wiseft.wiseft(path, points=2, say=said.append)
    assert not any("zero-shot" in line for line in said)


def test_adapters_that_are_merged_are_weights_like_any(run, tmp_path):
    changes = {"transfer": {"strategy": "lora"}, "adapter": {"rank": 2}, "train": {"epochs": 1}}
    lora = tiny.run(run.root, tmp_path / "w", tiny.changed(run.config, **changes))
    wiseft.wiseft(lora.path, points=2, say=lambda text: None)
    told = json.loads((lora.path / "wiseft.json").read_text())
    assert told["scores"][1]["test"] == pytest.approx(lora.result.scores.summary(), rel=2e-5)
    assert told["scores"][0]["test"]["loss"] != pytest.approx(told["scores"][1]["test"]["loss"], rel=1e-3)


def test_statistics_of_a_batch_normalisation_are_named():
    leaves = {"layer/normalization/mean": np.zeros(2), "layer/normalization/scale": np.ones(2)}
    assert "running statistics of batch normalisation" in wiseft._notes((), leaves, {})[0]
    assert wiseft._notes((), {"layer/kernel": np.zeros(2)}, {}) == []


def test_runs_that_are_refused(run, tmp_path):
    def made(name: str, **changes) -> Path:
        return tiny.finished(tmp_path / name, tiny.changed(run.config, **changes))

    made("adapter", transfer={"strategy": "prefix"})
    (tmp_path / "adapter" / "model" / "config.json").unlink()
    (tmp_path / "adapter" / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter" / "adapter.json").write_text("{}")
    made("begun")
    (tmp_path / "begun" / "model" / "config.json").unlink()
    rows = [
        (made("scratch", transfer={"strategy": "scratch"}), ConfigError, "was trained from scratch"),
        (tmp_path / "adapter", ConfigError, "cannot be merged into the weights"),
        (
            made("head", model={"pooling": "pooler"}),
            ConfigError,
            "has no pretrained values (classifier/bias, classifier/kernel)",
        ),
        (made("masked", objective="masked"), ConfigError, "no classifier of texts or images"),
        (made("untested", data={"test": ""}), DataError, "names no test data"),
        (tmp_path / "begun", DataError, "no model/ yet"),
        (tmp_path / "none", DataError, "no config.json"),
    ]
    for path, kind, words in rows:
        with pytest.raises(kind) as caught:
            wiseft.wiseft(path)
        assert words in str(caught.value), path
        assert not (path / "wiseft.json").exists()
    with pytest.raises(ConfigError, match="--points: 1"):
        wiseft.wiseft(run.path, points=1)


def test_a_base_that_has_changed_is_refused(run, tmp_path):
    tiny.copied(run.root / "bert", tmp_path / "bert")
    path = rewritten(run, tmp_path / "w", "model", ref=str(tmp_path / "bert"))
    file = tmp_path / "bert" / files.SAFETENSORS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match="differ from those the run started from"):
        wiseft.wiseft(path)


def test_the_command(run, tmp_path, capsys):
    path = tiny.copied(run.path, tmp_path / "w")
    command = ["wiseft", f"--workdir={path}", "--points=3", f"--data={run.root / 'test.csv'}"]
    assert cli.main([*command, f"--output={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.endswith(f"picture  {path}/wiseft.png\nmodel    {tmp_path}/out/model\n")
    assert cli.main([*command, f"--output={tmp_path / 'out'}"]) == 64
    assert cli.main(["wiseft", f"--workdir={path}", "--points=many"]) == 64
    assert cli.main(["wiseft", f"--workdir={path}", "--shifted=none.csv"]) == 65
    assert "none.csv" in capsys.readouterr().err
