"""A checkpoint's place -> its config and its tensors in Hugging Face's terms, whoever wrote it."""

from pathlib import Path
from typing import Any

from tljax.weights import big_vision, files, hfconfig, rules, timm

DENSE = "2_Dense"  # a folder of sentence-transformers


def opened(place: Path, optional: bool = False) -> tuple[dict[str, Any], files.Weights, tuple[str, ...]]:
    """The fields of config.json, the tensors by name, and what of the folder was left alone.

    Args:
      place: a folder, or a .npz file.
      optional: whether the weights may be missing where config.json tells the network.

    Raises:
      WeightsError: anything that is not a checkpoint that tljax opens.
    """
    path = place / "config.json"
    if not path.is_file() and files.archive_of(place):
        fields, weights = big_vision.opened(files.open_weights(place))
        return hfconfig.checked(fields, weights.files[0]), weights, ()
    found = hfconfig.read_json(path)
    if timm.is_timm(found):
        fields, weights = timm.opened(found, files.open_weights(place))
        return hfconfig.checked(fields, path), weights, ()
    config = hfconfig.checked(found, path)
    if optional and not files.has_weights(place):
        return config, files.Weights(place, "safetensors", {}, ()), ()
    weights = files.open_weights(place)
    if files.archive_of(place) in weights.files:
        weights = big_vision.opened(weights)[1]
    return config, *_with_dense(place, config, weights)


def _with_dense(folder: Path, config: dict[str, Any], weights: files.Weights) -> tuple[files.Weights, tuple[str, ...]]:
    """The weights with the head of a sentence-transformers folder, and what was left alone.

    2_Dense is a head if it is affine and gives one number for each of the config's labels; `export_hf` writes such
    folders. Any other is an embedding's last layer, for which a classifier has no use.
    """
    if not (folder / DENSE / "config.json").is_file():
        return weights, ()
    dense = hfconfig.read_json(folder / DENSE / "config.json")
    affine = str(dense.get("activation_function", "")).endswith("linear.Identity") and dense.get("bias", True) is True
    if not affine or dense.get("out_features") != len(config.get("id2label", ())):
        return weights, (f"{DENSE}/",)

    def rename(name: str) -> str:
        return f"{rules.MEAN_HEAD}.{name.removeprefix('linear.')}"

    return weights.joined(files.open_weights(folder / DENSE), rename), ()
