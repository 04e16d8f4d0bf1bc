"""launch.py with real processes over gloo: the same model as one process makes, and an end for every fault."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from tljax.launch.start import free_port

LAUNCH = Path(__file__).resolve().parent.parent.parent / "launch.py"
FULL = {"transfer": {"strategy": "full"}, "device": {"count": 0}}
ENDLESS = {"train": {"epochs": 5000, "save_every_steps": 10}}
PATIENCE_S = 120


def start(root: Path, *flags: str, name: str = "run.py", workdir: str = "w", **environ: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(LAUNCH), *flags, f"--config={root / name}", f"--workdir={root / workdir}"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environ
    )


def ended(process: subprocess.Popen[str], seconds: float = PATIENCE_S) -> tuple[int, str]:
    """The exit code and all that was said; it may take no longer."""
    try:
        said, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, said


def workers(root: Path) -> list[int]:
    """The processes of a run that train, by rank."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().decode().split("\0")
            environ = dict(
                line.split("=", 1) for line in (place / "environ").read_bytes().decode().split("\0") if "=" in line
            )
        except (OSError, ValueError):
            continue
        if command[1:3] == ["-m", "tljax"] and any(str(root) in argument for argument in command):
            found[int(environ.get("TLJAX_PROCESS", 0))] = int(place.name)
    return [found[rank] for rank in sorted(found)]


def until_saved(process: subprocess.Popen[str], place: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not list(place.glob("checkpoints/*/DONE.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, data, and configs: run.py, which ends, and endless.py."""
    root = tmp_path_factory.mktemp("processes")
    config = tiny.text_config(root, **FULL)
    tiny.config_file(root / "run.py", config)
    tiny.config_file(root / "endless.py", tiny.changed(config, **ENDLESS))
    return root


@pytest.fixture(scope="module")
def alone(place: Path) -> list[dict]:
    """What one process says after each epoch."""
    code, said = ended(start(place, workdir="alone"))
    assert code == 0, said
    return evaluations(place / "alone")


def evaluations(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] in ("evaluation", "final")]


def agree(found: list[dict], wanted: list[dict]) -> None:
    """The same counts and metrics; losses to what another order of summation leaves after some steps of Adam."""
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours["n"], ours["accuracy"]) == (theirs["n"], theirs["accuracy"])
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=2e-4)


@pytest.mark.parametrize(("processes", "parallel"), [(2, "data"), (4, "fsdp")])
def test_several_processes_make_the_same_model(place, alone, processes, parallel):
    workdir = f"{processes}-{parallel}"
    code, said = ended(start(place, f"--processes={processes}", f"--config.parallel={parallel}", workdir=workdir))
    assert code == 0, said
    agree(evaluations(place / workdir), alone)
    assert f"{processes} × cpu in {processes} processes, {parallel}" in said
    assert (place / workdir / "model" / "model.safetensors").is_file()
    assert {line.partition("]")[0] for line in said.splitlines() if line.startswith("[")} >= {"[0"}
    assert not any(line.startswith("[1] epoch") for line in said.splitlines())  # the lead speaks for all


def test_stopped_in_two_processes_and_finished_in_one(place, alone):
    """A signal to one of the processes stops both at one step; the run goes on with another number of them."""
    process = start(place, "--processes=2", "--config.train.save_every_steps=1", workdir="stopped")
    until_saved(process, place / "stopped")
    os.kill(workers(place / "stopped")[1], signal.SIGTERM)
    code, said = ended(process)
    assert code == 75, said
    assert len(set(re.findall(r"stopped after step (\d+) and saved", said))) == 1
    code, said = ended(start(place, workdir="stopped"))
    assert code == 0, said
    assert "going on from step" in said
    agree(evaluations(place / "stopped"), alone)


@pytest.mark.parametrize(("rank", "number", "code"), [(1, signal.SIGKILL, 137), (0, signal.SIGKILL, 137),
                                                      (1, signal.SIGSTOP, 69)])  # fmt: skip
def test_a_worker_that_is_lost_ends_all(place, rank, number, code):
    """Killed: the launcher sees it at once. Stopped: the others' watch sees that there are no steps."""
    workdir = f"lost-{rank}-{number.name}"
    stall = 20 if number == signal.SIGSTOP else 0
    process = start(place, "--processes=2", f"--config.device.stall_s={stall}", name="endless.py", workdir=workdir)
    until_saved(process, place / workdir)
    own = workers(place / workdir)
    os.kill(own[rank], number)
    found, said = ended(process, 60)
    assert found == code, said
    assert workers(place / workdir) == []
    if number == signal.SIGSTOP:
        assert "process 0: no step for" in said
        assert "Thread 0x" in said  # where each thread stood
        assert "process 0 failed first" in said
    else:
        assert f"process {rank} failed first (ended by SIGKILL)" in said


