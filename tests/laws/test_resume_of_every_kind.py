"""Law 7 for what is learned besides the class of a text: killed and resumed, a run ends bit-identical.

Real processes and a real SIGKILL, as in test_resume.py; few examples, so that a run is soon over.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_events

import tljax
from tljax.config import AdaptConfig, Config, PretrainConfig

TIMEOUT_S = 240.0
SHORT = {"epochs": 3, "save_every_steps": 2, "log_every_steps": 1}


def pretrained_events(root: Path) -> Config:
    """Two stages: the next event from random values; classes, of which the upper layer learns."""
    c = tiny_events.downstream(root, root / "network", train=SHORT, model={"dropout": 0.2})
    c.pretrain = PretrainConfig(data=f"{root}/events.csv#:-6", objective="next", strategy="scratch", epochs=2,
                                batch_size=10, learning_rate=5e-3)  # fmt: skip
    return c


def hidden_words(root: Path) -> Config:
    c = tiny.text_config(root, transfer={"strategy": "full"}, model={"dropout": 0.1},
                         train={**SHORT, "batch_size": 8, "best_metric": "loss"})  # fmt: skip
    c.objective = "masked"
    return c


def two_domains(root: Path) -> Config:
    c = tiny.image_config(root, train={**SHORT, "batch_size": 4}, optim={"ema": 0.9})
    c.adapt = AdaptConfig(target=str(root / "unseen"), method="cdan", weight=0.3)
    return c


KINDS: dict[str, tuple[Callable[[Path], Config], tuple[str, ...]]] = {
    # name: (settings, in which folders of the workdir it is killed, one after the other)
    "a pretraining and a run": (pretrained_events, ("pretrain", "")),
    "the next item": (lambda root: tiny_events.config(root, "item", train=SHORT), ("",)),
    "hidden words": (hidden_words, ("",)),
    "two domains": (two_domains, ("",)),
}


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "OPENBLAS_NUM_THREADS": "1",
            "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_COMPILATION_CACHE_DIR": str(root / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "TLJAX_CACHE": str(root / "cache"),
            "PYTHONPATH": str(Path(tljax.__file__).parents[1])}  # fmt: skip


def steps(place: Path) -> list[dict[str, Any]]:
    """The lines of the log, but for what the clock decides; a line that is being written is none."""
    found = []
    file = place / "metrics.jsonl"
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            found.append({key: value for key, value in json.loads(line).items() if key != "examples_per_s"})
        except ValueError:
            continue
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_it_ends_bit_identical(kind, tmp_path):
    made, folders = KINDS[kind]
    tiny.config_file(tmp_path / "config.py", made(tmp_path))
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    with open(tmp_path / "log", "ab") as log:
        options = {"env": environment(tmp_path), "stdout": log, "stderr": log}

        def command(workdir: Path) -> list[str]:
            return [sys.executable, "-m", "tljax", "train", f"--config={tmp_path}/config.py", f"--workdir={workdir}"]

        def said() -> str:
            return (tmp_path / "log").read_text(errors="replace")[-3000:]

        assert subprocess.run(command(alone), **options, timeout=TIMEOUT_S).returncode == 0, said()
        for folder in folders:
            process, end = subprocess.Popen(command(killed), **options), time.monotonic() + TIMEOUT_S
            while not any(line["kind"] == "train" and line["step"] >= 5 for line in steps(killed / folder)):
                assert process.poll() is None, said()
                assert time.monotonic() < end
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            assert process.wait(TIMEOUT_S) == -signal.SIGKILL
            assert not (killed / folder / "model").exists()
        assert subprocess.run(command(killed), **options, timeout=TIMEOUT_S).returncode == 0, said()
    assert (tmp_path / "log").read_text().count("going on from step ") >= len(folders)
    for folder in {*folders, ""}:
        assert steps(killed / folder) == steps(alone / folder)
        weights = [(place / folder / "model" / "model.safetensors").read_bytes() for place in (killed, alone)]
        assert weights[0] == weights[1]
