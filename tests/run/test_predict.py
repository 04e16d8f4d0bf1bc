"""From a finished workdir to predictions, scores, exports and the freeze table."""

import csv
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from jax import export as jax_export

from tljax.errors import ConfigError, DataError, WriteError
from tljax.run import export, predict, show
from tljax.train.step import make_eval_step
from tljax.weights.load import load_pretrained

AWKWARD = ["see apple pear", 'the "iron", copper', "near\nwind\r\nstorm", "apple, pear; plum", "zebra", "'",
           "WIND storm", "ünïcödé 😀 \x00 cloud", " zinc ", "see " * 40 + "iron"]  # fmt: skip


@pytest.fixture
def told() -> list[str]:
    return []


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sound(rows: list[dict[str, str]], labels: tuple[str, ...]) -> bool:
    """Probabilities in [0, 1] and in order, and two different labels."""
    for row in rows:
        first, second = float(row["probability"]), float(row["runner_up_probability"])
        assert {row["label"], row["runner_up"]} <= set(labels)
        assert row["label"] != row["runner_up"]
        assert 1 >= first >= second >= 0
        assert first + second <= 1.0001  # four decimals
    return True


def test_one_row_for_each_text_in_its_order(text_run, tmp_path, told, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 16)  # several parts
    inputs = [*AWKWARD, *(text for text, _ in tiny.texts(24, skip=48))]
    source = tiny.table(tmp_path / "new.csv", [(text,) for text in inputs], ["text"])
    output = tmp_path / "out.csv"
    assert predict.predict(text_run.path, str(source), output, told.append) == len(inputs)
    rows = read(output)
    assert list(rows[0]) == ["text", "label", "probability", "runner_up", "runner_up_probability"]
    assert [row["text"] for row in rows] == inputs
    assert sound(rows, text_run.done.tables.classes)
    for row, probs in zip(rows[len(AWKWARD) :], text_run.done.probs, strict=True):  # the run's own test set
        best, second = np.argsort(-probs)[:2]
        classes = text_run.done.tables.classes
        assert (row["label"], row["runner_up"]) == (classes[best], classes[second])
        assert abs(float(row["probability"]) - probs[best]) < 1e-4  # four decimals; other batches, other sums
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.csv", "out.csv"]
    assert told == []


def test_half_a_surrogate_pair_is_written_escaped(text_run, tmp_path):
    source = tmp_path / "new.jsonl"
    source.write_text(json.dumps({"text": "see apple \ud83d"}) + "\n" + json.dumps({"text": "wind"}) + "\n")
    assert predict.predict(text_run.path, str(source), tmp_path / "out.csv") == 2
    assert [row["text"] for row in read(tmp_path / "out.csv")] == ["see apple \\ud83d", "wind"]


def test_one_row_for_each_photo(image_run, tmp_path):
    source = tiny.photos(tmp_path / "new", 3, seed=5)
    predict.predict(image_run.path, str(source), tmp_path / "out.csv")
    rows = read(tmp_path / "out.csv")
    assert [row["image"] for row in rows] == [f"{source}/{c}/{i}.png" for c in tiny.COLOURS for i in range(3)]
    assert sound(rows, image_run.done.tables.classes)
    assert [row["label"] for row in rows] == [row["image"].split("/")[-2] for row in rows]


EMPTY = [("no byte", "", "the file is empty (0 bytes)"), ("header only", "text\n", "found 0 examples"),
         ("an empty text", 'text\n"see"\n""\n', "row 3: the text is empty"),
         ("another column", "message\nsee\n", "no column 'text'")]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), [row[1:] for row in EMPTY], ids=[row[0] for row in EMPTY])
def test_inputs_that_are_refused(text_run, tmp_path, content, words):
    (tmp_path / "new.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        predict.predict(text_run.path, str(tmp_path / "new.csv"), tmp_path / "out.csv")
    assert words in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["new.csv"]


def test_what_the_run_skips_is_said(text_run, tmp_path, told):
    config = tiny.changed(text_run.config, data={"on_bad": "skip"})
    path = tiny.finished(tmp_path / "w", config)
    source = tiny.table(tmp_path / "new.csv", [("wind", "sky"), ("", "sky"), ("iron", "metal")])
    assert predict.predict(path, str(source), tmp_path / "out.csv", told.append) == 2
    assert [row["text"] for row in read(tmp_path / "out.csv")] == ["wind", "iron"]
    assert len(told) == 1
    assert f"{source}, row 3: the text is empty" in told[0]
    predict.evaluate(path, str(source), told.append)
    assert len(told) == 2


def test_outputs_that_are_refused(text_run, tmp_path):
    source = tiny.table(tmp_path / "new.csv", tiny.texts(3))
    before = source.read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.csv").symlink_to(source)
    attempts = [("new.csv", ConfigError, "is the input too"), ("link.csv", ConfigError, "is the input too"),
                ("folder", WriteError, "a folder"), ("none/out.csv", WriteError, "cannot be written")]  # fmt: skip
    for name, kind, words in attempts:
        with pytest.raises(kind) as caught:
            predict.predict(text_run.path, str(source), tmp_path / name)
        assert words in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)
    assert source.read_bytes() == before


