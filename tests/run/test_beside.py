"""The comparison: which runs stand beside each other, the table, and a verdict that claims no more than it may."""

from pathlib import Path

import numpy as np
import pytest

from tljax.config import Config, DataConfig, ModelConfig, TransferConfig
from tljax.errors import ConfigError
from tljax.evaluate.metrics import Scores
from tljax.run import beside
from tljax.run.train import Result


def result(strategy: str, accuracy: float, n: int = 1000, split: str = "test") -> Result:
    scores = Scores(accuracy, accuracy, 0.5, (), np.zeros((2, 2), np.int64), n)
    return Result(strategy, scores, split, Path("w/model"), 19.0, 12.4, 2.4, None, 0, None)


SCRATCH, FULL, LAST = "scratch", "full, layer_decay = 0.8", "last_k, k = 2"
VERDICTS = [
    ("transfer pays", [result(LAST, 0.9), result(SCRATCH, 0.6)],
     f"Transfer pays here: {LAST} 0.900 against 0.600 from scratch, on the same test examples, +30 points."),
    ("the best of several stands for transfer", [result(LAST, 0.7), result(FULL, 0.95), result(SCRATCH, 0.6)],
     f"Transfer pays here: {FULL} 0.950 against 0.600 from scratch, on the same test examples, +35 points."),
    ("scratch is the run itself", [result("scratch, head_factor = 2", 0.5), result(LAST, 0.9)],
     f"Transfer pays here: {LAST} 0.900 against 0.500 from scratch, on the same test examples, +40 points."),
    ("negative", [result(LAST, 0.6), result(FULL, 0.7), result(SCRATCH, 0.9)],
     f"Negative transfer: {FULL} 0.700 against 0.900 from scratch, on the same test examples. "
     "Train from scratch, or take another checkpoint."),
    ("overlap because there are few examples", [result(LAST, 0.9, 10), result(SCRATCH, 0.6, 10)],
     f"No difference found: {LAST} 0.900 against 0.600 from scratch, on the same test examples; "
     "the intervals overlap."),
    ("overlap the other way", [result(LAST, 0.60), result(SCRATCH, 0.62)],
     f"No difference found: {LAST} 0.600 against 0.620 from scratch, on the same test examples; "
     "the intervals overlap."),
    ("on validation", [result(LAST, 0.9, split="validation"), result(SCRATCH, 0.5, split="validation")],
     f"Transfer pays here: {LAST} 0.900 against 0.500 from scratch, on the same validation examples, +40 points."),
    ("nothing from scratch", [result(LAST, 0.9), result(FULL, 0.5)], ""),
    ("scratch alone", [result(SCRATCH, 0.9)], ""),
]  # fmt: skip


@pytest.mark.parametrize(("results", "sentence"), [row[1:] for row in VERDICTS], ids=[row[0] for row in VERDICTS])
def test_verdict(results, sentence):
    assert beside.verdict(results) == sentence


def test_render():
    lines = beside.render([result(LAST, 0.95, 100), result(SCRATCH, 0.0, 100)]).splitlines()
    assert lines == [
        "strategy                                    accuracy  95 % interval  macro-F1  train s  eval s",
        "last_k, k = 2                                  0.950  0.888 … 0.978     0.950       12       2",
        "scratch                                        0.000  0.000 … 0.037     0.000       12       2",
    ]
    long = beside.render(
        [result(f"{LAST}, layer_decay = 0.8, head_factor = 30, l2sp = 0.01", 0.5), result(SCRATCH, 0.5)]
    )
    assert len({len(line) for line in long.splitlines()}) == 1


@pytest.fixture
def trained(monkeypatch) -> list[tuple[Config, Path]]:
    """What `train_all` trains, without training it."""
    calls: list[tuple[Config, Path]] = []

    def train(config, path, say, group=None):
        calls.append((config, path))
        return result(config.transfer.strategy, 0.5)

    monkeypatch.setattr(beside, "train", train)
    return calls


def config(**transfer) -> Config:
    return Config(model=ModelConfig(ref="m"), data=DataConfig(train="a.csv"), transfer=TransferConfig(**transfer))


def test_each_strategy_has_its_own_folder_and_all_else_in_common(trained, tmp_path):
    own = config(strategy="last_k", k=3, l2sp=0.1, layer_decay=0.9, beside=" full | scratch ")
    results = beside.train_all(own, tmp_path, lambda text: None)
    assert [r.strategy for r in results] == ["last_k", "full", "scratch"]
    assert [path for _, path in trained] == [tmp_path, tmp_path / "beside" / "full", tmp_path / "beside" / "scratch"]
    assert trained[0][0] == own
    for name, (other, _) in zip(("full", "scratch"), trained[1:], strict=True):
        assert other == config(strategy=name, k=3, layer_decay=0.9)  # l2sp has nothing to stay near in scratch


def test_rules_belong_to_the_custom_strategy_alone(trained, tmp_path):
    own = config(strategy="custom", rules=((".*", "body"),), beside="scratch")
    beside.train_all(own, tmp_path, lambda text: None)
    assert [c.transfer.rules for c, _ in trained] == [own.transfer.rules, ()]


@pytest.mark.parametrize(("name", "words"), [("scrach", "did you mean 'scratch'?"), ("custom", "custom needs rules")])
def test_all_are_checked_before_the_first_one_starts(trained, tmp_path, name, words):
    with pytest.raises(ConfigError, match="configuration") as caught:
        beside.train_all(config(strategy="full", beside=f"scratch|{name}"), tmp_path, lambda text: None)
    assert words in str(caught.value)
    assert trained == []


def test_nothing_beside(trained, tmp_path):
    assert len(beside.train_all(config(strategy="full"), tmp_path, lambda text: None)) == 1
