"""Adapters in PEFT's own format, not merged: adapter_config.json and adapter_model.safetensors, written and read."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tljax import trees
from tljax.errors import ConfigError, WeightsError, WriteError, printable
from tljax.models.adapted import AdaptedBackbone
from tljax.models.adapters import KINDS, LOW_RANK, Adapter, Site
from tljax.models.backbone import Backbone
from tljax.weights import convert, files, hfconfig, rules, safetensors_file
from tljax.weights.families import FAMILIES
from tljax.weights.peft_names import END, HALVED, LEAF, LEAVES, PREFIX, from_torch, module, modules, to_torch
from tljax.weights.tensors import Weights

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
WRITABLE = (*LOW_RANK, "ia3")
STARTS = (True, False, "gaussian", "pissa")  # of init_lora_weights: those that leave the base alone, and PiSSA
HARMLESS = {"use_rslora", "use_dora"}
FORBIDDEN = ("alora_invocation_tokens", "alpha_pattern", "arrow_config", "layer_replication", "lora_bias",
             "rank_pattern", "target_parameters", "trainable_token_indices")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """What a PEFT folder holds.

    Attributes:
      adapter: to be put on a network with transfer.adapters.adapted.
      leaves: path -> float32 array, in place of those that `start` gives. For PiSSA `start` first takes from the
        kernels what these put back.
      head: path -> float32 array; empty where the folder has no head.
      base: what PEFT calls the model that this was trained on; "" where it does not say.
    """

    adapter: Adapter
    leaves: trees.Flat
    head: trees.Flat
    base: str


def write(folder: Path, network: AdaptedBackbone, params: Mapping[str, Any], config: Mapping[str, Any], *,
          base: str = "", pooling: str = "pooler", original: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """Writes adapters and head as PEFT saves them; PeftModel.from_pretrained opens the folder on the base model.

    Args:
      folder: where to; made if need be. An adapter that is there already is replaced.
      params: path -> array of the network with adapters.
      config: as `Model.config`.
      base: what PEFT may load the base model from: a folder or an id.
      pooling: as `Model.pooling`.
      original: for PiSSA, path -> array of the plain network before `start`. What is written is then a LoRA of twice
        the rank on those, as PEFT converts it, and no reader has to repeat the singular value decomposition.

    Raises:
      ConfigError: a kind of adapter or a pooling for which PEFT has no class.
      WriteError: the folder holds something else, or cannot be written.
    """
    adapter, table = network.adapter, FAMILIES[config["model_type"]]
    if adapter.kind not in WRITABLE:
        raise ConfigError("PEFT export", f"{adapter.kind}, which PEFT has in no form of these weights",
                          f"one of {', '.join(WRITABLE)}")  # fmt: skip
    if pooling == "mean":
        raise ConfigError("PEFT export", "mean pooling, for which transformers has no class with a head", "pooler",
                          "merge the adapter and export the model")  # fmt: skip
    if adapter.kind == "pissa" and original is None:
        raise ConfigError("PEFT export", "PiSSA without the weights that it began with", "original=")
    if halved := [site.path for site in network.sites if HALVED.fullmatch(site.path)]:
        raise ConfigError("PEFT export", f"{halved[0]}, of which transformers makes two modules", "other targets")
    names = {site: module(table, site.path, len(site.shape)) for site in network.sites}
    tensors: dict[str, np.ndarray] = {}
    rank = adapter.rank
    for site, name in names.items():
        own = {leaf: np.asarray(params[f"{site.module}/{leaf}"], np.float32)
               for leaf in KINDS[adapter.kind].shapes(adapter, site)}  # fmt: skip
        if adapter.kind == "pissa" and original is not None:
            own = _doubled(adapter, own, params[site.path], original[site.path])
            rank = 2 * adapter.rank
        for leaf, array in own.items():
            tensors[f"{PREFIX}{name}.{LEAVES[leaf][0]}"] = to_torch(leaf, array, site)
    head = {path: np.asarray(params[path]) for path in network.shapes() if network.stage_of(path) == "head"}
    saved = convert.to_safetensors(head, config["model_type"])
    tensors |= {PREFIX + name: array for name, array in saved.items()}
    said = {
        "base_model_name_or_path": base or None,
        "fan_in_fan_out": any(not rules.lookup(table, site.path, len(site.shape))[1] for site in names),
        "inference_mode": True,
        "modules_to_save": sorted({name.split(".")[0] for name in saved}) or None,
        "target_modules": sorted(names.values()),
        "task_type": None if "image_size" in config else "SEQ_CLS" if config.get("id2label") else "CAUSAL_LM",
        **(_ia3_fields(names) if adapter.kind == "ia3" else _lora_fields(adapter, rank)),
    }
    _written(Path(folder), tensors, said)


def read(folder: Path, backbone: Backbone, family: str) -> Found:
    """Reads a LoRA (rsLoRA, DoRA, PiSSA) or IA3 that PEFT or `write` saved.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      backbone: the plain network that it belongs to.
      family: `model_type` of its config.json.

    Raises:
      WeightsError: another kind of adapter, settings that tljax does not compute, or tensors that are missing,
        unexpected, of another shape or not finite; all of it in one message. Then nothing is read.
    """
    folder = Path(folder)
    fields = hfconfig.read_json(folder / CONFIG)
    if problems := list(_unknown(fields)):
        raise WeightsError(str(folder / CONFIG), f"{len(problems)} setting(s) that tljax does not compute",
                           "a LoRA, rsLoRA, DoRA, PiSSA or IA3 of one rank", details=problems)  # fmt: skip
    if not (folder / TENSORS).exists() and (folder / "adapter_model.bin").exists():
        raise WeightsError(str(folder), "tljax does not open pickle files, and finds adapter_model.bin only", TENSORS)
    weights = Weights(folder, "safetensors", safetensors_file.scan(folder / TENSORS), (folder / TENSORS,))
    shapes = {path: leaf.shape for path, leaf in backbone.shapes().items()}
    heads = {path: shape for path, shape in shapes.items() if backbone.stage_of(path) == "head"}
    leaves, inputs, rest = _leaves(weights, modules(FAMILIES[family], shapes), fields)
    head, problems = _head(weights, rest, FAMILIES[family], heads)
    there = {path.rpartition("/")[0] for path in leaves}
    sites = [Site(path, shape, path in inputs) for path, shape in shapes.items()
             if path.removesuffix("/kernel") in there]  # fmt: skip
    adapter = _adapter(fields, sites)
    expected = {f"{site.module}/{leaf}": shape for site in sites
                for leaf, shape in KINDS[adapter.kind].shapes(adapter, site).items()}  # fmt: skip
    problems += _problems(leaves, expected) + _problems(head, heads if head else {})
    problems += [] if leaves else ["no adapter in it"]
    if problems:
        raise WeightsError(str(folder), f"{len(problems)} problem(s) with the adapter, nothing was loaded",
                           "sound tensors for the modules of this network", details=problems)  # fmt: skip
    base = str(fields.get("base_model_name_or_path") or "")
    return Found(adapter, {path: leaves[path] for path in sorted(leaves)}, head, base)


def _leaves(weights: Weights, known: Mapping[str, str],
            fields: Mapping[str, Any]) -> tuple[trees.Flat, set[str], list[str]]:  # fmt: skip
    """The adapter's leaves by path, the kernels whose inputs IA3 scales, and the names of all other tensors."""
    feedforward = tuple(fields.get("feedforward_modules") or ())
    leaves: trees.Flat = {}
    inputs, rest = set(), []
    for name in weights.tensors:
        ending = END.fullmatch(name.removeprefix(PREFIX))
        if ending is None or ending[1] not in known:
            rest.append(name)
            continue
        path = known[ending[1]]
        leaves[f"{path.removesuffix('/kernel')}/{LEAF[ending[2]]}"] = from_torch(LEAF[ending[2]], weights.read(name))
        if ending[1].endswith(feedforward):  # as PEFT asks
            inputs.add(path)
    return leaves, inputs, rest


