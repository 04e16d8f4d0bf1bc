"""The processes of one run: they begin together, compare what they are about to do, stop together and fail together."""

import contextlib
import faulthandler
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tljax import mesh
from tljax.errors import ConfigError, LostError, StoppedError, TljaxError, printable
from tljax.run import progress
from tljax.run.cluster import Cluster

CONNECT_S = "TLJAX_CONNECT_S"  # how long processes wait for each other at the start
HEARTBEAT_S = 100  # JAX's default: how long a host may be silent
FAILED = "tljax/failed"  # in the coordinator's store: what the first process to fail has to say
LOOK_S = 0.5
# what the runtimes say where a peer is gone; the kind of the exception is now this, now that
_LOST = re.compile(r"Gloo|NCCL|Connection (closed|reset|refused)|UNAVAILABLE|DEADLINE_EXCEEDED|coordination service")
AFTERWORD_S = 3.0  # how long a failing process waits for the others to hear
SHUTDOWN_S = 30


class Group:
    """The processes of this run: together from the beginning of a `with` block to its end.

    What ends the block in one process ends all of them, with the same exit code: none waits for one that is gone.

    Attributes:
      cluster: which they are.
      stall_s: a process without progress (run/progress.py) for so long, from its first step on, is taken for stuck;
        0: never.
    """

    def __init__(self, cluster: Cluster, stall_s: float = 0.0):
        self.cluster, self.stall_s = cluster, stall_s
        self._asked = 0
        self._stopping = False
        self._ended = threading.Event()

    def __enter__(self) -> "Group":
        """Waits until all processes have come.

        Ends this process, with exit code 69, where they do not: JAX's own runtime would abort it.

        Raises:
          LostError: the port of the coordinator is in use.
        """
        cluster, seconds = self.cluster, float(os.environ.get(CONNECT_S, "120"))
        address = cluster.coordinator or "the coordinator of this slice"
        if cluster.coordinator and cluster.process == 0:
            _check_free(cluster.coordinator)
        others = "the other processes" if cluster.process == 0 else f"process 0 at {address}"
        late = LostError(
            f"process {cluster.process} of {cluster.processes or 'a slice'}",
            f"no word from {others} for {seconds:g} s",
            f"{cluster.processes or 'all'} processes that reach {address}",
            f"look at their logs and at firewalls; {CONNECT_S} is how long they wait",
        )
        with _or_exit(seconds, late):
            jax.distributed.initialize(
                cluster.coordinator or None,
                cluster.processes or None,
                cluster.process if cluster.coordinator else None,
                local_device_ids=cluster.local_devices,
                cluster_detection_method="deactivate" if cluster.coordinator else None,
                initialization_timeout=round(seconds) + 60,
                heartbeat_timeout_seconds=HEARTBEAT_S,
                shutdown_timeout_seconds=SHUTDOWN_S,
            )
            jax.devices()  # all have to come here too
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if error is None:
            self._ended.set()
            with contextlib.suppress(RuntimeError):  # the others have parted already
                jax.distributed.shutdown()
        elif isinstance(error, StoppedError):  # all of them stop at the same step
            self._end(error)
        elif isinstance(error, TljaxError):
            self._fail(error)
        elif _LOST.search(str(error)):
            time.sleep(AFTERWORD_S)  # of one that has failed the watch hears
            first = printable(str(error).splitlines()[0])
            self._fail(LostError("the other processes", f"lost ({first})", "all of them to the end",
                                 "look at their logs; the same command goes on from the last checkpoint"))  # fmt: skip
        else:
            traceback.print_exception(error)
            self._fail(TljaxError("a bug", f"{type(error).__name__}: {printable(str(error).rstrip('.'))}"))

    def _fail(self, error: TljaxError) -> None:
        """Tells the other processes, and ends this one."""
        say = f"{error.exit_code} process {jax.process_index()}: {error}"
        with contextlib.suppress(RuntimeError, ValueError):  # the coordinator is gone, or another was first
            _store().key_value_set(FAILED, say)
        self._end(error)

    def _end(self, error: TljaxError) -> None:
        self._ended.set()
        print(f"tljax: {error}", file=sys.stderr, flush=True)
        if jax.process_index() == 0:  # the store is in this process: the others have to read it first
            time.sleep(AFTERWORD_S)
        _exit(error.exit_code)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[], bool]]:
        """As `signals.watched`: a signal to any of the processes stops all of them at the same step.

        The function has to be called equally often by all of them. SIGTERM is JAX's, which tells the others.
        """

        def forward(number: int, frame: FrameType | None) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        before = signal.signal(signal.SIGINT, forward)
        try:
            yield self._stop
        finally:
            signal.signal(signal.SIGINT, before)

    def _stop(self) -> bool:
        progress.made()
        self._asked += 1
        self._stopping = self._stopping or multihost_utils.reached_preemption_sync_point(self._asked)
        return self._stopping

    def _watch(self) -> None:
        """Ends this process soon after another has failed, and all of them where this one is stuck."""
        while not self._ended.wait(LOOK_S):
            said = _failure()
            if self._ended.is_set():
                return
            if said is not None:
                code, _, what = said.partition(" ")
                print(f"tljax: stopped because of {what}", file=sys.stderr, flush=True)
                _exit(int(code))
            waited = progress.since() if self._asked else 0.0
            if self.stall_s and waited > self.stall_s:
                error = LostError(f"process {jax.process_index()}", f"no step for {waited:.0f} s",
                                  f"one in {self.stall_s:g} s", "the stacks of its threads are above; where steps take "
                                  "longer raise --config.device.stall_s")  # fmt: skip
                faulthandler.dump_traceback(all_threads=True)
                self._fail(error)


