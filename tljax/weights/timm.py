"""timm's ViT, ResNet and ConvNeXt: names in PyTorch's layout, and sizes read from config.json and the tensors.

A folder of timm has a config.json with `architecture`, `model_args` and `pretrained_cfg`, and no `model_type`.
Architectures that differ in more than sizes are refused by name: some hold the very same tensors and compute
something else with them (resnetaa, vit_…_gap).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from tljax.errors import WeightsError, printable
from tljax.weights.foreign import Row, broadcast, count, matrix, same, shape_of, third, translated
from tljax.weights.tensors import Weights

_LAYER = r"vit.encoder.layer.\1"
_VIT: tuple[Row, ...] = (
    (r"cls_token", "vit.embeddings.cls_token", same),
    (r"pos_embed", "vit.embeddings.position_embeddings", same),
    (r"patch_embed\.proj\.(\w+)", r"vit.embeddings.patch_embeddings.projection.\1", same),
    (r"blocks\.(\d+)\.norm1\.(\w+)", rf"{_LAYER}.layernorm_before.\2", same),
    (r"blocks\.(\d+)\.norm2\.(\w+)", rf"{_LAYER}.layernorm_after.\2", same),
    *((r"blocks\.(\d+)\.attn\.qkv\.(\w+)", rf"{_LAYER}.attention.attention.{part}.\2", third(i))
      for i, part in enumerate(("query", "key", "value"))),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", rf"{_LAYER}.attention.output.dense.\2", same),
    (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", rf"{_LAYER}.intermediate.dense.\2", same),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", rf"{_LAYER}.output.dense.\2", same),
    (r"norm\.(\w+)", r"vit.layernorm.\1", same),
    (r"head\.(\w+)", r"classifier.\1", same),
)  # fmt: skip
_STEM = "resnet.embedder.embedder"
_RESNET: tuple[Row, ...] = (
    (r"conv1\.(\w+)", rf"{_STEM}.convolution.\1", same),
    (r"bn1\.(\w+)", rf"{_STEM}.normalization.\1", same),
    *((rf"layer{i + 1}\.(\d+)\.{theirs}\.(\w+)", rf"resnet.encoder.stages.{i}.layers.\1.{ours}.\2", same)
      for i in range(4) for theirs, ours in (
          *((f"conv{j + 1}", f"layer.{j}.convolution") for j in range(3)),
          *((f"bn{j + 1}", f"layer.{j}.normalization") for j in range(3)),
          (r"downsample\.0", "shortcut.convolution"), (r"downsample\.1", "shortcut.normalization"))),
    (r"fc\.(\w+)", r"classifier.1.\1", same),
)  # fmt: skip


def _convnext_rows(base: str) -> tuple[Row, ...]:
    stage = rf"{base}.encoder.stages.\1"
    layer, theirs = rf"{stage}.layers.\2", r"stages\.(\d+)\.blocks\.(\d+)"
    return (
        (r"stem\.0\.(\w+)", rf"{base}.embeddings.patch_embeddings.\1", same),
        (r"stem\.1\.(\w+)", rf"{base}.embeddings.layernorm.\1", same),
        (r"stages\.(\d+)\.downsample\.(\d)\.(\w+)", rf"{stage}.downsampling_layer.\2.\3", same),
        (rf"{theirs}\.conv_dw\.(\w+)", rf"{layer}.dwconv.\3", same),
        (rf"{theirs}\.norm\.(\w+)", rf"{layer}.layernorm.\3", same),
        (rf"{theirs}\.mlp\.fc(\d)\.weight", rf"{layer}.pwconv\3.weight", matrix),
        (rf"{theirs}\.mlp\.fc(\d)\.bias", rf"{layer}.pwconv\3.bias", same),
        (rf"{theirs}\.mlp\.grn\.(\w+)", rf"{layer}.grn.\3", broadcast),
        (rf"{theirs}\.gamma", rf"{layer}.layer_scale_parameter", same),
        (r"head\.norm\.(\w+)", rf"{base}.layernorm.\1", same),
        (r"head\.fc\.(\w+)", r"classifier.\1", same),
    )


HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "giant": 16, "gigantic": 16}  # timm's ViTs
Fields = dict[str, Any]


def _vit(weights: Weights, name: re.Match[str], args: Mapping[str, Any]) -> Fields:
    width, _, patch, _ = shape_of(weights, "patch_embed.proj.weight", 4)
    tokens = shape_of(weights, "pos_embed", 3)[1]
    return {
        "model_type": "vit",
        "hidden_size": width,
        "image_size": math.isqrt(max(tokens - 1, 0)) * patch,
        "intermediate_size": shape_of(weights, "blocks.0.mlp.fc1.weight", 2)[0],
        "layer_norm_eps": 1e-6,
        "num_attention_heads": args.get("num_heads", HEADS[name["size"]]),
        "num_channels": shape_of(weights, "patch_embed.proj.weight", 4)[1],
        "num_hidden_layers": count(weights.tensors, r"blocks\.(\d+)\..*"),
        "patch_size": patch,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights.tensors,
    }


def _resnet(weights: Weights, name: re.Match[str], args: Mapping[str, Any]) -> Fields:
    bottleneck = "layer1.0.conv3.weight" in weights.tensors
    last = "conv3" if bottleneck else "conv2"
    return {
        "model_type": "resnet",
        "depths": [count(weights.tensors, rf"layer{i}\.(\d+)\..*") for i in range(1, 5)],
        "embedding_size": shape_of(weights, "conv1.weight", 4)[0],
        "hidden_sizes": [shape_of(weights, f"layer{i}.0.{last}.weight", 4)[0] for i in range(1, 5)],
        "layer_type": "bottleneck" if bottleneck else "basic",
        "num_channels": shape_of(weights, "conv1.weight", 4)[1],
    }


def _convnext(weights: Weights, name: re.Match[str], args: Mapping[str, Any]) -> Fields:
    _, channels, patch, _ = shape_of(weights, "stem.0.weight", 4)
    return {
        "model_type": f"convnext{name['v'] or ''}",
        "depths": [count(weights.tensors, rf"stages\.{i}\.blocks\.(\d+)\..*") for i in range(4)],
        "hidden_sizes": [shape_of(weights, f"stages.{i}.blocks.0.norm.weight", 1)[0] for i in range(4)],
        "layer_norm_eps": 1e-6,
        "num_channels": channels,
        "patch_size": patch,
    }


Reader = Callable[[Weights, re.Match[str], Mapping[str, Any]], Fields]
ARCHITECTURES: tuple[tuple[str, Reader, frozenset[str]], ...] = (
    (r"(?:vit|deit)_(?P<size>tiny|small|base|large|huge|giant|gigantic)_patch\d+_\d+(?:_in21k|_miil|_dino)?", _vit,
     frozenset({"img_size", "patch_size", "embed_dim", "depth", "num_heads", "qkv_bias", "mlp_ratio"})),
    (r"(?:tv_|gluon_)?resnet(?:18|26|34|50|101|152)(?:_v1b)?", _resnet, frozenset({"layers", "channels"})),
    (r"convnext(?P<v>v2)?_(?:atto|femto|pico|nano|tiny|small|base|large|xlarge|huge)", _convnext,
     frozenset({"depths", "dims"})),
)  # fmt: skip
WRAPPER = "timm_model."  # before every name where transformers saved it, as model_type timm_wrapper
ALWAYS = frozenset({"num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate"})
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
POOLS = {"vit": "token", "resnet": "avg", "convnext": "avg", "convnextv2": "avg"}


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's."""
    return isinstance(config.get("architecture"), str) and config.get("model_type", "timm_wrapper") == "timm_wrapper"


