"""The JSON file in which a command of several runs keeps what is finished; it belongs to one set of settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tljax.config import Config, settings, to_dict
from tljax.errors import ConfigError, WriteError
from tljax.run import workdir
from tljax.train.checkpoint import write_json


def begun(file: Path, config: Config, kind: str, parts: Sequence[str]) -> dict[str, Any]:
    """What the file says, or, where there is none, `settings`, `config` and empty `parts`; its folder is made.

    Args:
      kind: what it holds, for messages: "comparison".

    Raises:
      WriteError: the folder cannot be made, or the file is another's.
      ConfigError: it belongs to other settings.
    """
    own = {name: json.loads(json.dumps(value)) for name, _, value in settings(config)
           if name not in workdir.FREE_TO_CHANGE}  # fmt: skip
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(str(file.parent), f"cannot be used ({error.strerror})") from None
    told = read(file, kind, parts)
    if told is None:
        return {"settings": own, **{part: {} for part in parts}, "config": to_dict(config)}
    if other := [f"--{name}: was {told['settings'].get(name)!r}, is {value!r}" for name, value in own.items()
                 if told["settings"].get(name) != value]:  # fmt: skip
        raise ConfigError(str(file.parent), f"belongs to a {kind} with {len(other)} other setting(s)",
                          "the same settings", "take another --workdir, or put them back", other)  # fmt: skip
    return told


def read(file: Path, kind: str, parts: Sequence[str]) -> dict[str, Any] | None:
    """What the file says; None where there is none.

    Raises:
      WriteError: it cannot be read, or is another's.
    """
    wrote = f"what tljax {file.stem} wrote"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WriteError(str(file.parent), f"cannot be used ({error.strerror})") from None
    except ValueError:
        raise WriteError(str(file), "no JSON", wrote, "take another --workdir") from None
    if not (isinstance(told, dict) and all(isinstance(told.get(name), dict) for name in ("settings", *parts))):
        raise WriteError(str(file), f"no {kind}", wrote, "take another --workdir")
    return told


def write(file: Path, told: dict[str, Any]) -> None:
    """Writes it whole or not at all; WriteError where it cannot be written."""
    try:
        write_json(file, told)
    except OSError as error:
        raise WriteError(str(file), f"cannot be written ({error.strerror})") from None