def test_a_failure_leaves_the_earlier_output(text_run, tmp_path, monkeypatch):
    source = tiny.table(tmp_path / "new.csv", tiny.texts(3))
    (tmp_path / "out.csv").write_text("earlier")

    def fail(*arguments):
        raise DataError("row 2", "broken")

    monkeypatch.setattr(predict, "outputs", fail)
    with pytest.raises(DataError, match="broken"):
        predict.predict(text_run.path, str(source), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "earlier"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.csv", "out.csv"]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_evaluate_gives_the_runs_own_score(request, kind):
    run = request.getfixturevalue(f"{kind}_run")
    scores, source = predict.evaluate(run.path)
    assert source == run.config.data.test
    # the run scored from kept activations, of batches that hold several texts in a row
    expected = run.result.scores.summary()
    assert {name: scores.summary()[name] for name in expected} == pytest.approx(expected, rel=2e-5)
    assert scores.summary().keys() - expected == {"calibration_error", "brier"}
    np.testing.assert_array_equal(scores.confusion, run.result.scores.confusion)


def test_evaluate_on_another_file(text_run, tmp_path):
    wrong = [(text, "fruit" if label == "sky" else label) for text, label in tiny.texts(24, skip=48)]
    scores, source = predict.evaluate(text_run.path, str(tiny.table(tmp_path / "wrong.csv", wrong)))
    assert source == str(tmp_path / "wrong.csv")
    assert scores.n == 24
    assert scores.accuracy == pytest.approx(text_run.result.scores.accuracy - 1 / 3, abs=0.1)
    assert next(row for row in scores.per_class if row.name == "sky").recall is None
    with pytest.raises(DataError, match="the class 'stone' is unknown"):
        predict.evaluate(text_run.path, str(tiny.table(tmp_path / "new.csv", [("wind", "stone")])))


def test_evaluate_without_test_data(text_run, tmp_path):
    path = tiny.finished(tmp_path / "w", tiny.changed(text_run.config, data={"test": ""}))
    with pytest.raises(DataError, match="names no test data"):
        predict.evaluate(path)


def test_a_workdir_that_is_not_finished(text_run, tmp_path):
    path = tiny.copied(text_run.path, tmp_path / "w")
    (path / "model" / "config.json").unlink()
    for attempt in (predict.open_model, predict.evaluate, lambda p: export.export(p, tmp_path / "out")):
        with pytest.raises(DataError, match="no model/ yet"):
            attempt(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_export_hf(text_run, tmp_path):
    export.export(text_run.path, tmp_path / "out", "hf")
    assert contents(tmp_path / "out") == contents(text_run.path / "model")


@pytest.mark.parametrize("kind", ["text", "image"])
def test_export_stablehlo_computes_the_same_for_any_batch(request, tmp_path, kind):
    pytest.importorskip("flatbuffers")
    run = request.getfixturevalue(f"{kind}_run")
    export.export(run.path, tmp_path / "out", "stablehlo")
    made = contents(tmp_path / "out")
    exported = jax_export.deserialize(bytearray(made.pop("predict.stablehlo")))
    assert made == contents(run.path / "model")
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    model = load_pretrained(str(tmp_path / "out"))
    step = make_eval_step(model.backbone)
    rng = np.random.default_rng(0)
    for rows, tokens in ((2, 5), (3, 4)):
        if kind == "text":
            mask = np.ones((rows, tokens), np.int32)
            mask[0, 3:] = 0
            ids = rng.integers(4, len(tiny.VOCABULARY), (rows, tokens)).astype(np.int32) * mask
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        else:
            inputs = {"pixel_values": rng.normal(size=(rows, 16, 16, 3)).astype(np.float32)}
        probs = exported.call(model.params, inputs)
        assert probs.shape == (rows, 3)
        np.testing.assert_allclose(probs, step(model.params, inputs), rtol=1e-5, atol=1e-7)  # compiled twice
        assert np.ptp(jax.device_get(probs)) > 0.1


def test_exports_that_are_refused(text_run, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("x")
    attempts = [("out", "onnx", ConfigError, "'onnx'; expected one of hf, flax_msgpack, peft, stablehlo"),
                ("there", "hf", ConfigError, "exists; expected a new folder"),
                ("file/out", "hf", WriteError, "cannot be written")]  # fmt: skip
    for name, format, kind, words in attempts:
        with pytest.raises(kind) as caught:
            export.export(text_run.path, tmp_path / name, format)
        assert words in str(caught.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install flatbuffers"):
        export.export(text_run.path, tmp_path / "out", "stablehlo")
    assert list((tmp_path / "there").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "there"]


def test_show_prints_the_freeze_table(text_run):
    shown = show.show(text_run.config.model.ref, "last_k", 1)
    own = [line.split() for line in text_run.done.freeze_table.splitlines() if "layer" in line or "embed" in line]
    lines = [line.split() for line in shown.splitlines()]
    assert all(row in lines for row in own)
    assert "bert, 73,794 parameters" in shown  # two labels
    assert "strategy last_k, k = 1" in shown
    assert "2 labels, pooling pooler" in shown
    finished = show.show(str(text_run.path), "feature_extraction")
    assert "3 labels, pooling mean" in finished
    assert "embeddings          2,560       frozen" in finished


def test_show_refuses_what_the_network_has_not(text_run):
    for strategy, k, words in (("last_k", 3, "1 to 2, the layers"), ("last_q", 1, "'last_q'")):
        with pytest.raises(ConfigError, match=r"--config\.transfer") as caught:
            show.show(text_run.config.model.ref, strategy, k)
        assert words in str(caught.value)
