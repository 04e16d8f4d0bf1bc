"""Several processes as one: lines with their rank, one failure ends all, signals reach all; with plain programs."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from tljax.errors import LostError
from tljax.launch import supervise
from tljax.launch.supervise import Supervisor

LABELS = ["0", "1", "2"]


def python(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


SLEEPS = python("import time; time.sleep(60)")


def supervised(*commands: list[str], **options) -> Supervisor:
    return Supervisor(commands, [{} for _ in commands], LABELS[: len(commands)], **options)


def test_lines_carry_their_rank(capfd):
    each = [{"NUMBER": str(i)} for i in range(3)]
    command = python("import os, sys; print('out', os.environ['NUMBER']); print('err', file=sys.stderr)")
    assert Supervisor([command] * 3, each, LABELS).run() == 0
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(
        line for i in range(3) for line in (f"[{i}] out {i}", f"[{i}] err")
    )


def test_one_failure_ends_all_and_is_shown_last(capfd):
    began = time.monotonic()
    fails = python("import sys, time; print('the reason'); time.sleep(0.5); sys.exit(65)")
    assert supervised(SLEEPS, fails, SLEEPS).run() == 65
    assert time.monotonic() - began < 10
    assert capfd.readouterr().err.split("\n")[1:] == [
        "process 1 failed first (exit code 65); its last lines:", "[1] the reason", ""]  # fmt: skip


def test_the_one_because_of_which_others_ended_is_shown(capfd):
    first = python("import sys, time; print('damaged'); time.sleep(1); sys.exit(65)")
    second = python("import sys; print('tljax: stopped because of process 0: damaged'); sys.exit(65)")
    assert supervised(first, second).run() == 65
    assert "process 0 failed first" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 137), (signal.SIGABRT, 134)])
def test_a_process_that_a_signal_ended(number, code, capfd):
    dies = python(f"import os; os.kill(os.getpid(), {int(number)})")
    assert supervised(dies, SLEEPS).run() == code
    assert f"ended by {number.name}" in capfd.readouterr().err


def test_one_that_does_not_listen_is_killed(monkeypatch):
    monkeypatch.setattr(supervise, "GRACE_S", 0.5)
    deaf = python("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    fails = python("import sys, time; time.sleep(1); sys.exit(3)")
    assert supervised(deaf, fails).run() == 3


def test_what_a_process_started_ends_with_it(tmp_path):
    told = tmp_path / "pid"
    child = python(f"""
        import subprocess, sys
        other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
        open({str(told)!r}, 'w').write(str(other.pid))
        sys.exit(4)
    """)
    assert supervised(child).run() == 4
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _alive(int(told.read_text())):
        time.sleep(0.05)
    assert not _alive(int(told.read_text()))


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


SAVES = """
    import signal, sys, time
    def save(*_):
        print('saved', flush=True)
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    print('ready', flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_and_they_save(number, capfd):
    timer = threading.Timer(2.0, os.kill, (os.getpid(), number))
    timer.start()
    assert supervised(python(SAVES), python(SAVES)).run() == 75
    assert capfd.readouterr().out.count("saved") == 2


def test_a_program_that_is_not_there():
    with pytest.raises(LostError, match="cannot be started"):
        supervised(["/nowhere/gcloud"]).run()


def test_on_a_leash_the_end_of_the_input_asks_to_end(capfd):
    """What ssh would run: asked to end, the command saves, although no signal can reach it."""
    leash = [sys.executable, "-m", "tljax.launch.leash", *python(SAVES)]
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert supervised(leash, leash, leashed=True).run() == 75
    assert capfd.readouterr().out.count("saved") == 2


@pytest.mark.parametrize(
    ("text", "code"), [("import sys; sys.exit(66)", 66), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_a_leash_passes_on_the_exit_code(text, code):
    with subprocess.Popen([sys.executable, "-m", "tljax.launch.leash", *python(text)], stdin=subprocess.PIPE) as held:
        assert held.wait(30) == code