def test_damaged_data_in_one_process_ends_all(tmp_path):
    """A picture that one of them decodes: all say which, and with the exit code of bad data."""
    config = tiny.image_config(tmp_path, device={"count": 0})
    tiny.config_file(tmp_path / "run.py", config)
    picture = sorted((tmp_path / "photos").rglob("*.png"))[5]
    picture.write_bytes(picture.read_bytes()[:40])
    code, said = ended(start(tmp_path, "--processes=2"))
    assert code == 65, said
    assert re.search(r"process \d failed first \(exit code 65\)", said)
    assert said.count(str(picture)) >= 2


def test_processes_that_are_not_alike_are_refused(place):
    told = {"TLJAX_COORDINATOR": f"127.0.0.1:{free_port()}", "TLJAX_PROCESSES": "2"}
    both = [start(place, f"--config.seed={rank}", workdir="odd", TLJAX_PROCESS=str(rank), **told) for rank in range(2)]
    for process in both:
        code, said = ended(process)
        assert code == 64, said
        assert "--config.seed: process 0 and process 1 differ" in said
    assert not (place / "odd" / "config.json").exists()


def test_a_port_in_use(place):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = ended(start(place, "--processes=2", f"--port={port}", workdir="port"))
    assert code == 69, said
    assert f"port {port}: cannot be taken" in said


@pytest.mark.parametrize(
    ("rank", "words"), [(1, "no word from process 0 at 127.0.0.1:"), (0, "no word from the other processes")]
)
def test_others_that_do_not_come(place, rank, words):
    told = {"TLJAX_COORDINATOR": f"127.0.0.1:{free_port()}", "TLJAX_PROCESSES": "2", "TLJAX_PROCESS": str(rank)}
    code, said = ended(start(place, workdir="nobody", TLJAX_CONNECT_S="5", **told))
    assert code == 69, said
    assert words in said


GCLOUD = """\
#!{python}
# Stands in for gcloud: copies a file to the home of each worker, or runs a command there as a TPU VM would.
import json, os, subprocess, shutil, sys
arguments = sys.argv[1:]
assert arguments[:3] == ["compute", "tpus", "tpu-vm"], arguments
assert "--zone=us-west4-a" in arguments and "--worker=all" in arguments, arguments
homes = [os.path.join({root!r}, f"worker{{n}}") for n in range(2)]
if arguments[3] == "scp":
    for home in homes:
        os.makedirs(home, exist_ok=True)
        shutil.copy(arguments[4], os.path.join(home, arguments[5].partition(":")[2]))
    sys.exit(0)
command = next(a.removeprefix("--command=") for a in arguments if a.startswith("--command="))
started = []
for number, home in enumerate(homes):
    there = {{"HOME": home, "TPU_WORKER_ID": str(number), "TPU_WORKER_HOSTNAMES": "localhost,localhost"}}
    own = {{name: value for name, value in os.environ.items() if not name.startswith("TLJAX_CO")}}
    started.append(subprocess.Popen(["bash", "-c", command], cwd=home, env=own | there))
codes = [process.wait() for process in started]
sys.exit(next((code for code in codes if code), 0))
"""


def test_a_tpu_slice_by_a_stand_in_for_gcloud(tmp_path, alone, place):
    """The whole way: archive, copies, environment, one process a worker, the trained model. On CPUs."""
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text(GCLOUD.format(python=sys.executable, root=str(tmp_path)))
    gcloud.chmod(0o755)
    script = f"'#!/bin/sh\\nexec {sys.executable} \"$@\"\\n'"
    setup = f"mkdir -p .venv/bin && printf {script} > .venv/bin/python && chmod +x .venv/bin/python"
    process = start(place, "--tpu=slice", "--zone=us-west4-a", f"--setup={setup}", workdir="tpu",
                    PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")  # fmt: skip
    code, said = ended(process)
    assert code == 0, said
    agree(evaluations(place / "tpu"), alone)
    assert "2 × cpu in 2 processes, data" in said
    for number in range(2):  # from the copy, not from this checkout
        assert (tmp_path / f"worker{number}" / "tljax" / "tljax" / "cli" / "main.py").is_file()


def test_without_gcloud(place, tmp_path):
    code, said = ended(start(place, "--tpu=slice", "--zone=z", PATH=str(tmp_path)))
    assert code == 69, said
    assert "gcloud: cannot be started" in said
