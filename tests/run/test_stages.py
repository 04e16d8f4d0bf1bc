"""A stage of pretraining before a run: where it lies, what the run takes from it, and that it is not made again."""

import numpy as np
import pytest
import tiny
import tiny_events

from tljax import trees
from tljax.config import PretrainConfig
from tljax.run import beside, stages
from tljax.run.workdir import Workdir, read_config
from tljax.weights.load import load_pretrained

pytestmark = pytest.mark.usefixtures("compiled_once")


def parameters(place, task="language"):
    return trees.flatten(load_pretrained(str(place / "model"), task=task).params)


def test_without_a_stage_a_config_is_itself(tmp_path):
    c = tiny.text_config(tmp_path)
    assert stages.pretrained(c, tmp_path / "w") is c
    assert not (tmp_path / "w").exists()


def test_hidden_words_then_classes(tmp_path):
    c = tiny.text_config(tmp_path, transfer={"strategy": "feature_extraction"}, train={"epochs": 2})
    c.pretrain = PretrainConfig(data=str(tmp_path / "train.csv"), epochs=40, batch_size=16, learning_rate=2e-3)
    said: list[str] = []
    (result,) = beside.train_all(c, tmp_path / "w", said.append)
    assert said[0] == f"— first: masked on {tmp_path}/train.csv —"
    stage = Workdir(tmp_path / "w" / "pretrain").history()
    losses = [line["loss"] for line in stage if line["kind"] == "train"]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:3])
    (final,) = (line for line in stage if line["kind"] == "final")
    assert np.isfinite(final["loss"])
    learned = parameters(tmp_path / "w" / "pretrain")
    ended = parameters(tmp_path / "w", "classification")
    trunk = [path for path in ended if path in learned]
    assert len(trunk) > 20
    for path in trunk:  # feature extraction leaves what the stage has learned as it is
        np.testing.assert_array_equal(learned[path], ended[path])
    was = trees.flatten(load_pretrained(str(tmp_path / "bert"), task="language").params)
    assert any((was[path] != learned[path]).any() for path in trunk)
    assert result.scores.n == 24
    before = (tmp_path / "w" / "pretrain" / "metrics.jsonl").read_bytes()
    (again,) = beside.train_all(c, tmp_path / "w", said.append)
    assert again.scores.summary() == result.scores.summary()
    assert (tmp_path / "w" / "pretrain" / "metrics.jsonl").read_bytes() == before


def test_a_stage_leaves_out_what_belongs_to_labels(tmp_path):
    c = tiny_events.downstream(tmp_path, tmp_path / "network", events={"labelled": 0.5, "negatives": 0.2},
                               optim={"class_weights": "balanced"})  # fmt: skip
    c.pretrain = PretrainConfig(data="history.csv#:-6", objective="next", strategy="scratch", entities=(0.0, 0.5))
    made = stages.stage(c)
    assert (made.objective, made.data.train, made.data.test) == ("next", "history.csv#:-6", "")
    assert (made.events.labelled, made.events.negatives, made.events.entities) == (1.0, 1.0, (0.0, 0.5))
    assert (made.transfer.strategy, made.optim.class_weights) == ("scratch", "none")
    then = stages.after(c, tmp_path / "w")
    assert then.model.ref == str(tmp_path / "w" / "pretrain")
    assert (then.events, then.transfer, then.pretrain.data) == (c.events, c.transfer, "")


def test_the_vocabulary_of_events_is_the_stages(tmp_path):
    c = tiny_events.downstream(tmp_path, tmp_path / "network", train={"epochs": 1})
    c.pretrain = PretrainConfig(data=f"{tmp_path}/events.csv#:-6", objective="next", strategy="scratch", epochs=1,
                                batch_size=10)  # fmt: skip
    beside.train_all(c, tmp_path / "w", lambda text: None)
    both = [(place / "model" / "events.json").read_bytes() for place in (tmp_path / "w", tmp_path / "w" / "pretrain")]
    assert both[0] == both[1]
    assert read_config(tmp_path / "w")[1].model.ref == str(tmp_path / "w" / "pretrain")
