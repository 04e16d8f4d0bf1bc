"""Checkpoints: whole or absent, verified bit by bit, retired only behind a newer one that was read back."""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tljax
from tljax import trees
from tljax.errors import WeightsError, WriteError
from tljax.train import checkpoint
from tljax.train.checkpoint import DONE, Checkpoints, named
from tljax.train.state import TrainState

# Orbax reads arrays in one event loop and closes it at the first error; the others then report to a closed loop.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")

# the kernel is large enough for a file of its own, as arrays of real networks are
SHAPES = {"bert/a/kernel": (256, 64), "bert/a/bias": (64,), "classifier/kernel": (64, 3)}
OPTIMIZERS = {"adamw": optax.adamw(1e-3), "sgd": optax.sgd(1e-3, momentum=0.9)}


def make_state(step=0, shapes=SHAPES, optimizer="adamw", dtype=jnp.float32, count=jnp.int32) -> TrainState:
    rng = np.random.default_rng(step)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) * 100, leaf.dtype)

    trainable = {path: draw(jnp.zeros(shape, dtype)) for path, shape in shapes.items()}
    moments = jax.tree.map(draw, OPTIMIZERS[optimizer].init(trainable))
    frozen = {"bert/embeddings": jnp.ones(3)}
    return TrainState(jnp.asarray(step, count), trainable, frozen, {}, moments, jax.random.key(step))


def progress(step, best=None):
    return {"history": [{"accuracy": 0.1 + 0.2, "loss": None}], "best_step": best or step, "best_score": 1 / 3}


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def saves(tmp_path, warnings) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", 2, {"weights": "w", "train data": "d"}, warnings.append)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """checkpoints/ of the steps 10 and 20; to be copied."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    made = Checkpoints(folder, 2, {"weights": "w", "train data": "d"}, print)
    for step in (10, 20):
        made.save(make_state(step), progress(step), step)
    return folder


@pytest.fixture
def copied(two, saves) -> Checkpoints:
    shutil.copytree(two, saves.folder)
    return saves


def same(a: TrainState, b: TrainState) -> bool:
    return trees.digests(named(a)) == trees.digests(named(b)) and jax.tree.structure(a) == jax.tree.structure(b)


def refused(saves, like) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        saves.restore(lambda *at: like)
    assert caught.value.exit_code == 66
    return caught.value


def test_a_folder_relative_to_where_the_command_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saves = Checkpoints(Path("runs/w/checkpoints"), 2, {}, lambda text: None)
    saves.check_room(make_state())
    saves.save(make_state(3), progress(3), None)
    assert (tmp_path / "runs/w/checkpoints/3" / DONE).is_file()
    assert same(saves.restore(lambda *at: make_state())[0], make_state(3))


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_what_is_restored_is_what_was_saved_bit_for_bit(saves, warnings, optimizer):
    saved = make_state(7, optimizer=optimizer)
    saves.save(saved, progress(7), 7)
    like = make_state(0, optimizer=optimizer)
    restored, known = saves.restore(lambda *at: like)
    assert same(restored, saved)
    assert known == progress(7)  # floats too: JSON writes every digit
    assert restored.frozen is like.frozen  # these come from the pretrained weights
    assert jnp.issubdtype(restored.key.dtype, jax.dtypes.prng_key)
    assert not warnings


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.0, 1e-45])
def test_odd_numbers_are_kept(saves, value):
    saved = make_state(1)
    saved = dataclasses.replace(saved, trainable={**saved.trainable, "bert/a/bias": jnp.full(64, value, jnp.float32)})
    saves.save(saved, progress(1), None)
    assert same(saves.restore(lambda *at: make_state())[0], saved)


def test_nothing_to_restore(saves):
    assert saves.restore(lambda *at: make_state()) is None
    saves.folder.mkdir()
    assert saves.restore(lambda *at: make_state()) is None


def test_without_the_mark_it_is_not_there(copied, warnings):
    (copied.folder / "20" / DONE).unlink()
    assert copied.steps() == [10]
    assert same(copied.restore(lambda *at: make_state())[0], make_state(10))
    assert (copied.folder / "20").is_dir()  # not deleted before a newer one is good
    assert not warnings


