"""Checkpoints of several files: an index says which file holds which tensor, and is held to it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tljax.errors import WeightsError
from tljax.weights.hfconfig import AGAIN, read_json
from tljax.weights.tensors import COLLECTIONS, Tensor

Scan = Callable[[Path], Mapping[str, Tensor]]


def scan(index: Path, ending: str, scan_file: Scan) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """The tensors of all files that an index names, and the files.

    Args:
      index: "….index.json" with a weight_map of tensor names to file names.
      ending: of the files' names.
      scan_file: gives the tensors of one of them.

    Raises:
      WeightsError: files outside the folder or not there, tensors that are doubled, elsewhere or nowhere.
    """
    folder = index.parent
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise WeightsError(str(index), "no weight_map of tensor names to file names", fix=AGAIN)
    files = sorted(set(placed.values()))
    if all(name.partition("/")[0] in COLLECTIONS for name in placed):  # Flax's wrapper, which a file's scan takes off
        placed = {name.partition("/")[2]: file for name, file in placed.items()}
    problems: list[str] = []
    tensors: dict[str, Tensor] = {}
    found_in: dict[str, str] = {}
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]  # the Hub's cache links
    for file in files:
        if not file.endswith(ending) or any(character in file for character in "/\\\x00"):
            problems.append(f"{file}: not a plain {ending} name inside the folder")
        elif not (folder / file).is_file():
            problems.append(f"{file}: missing; download it")
        elif (folder / file).resolve().parent not in homes:
            problems.append(f"{file}: a link out of the folder")
        else:
            for name, tensor in scan_file(folder / file).items():
                if name in tensors:
                    problems.append(f"{name}: doubled, in {found_in[name]} and {file}")
                elif placed.get(name) != file:
                    problems.append(f"{name}: in {file}, but the index says {placed.get(name, 'nothing of it')}")
                tensors[name], found_in[name] = tensor, file
    if not problems:
        problems = [f"{name}: not in {placed[name]}" for name in sorted(placed.keys() - tensors.keys())]
    if problems:
        raise WeightsError(str(index), f"{len(problems)} problem(s) with the shards", details=problems[:100])
    return tensors, tuple(folder / file for file in files)
