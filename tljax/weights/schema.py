"""Which values of config.json's fields are believed; looked at before anything of that size is made."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tljax.models import rope
from tljax.models.events import ANSWERS
from tljax.models.layers import ACTIVATIONS

LIMITS = {
    "depth_divisible_by": 1_024,
    "depths": 512,
    "dim": 32_768,
    "embed_dim": 32_768,
    "embedding_size": 32_768,
    "global_attn_every_n_layers": 512,
    "head_dim": 4_096,
    "hidden_dim": 262_144,
    "hidden_size": 32_768,
    "hidden_sizes": 32_768,
    "image_size": 16_384,
    "inner_group_num": 64,
    "intermediate_size": 262_144,
    "max_position_embeddings": 1_048_576,
    "min_depth": 1_024,
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
    "window_size": 64,
}  # largest whole numbers that are believed, from 1
ACTS = ("activation", "activation_function", "classifier_activation", "hidden_act", "hidden_activation",
        "pooler_hidden_act")  # fmt: skip
NULLABLE = ("head_dim", "num_key_value_heads", "sliding_window")  # also where transformers has a number for them
LISTS = ("depths", "hidden_sizes", "num_heads")  # a number for each part of the network
MAX_STAGES = 16  # numbers in such a list
MAX_DISTANCE = 1 << 20  # tokens between two
ROPE_NEEDS = {
    "dynamic": ("factor",),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
LAYER_TYPES = ("full_attention", "sliding_attention")
WIDTHS = (("hidden_size", "num_attention_heads"), ("dim", "n_heads"), ("n_embd", "n_head"),
          ("num_attention_heads", "num_key_value_heads"))  # fmt: skip
MAX_WINDOWED = 16_384  # tokens on a side times those on a window's: a Swin's masks hold the square of that
MAX_FIELDS, MAX_IDS = 256, 16_777_216  # of an event, and of one of its fields
Check = tuple[Callable[[Any], bool], str]


def fields(found: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with single fields; those without a check of their own are measured against their defaults."""
    for name, default in defaults.items():
        sound, expected = _check(name, default)
        if not sound(found[name]):
            yield f"{name}: {found[name]!r}, expected {expected}"


