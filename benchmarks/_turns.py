"""Programs that run one at a time, some seconds each, so that a noisy machine slows all of them alike."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def take_turns(commands: Mapping[str, Sequence[str]], slice_s: float) -> dict[str, dict[str, Any]]:
    """What each command printed as its last line, a JSON object, with `seconds`: of its span, those in which it ran.

    Args:
      commands: name -> arguments. Each is given --progress=FILE, where it writes the share of its work that is done,
        and says {"span": [began, ended]} by time.monotonic(), the clock of the whole machine.
      slice_s: seconds at a time.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "HF_HUB_OFFLINE": "1"}
    processes: dict[str, subprocess.Popen[str]] = {}
    slices: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:

        def behind(name: str) -> tuple[float, int]:
            told = Path(folder) / name
            return float(told.read_text() or 0) if told.exists() else 0.0, len(slices[name])

        try:
            for name, command in commands.items():
                process = subprocess.Popen([*command, f"--progress={folder}/{name}"], stdout=subprocess.PIPE,
                                           stderr=errors, text=True, env=environment,
                                           start_new_session=True)  # fmt: skip
                os.killpg(process.pid, signal.SIGSTOP)
                processes[name], slices[name] = process, []
            while alive := [name for name, process in processes.items() if process.poll() is None]:
                name = min(alive, key=behind)
                slices[name].append(_slice(processes[name], slice_s))
        finally:
            for process in processes.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if failed := [name for name, process in processes.items() if process.returncode]:
            errors.seek(0)
            sys.exit(f"{' and '.join(failed)} failed:\n{errors.read()[-3000:]}")
    found = {name: json.loads(process.communicate()[0].splitlines()[-1]) for name, process in processes.items()}
    for name, result in found.items():
        began, ended = result.pop("span")
        result["seconds"] = sum(max(min(stop, ended) - max(start, began), 0.0) for start, stop in slices[name])
    return found


def _slice(process: subprocess.Popen[str], seconds: float) -> tuple[float, float]:
    """Lets a stopped process run for a while."""
    start = time.monotonic()  # the clock of the whole machine: the processes read the same
    os.killpg(process.pid, signal.SIGCONT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGSTOP)
    return start, time.monotonic()
