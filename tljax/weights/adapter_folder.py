"""What an adapter run has learned, in a folder of its own: adapters and head, and which base they belong to.

adapter.json         kind and numbers of the adapter, base model and its digest, labels
adapter.safetensors  path -> array, adapters and head
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax import trees
from tljax.errors import WeightsError, WriteError
from tljax.models.adapted import AdaptedBackbone
from tljax.models.adapters import Adapter
from tljax.weights import files, hfconfig, safetensors_file
from tljax.weights.tensors import Weights

CONFIG, TENSORS = "adapter.json", "adapter.safetensors"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Learned:
    """Adapters and head: `leaves` path -> array; `base` and `digest` say what they belong on."""

    adapter: Adapter
    leaves: trees.Flat
    base: str
    digest: str
    labels: tuple[str, ...]


def own(network: AdaptedBackbone, flat: Mapping[str, Any]) -> trees.Flat:
    """The parameters that the base does not give: adapters and head."""
    grafted = network.grafted
    return {path: leaf for path, leaf in flat.items() if path in grafted or network.stage_of(path) == "head"}


def write(folder: Path, network: AdaptedBackbone, flat: Mapping[str, Any], *, base: str, digest: str,
          labels: Sequence[str]) -> None:  # fmt: skip
    """Writes the folder, the description last.

    Raises:
      WriteError: it cannot be written.
    """
    said = {"format": FORMAT, "adapter": dataclasses.asdict(network.adapter), "base": base, "digest": digest,
            "labels": list(labels)}  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)
        tensors = {path: np.asarray(leaf, np.float32) for path, leaf in own(network, flat).items()}
        files.write_safetensors(folder / TENSORS, tensors)
        (folder / CONFIG).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise WriteError(str(folder), f"cannot be written ({error.strerror or error})", "a writable folder") from None


def read(folder: Path) -> Learned:
    """Reads what `write` wrote.

    Raises:
      WeightsError: not there, of another version, or damaged.
    """
    said = hfconfig.read_json(folder / CONFIG)
    try:
        if said["format"] != FORMAT:
            raise WeightsError(str(folder / CONFIG), f"format {said['format']}", f"{FORMAT}")
        adapter = Adapter(**said["adapter"])
        base, digest, labels = str(said["base"]), str(said["digest"]), said["labels"]
        if not isinstance(labels, list):
            raise TypeError("labels are no list")
    except (KeyError, TypeError) as error:
        raise WeightsError(str(folder / CONFIG), f"no description of an adapter ({error})") from None
    weights = Weights(folder, "safetensors", safetensors_file.scan(folder / TENSORS), (folder / TENSORS,))
    leaves = {name: weights.read(name) for name in weights.tensors}
    if bad := sorted(name for name, array in leaves.items() if not np.isfinite(array).all()):
        raise WeightsError(str(folder / TENSORS), f"{len(bad)} arrays hold NaN or infinity", details=bad)
    return Learned(adapter, leaves, base, digest, tuple(labels))
