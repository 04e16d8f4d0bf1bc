"""Law 7 for runs in phases, from caches and with adapters: stopped anywhere and called again, they end bit-identical;
and law 4 for whole runs: with the cache off, in memory or on disk they end with the same scores."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from tljax.config import Config
from tljax.errors import StoppedError
from tljax.run import signals
from tljax.run.together import Together
from tljax.run.train import train
from tljax.run.workdir import Workdir

pytestmark = pytest.mark.usefixtures("compiled_once")
BATCH = 13  # of 39 examples: three steps in an epoch
RUNS: dict[str, dict[str, Any]] = {
    "gradual": {"transfer": {"strategy": "gradual", "k": 1}, "train": {"epochs": 3}},
    "lp_ft": {"transfer": {"strategy": "lp_ft"}},
    "fine_tune": {"transfer": {"strategy": "fine_tune"}},
    "surgical": {"transfer": {"strategy": "surgical", "stages": "layer_1"}},
    "feature_extraction": {"transfer": {"strategy": "feature_extraction"}},
    "lora": {"transfer": {"strategy": "lora"}},
    "lora above": {"transfer": {"strategy": "lora"}, "adapter": {"layers": 1}},
    "int8": {"transfer": {"strategy": "last_k", "k": 1}, "model": {"frozen": "int8"}},
    # looks after 3 and 6 steps; at the second, all below the top layer has settled
    "adaptive": {"transfer": {"strategy": "adaptive", "looks": 1, "settled": 1.0}, "train": {"epochs": 4}},
}  # fmt: skip
SECOND = {"adaptive": 6}  # the step at which the second phase begins; of the others: 3


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("phased")


def config_of(root: Path, name: str, mode: str = "memory") -> Config:
    """With dropout, and batches that are partial in no bucket but the last."""
    chosen = {"train": {"epochs": 2}, "model": {}, **RUNS[name]}
    base = {"train": {"batch_size": BATCH, "log_every_steps": 1, "save_every_steps": 4, **chosen["train"]},
            "model": {"dropout": 0.1, **chosen["model"]}, "cache": {"mode": mode, "folder": str(root / "cache")},
            "optim": {"weight_decay": 0.1}}  # fmt: skip
    rest = {section: value for section, value in chosen.items() if section not in base}
    return tiny.text_config(root, **base, **rest)


@contextlib.contextmanager
def stopped_at(step: int, place: Path) -> Iterator[None]:
    """A signal that comes when the loop has taken so many steps: the first that is logged or saved from there on."""

    @contextlib.contextmanager
    def watched():
        def came() -> bool:
            lines = [line for line in Workdir(place).history() if line["kind"] == "train"]
            return bool(lines) and lines[-1]["step"] >= step

        yield came

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "watched", watched)
        yield


def ended(path: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """What a run left: model, adapter, and every line of the log but for the speed."""
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.glob("*/*.safetensors")}
    lines = [{k: v for k, v in line.items() if k != "examples_per_s"} for line in Workdir(path).history()]
    return found, lines


_alone: dict[str, tuple[dict[str, bytes], list[dict[str, Any]]]] = {}


def alone(root: Path, name: str) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """What a run comes to that nobody disturbs, made once."""
    if name not in _alone:
        train(config_of(root, name), root / "alone" / name, lambda text: None)
        _alone[name] = ended(root / "alone" / name)
    return _alone[name]


@pytest.mark.parametrize("name", list(RUNS))
def test_stopped_in_each_phase_and_between_phases_it_ends_bit_identical(root, tmp_path, name):
    """One run, stopped again and again: within the first phase, at its end, within the second."""
    config, whole = config_of(root, name), alone(root, name)
    steps = max(line["step"] for line in whole[1])
    assert steps == 3 * config.train.epochs
    stops = []
    begins = SECOND.get(name, 3)
    for step in (1, begins, begins + 1):
        with stopped_at(step, tmp_path / "w"), pytest.raises(StoppedError, match="stopped after step") as caught:
            train(config, tmp_path / "w", lambda text: None)
        stops.append(int(caught.value.found.split()[3]))
    assert stops == [2, begins, begins + 2]  # in the first phase, at its end, in the second
    train(config, tmp_path / "w", lambda text: None)
    found = ended(tmp_path / "w")
    assert found[0].keys() == whole[0].keys()
    assert "model/model.safetensors" in found[0]
    assert found[0] == whole[0]
    assert final(found[1]) == final(whole[1])
    assert evaluations(found[1]) == evaluations(whole[1])


def final(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == "final"]


def evaluations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == "evaluation"]


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "off") for name in RUNS), ("gradual", "disk"), ("lora above", "disk")]
)
def test_the_cache_changes_nothing_but_the_time(root, tmp_path, name, mode):
    config, whole = config_of(root, name, mode), alone(root, name)
    said: list[str] = []
    result = train(config, tmp_path / "w", said.append)
    _, lines = ended(tmp_path / "w")
    assert result.scores.accuracy == final(whole[1])[0]["accuracy"]
    if name != "lora":  # it trains from the first layer on, and there nothing is worth keeping
        assert any("cache: " in text for text in said)
    for kind in ("train", "evaluation", "final"):
        ours, theirs = (
            [(line["step"], line["loss"]) for line in found if line["kind"] == kind] for found in (lines, whole[1])
        )
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        np.testing.assert_allclose([loss for _, loss in ours], [loss for _, loss in theirs], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("power", "moves"), [(1.0, 1), (0.0, 0)])
def test_what_has_settled_is_frozen_and_kept(root, tmp_path, power, moves):
    """And the memory that is told is that of the first phase, which takes the most."""
    said: list[str] = []
    config = config_of(root, "adaptive")
    config.transfer.settled = power
    result = train(config, tmp_path / "w", said.append, Together())
    told = [line for line in said if "settled" in line]
    assert len(told) == moves
    at = "step 6: what is below layer_1 has settled and is frozen; cache: activations at layer_1"
    assert all(line.startswith(at) for line in told)
    saved = [line for line in said if line.startswith("adaptive freezing: ")]
    assert [bool(re.search(" [1-4][0-9] % of the products", line)) for line in saved] == [True] * moves
    config.transfer.strategy = "full"
    whole = train(config, tmp_path / "whole", said.append, Together())
    assert result.cost == whole.cost


@pytest.mark.parametrize("name", ["gradual", "lp_ft"])
def test_what_each_phase_trains_moves_in_it_and_not_before(root, tmp_path, name):
    """Stopped at the end of the first phase, the checkpoint holds nothing of the body: that is as it came."""
    with stopped_at(3, tmp_path / "w"), pytest.raises(StoppedError):
        train(config_of(root, name), tmp_path / "w", lambda text: None)
    saved = json.loads((tmp_path / "w" / "checkpoints" / "3" / "DONE.json").read_text())
    trained = {path.removeprefix("trainable/") for path in saved["digests"] if path.startswith("trainable/")}
    assert trained == {"classifier/kernel", "classifier/bias"}
    assert saved["progress"]["phase"] == 0