def _head(weights: Weights, names: list[str], family: rules.Family,
          heads: Mapping[str, tuple[int, ...]]) -> tuple[trees.Flat, list[str]]:  # fmt: skip
    """The head's parameters by path, and what is wrong with the other names."""
    places: dict[str, tuple[str, rules.Axes]] = {}
    for path, shape in heads.items():
        spellings, axes = rules.sources(family, "safetensors", path, len(shape))
        places |= dict.fromkeys(spellings, (path, axes))
    head: trees.Flat = {}
    problems = []
    for name in names:
        if (short := name.removeprefix(PREFIX)) not in places:
            problems.append(f"{printable(name)}: unexpected, no parameter has this name")
            continue
        path, axes = places[short]
        array = weights.read(name)
        head[path] = np.transpose(array, axes) if len(axes) == array.ndim else array
    return head, problems


def _lora_fields(adapter: Adapter, rank: int) -> dict[str, Any]:
    alpha = adapter.alpha if adapter.kind != "pissa" else adapter.scale * rank
    return {"peft_type": "LORA", "r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "bias": "none",
            "lora_dropout": 0.0, "use_rslora": adapter.kind == "rslora", "use_dora": adapter.kind == "dora",
            "init_lora_weights": True}  # fmt: skip


def _ia3_fields(names: Mapping[Site, str]) -> dict[str, Any]:
    scaled = sorted(name for site, name in names.items() if site.inputs)
    return {"peft_type": "IA3", "feedforward_modules": scaled, "init_ia3_weights": True}