def test_a_partial_mark_is_none(copied):
    (copied.folder / "20" / DONE).rename(copied.folder / "20" / (DONE + ".partial"))
    assert copied.steps() == [10]


def test_what_was_never_finished_is_cleaned_behind_the_next(copied):
    (copied.folder / "20" / DONE).unlink()
    (copied.folder / "15" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    (copied.folder / "notes").mkdir()
    copied.save(make_state(30), progress(30), None)
    assert sorted(p.name for p in copied.folder.iterdir()) == ["10", "30", "notes"]


def test_an_unfinished_one_of_the_same_step_is_written_anew(copied):
    (copied.folder / "20" / DONE).unlink()
    copied.save(make_state(20), progress(20), 20)
    assert copied.steps() == [10, 20]
    assert same(copied.restore(lambda *at: make_state())[0], make_state(20))


def test_a_retirement_cut_short_is_ignored_and_cleaned(copied, monkeypatch):
    """The mark goes first: killed after that, what is left is no checkpoint."""
    copied.save(make_state(30), progress(30), None)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", lambda *a, **k: None)
        copied.save(make_state(40), progress(40), None)
    assert (copied.folder / "20" / "state").is_dir()
    assert copied.steps() == [30, 40]
    copied.save(make_state(50), progress(50), None)
    assert sorted(p.name for p in copied.folder.iterdir()) == ["40", "50"]


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(bytes(content))


def data_files(place: Path) -> list[Path]:
    return sorted((p for p in place.rglob("*") if p.is_file() and p.name != DONE), key=lambda p: -p.stat().st_size)


def test_a_flipped_bit_in_the_arrays_names_the_parameter(copied, warnings):
    largest = data_files(copied.folder / "20")[0]
    assert largest.stat().st_size > 256 * 64 * 3  # compressed hardly: random numbers
    flip(largest, largest.stat().st_size // 2)
    restored, known = copied.restore(lambda *at: make_state())
    assert same(restored, make_state(10))
    assert known == progress(10)
    (warning,) = warnings
    assert "checkpoints/20" in warning
    assert "bert/a/kernel" in warning
    assert warning.endswith("The checkpoint before it is taken.")


def test_a_flipped_bit_in_any_file_is_found_or_harmless(copied):
    rng = random.Random(0)
    place = copied.folder / "20"
    for path in [*data_files(place), place / DONE]:
        whole = path.read_bytes()
        for _ in range(4 if whole else 0):
            flip(path, rng.randrange(len(whole)), rng.randrange(8))
            restored, known = copied.restore(lambda *at: make_state())
            step = int(restored.step)
            assert step in (10, 20)
            assert same(restored, make_state(step)), path
            assert known == progress(step), path
            path.write_bytes(whole)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 1, "seal": ""}', "\x00" * 9]
)
def test_a_mark_that_says_nothing(copied, warnings, text):
    (copied.folder / "20" / DONE).write_text(text)
    assert same(copied.restore(lambda *at: make_state())[0], make_state(10))
    assert len(warnings) == 1


def test_a_mark_whose_progress_was_changed(copied, warnings):
    path = copied.folder / "20" / DONE
    done = json.loads(path.read_text())
    done["progress"]["best_step"] = 10
    path.write_text(json.dumps(done))
    assert int(copied.restore(lambda *at: make_state())[0].step) == 10
    assert "DONE.json is not what was written" in warnings[0]


def test_a_checkpoint_under_the_name_of_another_step(copied, warnings):
    shutil.copytree(copied.folder / "10", copied.folder / "99")
    assert int(copied.restore(lambda *at: make_state())[0].step) == 20
    assert "checkpoints/99" in warnings[0]


@pytest.mark.parametrize("damage", ["truncate", "empty", "delete"])
def test_a_damaged_data_file_falls_back_with_a_warning(copied, warnings, damage):
    path = data_files(copied.folder / "20")[0]
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage == "truncate" else b"")
    assert same(copied.restore(lambda *at: make_state())[0], make_state(10))
    assert "checkpoints/20" in warnings[0]


def test_all_data_gone(copied, warnings):
    shutil.rmtree(copied.folder / "20" / "state")
    assert same(copied.restore(lambda *at: make_state())[0], make_state(10))
    assert "unreadable" in warnings[0]


