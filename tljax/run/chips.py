"""Devices by what they can do: those that are here, and TPU slices that are not."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any

import jax

from tljax import mesh
from tljax.config import Config
from tljax.errors import ConfigError
from tljax.mesh import Layout
from tljax.run import devices
from tljax.train.collectives import Moved

LOCAL = "local"
# libtpu would ask Google's metadata server otherwise, for minutes, and complain of what it does not say
NO_TPU_HERE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
               "TPU_ACCELERATOR_TYPE": "v5litepod-1"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device can do at best; 0 where that is not known.

    Attributes:
      flops: of bfloat16 products in a second.
      memory, bandwidth: bytes, bytes in a second.
      interconnect: bytes in a second, out of the device and at the same time into it.
    """

    name: str
    flops: float = 0.0
    memory: int = 0
    bandwidth: float = 0.0
    interconnect: float = 0.0

    def seconds(self, flops: float, accessed: float, sent: Mapping[str, Moved], count: int) -> dict[str, float]:
        """How long a step takes for each of its needs alone; {} where the chip is not known.

        An all-reduce sends 2 (n - 1) / n of its bytes from each device, the other collectives half of that.
        """
        if not self.flops:
            return {}
        crossed: float = sum((2 if kind == "all-reduce" else 1) * moved.nbytes for kind, moved in sent.items())
        crossed *= (count - 1) / count
        return {"compute": flops / self.flops, "memory": accessed / self.bandwidth,
                "interconnect": crossed / self.interconnect}  # fmt: skip


# docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e: "Key chip specifications"; half of the bidirectional interconnect.
# XLA's default there takes float32 products as bfloat16 ones too.
CHIPS = {
    "TPU v4": Chip("TPU v4", 275e12, 32 * 2**30, 1228e9, 300e9),
    "TPU v5 lite": Chip("TPU v5e", 197e12, 16 * 2**30, 819e9, 200e9),
    "TPU v5": Chip("TPU v5p", 459e12, 95 * 2**30, 2765e9, 600e9),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 32 * 2**30, 1638e9, 400e9),
}


def of(device: Any) -> Chip:
    """What is known of a device."""
    kind = device.device_kind
    if kind in CHIPS:
        return CHIPS[kind]
    try:
        memory = int((device.memory_stats() or {}).get("bytes_limit", 0))
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return Chip(kind)
    return Chip(kind, memory=memory)


def layout(config: Config, topology: str) -> Layout:
    """The devices of a topology, which need not be here.

    Raises:
      ConfigError: it does not exist, or the compiler for it is not installed.
    """
    if topology == LOCAL:
        return devices.layout(config)
    if not re.fullmatch(r"v\d\w*:\d+(x\d+){1,2}", topology):
        raise ConfigError("--topology", repr(topology), "local, or a TPU slice such as v5e:4x4, v5p:2x2x4 or v6e:8x8")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("--topology", f"{topology} without the compiler for TPUs", "libtpu, which needs no TPU",
                          "pip install 'tljax[tpu]', best in an environment of its own: it warns at every start of JAX "
                          "on other machines")  # fmt: skip
    for name, value in NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            "--topology", f"{topology}: {str(error).splitlines()[0][:200]}", "a slice that exists"
        ) from None
    devices.check_batch(config, len(found.devices))
    return mesh.over(found.devices, config.parallel)