def opened(config: Mapping[str, Any], weights: Weights) -> tuple[Fields, Weights]:
    """timm's config and tensors as Hugging Face's: fields of config.json, and tensors under its names.

    Raises:
      WeightsError: an architecture that tljax has not, or one that was changed in more than its sizes.
    """
    theirs = str(config["architecture"])
    match, read, sizes = next(
        ((match, read, sizes) for pattern, read, sizes in ARCHITECTURES if (match := re.fullmatch(pattern, theirs))),
        (None, None, frozenset[str]()),
    )
    if match is None or read is None:
        raise WeightsError(str(weights.folder / "config.json"), f"architecture {printable(theirs)} of timm",
                           "a plain vit_…_patch…, deit_…, resnet or convnext of timm, or a model_type")  # fmt: skip
    args = config.get("model_args") or {}
    if odd := sorted(set(args) - sizes - ALWAYS):
        raise WeightsError(str(weights.folder / "config.json"), f"model_args {printable(', '.join(odd))}",
                           f"no other than {', '.join(sorted(sizes | ALWAYS))}")  # fmt: skip
    bare = {name.removeprefix(WRAPPER): tensor for name, tensor in weights.tensors.items()}
    weights = dataclasses.replace(weights, tensors=bare)
    fields = read(weights, match, args)
    pool = POOLS[fields["model_type"]]
    if config.get("global_pool", pool) != pool:
        raise WeightsError(str(weights.folder / "config.json"), f"global_pool {config['global_pool']!r}", repr(pool))
    rows = {"vit": _VIT, "resnet": _RESNET}.get(fields["model_type"]) or _convnext_rows(fields["model_type"])
    pretrained = config.get("pretrained_cfg")
    said = {**config, **(pretrained if isinstance(pretrained, dict) else {})}
    fields |= {ours: said[theirs] for ours, theirs in (("image_mean", "mean"), ("image_std", "std")) if theirs in said}
    if said.get("interpolation") in RESAMPLE:
        fields["resample"] = RESAMPLE[said["interpolation"]]
    side = said.get("input_size")
    if "image_size" not in fields and isinstance(side, list) and len(side) == 3:
        fields["image_size"] = side[-1]
    labels = config.get("label_names")
    if isinstance(labels, list):
        fields["id2label"] = {str(i): name for i, name in enumerate(labels)}
    return fields, translated(weights, rows, "safetensors")
