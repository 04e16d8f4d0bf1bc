"""Which values of config.json's fields are believed; looked at before anything of that size is made."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tljax.models import rope
from tljax.models.layers import ACTIVATIONS

LIMITS = {
    "depths": 512,
    "dim": 32_768,
    "embed_dim": 32_768,
    "embedding_size": 32_768,
    "head_dim": 4_096,
    "hidden_dim": 262_144,
    "hidden_size": 32_768,
    "hidden_sizes": 32_768,
    "image_size": 16_384,
    "inner_group_num": 64,
    "intermediate_size": 262_144,
    "max_position_embeddings": 1_048_576,
    "n_embd": 32_768,
    "n_head": 1_024,
    "n_heads": 1_024,
    "n_inner": 262_144,
    "n_layer": 512,
    "n_layers": 512,
    "n_positions": 1_048_576,
    "num_attention_heads": 1_024,
    "num_channels": 64,
    "num_heads": 1_024,
    "num_hidden_groups": 512,
    "num_hidden_layers": 512,
    "num_key_value_heads": 1_024,
    "patch_size": 16_384,
    "sliding_window": 1_048_576,
    "vocab_size": 4_194_304,
}  # largest whole numbers that are believed, from 1
ACTS = ("activation", "activation_function", "classifier_activation", "hidden_act", "hidden_activation",
        "pooler_hidden_act")  # fmt: skip
NULLABLE = ("embedding_size", "head_dim", "n_inner", "num_key_value_heads", "sliding_window")
LISTS = ("depths", "hidden_sizes", "num_heads")  # a number for each part of the network
MAX_STAGES = 16  # numbers in such a list
ROPE_NEEDS = {
    "dynamic": ("factor",),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
LAYER_TYPES = ("full_attention", "sliding_attention")
WIDTHS = (("hidden_size", "num_attention_heads"), ("dim", "n_heads"), ("n_embd", "n_head"),
          ("num_attention_heads", "num_key_value_heads"))  # fmt: skip
Check = tuple[Callable[[Any], bool], str]


def fields(found: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with single fields; those without a check of their own are measured against their defaults."""
    for name, default in defaults.items():
        sound, expected = CHECKS.get(name) or _alike(default)
        if not sound(found[name]):
            yield f"{name}: {found[name]!r}, expected {expected}"


