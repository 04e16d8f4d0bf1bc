"""Runs on several devices: the same model, the same scores, a resume on another number of them; and what is refused."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from tljax.config import Config
from tljax.errors import ConfigError, StoppedError
from tljax.run import devices
from tljax.run.train import train


def history(workdir):
    from tljax.run.workdir import Workdir

    return [line for line in Workdir(workdir).history() if line["kind"] in ("evaluation", "final")]


def agree(found, wanted):
    counted = [[(line["step"], line.get("n"), line.get("accuracy")) for line in lines] for lines in (found, wanted)]
    assert counted[0] == counted[1]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (found, wanted)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("devices")


CASES = {
    "text from a cache": ("text", {"cache": {"mode": "memory"}}),  # the pass is divided too, and the steps in stacks
    "text, head alone": ("text", {"transfer": {"strategy": "feature_extraction"}, "cache": {"mode": "disk"}}),
    "pictures": ("image", {"optim": {"learning_rate": 5e-4, "warmup_fraction": 0.0}}),
    "phases": ("text", {"transfer": {"strategy": "lp_ft"}, "cache": {"mode": "memory"}, "train": {"epochs": 2}}),
}


@pytest.mark.parametrize(("name", "count", "parallel"), [
    ("text from a cache", 8, "data"), ("text, head alone", 4, "fsdp"), ("pictures", 8, "pmap"), ("phases", 2, "fsdp"),
])  # fmt: skip
def test_a_run_on_several_devices(root, name, count, parallel):
    kind, changes = CASES[name]
    make = tiny.text_config if kind == "text" else tiny.image_config
    place = root / name.replace(" ", "-")
    one = make(place, **changes)
    many = tiny.changed(one, device={"count": count}, parallel=parallel)
    said: list[str] = []
    train(one, place / "one", said.append)
    train(many, place / "many", said.append)
    agree(history(place / "many"), history(place / "one"))
    assert f"{count} × cpu, {parallel}" in said
    assert (place / "many" / "model" / "model.safetensors").is_file()


def test_a_resume_on_fewer_devices(root, monkeypatch):
    """Stopped on 8, gone on with on 2: no other settings are needed, and the numbers are those of one device."""
    one = tiny.text_config(root / "resume", transfer={"strategy": "full"})
    train(one, root / "resume" / "one", lambda text: None)
    asked = []

    class Stops:
        def __enter__(self):
            return lambda: len(asked.append(1) or asked) > 8

        def __exit__(self, *_):
            return None

    many = tiny.changed(one, device={"count": 8}, parallel="fsdp")
    with monkeypatch.context() as patch:
        patch.setattr("tljax.run.signals.watched", Stops)
        with pytest.raises(StoppedError):
            train(many, root / "resume" / "many", lambda text: None)
    said: list[str] = []
    train(tiny.changed(one, device={"count": 2}), root / "resume" / "many", said.append)
    assert any(line.startswith("going on from step") for line in said)
    agree(history(root / "resume" / "many"), history(root / "resume" / "one"))


@pytest.mark.parametrize(("changes", "words"), [
    ({"device": {"count": 3}}, "32 rows at a time for 3 devices; expected a multiple of 3"),
    ({"device": {"count": 8}, "optim": {"accumulate": 8}}, "32 / 8 .* for 8 devices; .* take 64 rows"),
    ({"device": {"count": 9}}, "9, and this machine has 8 device"),
    ({"device": {"count": 1, "platform": "gpu"}}, "gpu, and JAX found cpu alone"),
])  # fmt: skip
def test_what_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        devices.layout(tiny.changed(Config(), **changes))


def test_gpus_get_their_flags_and_a_users_own_stand(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false --xla_dump_to=/tmp/x")
    devices.prepare(tiny.changed(Config(), device={"deterministic": True, "compile_cache_gb": 0.0}), None)
    assert os.environ["XLA_FLAGS"].split() == ["--xla_gpu_deterministic_ops=false", "--xla_dump_to=/tmp/x",
                                               *devices.GPU_FLAGS]  # fmt: skip


def test_every_flag_is_one_that_xla_knows():
    """XLA ends the process for a flag that it does not know."""
    flags = " ".join(devices.GPU_FLAGS + devices.DETERMINISTIC_FLAGS)
    environ = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.numpy.ones(3).sum()"]
    done = subprocess.run(command, env=environ, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_compiled_programs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path))
    names = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: jax.config.values[name] for name in names}
    try:
        assert devices.keep_programs(10**8) is None  # these tests have a place of their own already
        jax.config.update("jax_compilation_cache_dir", None)
        folder = devices.keep_programs(10**8)
        assert folder is not None
        assert folder.parent == tmp_path / "programs"
        assert jax.config.values["jax_compilation_cache_dir"] == str(folder)
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("TLJAX_CACHE", "/proc/nowhere")
        assert devices.keep_programs(10**8) is None  # nothing is lost but time
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
