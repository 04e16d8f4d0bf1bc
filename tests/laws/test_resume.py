"""Law 7, the promise: a run killed at any instant and resumed ends bit-identical to one that was left alone.

Real processes and real signals: `tljax train` on a tiny checkpoint and a few texts, with dropout. The run that is left
alone is `python -m tljax`; the others are forked from a process that has the imports behind it, which are most of the
seconds of such a run, and nothing of JAX started.
"""

import dataclasses
import json
import os
import random
import select
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

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "OPENBLAS_NUM_THREADS": "1",
            "JAX_NUM_CPU_DEVICES": "1",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(self.root / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(Path(tljax.__file__).parents[1]),
        }

    def log(self, workdir: Path) -> str:
        return (self.root / f"{workdir.name}.log").read_text(errors="replace")[-3000:]


FORKS = """
import importlib, json, os, sys
for name in ("grain", "matplotlib.figure", "orbax.checkpoint", "tokenizers", "tljax.run.beside"):
    importlib.import_module(name)
from tljax import cli
assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
for line in sys.stdin:
    arguments, log = json.loads(line)
    child = os.fork()
    if not child:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.argv = ["tljax", *arguments]
        sys.exit(cli.main())
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Starts runs, one at a time, in forks of a process that has imported everything."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.server = subprocess.Popen([sys.executable, "-c", FORKS], env=bench.environment, text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip

    def _line(self, timeout: float) -> str:
        return self.server.stdout.readline() if select.select([self.server.stdout], [], [], timeout)[0] else ""

    def start(self, workdir: Path) -> int:
        """Starts a run and gives its process id."""
        request = [self.bench.arguments(workdir), str(self.bench.root / f"{workdir.name}.log")]
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return int(self._line(TIMEOUT_S))

    def until(self, workdir: Path, when: Callable[[Path], bool]) -> None:
        """Waits for an instant of the run."""
        end = time.monotonic() + TIMEOUT_S
        while not when(workdir):
            over = self._line(0.001)
            assert not over, f"ended with {over.strip()} before the instant: {self.bench.log(workdir)}"
            assert time.monotonic() < end, self.bench.log(workdir)

    def code(self, process: int) -> int:
        """Waits for the end of the run and gives its exit code."""
        if not (line := self._line(TIMEOUT_S)):
            os.kill(process, signal.SIGKILL)
            raise TimeoutError(f"no end within {TIMEOUT_S} s")
        return int(line)

    def close(self) -> None:
        with self.server:  # closes the pipes and waits: at the end of its input the server ends
            pass


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
def forks(bench) -> Iterator[Forks]:
    made = Forks(bench)
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(bench, forks) -> Outcome:  # forks: its imports run meanwhile
    """What the run comes to when nobody disturbs it."""
    workdir = bench.root / "alone"
    with open(bench.root / "alone.log", "ab") as log:
        done = subprocess.run([sys.executable, "-m", "tljax", *bench.arguments(workdir)], env=bench.environment,
                              stdout=log, stderr=log, timeout=TIMEOUT_S)  # fmt: skip
    assert done.returncode == 0, bench.log(workdir)
    return outcome(workdir)


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
    return any(workdir.glob(".model.draft*")) or (workdir / "model").exists()


def test_the_undisturbed_run(alone):
    """What the comparisons below rest on: every step once in the log, scores at every epoch, dropout at work."""
    kinds = {kind: [r["step"] for r in alone.lines if r["kind"] == kind] for kind in ("train", "evaluation", "final")}
    steps = STEPS_PER_EPOCH * EPOCHS
    assert (kinds["train"], kinds["evaluation"]) == (list(range(1, steps + 1)), [5, 10, 15])
    assert len(kinds["final"]) == 1
    assert len({r["loss"] for r in alone.lines if r["kind"] == "train"}) == steps
    assert str(steps) in alone.state


def test_killed_at_any_instant_and_resumed(bench, alone, forks):
    """One run, killed again and again: in a save, within an epoch, in a later save, within the export."""
    rng = random.Random(0)
    workdir = bench.root / "killed"
    for when in (saving(3), reached(rng.randint(7, 8)), saving(rng.choice([9, 10, 12])), exporting):
        process = forks.start(workdir)
        forks.until(workdir, when)
        os.kill(process, signal.SIGKILL)
        assert forks.code(process) == -signal.SIGKILL
    assert forks.code(forks.start(workdir)) == 0, bench.log(workdir)
    assert outcome(workdir) == alone
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == sorted(alone.state)  # nothing unfinished


def test_stopped_by_a_signal_and_resumed(bench, alone, forks, capsys):
    """SIGTERM: exit 75 within a step. Meanwhile no second job gets in. Then the same command ends equal."""
    workdir = bench.root / "stopped"
    process = forks.start(workdir)
    forks.until(workdir, lambda path: (path / "config.json").exists())
    assert cli.main(bench.arguments(workdir)) == 64
    assert f"in use by process {process} on " in capsys.readouterr().err
    forks.until(workdir, reached(6))
    os.kill(process, signal.SIGTERM)
    asked = lines(workdir / "metrics.jsonl")[-1]["step"]
    assert forks.code(process) == 75, bench.log(workdir)
    saved = max(int(p.parent.name) for p in (workdir / "checkpoints").glob(f"*/{DONE}"))
    assert f"stopped after step {saved} and saved" in bench.log(workdir)
    assert asked <= saved <= asked + 2
    assert forks.code(forks.start(workdir)) == 0, bench.log(workdir)
    assert f"going on from step {saved} of 15" in bench.log(workdir)
    again = outcome(workdir)
    assert (again.weights, again.lines) == (alone.weights, alone.lines)
    assert again.state["15"] == alone.state["15"]  # besides it another one may be kept


def test_another_setting_is_refused_and_named(bench, alone, capsys, monkeypatch):
    workdir = bench.root / "alone"
    before = (workdir / "metrics.jsonl").read_bytes()
    changed = ("--config.optim.learning_rate=0.5", "--config.train.batch_size=4", "--config.train.keep=5")
    monkeypatch.setattr(sys, "argv", ["tljax", *bench.arguments(workdir, *changed)])  # where ml_collections looks
    assert cli.main() == 64
    said = capsys.readouterr().err
    assert "--config.optim.learning_rate: was 0.005, is 0.5" in said
    assert "--config.train.batch_size: was 8, is 4" in said
    assert "keep" not in said  # no result depends on it
    assert (workdir / "metrics.jsonl").read_bytes() == before
