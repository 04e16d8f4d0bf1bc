"""A checkpoint's place -> its named tensors, whichever of the known files hold them; nothing in a file can run code."""

from pathlib import Path

from tljax.errors import WeightsError, printable
from tljax.weights import msgpack_file, npz_file, orbax_folder, safetensors_file, shards
from tljax.weights.hfconfig import PICKLE
from tljax.weights.msgpack_file import write as write_msgpack
from tljax.weights.safetensors_file import write as write_safetensors
from tljax.weights.tensors import READABLE, Weights

SAFETENSORS, FLAX, INDEX = "model.safetensors", "flax_model.msgpack", ".index.json"
WHOLE = (
    (SAFETENSORS, ".safetensors", "safetensors", safetensors_file.scan),
    (FLAX, ".msgpack", "flax", msgpack_file.scan),
)  # name of the file, ending of its shards, whose names and layout, how it is read; the first that is there counts
NPZ = ".npz"
KNOWN = f"{SAFETENSORS} or {FLAX} (or their shards with an index), one .npz, or an Orbax checkpoint"


def open_weights(place: Path) -> Weights:
    """Opens the weights of a folder, or a .npz file.

    Raises:
      WeightsError: no file that tljax opens (pickle files are named but never opened), or a damaged one.
    """
    for name, ending, format, scan in WHOLE:
        path, index = place / name, place / f"{name}{INDEX}"
        if path.exists():
            return Weights(place, format, scan(path), (path,))
        if index.exists():
            tensors, files = shards.scan(index, ending, scan)
            return Weights(place, format, tensors, files)
    if archive := archive_of(place):
        return Weights(archive.parent, "flax", npz_file.scan(archive), (archive,))
    if tree := orbax_folder.find(place):
        return Weights(place, "flax", orbax_folder.scan(tree), orbax_folder.files(tree))
    found = sorted(p.name for p in place.iterdir()) if place.is_dir() else []
    if pickles := [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]:
        raise WeightsError(str(place), f"tljax does not open pickle files, and finds {printable(pickles[0])} only",
                           KNOWN, f"convert with transformers: {PICKLE}")  # fmt: skip
    raise WeightsError(str(place), "no weights", KNOWN, f"there is: {printable(', '.join(found)) or 'nothing'}")


def has_weights(place: Path) -> bool:
    """Whether there is a file of weights that tljax opens."""
    names = [name + end for name, *_ in WHOLE for end in ("", INDEX)]
    return any((place / name).exists() for name in names) or bool(archive_of(place) or orbax_folder.find(place))


def archive_of(place: Path) -> Path | None:
    """The .npz file that is the checkpoint: the place itself, or the only one in the folder."""
    if place.is_file():
        return place if place.suffix == NPZ else None
    inside = sorted(place.glob(f"*{NPZ}"))
    return inside[0] if len(inside) == 1 else None


__all__ = ["FLAX", "INDEX", "READABLE", "SAFETENSORS", "Weights", "archive_of", "has_weights", "open_weights",
           "write_msgpack", "write_safetensors"]  # fmt: skip
