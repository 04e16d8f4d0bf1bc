"""The JSON of a Hugging Face folder, read as data: known fields of the right type and size, and nothing else."""

import json
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from tljax import models
from tljax.errors import WeightsError, printable
from tljax.weights import schema
from tljax.weights.families import FAMILIES

AGAIN = "download it again"
PICKLE = "on a machine where you trust it, transformers' from_pretrained and save_pretrained write safetensors"
MAX_JSON = 64 << 20  # bytes
ALIASES = {"siglip_vision_model": "siglip"}  # model_type of a tower that was saved alone
OUTSIDE = ("architectures", "auto_map", "id2label")  # never in a part of a config
MAX_LABELS = 1_000_000
CARRIED = ("pad_token_id", "encoder_stride", "resample")  # not computed with; carried into exports
_LOOKS_LIKE = (
    (b"version https://git-lfs", "this is a git-lfs pointer, not the file itself", "run git lfs pull in that folder"),
    (b"<!doctype html", "this is an HTML page, not the file itself", f"{AGAIN}; a login or error page was saved"),
    (b"<html", "this is an HTML page, not the file itself", f"{AGAIN}; a login or error page was saved"),
    (b"pk\x03\x04", "tljax does not open pickle files; this is a PyTorch archive by another name", PICKLE),
    (b"\x80\x02\x8a\n", "tljax does not open pickle files; this is one by another name", PICKLE),
)


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config.json that tljax computes with; see `checked`."""
    return checked(read_json(folder / "config.json"), folder / "config.json")


def checked(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields that tljax computes with, and image_mean and image_std of preprocessor_config.json beside `path`.

    `id2label`, where it is there, has the keys "0" … "n-1" in order. Fields that are left out stay out: the
    family's own defaults, which are transformers', stand in for them.

    Raises:
      WeightsError: no such file, no JSON, an unknown `model_type`, a config that asks for code (`auto_map`), or
        fields of another type, size or meaning than tljax computes; all of these at once.
    """
    found = _level(found)
    family = models.family_of(found)
    preprocessor = path.parent / "preprocessor_config.json"
    if path.name == "config.json" and preprocessor.exists():
        images = read_json(preprocessor)
        found |= {name: images[name] for name in ("image_mean", "image_std") if name in images}
        if "image_size" in family.defaults and (side := _side(images)):
            found.setdefault("image_size", side)
    defaults = {name: value for name, value in family.defaults.items() if name in found}
    problems = [*schema.fields(found, defaults), *_demands(found, str(found["model_type"]))]
    problems = problems or [*schema.together({**family.defaults, **{name: found[name] for name in defaults}})]
    if problems:
        raise WeightsError(str(path), f"{len(problems)} field(s) that tljax does not take", details=problems)
    config = {"model_type": found["model_type"], **{name: found[name] for name in defaults}}
    config |= {name: found[name] for name in CARRIED if type(found.get(name)) is int and name not in config}
    if family.decoder and type(found.get("eos_token_id")) is int:  # transformers' classifiers cannot do without
        config.setdefault("pad_token_id", found["eos_token_id"])
    if "architectures" in found:
        config["architectures"] = found["architectures"] or []
    if "id2label" in found:
        config["id2label"] = {str(i): found["id2label"][str(i)] for i in range(len(found["id2label"]))}
    return config


def _side(images: Mapping[str, Any]) -> int | None:
    """The side of the square that an image processor makes, where it says one; ResNet's config.json has none."""
    size = images.get("crop_size" if images.get("do_center_crop") and "crop_size" in images else "size")
    sides = set(size.values()) if isinstance(size, dict) else {size}
    side = sides.pop() if len(sides) == 1 else None
    return side if type(side) is int else None


def _level(found: dict[str, Any]) -> dict[str, Any]:
    """The config with its fields at the top, where the family has them in a part of it, and one name for its type."""
    kind = str(found.get("model_type"))
    kind = ALIASES.get(kind, kind)
    part = FAMILIES[kind].part if kind in FAMILIES else ""
    if part and isinstance(found.get(part), dict):
        found = {**found[part], **{name: found[name] for name in OUTSIDE if name in found}}
    return {**found, "model_type": kind}


def _demands(found: Mapping[str, Any], family: str) -> Iterator[str]:
    """What the config asks for that tljax does not do."""
    if "auto_map" in found:
        yield "auto_map: the checkpoint asks to run code of its own; tljax runs none"
    for name, value in FAMILIES[family].requires.items():
        if found.get(name, value) != value:
            yield f"{name}: {found[name]!r}, tljax computes {value!r} only"
    labels = found.get("id2label", {"0": ""})
    names = tuple(labels.values()) if isinstance(labels, dict) else ()
    if not 1 <= len(names) <= MAX_LABELS or not all(isinstance(label, str) for label in names):
        yield f"id2label: {labels!r}, expected 1 to {MAX_LABELS} numbers with a name each"
    elif any(str(i) not in labels for i in range(len(names))):
        yield f"id2label: the numbers are not 0 to {len(names) - 1}"
    if not all(isinstance(name, str) for name in found.get("architectures") or []):
        yield f"architectures: {found['architectures']!r}, expected names of classes"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, no name twice."""
    sniff(path)
    if (size := path.stat().st_size) > MAX_JSON:
        raise WeightsError(str(path), f"{size} bytes", f"at most {MAX_JSON}")
    with opened(path) as stream:
        return parse_json(stream.read(), path)


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """A JSON object from the bytes of `path`; names that stand twice, NaN and Infinity are errors."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in pairs:
            if name in made:
                raise WeightsError(str(path), f"{printable(name)} is there twice", "each name once", AGAIN)
            made[name] = value
        return made

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise WeightsError(str(path), f"no valid JSON ({error})", "a JSON object", AGAIN) from None
    if not isinstance(value, dict):
        raise WeightsError(str(path), f"JSON of type {type(value).__name__}", "a JSON object", AGAIN)
    return value


def opened(path: Path) -> BufferedReader:
    """The file for reading in binary; what cannot be opened is a WeightsError."""
    try:
        return path.open("rb")
    except OSError as error:
        raise WeightsError(str(path), f"cannot be opened ({error.strerror})", "a readable file") from None


def sniff(path: Path) -> None:
    """Refuses what is often found in place of a file: nothing, a pointer, an HTML page, a pickle."""
    with opened(path) as stream:
        head = stream.read(256)
    if not head:
        raise WeightsError(str(path), "the file is empty", fix=AGAIN)
    for start, found, fix in _LOOKS_LIKE:
        if head.lstrip().lower().startswith(start):
            raise WeightsError(str(path), found, fix=fix)
