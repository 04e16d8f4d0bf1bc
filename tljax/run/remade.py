"""A finished classifier to be given other weights: opened, and written as a workdir of its own."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tljax import trees
from tljax.config import Config
from tljax.data import sources
from tljax.data.records import Records
from tljax.errors import ConfigError, DataError, WriteError, printable
from tljax.run import inputs
from tljax.run.workdir import Workdir, read_config
from tljax.weights import adapter_folder, export
from tljax.weights.load import Model, load_pretrained


def opened(path: Path) -> tuple[Model, Config]:
    """The exported model of a finished workdir, without dropout, and its settings.

    Raises:
      ConfigError: no classifier of texts or images, or adapters that cannot be merged into the weights.
      DataError: the workdir is not finished.
    """
    _, config = read_config(path)
    if config.objective != "classes" or config.task == "events":
        raise ConfigError("--workdir", f"{path} is no classifier of texts or images", "one")
    if not (path / "model" / "config.json").is_file():
        if (path / "adapter" / adapter_folder.CONFIG).is_file():
            raise ConfigError("--workdir", f"the adapter of {path} cannot be merged into the weights", "a run with "
                              "weights of its own, or a kind of adapter that is merged, as lora")  # fmt: skip
        raise DataError(str(path), "no model/ yet", "a finished workdir", "run tljax train on it to the end")
    return load_pretrained(str(path / "model"), dropout=0.0), config


def test_source(path: Path, c: Config) -> str:
    """The run's test data; DataError where there are none."""
    if not c.data.test:
        raise DataError(str(path), "its config names no test data", "labelled examples that no choice was made by")
    return c.data.test


def held_out(c: Config) -> Records | None:
    """The run's validation data: a source of their own, or the share of train that it held out; None: neither."""
    if c.data.validation:
        return sources.read_records(c.data.validation, c.data, c.task)
    found = inputs.read(c).validation if c.data.validation_fraction else None
    return found if isinstance(found, Records) else None


def check_new(output: Path) -> None:
    """Raises ConfigError where there is something."""
    if output.exists():
        raise ConfigError("--output", f"{output} exists", "a new folder")


def write(output: Path, path: Path, model: Model, c: Config, flat: Mapping[str, Any], how: Mapping[str, Any],
          note: str) -> None:  # fmt: skip
    """Writes output/model and a config.json, so that `tljax eval`, `predict` and `export` take it; whole or not at all.

    Args:
      path: the workdir that the model is from.
      flat: path -> array, all of its parameters.
      how: goes into config.json beside what the run was resolved to.
      note: the same in a sentence, for the model card, whose scores are of the weights before.

    Raises:
      WriteError: it cannot be written.
    """
    found, _ = read_config(path)
    card = path / "model" / "README.md"
    text = card.read_text(encoding="utf-8").rstrip() + "\n\n" if card.is_file() else ""
    text += f"## Other weights since\n\n{note} The scores above are of the model before that.\n"
    draft = output.with_name(f".{output.name}.draft-{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        Workdir(draft).describe(c, {**found.get("resolved", {}), **how})
        export.export_hf(draft / "model", params=dict(flat), config=model.config, labels=model.labels,
                         copy=export.companions(path / "model"), pooling=model.pooling, resize="",
                         card=text)  # fmt: skip
        draft.rename(output)
    except OSError as error:
        what = f"cannot be written ({error.strerror or printable(error)})"
        raise WriteError(str(output), what, fix="take another --output") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def on_devices(flat: Mapping[str, Any]) -> trees.Tree:
    """Nested arrays of JAX, sent once and not with every batch."""
    import jax

    return trees.unflatten(jax.device_put(dict(flat)))
