"""launch.py's flags, and the commands that it makes of them."""

import shlex
from pathlib import Path

import pytest

from tljax.launch import start

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = ["--config=c.py", "--workdir=w", "--config.optim.learning_rate=5e-5"]


def shown(capsys, *flags: str) -> list[list[str]]:
    assert start.main([*flags, "--dry_run", *RUN], ROOT) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_processes(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    commands = shown(capsys, "--processes=2", "--port=4711")
    for rank, command in enumerate(commands):
        assert command[:3] == ["TLJAX_COORDINATOR=127.0.0.1:4711", "TLJAX_PROCESSES=2", f"TLJAX_PROCESS={rank}"]
        assert command[4:] == ["-m", "tljax", "train", *RUN]


def test_gpus_are_shared(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    own = [command[3] for command in shown(capsys, "--processes=2")]
    assert own == ["TLJAX_LOCAL_DEVICES=0,1", "TLJAX_LOCAL_DEVICES=2,3"]


def test_hosts(capsys):
    first, second = shown(capsys, "--hosts=ada@a,b")
    assert first[:4] == ["ssh", "-o", "BatchMode=yes", "ada@a"]
    remote = shlex.split(second[4])
    assert {"TLJAX_COORDINATOR=a:8477", "TLJAX_PROCESSES=2", "TLJAX_PROCESS=1", f"PYTHONPATH={ROOT}"} <= set(remote)
    assert remote[-len(RUN) :] == RUN
    assert "tljax.launch.leash" in remote


def test_a_tpu_slice(capsys):
    copy, environment, run = shown(capsys, "--tpu=t", "--zone=us-west4-a", "--project=p")
    ends = ["--zone=us-west4-a", "--project=p", "--worker=all"]
    assert copy == ["gcloud", "compute", "tpus", "tpu-vm", "scp", "tljax.tgz", "t:tljax.tgz", *ends]
    assert environment[:6] == run[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "t"]
    assert run[6:-1] == ends
    assert run[-1] == f"--command=cd tljax && .venv/bin/python launch.py {shlex.join(RUN)}"
    assert "pip install -q -e '.[tpu]'" in environment[-1]


@pytest.mark.parametrize(("flags", "words"), [
    (["--processes=2", "--hosts=a,b"], "one of them"),
    (["--processes=0"], "processes"),
    (["--processes=two"], "processes"),
    (["--tpu=t"], "--zone"),
    (["--tpu=t;rm", "--zone=z"], "as gcloud prints it"),
])  # fmt: skip
def test_flags_that_contradict(flags, words, capsys):
    assert start.main([*flags, *RUN], ROOT) == 64
    assert words in capsys.readouterr().err


def test_processes_that_do_not_divide_the_gpus(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert start.main(["--processes=2", *RUN], ROOT) == 64
    assert "2 for 3 GPU(s)" in capsys.readouterr().err


def test_help(capsys):
    assert start.main(["--help"], ROOT) == 0
    assert "--processes=N" in capsys.readouterr().out
