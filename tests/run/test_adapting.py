"""What a run with adapters leaves: predictions and scores as the run had them, its base held to, and PEFT's layout."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from tljax import cli, models, trees
from tljax.errors import TljaxError, WeightsError
from tljax.run import adapting, export, predict
from tljax.run.train import train
from tljax.run.workdir import read_config
from tljax.weights import adapter_folder, files, hfconfig, peft

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory, compiled_once) -> tiny.Run:
    """Prefixes cannot be merged into weights: the run leaves an adapter and no model."""
    root = tmp_path_factory.mktemp("prefix")
    config = tiny.text_config(root, transfer={"strategy": "prefix"}, adapter={"tokens": 4}, train={"epochs": 3})
    return tiny.run(root, root / "w", config)


@pytest.fixture(scope="module")
def lora(tmp_path_factory, compiled_once) -> tiny.Run:
    """With a pooler, as transformers' own classes have it."""
    root = tmp_path_factory.mktemp("lora")
    config = tiny.text_config(root, transfer={"strategy": "lora"}, adapter={"rank": 4}, model={"pooling": "pooler"},
                              train={"epochs": 3})  # fmt: skip
    return tiny.run(root, root / "w", config)


def test_an_adapter_that_cannot_be_merged_stands_alone(prefix):
    assert prefix.result.model == prefix.path / "adapter"
    assert sorted(p.name for p in prefix.result.model.iterdir()) == ["adapter.json", "adapter.safetensors"]
    assert not (prefix.path / "model").exists()
    assert (prefix.path / "report.html").is_file()


def test_one_that_can_stands_beside_the_merged_model(lora):
    assert lora.result.model == lora.path / "model"
    assert (lora.path / "adapter" / "adapter.json").is_file()


def test_eval_gives_the_score_of_the_run(prefix):
    scores, source = predict.evaluate(prefix.path)
    assert source == prefix.config.data.test
    assert scores.accuracy == prefix.result.scores.accuracy
    assert scores.loss == pytest.approx(prefix.result.scores.loss, rel=1e-5)
    np.testing.assert_array_equal(scores.confusion, prefix.result.scores.confusion)


@pytest.mark.parametrize("which", ["prefix", "lora"])
def test_predict_gives_the_probabilities_of_the_run(which, request, tmp_path):
    run = request.getfixturevalue(which)
    predict.predict(run.path, str(run.root / "test.csv"), tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = run.done.tables.classes
    assert [row["label"] for row in rows] == [classes[i] for i in run.done.probs.argmax(1)]
    found = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(found, run.done.probs.max(1), atol=1e-4)  # four decimals


def test_what_is_opened_is_what_was_trained(prefix):
    """Bit for bit: adapters, head, and the base below them."""
    model, plain, learned = adapting.opened(prefix.path / "adapter", prefix.config)
    assert learned.base == plain.ref == prefix.config.model.ref
    assert model.labels == prefix.done.tables.classes
    flat = trees.flatten(prefix.done.params)
    for path, leaf in trees.flatten(model.params).items():
        np.testing.assert_array_equal(leaf, flat[path], err_msg=path)
    trained = {path for path in flat if "prefix" in path or path.startswith("classifier/")}
    assert learned.leaves.keys() == trained


def changed_base(run: tiny.Run, root: Path) -> Path:
    """A copy of the run whose base lies elsewhere, to be changed."""
    tiny.copied(run.path, root / "w")
    tiny.copied(run.root / "bert", root / "bert")
    told = json.loads((root / "w" / "config.json").read_text())
    told["config"]["model"]["ref"] = str(root / "bert")
    (root / "w" / "config.json").write_text(json.dumps(told))
    return root / "w"


def test_a_base_that_has_changed_is_refused(prefix, tmp_path, capsys):
    path = changed_base(prefix, tmp_path)
    assert predict.evaluate(path)[0].accuracy == prefix.result.scores.accuracy  # the same weights elsewhere will do
    file = tmp_path / "bert" / files.SAFETENSORS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # the lowest digit that counts of one number
    file.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match="differ from those the adapter was trained on"):
        predict.evaluate(path)
    assert (
        cli.main(
            ["predict", f"--workdir={path}", f"--input={prefix.root / 'test.csv'}", f"--output={tmp_path / 'o.csv'}"]
        )
        == 66
    )
    assert "differ from those" in capsys.readouterr().err
    assert not (tmp_path / "o.csv").exists()


def rewritten(place: Path, change) -> None:
    """adapter.json with something else in it."""
    said = json.loads((place / "adapter.json").read_text())
    change(said)
    (place / "adapter.json").write_text(json.dumps(said))


def tensors(place: Path, change) -> None:
    """adapter.safetensors with other arrays."""
    leaves = dict(adapter_folder.read(place).leaves)
    change(leaves)
    (place / "adapter.safetensors").unlink()
    files.write_safetensors(place / "adapter.safetensors", leaves)


