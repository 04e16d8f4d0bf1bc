"""Flags: from the words after a command to values, and to a config that passes its checks."""

import difflib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tljax.errors import ConfigError, printable

if TYPE_CHECKING:
    from absl.flags import FlagValues

    from tljax.config import Config

CONFIG_FILE = "a Python file with get_config() that gives a tljax.config.Config"


def parse(command: str, arguments: list[str], names: Mapping[str, str | bool | None],
          config: bool = False, positional: str = "") -> dict[str, Any]:  # fmt: skip
    """Reads absl flags.

    Args:
      command: for messages.
      names: flag -> default; a bool: a switch, None: must be given.
      config: whether there is --config=FILE, which must be given, and with it --config.a.b=value.
      positional: what a word without "--" is called; "": there may be none.

    Returns name -> the flag, whose `value` counts, and `positional` -> the word or "".

    Raises:
      ConfigError: anything else than these flags; a config file that cannot be run.
    """
    from absl import flags

    values = flags.FlagValues()
    if config:  # settings may stand before the file that they change, which ml_collections refuses
        arguments = sorted(arguments, key=lambda a: not a.startswith("--config="))
    for name, default in names.items():
        define: Any = flags.DEFINE_boolean if isinstance(default, bool) else flags.DEFINE_string
        define(name, default, "", flag_values=values)
    if config:
        define_config(command, arguments, values)
    try:
        left = values([command, *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        known = [*names, *(["config"] if config else [])]
        raise ConfigError(
            f"--{error.flagname}", "no such flag", f"one of {', '.join('--' + n for n in known)}"
        ) from None
    except flags.Error as error:
        first, *more = str(error).strip().splitlines()  # of an error in a config file the last line says what it was
        found = f"{first.rstrip(':')}: {more[-1].strip()}" if more else first.rstrip(".")
        raise ConfigError(f"tljax {command}", found) from None
    except KeyError as error:
        raise unknown_setting(arguments, error) from None
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError, OSError) as error:
        if not config:
            raise
        raise ConfigError(
            "--config", f"cannot be run ({type(error).__name__}: {printable(error)})", CONFIG_FILE
        ) from None
    if missing := [name for name, default in names.items() if default is None and not values[name].value]:
        raise ConfigError(f"tljax {command}", f"no --{missing[0]}", f"--{missing[0]}=…", "see tljax --help")
    if len(left) > bool(positional):
        found = f"{len(left)} of {positional}" if positional else repr(left[0])
        raise ConfigError(
            f"tljax {command}", f"found {found}", f"at most one {positional}" if positional else "flags alone"
        )
    return {
        **{name: values[name] for name in [*names, *(["config"] if config else [])]},
        positional: left[0] if left else "",
    }


def validated(config: Any) -> "Config":
    """What a config file gives, if it is a config and passes its checks; ConfigError if not."""
    from tljax import config as settings

    return settings.validate(typed(config))


def typed(config: Any) -> "Config":
    """What a config file gives, if it is a config; ConfigError if not."""
    from tljax import config as settings

    if not isinstance(config, settings.Config):
        raise ConfigError("--config", f"get_config() gives a {type(config).__name__}", CONFIG_FILE)
    return config


def whole(values: Mapping[str, Any], name: str) -> int:
    """The flag as a whole number from 0 on; ConfigError if it is none."""
    if not values[name].value.isdecimal():
        raise ConfigError(f"--{name}", f"{values[name].value!r}", "a whole number")
    return int(values[name].value)


def define_config(command: str, arguments: list[str], values: "FlagValues") -> None:
    """Adds --config and one flag for each setting; runs the config file."""
    from ml_collections import config_flags

    path = next((a.removeprefix("--config=") for a in arguments if a.startswith("--config=")), "")
    if not path:
        raise ConfigError(f"tljax {command}", "no --config", "--config=configs/<name>.py", "see configs/ for examples")
    if not os.path.isfile(path.split(":")[0]):
        folder, name = os.path.split(path)
        there = (
            [f for f in sorted(os.listdir(folder or ".")) if f.endswith(".py")] if os.path.isdir(folder or ".") else []
        )
        near = difflib.get_close_matches(name, there, 1)
        raise ConfigError("--config", f"there is no file {path!r}", CONFIG_FILE,
                          f"did you mean {os.path.join(folder, near[0])}?" if near else "")  # fmt: skip
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["tljax", *arguments])


def unknown_setting(arguments: list[str], error: KeyError) -> ConfigError:
    """Which of the arguments names a setting that does not exist, and the nearest that do."""
    from tljax import config as settings

    known = {name for name, _, _ in settings.settings(settings.Config())}
    given = [a.removeprefix("--").partition("=")[0] for a in arguments if a.startswith("--config.")]
    unknown = [name for name in given if name not in known]
    if not unknown:
        return ConfigError("--config", str(error.args[0]) if error.args else "cannot be read")
    return ConfigError(f"--{unknown[0]}", "no such setting", settings.nearest(unknown[0].removeprefix("config.")))


def quiet() -> None:
    """Settings of the environment that must stand before JAX is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes on CPU features
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
