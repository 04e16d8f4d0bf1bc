"""Orbax checkpoints of a parameter tree: names, shapes and dtypes; arrays are read one at a time."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from tljax import trees
from tljax.errors import WeightsError, printable
from tljax.weights.hfconfig import AGAIN
from tljax.weights.tensors import Tensor, aligned, named

MARK = "_METADATA"  # in every folder that Orbax's handlers of trees write


def find(folder: Path) -> Path | None:
    """The tree of a checkpoint's folder: in itself, in a folder of it, or in the newest step of a CheckpointManager."""
    if not folder.is_dir():
        return None
    if (folder / MARK).is_file():
        return folder
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    steps = sorted((path for path in inside if path.name.isdecimal()), key=lambda path: int(path.name))
    places = [*steps[-1:], *(path for path in inside if not path.name.isdecimal())]
    candidates = [tree for place in places for tree in (place, place / "default", place / "params")]
    found = [tree for tree in candidates if (tree / MARK).is_file()]
    return found[0] if len(found) == 1 else None


def scan(place: Path) -> dict[str, Tensor]:
    """The arrays of one tree, by "a/b/c"; lists count as dicts of "0", "1" ….

    Raises:
      WeightsError: no tree of arrays, or one that Orbax cannot read.
    """
    try:
        metadata = _checkpointer().metadata(place.absolute())
        tree = _dicts(getattr(metadata, "item_metadata", metadata).tree, place)
        return named(tree)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"not a whole Orbax checkpoint of arrays ({printable(error)})"
        raise WeightsError(str(place), found, "a tree of arrays", AGAIN) from None


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp  # late: it takes a second, and few checkpoints are Orbax's

    return ocp.PyTreeCheckpointer()


def _dicts(node: Any, place: Path, path: tuple[str, ...] = ()) -> Any:
    """What Orbax says of a tree as nested dicts of tensors; empty nodes are left out."""
    if isinstance(node, list | tuple):
        node = {str(i): child for i, child in enumerate(node)}
    if isinstance(node, dict):
        return {str(k): _dicts(v, place, (*path, str(k))) for k, v in node.items() if v is not None}
    shape = tuple(node.shape)
    return Tensor(np.dtype(node.dtype).name, shape, functools.partial(_load, place, path, shape))


def _load(place: Path, path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    import orbax.checkpoint as ocp

    name = "/".join(path)
    try:
        restored = _checkpointer().restore(
            place.absolute(),
            args=ocp.args.PyTreeRestore(
                item=trees.unflatten({name: 0}),
                restore_args=trees.unflatten({name: ocp.RestoreArgs(restore_type=np.ndarray)}),
                partial_restore=True,
            ),
        )
        array = np.asarray(trees.flatten(restored)[name])
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(str(place), f"{printable(name)} cannot be read ({printable(error)})", fix=AGAIN) from None
    if array.shape != shape:
        raise WeightsError(str(place), f"{printable(name)} has shape {array.shape}", f"{shape}, as it says", AGAIN)
    made = aligned(shape, array.dtype)
    np.copyto(made, array)
    return made


def files(place: Path) -> tuple[Path, ...]:
    """The files that hold a tree, for its digest; a link among them is refused."""
    found = sorted(path for path in place.rglob("*") if not path.is_dir())
    if linked := [path for path in found if path.is_symlink()]:
        raise WeightsError(str(linked[0]), "a link inside an Orbax checkpoint", "files of the checkpoint itself")
    return tuple(found)