HEAD = "classifier/kernel"
DAMAGES = {
    "no description": (lambda p: (p / "adapter.json").unlink(), "no model/ yet"),
    "an empty description": (lambda p: (p / "adapter.json").write_text(""), "adapter.json"),
    "a description cut": (lambda p: (p / "adapter.json").write_text('{"format": 1, "ad'), "adapter.json"),
    "a list": (lambda p: (p / "adapter.json").write_text("[]"), "adapter.json"),
    "another format": (lambda p: rewritten(p, lambda s: s.update(format=2)), "format 2"),
    "no adapter": (lambda p: rewritten(p, lambda s: s.pop("adapter")), "no description of an adapter"),
    "no digest": (lambda p: rewritten(p, lambda s: s.pop("digest")), "no description of an adapter"),
    "an unknown field": (lambda p: rewritten(p, lambda s: s["adapter"].update(depth=3)), "no description of an"),
    "an unknown kind": (lambda p: rewritten(p, lambda s: s["adapter"].update(kind="magic")), "magic"),
    "a kind of no text": (lambda p: rewritten(p, lambda s: s["adapter"].update(kind=[1])), "adapter.json"),
    "another kind": (lambda p: rewritten(p, lambda s: s["adapter"].update(kind="ia3")), "do not fit the network"),
    "other tokens": (lambda p: rewritten(p, lambda s: s["adapter"].update(tokens=5)), "do not fit the network"),
    "tokens of text": (lambda p: rewritten(p, lambda s: s["adapter"].update(tokens="5")), "adapter.json"),
    "another digest": (lambda p: rewritten(p, lambda s: s.update(digest="0")), "differ from those"),
    "other labels": (lambda p: rewritten(p, lambda s: s.update(labels=["a", "b"])), "do not fit the network"),
    "labels of text": (lambda p: rewritten(p, lambda s: s.update(labels="abc")), "adapter.json"),
    "no arrays": (lambda p: (p / "adapter.safetensors").unlink(), "adapter.safetensors"),
    "empty arrays": (lambda p: (p / "adapter.safetensors").write_bytes(b""), "adapter.safetensors"),
    "arrays cut": (lambda p: (p / "adapter.safetensors").write_bytes((p / "adapter.safetensors").read_bytes()[:-4]),
                   "adapter.safetensors"),
    "a page of HTML": (lambda p: (p / "adapter.safetensors").write_text("<!DOCTYPE html>" * 9), "adapter.safetensors"),
    "NaN": (lambda p: tensors(p, lambda t: t.update({HEAD: np.full_like(t[HEAD], np.nan)})), "NaN or infinity"),
    "one missing": (lambda p: tensors(p, lambda t: t.pop(HEAD)), f"{HEAD}: have nothing"),
    "one too many": (lambda p: tensors(p, lambda t: t.update(extra=np.zeros(3, np.float32))), "extra: have (3,)"),
    "another shape": (lambda p: tensors(p, lambda t: t.update({HEAD: np.ascontiguousarray(t[HEAD].T)})),
                      f"{HEAD}: have (3, 64)"),
}  # fmt: skip


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_what_is_damaged_is_refused_with_a_sentence(prefix, tmp_path, capsys, damage):
    path = tiny.copied(prefix.path, tmp_path / "w")
    breaks, words = DAMAGES[damage]
    breaks(path / "adapter")
    with pytest.raises(TljaxError) as caught:
        predict.evaluate(path)
    assert words in str(caught.value)
    assert cli.main(["eval", f"--workdir={path}"]) in (64, 65, 66)
    assert words in capsys.readouterr().err


def test_a_pooler_runs_adapter_opens_as_peft_has_it(lora, tmp_path):
    """What PEFT's layout holds is, on the base, the network that was trained."""
    assert cli.main(["export", f"--workdir={lora.path}", f"--output={tmp_path / 'out'}", "--format=peft"]) == 0
    base = models.build(hfconfig.read_json(lora.root / "bert" / "config.json"), num_labels=3)
    found = peft.read(tmp_path / "out", base, "bert")
    learned = adapter_folder.read(lora.path / "adapter")
    assert found.adapter.kind == "lora"
    assert found.adapter.rank == 4
    assert {**found.leaves, **found.head}.keys() == learned.leaves.keys()
    for path, leaf in {**found.leaves, **found.head}.items():
        np.testing.assert_array_equal(leaf, learned.leaves[path], err_msg=path)


def test_merged_and_unmerged_have_the_same_scores(lora):
    """The workdir's model is merged; its adapter on the base is not."""
    merged, _ = predict.evaluate(lora.path)
    model, _, _ = adapting.opened(lora.path / "adapter", lora.config)
    assert merged.loss == pytest.approx(lora.result.scores.loss, rel=1e-4)
    assert type(model.backbone).__name__ == "AdaptedBackbone"


@pytest.mark.parametrize("format", ["hf", "flax_msgpack", "stablehlo"])
def test_a_prefix_has_no_merged_form(prefix, tmp_path, capsys, format):
    code = cli.main(["export", f"--workdir={prefix.path}", f"--output={tmp_path / 'out'}", f"--format={format}"])
    assert code == 64
    assert "cannot be merged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_adapters_has_none_to_export(tmp_path, capsys):
    path = tiny.finished(tmp_path / "w", tiny.text_config(tmp_path))
    assert cli.main(["export", f"--workdir={path}", f"--output={tmp_path / 'out'}", "--format=peft"]) == 64
    assert "this run has no adapters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_mean_pooled_adapter_says_why_or_is_written(prefix, tmp_path, capsys):
    """PEFT has prefixes of another make: refused, and nothing is left."""
    code = cli.main(["export", f"--workdir={prefix.path}", f"--output={tmp_path / 'out'}", "--format=peft"])
    assert code in (64, 66)
    assert capsys.readouterr().err.startswith("tljax: ")
    assert not (tmp_path / "out").exists()


def test_training_again_on_a_finished_adapter_run_does_nothing_new(prefix):
    before = (prefix.path / "adapter" / "adapter.safetensors").read_bytes()
    _, config = read_config(prefix.path)
    again = train(dataclasses.replace(config), prefix.path, lambda text: None)
    assert again.scores.accuracy == prefix.result.scores.accuracy
    assert (prefix.path / "adapter" / "adapter.safetensors").read_bytes() == before
    assert export.FORMATS[0] == "hf"