def _doubled(adapter: Adapter, own: Mapping[str, np.ndarray], kernel: Any, original: Any) -> dict[str, np.ndarray]:
    """PiSSA as a LoRA of twice the rank on the original kernel: all that it changed, by its singular values."""
    base, first = (np.asarray(x, np.float64) for x in (kernel, original))
    change = base + adapter.scale * (own["lora_a"].astype(np.float64) @ own["lora_b"].astype(np.float64)) - first
    u, values, v = np.linalg.svd(change.reshape(-1, change.shape[-1]), full_matrices=False)
    kept = 2 * adapter.rank
    root = np.zeros(kept)
    root[: len(values)] = np.sqrt(values[:kept] / adapter.scale)
    wide = [np.zeros((len(u), kept)), np.zeros((kept, v.shape[1]))]
    wide[0][:, : len(values)], wide[1][: len(values)] = u[:, :kept], v[:kept]
    return {"lora_a": (wide[0] * root).reshape(*first.shape[:-1], kept).astype(np.float32),
            "lora_b": (root[:, None] * wide[1]).astype(np.float32)}  # fmt: skip


def _unknown(fields: Mapping[str, Any]) -> Iterator[str]:
    """What an adapter_config.json asks for that tljax does not do."""
    if fields.get("peft_type") not in ("LORA", "IA3"):
        yield f"peft_type: {fields.get('peft_type')!r}"
        return
    if fields.get("bias", "none") != "none":
        yield f"bias: {fields['bias']!r}, which trains the base's own biases"
    if fields["peft_type"] == "LORA" and fields.get("init_lora_weights", True) not in STARTS:
        yield f"init_lora_weights: {fields['init_lora_weights']!r}, which changes the base"
    for name, value in fields.items():
        if value and (name in FORBIDDEN or (name.startswith("use_") and name not in HARMLESS)):
            yield f"{name}: {printable(value)}"
    if isinstance(fields.get("feedforward_modules"), str):
        yield f"feedforward_modules: a regular expression, {printable(fields['feedforward_modules'])}"
    if fields["peft_type"] == "LORA":
        sound = {name: isinstance(fields.get(name), int | float) and not isinstance(fields[name], bool)
                 and 0 < fields[name] < math.inf for name in ("r", "lora_alpha")}  # fmt: skip
        yield from (f"{name}: {printable(fields.get(name))}" for name, right in sound.items() if not right)


def _adapter(fields: Mapping[str, Any], sites: list[Site]) -> Adapter:
    targets = ",".join(site.module for site in sites)
    if fields["peft_type"] == "IA3":
        return Adapter("ia3", targets=targets, feedforward=",".join(site.module for site in sites if site.inputs))
    rank, alpha = int(fields["r"]), float(fields["lora_alpha"])
    if fields.get("use_dora"):  # by the root of the rank or not: as an alpha it is one thing
        alpha = alpha * math.sqrt(rank) if fields.get("use_rslora") else alpha
        return Adapter("dora", rank, alpha, targets)
    if fields.get("init_lora_weights") == "pissa":
        alpha = alpha * math.sqrt(rank) if fields.get("use_rslora") else alpha
        return Adapter("pissa", rank, alpha, targets)
    return Adapter("rslora" if fields.get("use_rslora") else "lora", rank, alpha, targets)


def _problems(found: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, not asked for, of another shape or not finite."""
    problems = [f"{path}: missing" for path in expected if path not in found]
    for path, array in found.items():
        if path not in expected:
            problems.append(f"{path}: not a part of this kind of adapter")
        elif array.shape != expected[path]:
            problems.append(f"{path}: shape {array.shape}, expected {expected[path]}")
        elif not np.isfinite(array).all():
            problems.append(f"{path}: values that are NaN or infinite")
    return problems


def _written(folder: Path, tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> None:
    """The config last, so that a folder without one is none; an adapter that was there is gone first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if foreign := sorted(path.name for path in folder.iterdir() if path.name not in (CONFIG, TENSORS)):
            raise WriteError(str(folder), f"holds {foreign[0]}, which no adapter export wrote", "a new folder")
        (folder / CONFIG).unlink(missing_ok=True)
        files.write_safetensors(folder / TENSORS, tensors)
        (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise WriteError(str(folder), f"cannot be written ({error.strerror or error})", "a writable folder") from error
