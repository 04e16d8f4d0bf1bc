"""A run's folder: who holds it, which config it belongs to, and its log.

config.json · metrics.jsonl · bad_rows.jsonl (if any) · checkpoints/<step>/ · model/ · adapter/ (if any) · report.html ·
confusion.png
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tljax.config import Config, from_dict, settings, to_dict
from tljax.errors import ConfigError, DataError, WriteError
from tljax.train.checkpoint import write_json

FREE_TO_CHANGE = {"config.train.log_every_steps", "config.train.save_every_steps", "config.train.keep",
                  "config.data.threads", "config.transfer.beside", "config.cache.folder", "config.cache.limit_gb",
                  "config.parallel", "config.device.count", "config.device.platform", "config.device.stall_s",
                  "config.device.compile_cache_gb"}  # fmt: skip # no result depends on them beyond rounding
OWN = {
    ".lock",
    "beside",
    "pretrain",
    "config.json.partial",
}  # what a run makes, or a kill leaves, before there is a config.json
PACKAGES = ("tljax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@dataclasses.dataclass(frozen=True)
class Workdir:
    """An opened workdir; see `opened`. Of several processes only the `lead` writes."""

    path: Path
    lead: bool = True

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        if not self.lead:
            return
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise WriteError(str(self.metrics), f"cannot be written ({error.strerror})") from None

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a kill cut short is left out."""
        lines = []
        if self.metrics.is_file():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines

    def rewind(self, step: int) -> None:
        """Takes the lines of later steps out of metrics.jsonl: the run goes on from `step`."""
        if not self.lead:
            return
        self._write_lines(
            self.metrics, [line for line in self.history() if line["step"] <= step and line["kind"] != "final"]
        )

    def list_bad(self, bad: Mapping[str, list[dict[str, str]]]) -> None:
        """Writes bad_rows.jsonl: split, place and reason of each row that is left out. No file where there are none."""
        lines = [{"split": split, **row} for split, rows in bad.items() for row in rows]
        if lines and self.lead:
            self._write_lines(self.path / "bad_rows.jsonl", lines)

    def describe(self, config: Config, resolved: dict[str, Any]) -> None:
        """Writes config.json: the settings, what they were resolved to, and the versions."""
        if not self.lead:
            return
        file = self.path / "config.json"
        try:
            write_json(file, {"config": to_dict(config), "resolved": resolved, "versions": versions()})
        except OSError as error:
            raise WriteError(str(file), f"cannot be written ({error.strerror})") from None

    @staticmethod
    def _write_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes a file of JSON lines, whole or not at all."""
        partial = file.with_suffix(".partial")
        try:
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            os.replace(partial, file)
        except OSError as error:
            raise WriteError(str(file), f"cannot be written ({error.strerror})") from None


@contextlib.contextmanager
def opened(path: Path, config: Config, lead: bool = True) -> Iterator[Workdir]:
    """Makes or reopens a workdir and holds it until the end of the block.

    Args:
      lead: False in a process whose lead holds it.

    Raises:
      WriteError: it cannot be written, or holds files of something else.
      ConfigError: another process holds it, or it belongs to another config.
    """
    if not lead:
        yield Workdir(path, lead)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 - held for the whole block
    except OSError as error:
        raise WriteError(str(path), f"cannot be written ({error.strerror})", fix="take another --workdir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise ConfigError(
                str(path),
                f"in use by {lock.read().strip() or 'another process'}",
                "a workdir of its own",
                "wait for it to end or take another --workdir",
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        _check_owner(path, config)
        yield Workdir(path)


def _check_owner(path: Path, config: Config) -> None:
    """A workdir is empty, or belongs to the same settings."""
    if not (path / "config.json").is_file():
        if others := sorted(p.name for p in path.iterdir() if p.name not in OWN):
            raise WriteError(str(path), f"holds {others[0]!r} and no config.json", "an empty folder or an earlier run",
                             "take another --workdir")  # fmt: skip
        return
    _, values = read_config(path)
    before = {name: value for name, _, value in settings(values)}
    changed = [f"--{name}: was {before[name]!r}, is {value!r}" for name, _, value in settings(config)
               if name not in FREE_TO_CHANGE and before[name] != value]  # fmt: skip
    if changed:
        raise ConfigError(str(path), f"belongs to a run with {len(changed)} other setting(s)", "the same settings",
                          "take another --workdir, or put them back to go on with that run", changed)  # fmt: skip


def read_config(path: Path) -> tuple[dict[str, Any], Config]:
    """(all of config.json, its settings) of a workdir.

    Raises:
      DataError: there is none, or it cannot be read.
    """
    file = path / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found, from_dict(found["config"])
    except FileNotFoundError:
        raise DataError(str(path), "no config.json", "a workdir of tljax train", "look at --workdir") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(str(file), f"cannot be read ({type(error).__name__})", "what tljax train wrote") from None
