"""Parameters -> a folder that transformers and sentence-transformers open, written wholly or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tljax import models, trees
from tljax.data import spm
from tljax.errors import ConfigError, WriteError
from tljax.weights import convert, hfconfig
from tljax.weights import files as weight_files
from tljax.weights.checkpoint import DENSE
from tljax.weights.families import FAMILIES
from tljax.weights.load import POOLING

COMPANIONS = ("added_tokens.json", "chat_template.jinja", "events.json", "merges.txt", "preprocessor_config.json",
              "sentence_bert_config.json", "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model",
              "spm.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
              "vocab.txt")  # fmt: skip
WRITTEN = {
    "README.md",
    "config.json",
    weight_files.SAFETENSORS,
    weight_files.FLAX,
    "modules.json",
    POOLING,
    DENSE,
    *COMPANIONS,
}
IMAGE_FIELDS = ("image_mean", "image_std", "resample")  # of preprocessor_config.json, not of config.json
FORMATS = ("hf", "flax_msgpack")
HEADS = ("classifier", "language", "none")


def companions(folder: Path) -> tuple[Path, ...]:
    """The tokenizer's or image processor's files of a checkpoint, which an export takes along."""
    return tuple(folder / name for name in COMPANIONS if (folder / name).is_file())


def classifier(config: Mapping[str, Any]) -> str:
    """transformers' class for an export with its head: the one it came from, where there are several."""
    table = FAMILIES[config["model_type"]]
    own = [str(name).removeprefix("Flax") for name in config.get("architectures", ())]
    return next((name for name in own if name in table.classifiers), table.classifier)


def export_hf(folder: Path, *, params: Mapping[str, Any], config: Mapping[str, Any], labels: Iterable[str],
              copy: Iterable[Path], pooling: str, card: str, resize: str = "squash",
              head: str = "classifier", format: str = "hf",
              files: Mapping[str, str] | None = None) -> None:  # fmt: skip
    """Writes a model as a Hugging Face folder, in place of an earlier export at the same path.

    With a pooler (and for images) that is transformers' class for classification. transformers has no such class
    for mean pooling; then the folder is sentence-transformers': the trunk at the top, which AutoModel opens with
    add_pooling_layer=False, 1_Pooling (mean) and the head in 2_Dense, with the labels in config.json.
    `load_pretrained` opens either.

    Args:
      folder: where to; its parent is made if need be.
      params: path -> array, the head included.
      config: as `Model.config`.
      labels: class names in the order of the logits.
      copy: files to take along, see `companions`.
      pooling: "pooler" or "mean".
      card: the text of README.md.
      resize: how pictures became squares, as `DataConfig.resize`; empty: as the checkpoint's own processor says.
      head: of `HEADS`: what the network ends in; with "none" the trunk alone is written.
      files: name, of `COMPANIONS` -> content of a text file, in place of a copied one.
      format: of `FORMATS`: model.safetensors with PyTorch's names, or flax_model.msgpack as transformers 4 had it.

    Raises:
      ConfigError: another format, or a family that transformers never had in Flax.
      WriteError: the place is taken by something that is no export, or cannot be written; then nothing has changed.
    """
    check_format(format, str(config["model_type"]))
    folder = Path(folder).absolute()
    if foreign := _foreign(folder):
        raise WriteError(str(folder), f"holds {foreign}, which no export wrote", "a new folder, or an earlier export")
    draft, old = (folder.with_name(f".{folder.name}.{end}") for end in ("draft", "old"))  # a kill's are found again
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _write(draft, params, dict(config), tuple(labels), tuple(copy), pooling, card, resize, head, format)
        for name, content in (files or {}).items():
            (draft / name).write_text(content, encoding="utf-8")
        for path in sorted(draft.rglob("*"), reverse=True):
            _sync(path)
        _sync(draft)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        draft.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        found = f"cannot be written ({error.strerror or error})"
        raise WriteError(str(folder), found, "a writable place with room") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_format(format: str, family: str) -> None:
    """Raises ConfigError for a format that cannot be written for a family."""
    if format not in FORMATS:
        raise ConfigError("--format", f"{format!r}", f"one of {', '.join(FORMATS)}")
    if format == "flax_msgpack" and not FAMILIES[family].flax:
        known = ", ".join(name for name, table in FAMILIES.items() if table.flax)
        raise ConfigError("--format", f"flax_msgpack, but transformers had no Flax class for {family}", known)


