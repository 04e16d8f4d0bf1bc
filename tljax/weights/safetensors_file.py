"""Safetensors: the names and places of a file's tensors; and writing them."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from tljax.errors import WeightsError, WriteError
from tljax.weights.hfconfig import AGAIN, opened, parse_json, sniff
from tljax.weights.tensors import MAX_NAMES, Tensor, lying

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def scan(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, by name.

    Raises:
      WeightsError: truncated, holes, overlaps, trailing bytes, doubled names, or no safetensors file at all.
    """
    sniff(path)
    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks header, shapes, dtypes, overlaps, holes, length
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(str(path), f"not a whole safetensors file of {path.stat().st_size} bytes ({error})",
                           "a header and all its tensors", f"{AGAIN}; it may be truncated") from None  # fmt: skip
    with opened(path) as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = parse_json(stream.read(size), path)
    header.pop("__metadata__", None)
    if len(header) > MAX_NAMES:
        raise WeightsError(str(path), f"{len(header)} tensors", f"at most {MAX_NAMES}")
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        dtype = DTYPES.get(entry["dtype"], entry["dtype"])
        tensors[name] = lying(dtype, tuple(entry["shape"]), (path, 8 + size + start, stop - start))
    return tensors


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as Hugging Face's classes expect them, and sees them to the disk."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}  # it writes memory as it lies
    try:
        path.touch()
        mode = path.stat().st_mode
        safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
        path.chmod(mode)  # the library's own lets nobody else read it
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    except (OSError, safetensors.SafetensorError) as error:
        raise WriteError(str(path), f"cannot write the weights ({error})", "a writable folder with room") from error
