"""Which processes make up a run, as the environment says: launch.py, Slurm, a TPU VM slice, a Kubernetes JobSet."""

import dataclasses
import glob
import importlib.util
import os
import re
from collections.abc import Callable, Mapping

from tljax.errors import ConfigError

COORDINATOR, PROCESSES, PROCESS, LOCAL_DEVICES = (
    "TLJAX_COORDINATOR", "TLJAX_PROCESSES", "TLJAX_PROCESS", "TLJAX_LOCAL_DEVICES")  # fmt: skip
TPU_PORT = 8476  # that JAX takes on TPU slices
SLURM_PORTS = range(61440, 65536)  # as JAX's own: above the ports that Linux gives to programs by itself


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, as this one sees them.

    Attributes:
      source: what said so, for messages.
      coordinator: host:port of process 0; "": JAX asks the platform.
      processes, process: how many, and which of them this is.
      local_devices: numbers of the devices of this host that are this process's own; None: all.
    """

    source: str
    coordinator: str = ""
    processes: int = 0
    process: int = 0
    local_devices: tuple[int, ...] | None = None


def found(
    environ: Mapping[str, str], gpus: Callable[[], int] = lambda: len(visible_gpus(os.environ))
) -> Cluster | None:
    """The processes of this run; None: this one is alone.

    Args:
      gpus: counts those of this host that this process may see.

    Raises:
      ConfigError: the environment contradicts itself.
    """
    for kind in (_told, _slurm, _tpu_slice):
        if cluster := kind(environ, gpus):
            return cluster
    return None


def _told(environ: Mapping[str, str], gpus: Callable[[], int]) -> Cluster | None:
    """As launch.py says, or the manifest of a JobSet."""
    names = (COORDINATOR, PROCESSES, PROCESS)
    given = [name for name in names if environ.get(name)]
    if not given:
        return None
    if missing := [name for name in names if name not in given]:
        raise ConfigError("the environment", f"{given[0]} without {' and '.join(missing)}", "all three or none")
    processes, process = _number(environ, PROCESSES), _number(environ, PROCESS)
    if not 0 <= process < processes:
        raise ConfigError(PROCESS, f"{process}", f"0 to {processes - 1}, because {PROCESSES} is {processes}")
    if not re.fullmatch(r".+:\d+", environ[COORDINATOR]):
        raise ConfigError(COORDINATOR, repr(environ[COORDINATOR]), "host:port of process 0")
    own = environ.get(LOCAL_DEVICES, "")
    if own and not re.fullmatch(r"\d+(,\d+)*", own):
        raise ConfigError(LOCAL_DEVICES, repr(own), "numbers of devices, joined by commas")
    devices = tuple(int(n) for n in own.split(",")) if own else None
    return Cluster("launch", environ[COORDINATOR], processes, process, devices) if processes > 1 else None


def _slurm(environ: Mapping[str, str], gpus: Callable[[], int]) -> Cluster | None:
    """A step of srun with several tasks.

    JAX's own detection gives each task the one GPU of its number on the node (jax#16788), so that a single task a node
    would use one GPU of eight.
    """
    if "SLURM_STEP_NODELIST" not in environ or "SLURM_PROCID" not in environ:
        return None
    processes = _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if processes < 2:
        return None
    node = _first_node(environ["SLURM_STEP_NODELIST"])
    number = _number(environ, "SLURM_JOB_ID") + _number(environ, "SLURM_STEP_ID")
    port = SLURM_PORTS[number % len(SLURM_PORTS)]
    here, local = _tasks_here(environ), _number(environ, "SLURM_LOCALID")
    devices = None
    if here > 1 and not environ.get("SLURM_GPUS_PER_TASK") and not environ.get("SLURM_TRES_PER_TASK"):
        devices = share(gpus(), here, local)  # otherwise Slurm shows each task its own alone
    return Cluster("Slurm", f"{node}:{port}", processes, _number(environ, "SLURM_PROCID"), devices)


def _tasks_here(environ: Mapping[str, str]) -> int:
    """How many tasks of the step run on this node, of "2(x3),1"."""
    each: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = part.partition("(x")
        each += [int(count)] * int(times.rstrip(")") or 1)
    node = int(environ.get("SLURM_NODEID", "0"))
    return each[node] if node < len(each) else 1


def _first_node(nodes: str) -> str:
    """The first of "gpu[03-05,9],cpu1".

    >>> _first_node("gpu[03-05,9],cpu1"), _first_node("a,b")
    ('gpu03', 'a')
    """
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes)
    if match is None:
        raise ConfigError("SLURM_STEP_NODELIST", repr(nodes), "names of nodes")
    return "".join(part or "" for part in match.groups())


def _tpu_slice(environ: Mapping[str, str], gpus: Callable[[], int]) -> Cluster | None:
    """A worker of a TPU VM slice of several hosts."""
    hosts = [host for host in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if len(hosts) > 1:
        return Cluster("the TPU slice", f"{hosts[0]}:{TPU_PORT}", len(hosts), _number(environ, "TPU_WORKER_ID"))
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if chips and importlib.util.find_spec("libtpu") and environ.get("JAX_PLATFORMS", "tpu") != "cpu":
        return Cluster("the TPU slice")  # JAX asks the metadata server, which also knows of slices with one host
    return None


def share(devices: int, processes: int, process: int) -> tuple[int, ...] | None:
    """Which of a host's devices are a process's own, where its processes divide them evenly; None: there are none.

    >>> share(8, 2, 1), share(8, 8, 3), share(0, 2, 0)
    ((4, 5, 6, 7), (3,), None)
    """
    if not devices:
        return None
    each, rest = divmod(devices, processes)
    if rest or not each:
        raise ConfigError("processes of this host", f"{processes} for {devices} GPU(s)", "a divisor of that number")
    return tuple(range(process * each, (process + 1) * each))


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs of this host that a process may see; found without starting any library."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    return sorted(glob.glob("/dev/nvidia[0-9]*"))


def _number(environ: Mapping[str, str], *names: str) -> int:
    name = next((name for name in names if environ.get(name)), names[-1])
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        raise ConfigError(name, repr(environ.get(name, "")), "a whole number") from None