def _write(draft: Path, params: Mapping[str, Any], config: dict[str, Any], labels: tuple[str, ...],
           copy: tuple[Path, ...], pooling: str, card: str, resize: str, head: str,
           format: str) -> None:  # fmt: skip
    table, family = FAMILIES[config["model_type"]], config["model_type"]
    sentence = pooling == "mean" and head == "classifier"
    for path in copy:
        shutil.copyfile(path, draft / path.name)
    _tokenizer(draft)
    if "image_size" in config:
        _json(draft / "preprocessor_config.json", _preprocessor(draft, config, resize))
    fields = {name: value for name, value in config.items() if name not in (*IMAGE_FIELDS, "id2label")}
    if table.part:
        own = {name: fields.pop(name) for name in models.family_of(config).defaults if name in fields}
        fields[table.part] = {**own, **table.part_fields}
    trunk_only = sentence or head == "none"
    opens = table.trunk if trunk_only else table.language if head == "language" else classifier(config)
    fields |= {"architectures": [opens], "dtype": "float32"}
    if head == "classifier":
        fields |= {
            "num_labels": len(labels),
            "id2label": {str(i): name for i, name in enumerate(labels)},
            "label2id": {name: i for i, name in enumerate(labels)},
        }
    _json(draft / "config.json", fields)
    if format == "hf":
        weight_files.write_safetensors(
            draft / weight_files.SAFETENSORS, convert.to_safetensors(params, family, trunk_only)
        )
    else:
        weight_files.write_msgpack(draft / weight_files.FLAX, convert.to_flax(params, family, head == "none"))
    (draft / "README.md").write_text(card, encoding="utf-8")
    if sentence and format == "hf":
        _dense(draft, params, family)
    if pooling == "mean":
        _pooling(draft, config.get("hidden_size", config.get("dim")), dense=sentence and format == "hf")


def _tokenizer(draft: Path) -> None:
    """A bare SentencePiece model becomes a tokenizer.json: transformers does not give such a model's ids."""
    model, options = draft / "tokenizer.model", draft / "tokenizer_config.json"
    if not model.exists() or (draft / "tokenizer.json").exists():
        return
    for name, content in spm.converted(model, hfconfig.read_json(options) if options.exists() else {}).items():
        _json(draft / name, content)


def _dense(draft: Path, params: Mapping[str, Any], family: str) -> None:
    """The head as sentence-transformers has it."""
    head, _ = trees.partition(params, FAMILIES[family].in_head)
    head = convert.to_safetensors(head, family)
    head = {f"linear.{name.rsplit('.', 1)[1]}": array for name, array in head.items()}
    outputs, width = head["linear.weight"].shape
    (draft / DENSE).mkdir()
    _json(draft / DENSE / "config.json", {"in_features": width, "out_features": outputs, "bias": True,
                                          "activation_function": "torch.nn.modules.linear.Identity"})  # fmt: skip
    weight_files.write_safetensors(draft / DENSE / weight_files.SAFETENSORS, head)


def _pooling(draft: Path, width: int | None, dense: bool) -> None:
    """The files that make a trunk, and a head in a folder of its own, one model for sentence-transformers."""
    kinds = (("", "Transformer"), (POOLING, "Pooling"), *(((DENSE, "Dense"),) if dense else ()))
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, (path, kind) in enumerate(kinds)]  # fmt: skip
    (draft / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    (draft / POOLING).mkdir()
    modes = {f"pooling_mode_{mode}": mode == "mean_tokens"
             for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}  # fmt: skip
    _json(draft / POOLING / "config.json", {"word_embedding_dimension": width, **modes})


def _preprocessor(draft: Path, config: Mapping[str, Any], resize: str) -> dict[str, Any]:
    """What this model's pictures went through: the checkpoint's filter and colours, the model's own size and cut.

    The checkpoint's class and its cuts are left out: they belong to its size, and some refuse another.
    """
    copied, side = draft / "preprocessor_config.json", config["image_size"]
    usual = {"do_rescale": True, "do_normalize": True, "resample": 2, "rescale_factor": 1 / 255,
             "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # fmt: skip
    found = hfconfig.read_json(copied) if copied.exists() else {}
    if found and not resize:
        return found
    found |= {name: config[name] for name in IMAGE_FIELDS if name in config}
    square = {"height": side, "width": side}
    cut: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": square}
    if resize == "crop":
        cut = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side}, "do_center_crop": True,
               "crop_size": square}  # fmt: skip
    return {**usual, **{name: found[name] for name in usual if name in found}, "do_resize": True, **cut}


def _foreign(folder: Path) -> str:
    """The first thing at `folder` that an export does not write, or nothing."""
    if not folder.exists():
        return ""
    if not folder.is_dir() or folder.is_symlink():
        return "a file or a link"
    return next((p.name for p in sorted(folder.iterdir()) if p.name not in WRITTEN), "")


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