def compare(said: Mapping[str, Any]) -> None:
    """Compares what every process is about to do, before the first step.

    Args:
      said: name -> anything that JSON can say: settings, versions, digests of data and weights.

    Raises:
      ConfigError: names what differs, and where.
    """
    digests = {name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:8]
               for name, value in sorted(said.items())}  # fmt: skip
    own = np.frombuffer(
        b"".join([hashlib.sha256("|".join(digests).encode()).digest()[:8], *digests.values()]), np.int32
    )
    sizes = mesh.gathered([len(own)])[:, 0]
    odd: list[str] = []
    if len(set(sizes.tolist())) == 1:
        every = mesh.gathered(own.tolist()).reshape(len(sizes), -1, 2)
        for at, name in enumerate(["their names", *digests]):
            others = [str(n) for n in range(1, len(every)) if (every[n, at] != every[0, at]).any()]
            odd += [f"{name}: process 0 and process {', '.join(others)} differ"] if others else []
    else:
        odd = ["versions of tljax differ"]
    if odd:
        raise ConfigError("the processes of this run", f"{len(odd)} thing(s) that are not the same in all of them",
                          "the same command, code, packages and files on every host", details=odd)  # fmt: skip


def _store() -> Any:
    """JAX's own store of the coordinator; there is no public way to it (jax 0.10 to 0.11)."""
    from jax._src import distributed

    return distributed.global_state.client


def _failure() -> str | None:
    """What the first process to fail has said."""
    try:
        return _store().key_value_try_get(FAILED)
    except (RuntimeError, AttributeError):  # nothing was said, or the coordinator is gone: JAX notices
        return None


def _check_free(address: str) -> None:
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise LostError(f"port {port}", f"cannot be taken ({error.strerror})", "a free port for the coordinator",
                            "wait for the other run to end, or take another --port") from None  # fmt: skip


@contextlib.contextmanager
def _or_exit(seconds: float, error: TljaxError) -> Iterator[None]:
    """Ends the process where the block takes longer: what hangs in it listens to nothing."""

    def end() -> None:
        print(f"tljax: {error}", file=sys.stderr, flush=True)
        _exit(error.exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _exit(code: int) -> None:
    """At once: what is registered to run at exit would wait for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