def together(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with sound fields taken together. `values`: every field of the family."""
    for rule in (_widths, _ropes, _positions, _pictures, _lists, _events):
        yield from rule(values)


def _widths(values: Mapping[str, Any]) -> Iterator[str]:
    for whole, part in WIDTHS:
        has = values.get(whole) and values.get(part)
        if has and values[whole] % values[part] and not (part == "num_attention_heads" and values.get("head_dim")):
            yield f"{whole}: {values[whole]} is no multiple of {part} {values[part]}"
    width = values.get("hidden_size") or values.get("embed_dim") or 0
    if "mlp_ratio" in values and width * values["mlp_ratio"] < 1:
        yield f"mlp_ratio: {values['mlp_ratio']} of a width of {width} is less than 1"


def _ropes(values: Mapping[str, Any]) -> Iterator[str]:
    """Rotary positions turn pairs of a head's numbers, in the same way in every layer or for each kind of layer."""
    if "rope_parameters" not in values:
        return
    width = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    if width % 2:
        yield f"head_dim: {width} (or hidden_size / num_attention_heads), expected an even number"
    own, old = values["rope_parameters"] or {}, values["rope_scaling"] or {}
    kinds = "local_attention" in values
    if own and _by_kind(own) != kinds:
        yield f"rope_parameters: {own!r}, expected {'one set for each kind of layer' if kinds else 'one set'}"
    if _by_kind(old):
        yield f"rope_scaling: {old!r}, expected one set"
    for rope_of in (old, own, *(own.values() if _by_kind(own) else ())):
        if rope_of and rope_of.get("rope_type", rope_of.get("type")) == "dynamic" and width == 2:
            yield "head_dim: 2, expected more with rotary positions of type dynamic"


def _positions(values: Mapping[str, Any]) -> Iterator[str]:
    """Positions that are counted from the padding's number, and distances that share a bucket."""
    longest, padding = values.get("max_position_embeddings", 0), values.get("pad_token_id")
    if padding is not None and longest < padding + 2:
        yield f"max_position_embeddings: {longest}, expected at least pad_token_id {padding} + 2"
    if values.get("position_buckets", 0) > 0:
        reach = values["max_relative_positions"]
        name, reach = ("max_relative_positions", reach) if reach > 0 else ("max_position_embeddings", longest)
        if reach - 1 <= values["position_buckets"] // 2:
            yield f"{name}: {reach}, expected more than half of position_buckets {values['position_buckets']} + 1"


def _pictures(values: Mapping[str, Any]) -> Iterator[str]:
    size, patch = values.get("image_size", 1), values.get("patch_size", 1)
    if patch > size:
        yield f"patch_size: {patch} is larger than image_size {size}"
    for name in ("image_mean", "image_std"):
        if isinstance(values.get(name), list) and len(values[name]) != values["num_channels"]:
            yield f"{name}: {len(values[name])} numbers, num_channels: {values['num_channels']}"
    if not all(value > 0 for value in values.get("image_std", ())):
        yield f"image_std: {values['image_std']!r}, expected numbers above 0"
    if "window_size" in values and size % patch:
        yield f"image_size: {size} is no multiple of patch_size {patch}"
    if size // patch * values.get("window_size", 0) > MAX_WINDOWED:
        yield f"window_size: {values['window_size']} times {size // patch} patches, expected at most {MAX_WINDOWED}"
    if "patch_size" in values and "hidden_sizes" in values and size // patch >> len(values["hidden_sizes"]) - 1 == 0:
        yield f"image_size: {size} is too small to be halved {len(values['hidden_sizes']) - 1} times"


def _lists(values: Mapping[str, Any]) -> Iterator[str]:
    counts = {name: len(values[name]) for name in LISTS if name in values}
    if len(set(counts.values())) > 1:
        yield f"{', '.join(f'{name}: {count} numbers' for name, count in counts.items())}; expected as many in each"
    if values.get("layer_type") == "bottleneck" and min(values["hidden_sizes"]) < 4:
        yield f"hidden_sizes: {values['hidden_sizes']!r}, expected at least 4, of which a bottleneck keeps a quarter"
    for i, heads in enumerate(values.get("num_heads", ())):
        width = values["embed_dim"] << i
        if width % heads or width > LIMITS["embed_dim"]:
            yield f"num_heads: {heads}, expected a divisor of embed_dim x {1 << i} = {width} <= {LIMITS['embed_dim']}"
    kinds = values.get("layer_types")
    if kinds and len(kinds) != values["num_hidden_layers"]:
        yield f"layer_types: {len(kinds)} names, num_hidden_layers: {values['num_hidden_layers']}"


def _events(values: Mapping[str, Any]) -> Iterator[str]:
    known = {field[0] for field in values.get("fields", ())}
    named = {"foretold": values.get("foretold", ()), "item": [values["item"]] if values.get("item") else ()}
    for field, names in named.items():
        if odd := sorted(set(names) - known):
            yield f"{field}: {odd[0]!r} is none of the fields"
    field = {"item": "item", "next": "foretold"}.get(values.get("answers", ""), "")
    if field and not values[field]:
        yield f"{field}: {values[field]!r}, expected fields for what the head answers, {values['answers']}"


def _check(name: str, default: Any) -> Check:
    """The check of one field; null is for those that transformers or its checkpoints leave null."""
    check = CHECKS.get(name) or _alike(name, default)
    return _nullable(check) if default is None or name in NULLABLE else check


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


def _alike(name: str, default: Any) -> Check:
    """A check by the type of a field's default."""
    if isinstance(default, bool):
        return lambda v: isinstance(v, bool), "true or false"
    if default is None or "drop" in name:
        return _rate, "a rate from 0 to 1 (without 1)"
    if isinstance(default, int):
        return _whole(1 << 20, 0)
    return lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1"


def _by_kind(value: Mapping[str, Any]) -> bool:
    """Whether rotary positions are said for each kind of layer."""
    return bool(value) and all(isinstance(v, dict) for v in value.values())


def _rope(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if _by_kind(value):
        return (
            set(value) <= set(LAYER_TYPES)
            and not any(map(_by_kind, value.values()))
            and all(map(_rope, value.values()))
        )
    kind = value.get("rope_type", value.get("type", "default"))
    rest = (v for name, v in value.items() if name not in ("rope_type", "type", "truncate"))
    if kind not in tuple(rope.TYPES) or any(value.get(name) is None for name in ROPE_NEEDS.get(kind, ())):
        return False
    if not all(v is None or (_number(v) and 0 < v < 1e12) for v in rest):
        return False
    theta, turned = value.get("rope_theta"), value.get("partial_rotary_factor")
    mixes = kind != "llama3" or value["low_freq_factor"] < value["high_freq_factor"]
    return mixes and (theta is None or theta > 1) and turned in (None, 1)


def _rate(value: Any) -> bool:
    return _number(value) and 0 <= value < 1


def _attention_types(value: Any) -> bool:
    kinds = value.split("|") if isinstance(value, str) else value
    return kinds is None or (isinstance(kinds, list | tuple) and all(kind in ("c2p", "p2c") for kind in kinds))


def _buckets(value: Any) -> bool:
    return type(value) is int and (-1 <= value <= 0 or 4 <= value <= MAX_DISTANCE)


def _event_fields(value: Any) -> bool:
    """Of models/events.py."""
    fits = isinstance(value, list | tuple) and 0 < len(value) <= MAX_FIELDS and all(
        isinstance(v, list | tuple) and len(v) == 3 and isinstance(v[0], str) and re.fullmatch(r"\w{1,64}", v[0])
        and type(v[1]) is int and 2 < v[1] <= MAX_IDS and type(v[2]) is bool for v in value)  # fmt: skip
    return fits and len({v[0] for v in value}) == len(value)


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) <= MAX_FIELDS and all(isinstance(v, str) for v in value)


_act: Check = (lambda v: v in tuple(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}")
_theta: Check = (lambda v: _number(v) and 1 < v < 1e12, "a number above 1")
_rotary: Check = (_rope, f"numbers for one of {', '.join(rope.TYPES)}")
CHECKS: dict[str, Check] = {
    **{name: _whole(limit) for name, limit in LIMITS.items()},
    **{name: _several(_whole(LIMITS[name]), MAX_STAGES) for name in LISTS},
    **dict.fromkeys(ACTS, _act),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _rotary),
    "max_relative_positions": _whole(MAX_DISTANCE, -1),
    "position_buckets": (_buckets, f"-1, 0 or a whole number from 4 to {MAX_DISTANCE}"),
    **dict.fromkeys(("image_mean", "image_std"), _several((lambda v: _number(v) and abs(v) < 1e3, "a number"), 64)),
    "classifier_pooling": (lambda v: v in ("cls", "mean"), "cls or mean"),
    "expand_ratio": (lambda v: _number(v) and 1 <= v <= 64, "a number from 1 to 64"),
    "depth_multiplier": (lambda v: _number(v) and 0 < v <= 64, "a number from 0 to 64"),
    "answers": (lambda v: v in ANSWERS, f"one of {', '.join(ANSWERS)}"),
    "fields": (_event_fields, "a list of [name, ids, whether it has a number], each name once"),
    "foretold": (_names, "a list of names"),
    "item": (lambda v: isinstance(v, str), "a name"),
    "type_vocab_size": _whole(65_536, 0),
    "layer_type": (lambda v: v in ("basic", "bottleneck"), "basic or bottleneck"),
    "norm_rel_ebd": (lambda v: v in ("none", "layer_norm"), "none or layer_norm"),
    "pos_att_type": (_attention_types, "null or some of c2p, p2c"),
    "layer_types": (
        lambda v: isinstance(v, list) and set(map(str, v)) <= set(LAYER_TYPES),
        f"a list of {' and '.join(LAYER_TYPES)}",
    ),
    "num_register_tokens": _whole(4_096, 0),
    "output_stride": (lambda v: type(v) is int and v in (2, 4, 8, 16, 32), "2, 4, 8, 16 or 32"),
    "mlp_ratio": (lambda v: _number(v) and 0 < v <= 64, "a number from 0 to 64"),
    **dict.fromkeys(("global_rope_theta", "local_rope_theta", "rope_theta"), _theta),
}
