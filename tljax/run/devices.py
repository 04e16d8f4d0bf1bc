"""The devices of a run: what has to stand before JAX starts on them, and how a batch is divided among them."""

import hashlib
import os
import platform
from pathlib import Path

import jax

from tljax import mesh
from tljax.config import Config
from tljax.errors import ConfigError
from tljax.mesh import Layout
from tljax.run.cluster import Cluster, visible_gpus
from tljax.transfer import worth

# docs.jax.dev, "GPU performance tips"; NVIDIA's JAX-Toolbox, "Environment Variables": collectives run beside kernels
GPU_FLAGS = ("--xla_gpu_enable_latency_hiding_scheduler=true",)
# openxla/xla, xla.proto: no program that adds up in the order in which threads come, none chosen by how fast it was
DETERMINISTIC_FLAGS = ("--xla_gpu_deterministic_ops=true",)
CACHE_FROM_S = 1.0  # programs that compile sooner are not kept


def prepare(config: Config, cluster: Cluster | None) -> None:
    """Settings of XLA and JAX that must stand before the first device is touched; once in a process."""
    device = config.device
    if visible_gpus(os.environ):
        flags = GPU_FLAGS + (DETERMINISTIC_FLAGS if device.deterministic else ())
        known = os.environ.get("XLA_FLAGS", "").split()
        names = {flag.partition("=")[0] for flag in known}
        added = [flag for flag in flags if flag.partition("=")[0] not in names]  # the user's own stand
        os.environ["XLA_FLAGS"] = " ".join([*known, *added])
    if device.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if device.platform == "cpu" and device.count:
        processes = cluster.processes if cluster else 1
        if device.count % processes:
            raise ConfigError("--config.device.count", f"{device.count} for {processes} processes", "a multiple")
        jax.config.update("jax_num_cpu_devices", device.count // processes)
    if device.compile_cache_gb:
        keep_programs(int(device.compile_cache_gb * 1e9))


def keep_programs(limit: int) -> Path | None:
    """Turns on JAX's cache of compiled programs; where. None: the place cannot be written.

    What is compiled for a CPU is for its very instructions, so each kind of CPU has a folder of its own: a home that
    machines share would otherwise offer programs that a machine cannot run.
    """
    if jax.config.values["jax_compilation_cache_dir"]:  # the user's own
        return None
    folder = worth.home() / "programs" / _cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", limit)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", CACHE_FROM_S)
    return folder


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        said = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        said = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def reading(config: Config) -> Layout:
    """The devices to predict on: as many as the run was trained on, if there are."""
    return mesh.over(jax.local_devices()[: config.device.count or None])


def code() -> str:
    """A digest of the package's own files."""
    here = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def told(layout: Layout) -> str:
    """In words: "8 × cpu in 2 processes, fsdp"."""
    kind, processes = layout.mesh.devices.flat[0].device_kind, layout.processes
    return f"{layout.count} × {kind}{f' in {processes} processes' if processes > 1 else ''}, {layout.mode}"


def layout(config: Config) -> Layout:
    """The devices that a config asks for.

    Raises:
      ConfigError: they are not there, or the batch cannot be divided among them.
    """
    device = config.device
    there = jax.devices()
    if device.platform not in ("any", jax.default_backend()):
        raise ConfigError("--config.device.platform", f"{device.platform}, and JAX found {there[0].platform} alone",
                          "a device of that kind", "install JAX for it (pip install 'tljax[cuda]' or 'tljax[tpu]'), or "
                          "look at its drivers")  # fmt: skip
    count = device.count or len(there)
    if count > len(there) or (jax.process_count() > 1 and count != len(there)):
        where = f"{jax.process_count()} processes have" if jax.process_count() > 1 else "this machine has"
        raise ConfigError("--config.device.count", f"{count}, and {where} {len(there)} device(s)",
                          f"{'1 to ' if jax.process_count() == 1 else ''}{len(there)}",
                          "0 takes all of them")  # fmt: skip
    if config.parallel == "pmap" and jax.process_count() > 1:
        raise ConfigError("--config.parallel", f"pmap in {jax.process_count()} processes", "one process",
                          "data does the same in any number")  # fmt: skip
    check_batch(config, count)
    return mesh.over(there[:count], config.parallel)


def check_batch(config: Config, count: int) -> None:
    """Whether a batch can be divided among so many devices.

    Raises:
      ConfigError: it cannot.
    """
    batch, times = config.train.batch_size, config.optim.accumulate
    if batch // times % count:
        parts = f"{batch} / {times} (--config.optim.accumulate)" if times > 1 else f"{batch}"
        raise ConfigError("--config.train.batch_size", f"{parts} rows at a time for {count} devices",
                          f"a multiple of {count}", f"take {count * times} rows or a multiple of that, or fewer "
                          "devices with --config.device.count")  # fmt: skip