def together(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with sound fields taken together."""
    for whole, part in WIDTHS:
        has = values.get(whole) and values.get(part)
        if has and values[whole] % values[part] and not (part == "num_attention_heads" and values.get("head_dim")):
            yield f"{whole}: {values[whole]} is no multiple of {part} {values[part]}"
    if values.get("patch_size", 1) > values.get("image_size", 1):
        yield f"patch_size: {values['patch_size']} is larger than image_size {values['image_size']}"
    for name in ("image_mean", "image_std"):
        if isinstance(values.get(name), list) and len(values[name]) != values["num_channels"]:
            yield f"{name}: {len(values[name])} numbers, num_channels: {values['num_channels']}"
    if not all(value > 0 for value in values.get("image_std", ())):
        yield f"image_std: {values['image_std']!r}, expected numbers above 0"
    counts = {name: len(values[name]) for name in LISTS if name in values}
    if len(set(counts.values())) > 1:
        yield f"{', '.join(f'{name}: {count} numbers' for name, count in counts.items())}; expected as many in each"
    kinds = values.get("layer_types")
    if kinds and len(kinds) != values["num_hidden_layers"]:
        yield f"layer_types: {len(kinds)} names, num_hidden_layers: {values['num_hidden_layers']}"


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _whole(limit: int, low: int = 1) -> Check:
    return lambda v: type(v) is int and low <= v <= limit, f"a whole number from {low} to {limit}"


def _nullable(check: Check) -> Check:
    sound, expected = check
    return lambda v: v is None or sound(v), f"null or {expected}"


def _several(check: Check, most: int) -> Check:
    sound, expected = check
    return (lambda v: isinstance(v, list | tuple) and 1 <= len(v) <= most and all(map(sound, v)),
            f"1 to {most} times {expected}")  # fmt: skip


def _alike(default: Any) -> Check:
    """A check by the type of a field's default."""
    if isinstance(default, bool):
        return lambda v: isinstance(v, bool), "true or false"
    if default is None:
        return lambda v: v is None or (_number(v) and 0 <= v < 1), "null or a rate from 0 to 1"
    if isinstance(default, tuple):
        count = len(default)
        return (lambda v: isinstance(v, list) and len(v) == count and all(_number(x) and abs(x) < 1e3 for x in v),
                f"{count} numbers")  # fmt: skip
    if isinstance(default, int):
        return _whole(1 << 20, 0)
    return lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1"


def _rope(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    kind = value.get("rope_type", value.get("type", "default"))
    rest = (v for name, v in value.items() if name not in ("rope_type", "type", "truncate"))
    if "rope_type" not in value and "type" not in value and all(isinstance(v, dict) for v in value.values()):
        return set(value) <= set(LAYER_TYPES) and all(map(_rope, value.values()))
    if kind not in tuple(rope.TYPES) or any(value.get(name) is None for name in ROPE_NEEDS.get(kind, ())):
        return False
    return all(v is None or (_number(v) and 0 < v < 1e12) for v in rest)


def _rate(value: Any) -> bool:
    return _number(value) and 0 <= value < 1


def _attention_types(value: Any) -> bool:
    kinds = value.split("|") if isinstance(value, str) else value
    return kinds is None or (isinstance(kinds, list | tuple) and all(kind in ("c2p", "p2c") for kind in kinds))


_act: Check = (lambda v: v in tuple(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}")
_theta: Check = _nullable((lambda v: _number(v) and 1 < v < 1e12, "a number above 1"))
_rotary: Check = (_rope, f"null or numbers for one of {', '.join(rope.TYPES)}")
CHECKS: dict[str, Check] = {
    **{name: _whole(limit) for name, limit in LIMITS.items()},
    **{name: _nullable(_whole(LIMITS[name])) for name in NULLABLE},
    **{name: _several(_whole(LIMITS[name]), MAX_STAGES) for name in LISTS},
    **dict.fromkeys(ACTS, _act),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _rotary),
    **dict.fromkeys(("max_relative_positions", "position_buckets"), _whole(1 << 20, -1)),
    **dict.fromkeys(("cls_dropout", "classifier_dropout"), _nullable((_rate, "a rate from 0 to 1"))),
    **dict.fromkeys(("image_mean", "image_std"), _several((lambda v: _number(v) and abs(v) < 1e3, "a number"), 64)),
    "classifier_pooling": (lambda v: v in ("cls", "mean"), "cls or mean"),
    "expand_ratio": (lambda v: _number(v) and 1 <= v <= 64, "a number from 1 to 64"),
    "depth_multiplier": (lambda v: _number(v) and 0 < v <= 64, "a number from 0 to 64"),
    "type_vocab_size": _whole(65_536, 0),
    "global_attn_every_n_layers": _whole(512),
    "layer_type": (lambda v: v in ("basic", "bottleneck"), "basic or bottleneck"),
    "norm_rel_ebd": (lambda v: v in ("none", "layer_norm"), "none or layer_norm"),
    "pos_att_type": (_attention_types, "null or some of c2p, p2c"),
    "layer_types": (
        lambda v: v is None or (isinstance(v, list) and set(map(str, v)) <= set(LAYER_TYPES)),
        f"null or a list of {' and '.join(LAYER_TYPES)}",
    ),
    "mlp_ratio": (lambda v: _number(v) and 0 < v <= 64, "a number from 0 to 64"),
    **dict.fromkeys(("global_rope_theta", "local_rope_theta", "rope_theta"), _theta),
}
