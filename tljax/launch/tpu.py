"""A run on every worker of a TPU VM slice, through gcloud: copy, environment, run."""

import dataclasses
import hashlib
import re
import shlex
import tarfile
from pathlib import Path

from tljax.errors import ConfigError

COPIED = ("pyproject.toml", "README.md", "LICENSE", "launch.py", "tljax", "configs")
PLACE = "tljax"  # in the home of each worker
OLDEST = (3, 11)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU VM slice that is there: `gcloud compute tpus tpu-vm create` makes one.

    Attributes:
      name, zone, project: as gcloud knows it; project "": gcloud's own.
      python: of the workers.
      setup: makes .venv on a worker, in the folder of the project; "": with pip, once for each pyproject.toml.
    """

    name: str
    zone: str
    project: str = ""
    python: str = "python3"
    setup: str = ""

    def __post_init__(self) -> None:
        if not self.zone:
            raise ConfigError("--tpu", f"{self.name!r} without --zone", "the zone that the slice is in",
                              "gcloud compute tpus tpu-vm list --zone=- names it")  # fmt: skip
        for flag, value in (("--tpu", self.name), ("--zone", self.zone), ("--project", self.project)):
            if not re.fullmatch(r"[a-z0-9:.-]*", value):
                raise ConfigError(flag, repr(value), "a name as gcloud prints it")

    def steps(self, root: Path, archive: Path, arguments: list[str]) -> dict[str, list[str]]:
        """What is done -> the command that does it, in order.

        Args:
          root: the checkout; `archive`: where it is packed.
          arguments: of launch.py on the workers.
        """
        stamp = hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()[:12]
        version = ".".join(map(str, OLDEST))
        setup = self.setup or (
            f"test -f .venv/{stamp} || {{ {self.python} -c 'import sys; sys.exit(sys.version_info < {OLDEST})' || "
            f"{{ echo 'tljax needs Python {version} on the workers: name one with --python'; exit 64; }}; "
            f"{self.python} -m venv .venv && .venv/bin/python -m pip install -q -e '.[tpu]' && touch .venv/{stamp}; }}"
        )
        run = shlex.join([".venv/bin/python", "launch.py", *arguments])
        return {
            "copy": self._gcloud("scp", str(archive), f"{self.name}:{archive.name}"),
            "environment": self._gcloud("ssh", self.name, command=f"mkdir -p {PLACE} && tar xzf {archive.name} -C "
                                        f"{PLACE} && cd {PLACE} && {{ {setup}; }}"),
            "run": self._gcloud("ssh", self.name, command=f"cd {PLACE} && {run}"),
        }  # fmt: skip

    def stop(self) -> list[str]:
        """Asks the run on every worker to save and to end."""
        return self._gcloud("ssh", self.name, command="pkill -TERM -f [l]aunch.py || true")  # not this very command

    def _gcloud(self, verb: str, *what: str, command: str = "") -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        sent = [f"--command={command}"] if command else []
        return ["gcloud", "compute", "tpus", "tpu-vm", verb, *what, f"--zone={self.zone}", *project, "--worker=all",
                *sent]  # fmt: skip


def pack(root: Path, folder: Path) -> Path:
    """The project's own files as an archive; data and checkpoints are for the workers to reach themselves."""
    archive = folder / "tljax.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in COPIED:
            if (root / name).exists():
                tar.add(root / name, name, filter=lambda item: None if "__pycache__" in item.name else item)
    return archive
