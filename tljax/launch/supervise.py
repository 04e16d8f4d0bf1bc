"""Several processes as one: their lines with their rank before them, signals to all, and one failure ends all."""

import collections
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from tljax.errors import LostError

TAIL = 20  # last lines of the first process that failed
GRACE_S = 15.0  # between the wish and the order to end; processes that save take their own time, see below
SAVING_S = 600.0  # after a signal from outside: a run ends its step, saves and says 75
STOPPED = 75
_BECAUSE = re.compile(r"^tljax: stopped because of process (\d+)", re.MULTILINE)  # run/processes.py


class Supervisor:
    """Processes that belong together.

    Args:
      commands: of each rank.
      environments: of each rank, besides this process's own.
      labels: what stands before the lines of each; "": nothing.
      leashed: whether the end of its standard input asks a process to end (launch/leash.py), and not SIGTERM.
      stop: a command that asks all of them to end, where neither reaches them.
    """

    def __init__(self, commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]],
                 labels: Sequence[str], leashed: bool = False, stop: Sequence[str] | None = None):  # fmt: skip
        self.commands, self.environments, self.labels = commands, environments, labels
        self.leashed, self.stop = leashed, stop
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.tails: dict[int, collections.deque[str]] = {}
        self.readers: list[threading.Thread] = []
        self.signals: list[int] = []

    def run(self) -> int:
        """Starts all, waits for all; the exit code of the first that failed, else 75 where they stopped, else 0."""
        before = {number: signal.signal(number, self._forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for rank in range(len(self.commands)):
                self._start(rank)
            return self._wait()
        finally:
            for process in self.running.values():
                _kill(process, signal.SIGKILL)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, rank: int) -> None:
        environ = {**os.environ, "PYTHONUNBUFFERED": "1", **self.environments[rank]}
        try:
            # a session of its own: a Ctrl-C reaches the processes by us alone, and whatever they start ends with them
            process = subprocess.Popen(self.commands[rank], env=environ,
                                       stdin=subprocess.PIPE if self.leashed else subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       start_new_session=True)  # fmt: skip
        except OSError as error:
            raise LostError(
                self.commands[rank][0], f"cannot be started ({error.strerror})", "a program on PATH"
            ) from None
        self.running[rank] = process
        self.tails[rank] = collections.deque(maxlen=TAIL)
        reader = threading.Thread(target=self._read, args=(rank, process), daemon=True)
        reader.start()
        self.readers.append(reader)

    def _read(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        mark = f"[{self.labels[rank]}] " if self.labels[rank] else ""
        if process.stdout is None:
            return
        with process.stdout as lines:
            for raw in lines:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                self.tails[rank].append(line)
                sys.stdout.write(f"{mark}{line}\n")
                sys.stdout.flush()

    def _wait(self) -> int:
        failed: tuple[int, int] | None = None
        stopped = False
        until: float | None = None
        while self.running:
            for rank, process in list(self.running.items()):
                code = process.poll()
                if code is None:
                    continue
                del self.running[rank]
                _kill(process, signal.SIGKILL)  # what it has started
                if process.stdin:
                    process.stdin.close()
                stopped |= code == STOPPED
                if code not in (0, STOPPED) and failed is None:
                    failed = rank, code
                    self._ask()
                    until = time.monotonic() + GRACE_S
            if self.signals and until is None:
                until = time.monotonic() + SAVING_S
            if until is not None and time.monotonic() > until:
                self._tell(signal.SIGKILL)
            time.sleep(0.05)
        for reader in self.readers:
            reader.join(1.0)
        if failed is not None:
            return self._blame(*failed)
        return STOPPED if stopped else 0

    def _blame(self, rank: int, code: int) -> int:
        """Says at the end, where people look, who was first; one that ended because of another says so itself."""
        if because := _BECAUSE.search("\n".join(self.tails[rank])):
            rank = self.labels.index(because.group(1)) if because.group(1) in self.labels else rank
        found = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if len(self.commands) > 1:
            print(f"\nprocess {self.labels[rank]} failed first ({found}); its last lines:", file=sys.stderr)
            for line in self.tails[rank]:
                print(f"[{self.labels[rank]}] {line}", file=sys.stderr)
            sys.stderr.flush()
        return 128 - code if code < 0 else code

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)
        if len(self.signals) < 3:
            self._ask()
        else:
            self._tell(signal.SIGKILL)

    def _ask(self) -> None:
        """Asks what still runs to end; a run saves first."""
        if self.stop is not None:
            subprocess.Popen(self.stop, stdin=subprocess.DEVNULL, start_new_session=True)
        elif self.leashed:
            for process in self.running.values():
                if process.stdin and not process.stdin.closed:
                    process.stdin.close()
        else:
            self._tell(signal.SIGTERM)

    def _tell(self, number: int) -> None:
        for process in self.running.values():
            _kill(process, number)


def _kill(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Signals a process and all that it has started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
