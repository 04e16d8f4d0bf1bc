"""Law 7, the promise: a run killed at any instant and resumed ends bit-identical to one that was left alone.

Real processes and real signals: `python -m tljax train` on a tiny checkpoint and a few texts, with dropout.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny

import tljax
from tljax import cli
from tljax.train.checkpoint import DONE

# ml_collections loads the config file in a way that Python calls old
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")

STEPS_PER_EPOCH, EPOCHS = 5, 3
TIMEOUT_S = 120.0


@dataclasses.dataclass(frozen=True)
class Bench:
    """Data, checkpoint and settings that every run here shares, and a cache of compiled steps."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.py"

    def arguments(self, workdir: Path, *more: str) -> list[str]:
        return ["train", f"--config={self.config}", f"--workdir={workdir}", *more]

    def start(self, workdir: Path) -> subprocess.Popen:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(self.root / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(Path(tljax.__file__).parents[1]),
        }
        with open(self.root / f"{workdir.name}.log", "ab") as log:
            return subprocess.Popen([sys.executable, "-m", "tljax", *self.arguments(workdir)], env=environment,
                                    stdout=log, stderr=log)  # fmt: skip

    def log(self, workdir: Path) -> str:
        return (self.root / f"{workdir.name}.log").read_text(errors="replace")[-3000:]

    def finish(self, workdir: Path) -> None:
        process = self.start(workdir)
        assert process.wait(TIMEOUT_S) == 0, self.log(workdir)

    def interrupt(self, workdir: Path, when: Callable[[Path], bool], number: int) -> int:
        """Starts a run and sends it a signal as soon as `when` holds; gives its exit code."""
        process = self.start(workdir)
        try:
            self.wait(process, workdir, when)
            process.send_signal(number)
            return process.wait(TIMEOUT_S)
        finally:
            process.kill()
            process.wait()

    def wait(self, process: subprocess.Popen, workdir: Path, when: Callable[[Path], bool]) -> None:
        until = time.monotonic() + TIMEOUT_S
        while not when(workdir):
            assert process.poll() is None, f"ended before the signal: {self.log(workdir)}"
            assert time.monotonic() < until, self.log(workdir)
            time.sleep(0.001)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All of a finished workdir that has to be equal: weights, state, progress, every line of the log."""

    weights: bytes
    state: dict[str, dict[str, str]]
    lines: list[dict]


def outcome(workdir: Path) -> Outcome:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("examples_per_s", None)  # the one thing that the clock decides
    done = {p.parent.name: json.loads(p.read_text()) for p in (workdir / "checkpoints").glob(f"*/{DONE}")}
    state = {step: {name: mark[name] for name in ("digests", "progress")} for step, mark in done.items()}
    return Outcome((workdir / "model" / "model.safetensors").read_bytes(), state, lines)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    root = tmp_path_factory.mktemp("resume")
    config = tiny.text_config(
        root,
        data={"max_buckets": 1},
        optim={"warmup_fraction": 0.1, "weight_decay": 0.1},
        train={"batch_size": 8, "epochs": EPOCHS, "save_every_steps": 3, "log_every_steps": 1},
    )
    tiny.config_file(root / "config.py", config)
    return Bench(root)


@pytest.fixture(scope="module")
def alone(bench) -> Iterator[Outcome]:
    """What the run comes to when nobody disturbs it."""
    bench.finish(bench.root / "alone")
    return outcome(bench.root / "alone")


def lines(path: Path) -> list[dict]:
    found = []
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # being written
                continue
    return found


def reached(step: int) -> Callable[[Path], bool]:
    """A step of training stands in the log."""
    return lambda workdir: any(r["kind"] == "train" and r["step"] >= step for r in lines(workdir / "metrics.jsonl"))


def saving(step: int) -> Callable[[Path], bool]:
    """The checkpoint of a step or a later one is being written: its folder is there and its mark is not."""

    def when(workdir: Path) -> bool:
        folder = workdir / "checkpoints"
        places = [p for p in folder.iterdir() if p.name.isdigit() and int(p.name) >= step] if folder.is_dir() else []
        return any((p / "state").exists() or list(p.glob("state*")) for p in places if not (p / DONE).exists())

    return when


def exporting(workdir: Path) -> bool:
    """The model is being written beside its place."""
    return any(workdir.glob(".model.draft-*")) or (workdir / "model").exists()


def test_the_undisturbed_run(alone):
    """What the comparisons below rest on: every step once in the log, scores at every epoch, dropout at work."""
    kinds = {kind: [r["step"] for r in alone.lines if r["kind"] == kind] for kind in ("train", "evaluation", "final")}
    steps = STEPS_PER_EPOCH * EPOCHS
    assert (kinds["train"], kinds["evaluation"]) == (list(range(1, steps + 1)), [5, 10, 15])
    assert len(kinds["final"]) == 1
    assert len({r["loss"] for r in alone.lines if r["kind"] == "train"}) == steps
    assert str(steps) in alone.state


def test_killed_at_any_instant_and_resumed(bench, alone):
    """One run, killed again and again: in a save, within an epoch, within the export."""
    rng = random.Random(0)
    workdir = bench.root / "killed"
    for when in (saving(3), reached(rng.randint(7, 8)), saving(rng.choice([9, 10, 12])), exporting):
        assert bench.interrupt(workdir, when, signal.SIGKILL) == -signal.SIGKILL
    bench.finish(workdir)
    assert outcome(workdir) == alone
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == sorted(alone.state)  # nothing unfinished


def test_stopped_by_a_signal_and_resumed(bench, alone, capsys):
    """SIGTERM: exit 75 within a step. Meanwhile no second job gets in. Then the same command ends equal."""
    workdir = bench.root / "stopped"
    process = bench.start(workdir)
    try:
        bench.wait(process, workdir, reached(6))
        assert cli.main(bench.arguments(workdir)) == 64
        assert f"in use by process {process.pid} on " in capsys.readouterr().err
        process.send_signal(signal.SIGTERM)
        asked = lines(workdir / "metrics.jsonl")[-1]["step"]
        assert process.wait(TIMEOUT_S) == 75, bench.log(workdir)
    finally:
        process.kill()
        process.wait()
    saved = max(int(p.parent.name) for p in (workdir / "checkpoints").glob(f"*/{DONE}"))
    assert f"stopped after step {saved} and saved" in bench.log(workdir)
    assert asked <= saved <= asked + 2
    bench.finish(workdir)
    assert f"going on from step {saved} of 15" in bench.log(workdir)
    again = outcome(workdir)
    assert (again.weights, again.lines) == (alone.weights, alone.lines)
    assert again.state["15"] == alone.state["15"]  # besides it another one may be kept


def test_another_setting_is_refused_and_named(bench, alone, capsys):
    workdir = bench.root / "alone"
    before = (workdir / "metrics.jsonl").read_bytes()
    changed = ("--config.optim.learning_rate=0.5", "--config.train.batch_size=4", "--config.train.keep=5")
    assert cli.main(bench.arguments(workdir, *changed)) == 64
    said = capsys.readouterr().err
    assert "--config.optim.learning_rate: was 0.005, is 0.5" in said
    assert "--config.train.batch_size: was 8, is 4" in said
    assert "keep" not in said  # no result depends on it
    assert (workdir / "metrics.jsonl").read_bytes() == before
