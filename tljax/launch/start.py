"""`launch.py`: one command starts a run here, in several processes, on several hosts, or on a TPU VM slice."""

import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tljax.errors import ConfigError, TljaxError
from tljax.launch import tpu
from tljax.launch.supervise import Supervisor
from tljax.run import cluster

USAGE = """\
usage: python launch.py [where] --config=FILE --workdir=DIR [--config.a.b=value …]

where, nothing:      here, on all devices; within srun or on a TPU slice, as one of its processes
  --processes=N      here, in N processes: on GPUs each has an equal share of them
  --hosts=a,b,c      over ssh, a process on each; code and files lie in the same place on all
  --tpu=NAME --zone=Z [--project=P] [--python=python3.11] [--setup=COMMAND]
                     on every worker of a TPU VM slice, through gcloud
  --port=N           of the coordinator; the default is a free one
  --dry_run          prints the commands and does nothing

Lines carry the number of their process. One that fails ends all, and its last lines and exit code are launch.py's.
SIGINT and SIGTERM reach all of them: they save and end with 75. What a run does: tljax train --help
"""
SSH = ("ssh", "-o", "BatchMode=yes")
HOSTS_PORT = 8477


def main(argv: Sequence[str], root: Path) -> int:
    """Starts a run; its exit code.

    Args:
      argv: flags of the launcher, and those of `tljax train` for the rest.
      root: the checkout that launch.py stands in.
    """
    if set(argv) & {"-h", "--help"}:
        print(USAGE, end="")
        return 0
    try:
        own, arguments = _parse(argv)
        if own["tpu"]:
            return _on_tpu(own, arguments, root)
        if own["hosts"]:
            return _on_hosts(own, arguments, root)
        if own["processes"]:
            return _in_processes(own, arguments)
        joined = cluster.found(os.environ)
        if joined is not None and not own["dry_run"]:  # a task of srun, a worker of a slice
            rank = str(joined.process) if joined.coordinator else socket.gethostname()
            return Supervisor([_train(arguments)], [{}], [rank]).run()
    except TljaxError as error:
        print(f"tljax: {error}", file=sys.stderr)
        return error.exit_code
    if own["dry_run"]:
        print(shlex.join(_train(arguments)))
        return 0
    from tljax.cli import main as here

    return here(["train", *arguments])


def _parse(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    from absl import flags

    values = flags.FlagValues()
    for name in ("hosts", "tpu", "zone", "project", "setup"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_string("python", "python3", "", flag_values=values)
    flags.DEFINE_integer("processes", None, "", 1, 4096, flag_values=values)
    flags.DEFINE_integer("port", None, "", 1, 65535, flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "", flag_values=values)
    try:
        rest = values(["launch.py", *argv], known_only=True)[1:]
    except flags.Error as error:
        raise ConfigError("launch.py", str(error).strip().rstrip("."), fix="see launch.py --help") from None
    own = {name: values[name].value for name in values}
    where = [f"--{name}" for name in ("processes", "hosts", "tpu") if own[name]]
    if len(where) > 1:
        raise ConfigError("launch.py", f"{' and '.join(where)}", "one of them")
    return own, rest


def _train(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tljax", "train", *arguments]


def _in_processes(own: dict[str, Any], arguments: list[str]) -> int:
    count = own["processes"]
    port = own["port"] or free_port()
    gpus = len(cluster.visible_gpus(os.environ))
    environments = []
    for rank in range(count):
        told = {cluster.COORDINATOR: f"127.0.0.1:{port}", cluster.PROCESSES: str(count), cluster.PROCESS: str(rank)}
        devices = cluster.share(gpus, count, rank)
        environments.append(told | ({cluster.LOCAL_DEVICES: ",".join(map(str, devices))} if devices else {}))
    commands = [_train(arguments)] * count
    if own["dry_run"]:
        for environ, command in zip(environments, commands, strict=True):
            print(_shown(environ, command))
        return 0
    return Supervisor(commands, environments, [str(rank) for rank in range(count)]).run()


def _on_hosts(own: dict[str, Any], arguments: list[str], root: Path) -> int:
    hosts = [host for host in own["hosts"].split(",") if host]
    coordinator = f"{hosts[0].rpartition('@')[2]}:{own['port'] or HOSTS_PORT}"
    commands = []
    for rank, host in enumerate(hosts):
        told = {cluster.COORDINATOR: coordinator, cluster.PROCESSES: str(len(hosts)), cluster.PROCESS: str(rank)}
        inner = _train(arguments)
        leashed = [inner[0], "-m", "tljax.launch.leash", *inner]
        where = f"cd {shlex.quote(str(Path.cwd()))} && PYTHONPATH={shlex.quote(str(root))} exec env"
        commands.append([*SSH, host, f"{where} {_shown(told, leashed)}"])
    if own["dry_run"]:
        for command in commands:
            print(shlex.join(command))
        return 0
    return Supervisor(commands, [{}] * len(hosts), [str(rank) for rank in range(len(hosts))], leashed=True).run()


def _on_tpu(own: dict[str, Any], arguments: list[str], root: Path) -> int:
    there = tpu.Slice(own["tpu"], own["zone"], own["project"], own["python"], own["setup"])
    if own["dry_run"]:
        for command in there.steps(root, Path("tljax.tgz"), arguments).values():
            print(shlex.join(command))
        return 0
    with tempfile.TemporaryDirectory(prefix="tljax-") as folder:
        return _steps(there, there.steps(root, tpu.pack(root, Path(folder)), arguments))


def _steps(there: tpu.Slice, steps: dict[str, list[str]]) -> int:
    """One after another, until one fails."""
    for name, command in steps.items():
        print(f"{name}: {shlex.join(command)}", flush=True)
        if code := Supervisor([command], [{}], [""], stop=there.stop() if name == "run" else None).run():
            more = "" if name == "run" else f"; is {there.name} there? gcloud compute tpus tpu-vm create makes a slice"
            print(f"tljax: {name} on {there.name}: exit code {code}{more}", file=sys.stderr)
            return code
    return 0


def _shown(environ: dict[str, str], command: Sequence[str]) -> str:
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environ.items()), shlex.join(command)])


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