def test_no_checkpoint_is_whole(copied, warnings):
    for step in ("10", "20"):
        shutil.rmtree(copied.folder / step / "state")
    error = refused(copied, make_state())
    assert error.where.endswith("checkpoints/10")
    assert len(warnings) == 1


def test_the_step_that_was_asked_for_or_none(copied, warnings):
    assert same(copied.restore(lambda *at: make_state(), 10)[0], make_state(10))
    shutil.rmtree(copied.folder / "20" / "state")
    with pytest.raises(WeightsError, match="checkpoints/20"):
        copied.restore(lambda *at: make_state(), 20)
    with pytest.raises(WeightsError, match="checkpoints/30"):
        copied.restore(lambda *at: make_state(), 30)
    assert not warnings


def test_a_damaged_one_is_written_again_when_the_run_comes_to_it(copied, warnings):
    path = data_files(copied.folder / "20")[0]
    flip(path, path.stat().st_size // 2)
    copied.save(make_state(20), progress(20), 20)
    assert "written again" in warnings[0]
    assert same(copied.restore(lambda *at: make_state(), 20)[0], make_state(20))
    assert len(warnings) == 1


def test_a_damaged_later_one_does_not_count_among_those_kept(copied, warnings):
    shutil.rmtree(copied.folder / "20" / "state")
    copied.save(make_state(15), progress(15), None)
    assert copied.steps() == [10, 15]
    assert not (copied.folder / "20").exists()
    assert same(copied.restore(lambda *at: make_state())[0], make_state(15))
    assert not warnings


def test_a_second_save_of_a_step_keeps_the_first(copied):
    before = (copied.folder / "20" / DONE).stat().st_mtime_ns
    copied.save(make_state(20), progress(20), None)
    assert (copied.folder / "20" / DONE).stat().st_mtime_ns == before


OTHERS = [
    ("wider", {"shapes": {**SHAPES, "bert/a/bias": (65,)}},
     ["trainable/bert/a/bias: have float32[64], want float32[65]",
      "optimizer/0/mu/bert/a/bias: have float32[64], want float32[65]",
      "optimizer/0/nu/bert/a/bias: have float32[64], want float32[65]"], 3),
    ("another axis, same size", {"shapes": {**SHAPES, "classifier/kernel": (3, 64)}},
     ["trainable/classifier/kernel: have float32[64, 3], want float32[3, 64]"], 3),
    ("more trains", {"shapes": {**SHAPES, "bert/b": (2,)}},
     ["trainable/bert/b: have nothing, want float32[2]"], 3),
    ("less trains", {"shapes": {"classifier/kernel": (64, 3)}},
     ["trainable/bert/a/kernel: have float32[256, 64], want nothing"], 6),
    ("another optimizer", {"optimizer": "sgd"},
     ["optimizer/0/nu/bert/a/bias: have float32[64], want nothing",
      "optimizer/0/trace/bert/a/bias: have nothing, want float32[64]",
      "optimizer/0/count: have int32[], want nothing"], 10),
    ("another dtype", {"dtype": jnp.bfloat16}, ["trainable/bert/a/bias: have float32[64], want bfloat16[64]"], 9),
    ("a step counter of another dtype", {"count": jnp.float32}, ["step: have int32[], want float32[]"], 1),
]  # fmt: skip


@pytest.mark.parametrize(("like", "lines", "count"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_of_another_run_is_refused_with_have_and_want(copied, warnings, like, lines, count):
    error = refused(copied, make_state(**like))
    assert set(lines) <= set(error.details)
    assert len(error.details) == count
    assert error.found == f"{count} array(s) do not fit this run"
    assert "--config.model.ref" in error.fix  # how to start from its weights
    assert not warnings  # the one before it is not tried


@pytest.mark.parametrize(("fingerprint", "names"), [
    ({"weights": "x", "train data": "d"}, "weights"), ({"weights": "x", "train data": "y"}, "weights and train data"),
    ({"weights": "w", "train data": "d", "test data": "t"}, "test data"),
])  # fmt: skip
def test_of_other_weights_or_data_is_refused(copied, fingerprint, names):
    copied.fingerprint = fingerprint
    assert refused(copied, make_state()).found == f"made with other {names}"


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_of_another_version_is_refused(copied, version):
    for step in ("10", "20"):
        path = copied.folder / step / DONE
        done = {**json.loads(path.read_text()), "format": version}
        path.write_text(json.dumps({**done, "seal": checkpoint.seal(done)}))
    error = refused(copied, make_state())
    assert (error.found, error.expected) == (f"format {version}", "1")
    assert "another version of tljax" in error.fix


@pytest.mark.parametrize(("keep", "best", "left"), [
    (2, None, [40, 50]), (3, None, [30, 40, 50]), (2, 10, [10, 40, 50]), (2, 30, [30, 40, 50]), (2, 50, [40, 50]),
    (9, None, [10, 20, 30, 40, 50]),
])  # fmt: skip
def test_the_newest_and_the_best_are_kept(saves, keep, best, left):
    saves.keep = keep
    for step in (10, 20, 30, 40, 50):
        saves.save(make_state(step, shapes={"a/b": (3,)}), progress(step), best if best and step >= best else None)
    assert saves.steps() == left
    assert sorted(int(p.name) for p in saves.folder.iterdir()) == left


def test_the_last_one_outlives_the_verification_of_the_next(copied, monkeypatch):
    """What is read back wrong is no checkpoint: nothing is retired for its sake."""
    read = Checkpoints._read

    def fails(self, step):
        if step == 30:
            raise WeightsError("here", "other bits")
        return read(self, step)

    monkeypatch.setattr(Checkpoints, "_read", fails)
    with pytest.raises(WriteError, match="step 30 could not be written"):
        copied.save(make_state(30), progress(30), None)
    assert copied.steps() == [10, 20]
    assert same(copied.restore(lambda *at: make_state())[0], make_state(20))


def test_newest_is_by_step_and_not_by_clock(copied):
    os.utime(copied.folder / "20" / DONE, (0, 0))
    os.utime(copied.folder / "20", (0, 0))
    shutil.copytree(copied.folder / "20", copied.folder / "3")  # newest by clock, and text sorts 3 after 20
    assert copied.steps() == [3, 10, 20]
    assert int(copied.restore(lambda *at: make_state())[0].step) == 20


def test_where_nothing_can_be_written(saves, tmp_path):
    saves.folder.write_text("a file where the folder should be")
    with pytest.raises(WriteError, match="step 5 could not be written") as caught:
        saves.save(make_state(5), progress(5), None)
    assert caught.value.exit_code == 74
    assert "bytes" in caught.value.expected


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_checkpoint import Checkpoints, make_state, progress
from tljax.errors import TljaxError

saves = Checkpoints(Path(sys.argv[1]), 2, {"weights": "w"}, print)
saves.save(make_state(1), progress(1), 1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    saves.save(make_state(2), progress(2), 2)
except TljaxError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_a_full_disk_stops_the_run_and_keeps_what_was_saved(tmp_path, saves, warnings):
    paths = [str(Path(__file__).parent), str(Path(tljax.__file__).parents[1])]
    done = subprocess.run([sys.executable, "-c", FULL, str(saves.folder), *paths], capture_output=True, text=True,
                          env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=120)  # fmt: skip
    assert done.returncode == 74, done.stderr[-2000:]
    sentence = next(line for line in done.stderr.splitlines() if "could not be written" in line)
    assert f"{saves.folder}/2: the checkpoint of step 2 could not be written" in sentence
    needed = sum(leaf.nbytes for leaf in named(make_state(2)).values())
    assert f"expected {needed:,} bytes; " in sentence
    assert " are free" in sentence
    assert [p.name for p in saves.folder.iterdir()] == ["1"]
    saves.fingerprint = {"weights": "w"}
    assert same(saves.restore(lambda *at: make_state())[0], make_state(1))
    assert not warnings


def test_room_for_three_is_asked_for_before_the_start(saves, monkeypatch):
    needed = 3 * sum(leaf.nbytes for leaf in named(make_state()).values())
    usage = shutil.disk_usage(saves.folder.parent)
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if fits:
            saves.check_room(make_state())
        else:
            with pytest.raises(WriteError, match=f"{needed - 1:,} bytes free; expected {needed:,} for three"):
                saves.check_room(make_state())
    assert not saves.folder.exists()  # a refused start leaves nothing behind
