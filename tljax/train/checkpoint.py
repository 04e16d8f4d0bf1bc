"""Checkpoints that exist wholly or not at all: Orbax for the arrays, DONE.json written last with a digest for each.

checkpoints/<step>/state/     what Orbax wrote
checkpoints/<step>/DONE.json  format, step, fingerprint of the run, progress of the loop, path -> SHA-256, and its own
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tljax import mesh, trees
from tljax.errors import WeightsError, WriteError
from tljax.train.state import TrainState

FORMAT = 1
DONE = "DONE.json"


def named(state: TrainState) -> trees.Flat:
    """All of a state that a run cannot rebuild, path -> host array. What never trained comes from its source."""
    return mesh.fetch(_flat(state))


def _flat(state: TrainState) -> trees.Flat:
    flat: trees.Flat = {"step": state.step, "key": jax.random.key_data(state.key)}
    flat |= {f"trainable/{path}": leaf for path, leaf in state.trainable.items()}
    flat |= {f"batch_stats/{path}": leaf for path, leaf in state.batch_stats.items()}
    flat |= {f"settled/{path}": leaf for path, leaf in state.settled.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        flat["optimizer/" + jax.tree_util.keystr(path, simple=True, separator="/")] = leaf
    return flat


def shapes(state: TrainState) -> trees.Flat:
    """As `named`, without fetching anything."""
    return jax.eval_shape(_flat, state)


def rebuild(flat: Mapping[str, Any], like: TrainState) -> TrainState:
    """The inverse of `named`, on one device; structure and frozen parameters come from `like`."""
    moments = [
        jax.numpy.asarray(flat["optimizer/" + jax.tree_util.keystr(path, simple=True, separator="/")])
        for path, _ in jax.tree_util.tree_leaves_with_path(like.opt_state)
    ]
    return dataclasses.replace(
        like,
        step=jax.numpy.asarray(flat["step"]),
        trainable={path: jax.numpy.asarray(flat[f"trainable/{path}"]) for path in like.trainable},
        batch_stats={path: jax.numpy.asarray(flat[f"batch_stats/{path}"]) for path in like.batch_stats},
        opt_state=jax.tree.unflatten(jax.tree.structure(like.opt_state), moments),
        key=jax.random.wrap_key_data(jax.numpy.asarray(flat["key"])),
        settled={path: jax.numpy.asarray(flat[f"settled/{path}"]) for path in like.settled},
    )


def _orbax() -> ocp.Checkpointer:
    """Orbax for host arrays in this process alone: by itself it would wait for the other processes of the run."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(own, {own}, f"process_{own}") if jax.process_count() > 1 else None
    more = {} if alone is None else {"multiprocessing_options": alone}
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False, **more), **more)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all: to a sibling, flushed to the disk, then renamed."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def seal(done: Mapping[str, Any]) -> str:
    """The digest of what DONE.json says besides: the progress in it is as dear as the arrays."""
    said = {name: value for name, value in done.items() if name != "seal"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: workdir/checkpoints.
      keep: how many of the newest stay; the best one stays besides.
      fingerprint: what a resumed run must share (digests of weights and data); kept in DONE.json.
      warn: is told of every checkpoint that is passed over.
    """

    def __init__(self, folder: Path, keep: int, fingerprint: Mapping[str, str], warn: Callable[[str], None]):
        self.folder = folder.absolute()  # Orbax takes no other
        self.keep, self.fingerprint, self.warn = keep, dict(fingerprint), warn

    def steps(self) -> list[int]:
        """Steps that are marked as done, oldest first. By step, never by clock."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and (p / DONE).is_file())

    def check_room(self, state: TrainState) -> None:
        """Refuses to start where three checkpoints would not fit (two are kept while the next is written)."""
        needed = 3 * trees.nbytes(shapes(state))
        free = self._free()
        if free < needed:
            raise WriteError(str(self.folder), f"{free:,} bytes free", f"{needed:,} for three checkpoints",
                             "free some space or take another --workdir")  # fmt: skip

    def save(self, state: TrainState, progress: Mapping[str, Any], best: int | None) -> None:
        """Writes, marks and reads back the state, and only then retires older ones.

        Of several processes all have to call it; the lead writes, and the others wait for it.

        Raises:
          WriteError: names the path and the bytes needed and free; what was saved before is untouched.
        """
        flat = named(state)
        if mesh.lead():
            self._write(flat, progress, best)
        mesh.barrier("saved")

    def _write(self, flat: trees.Flat, progress: Mapping[str, Any], best: int | None) -> None:
        step = int(flat["step"])
        place = self.folder / str(step)
        if step in self.steps():
            try:
                self._read(step)
                return
            except WeightsError as error:  # a run that went on from before a damaged checkpoint comes to it again
                self.warn(f"{error} It is written again.")
        try:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            _orbax().save(place / "state", trees.unflatten(flat))
            done = {"format": FORMAT, "step": step, "fingerprint": self.fingerprint, "progress": progress,
                    "digests": trees.digests(flat)}  # fmt: skip
            write_json(place / DONE, {**done, "seal": seal(done)})
            self._read(step)
        except (OSError, ValueError, WeightsError) as error:
            shutil.rmtree(place, ignore_errors=True)
            needed, free = sum(leaf.nbytes for leaf in flat.values()), self._free()
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise WriteError(str(place), f"the checkpoint of step {step} could not be written ({reason})",
                             f"{needed:,} bytes; {free:,} are free",
                             "make room or mend the permissions and run the same command again") from error  # fmt: skip
        self._retire(step, best)

    def restore(self, like: Callable[[int, Mapping[str, Any]], TrainState],
                step: int | None = None) -> tuple[TrainState, dict[str, Any]] | None:  # fmt: skip
        """The newest whole checkpoint (or that of `step`) and the loop's progress; None where there is none.

        One that does not verify is passed over with a warning, and the one before it is taken.

        Args:
          like: (step, progress of the loop) -> a state of the same structure, as the run had it there.

        Raises:
          WeightsError: `step` was asked for and is damaged, or no checkpoint that exists is whole, or one
            belongs to another network, strategy or optimizer.
        """
        found = self._whole(step) if mesh.lead() else None
        at = mesh.agreed(None if found is None else found[2])  # the lead's: another host may see it a little later
        if at is None:
            return None
        flat, done = found[:2] if found else self._read(at)
        model = like(at, done["progress"])
        self._compare(at, done, flat, shapes(model))
        return rebuild(flat, model), done["progress"]

    def _whole(self, step: int | None) -> tuple[trees.Flat, dict[str, Any], int] | None:
        """Reads the newest checkpoint that is whole, or that of `step`."""
        steps = self.steps() if step is None else [step]
        for candidate in reversed(steps):
            try:
                return *self._read(candidate), candidate
            except WeightsError as error:
                if candidate == steps[0]:
                    raise
                self.warn(f"{error} The checkpoint before it is taken.")
        return None

    def _free(self) -> int:
        """Bytes free where the checkpoints go; the folder itself may not be there yet."""
        return shutil.disk_usage(next(p for p in (self.folder, *self.folder.parents) if p.exists())).free

    def _read(self, step: int) -> tuple[trees.Flat, dict[str, Any]]:
        """Reads and verifies one checkpoint."""
        place = self.folder / str(step)
        try:
            done = json.loads((place / DONE).read_text(encoding="utf-8"))
            if not isinstance(done, dict):
                raise ValueError(f"{DONE} is no table")
            if done.get("format") != FORMAT:
                raise WeightsError(str(place / DONE), f"format {done.get('format')}", f"{FORMAT}",
                                   "it was written by another version of tljax; resume with that version")  # fmt: skip
            if done.get("seal") != seal(done) or done["step"] != step:
                raise ValueError(f"{DONE} is not what was written")
            restored = trees.flatten(_orbax().restore(place / "state"))
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise WeightsError(str(place), f"unreadable ({reason})", "what was written there") from None
        flat = {path: np.asarray(leaf) for path, leaf in restored.items()}
        digests = trees.digests(flat)
        if bad := sorted(
            p for p in digests.keys() | done["digests"].keys() if digests.get(p) != done["digests"].get(p)
        ):
            raise WeightsError(
                str(place), f"{len(bad)} array(s) are not what was written", "equal digests", details=bad
            )
        return flat, done

    def _compare(self, step: int, done: Mapping[str, Any], have: trees.Flat, want: trees.Flat) -> None:
        where = str(self.folder / str(step))
        if changed := [name for name, value in self.fingerprint.items() if done["fingerprint"].get(name) != value]:
            raise WeightsError(where, f"made with other {' and '.join(changed)}", "those of this run",
                               "take a new --workdir, or put them back")  # fmt: skip
        shown = {path: f"{leaf.dtype.name}{list(leaf.shape)}" for path, leaf in have.items()}
        needed = {path: f"{leaf.dtype.name}{list(leaf.shape)}" for path, leaf in want.items()}
        differences = [
            f"{path}: have {shown.get(path, 'nothing')}, want {needed.get(path, 'nothing')}"
            for path in sorted(shown.keys() | needed.keys())
            if shown.get(path) != needed.get(path)
        ]
        if differences:
            raise WeightsError(where, f"{len(differences)} array(s) do not fit this run", "the same network, strategy "
                               "and optimizer", "to start from its weights use --config.model.ref=<that workdir>",
                               details=differences)  # fmt: skip

    def _retire(self, newest: int, best: int | None) -> None:
        """Deletes what is neither among the newest nor the best, and what was never finished.

        A checkpoint loses its mark first, so that a deletion cut short leaves nothing that looks whole. One of a
        later step than the newest was passed over as damaged; it must not count among those kept.
        """
        marked = self.steps()
        whole = [step for step in marked if step <= newest]
        stay = {*whole[-self.keep :], newest, best}
        for step in marked:
            if step not in stay:
                (self.folder / str(step) / DONE).unlink()
        for place in self.folder.iterdir():
            if place.name.isdigit() and not (place / DONE).is_file():
                shutil.rmtree(place, ignore_errors=True)
