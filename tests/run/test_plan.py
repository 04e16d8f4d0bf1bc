"""`tljax plan`: what it says is what the run has; for devices here. TPU slices need libtpu: see benchmarks/results."""

import json

import pytest
import tiny

from tljax import cli
from tljax.run import plan
from tljax.run.together import Together
from tljax.run.train import train

FROM_FILES = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads them


@pytest.fixture
def config(tmp_path):
    return tiny.text_config(tmp_path)


def planned(config, **changes):
    made = tiny.changed(config, **changes)
    return plan.planner(made, "local", 3).at(made.train.batch_size)


def test_it_says_what_the_run_has(config, tmp_path):
    """FLOPs and memory of the step that a run compiles, without its weights and its data."""
    full = tiny.changed(config, transfer={"strategy": "full"}, data={"max_length": 8, "max_buckets": 1})
    result = train(full, tmp_path / "w", lambda text: None, Together())
    (tmp_path / "bert" / "model.safetensors").unlink()
    length = max(len(text.split()) for text, _ in tiny.texts()) + 2
    found = planned(tiny.changed(full, data={"max_length": length}))
    assert found.flops == result.cost.flops
    assert found.memory.peak == result.cost.peak_bytes
    assert found.trainable == result.trainable
    assert found.memory.moments == 2 * found.memory.trainable + 4 + 4  # AdamW's two, and its and the schedule's count


def test_what_is_divided(config):
    one, data, fsdp = (planned(config, transfer={"strategy": "full"}, device={"count": count}, parallel=parallel)
                       for count, parallel in ((1, "data"), (8, "data"), (8, "fsdp")))  # fmt: skip
    assert one.sent == {}
    assert data.memory.trainable == one.memory.trainable
    assert data.sent["all-reduce"].nbytes <= data.memory.trainable + 8
    assert data.flops < one.flops / 7
    assert fsdp.memory.trainable < one.memory.trainable / 6
    assert fsdp.sent["all-gather"].nbytes > 0
    assert data.warnings == ()


def test_all_micro_batches_are_counted(config):
    once, in_four = (planned(config, transfer={"strategy": "full"}, optim={"accumulate": n}) for n in (1, 4))
    assert once.flops_over_floor > 1
    assert in_four.flops == pytest.approx(once.flops / once.flops_over_floor)


@pytest.mark.parametrize("strategy", ["last_k", "lora"])
def test_strategies(config, strategy):
    found = planned(config, transfer={"strategy": strategy, "k": 1}, device={"count": 4})
    assert found.sent["all-reduce"].nbytes <= found.memory.trainable + 8
    assert found.memory.moments < 3 * found.memory.trainable
    assert found.memory.frozen > 0


def test_frozen_kernels_as_int8(config):
    # kernels of 4,096 numbers and more
    same, packed = (planned(config, transfer={"strategy": "lora"}, model={"frozen": how}) for how in ("same", "int8"))
    assert packed.memory.frozen < 0.7 * same.memory.frozen


def test_needless_traffic_is_warned_of(config):
    chip = plan.chips.Chip("of this test", 1e12, 10**9, 1e11, 1e10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan.chips, "of", lambda device: chip)
        patch.setattr(plan, "SMALL", 0)
        found = planned(config, transfer={"strategy": "last_k", "k": 1}, device={"count": 8}, parallel="fsdp")
        twice = planned(config, transfer={"strategy": "full"}, device={"count": 8}, optim={"accumulate": 2})
    assert any("would fit" in text for text in found.warnings)
    assert found.bound in ("compute", "memory", "interconnect")
    assert any("each of 2 micro-batches" in text for text in twice.warnings)


def test_the_largest_batch(config):
    """The next larger one does not fit."""
    changes = {"transfer": {"strategy": "feature_extraction"}, "device": {"count": 2}}
    planner = plan.planner(tiny.changed(config, **changes), "local", 3)
    first = planner.at(16)
    with pytest.MonkeyPatch.context() as patch:
        chip = plan.chips.Chip("small", 1e12, 2 * first.memory.peak, 1e11, 1e10)
        patch.setattr(plan.chips, "of", lambda device: chip)
        found = planner.largest(planner.at(16))
        assert planner.at(found.largest).memory.peak <= chip.memory
        beyond = max(round(found.largest * plan.CLOSE), found.largest + 2) // 2 * 2
        assert planner.at(beyond).memory.peak > chip.memory
    assert found.largest > 16


@FROM_FILES
def test_the_command(config, tmp_path, capsys):
    file = tiny.config_file(tmp_path / "run.py", config)
    assert cli.main(["plan", f"--config={file}", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["devices"], said["batch"], said["topology"]) == (1, 16, "local")
    assert cli.main(["plan", f"--config={file}", "--classes=7"]) == 0
    assert "memory of each device" in capsys.readouterr().out


@FROM_FILES
@pytest.mark.parametrize(("flags", "words"), [
    (["--topology=h100"], "v5e:4x4"), (["--topology=v5e:4x4"], "tljax[tpu]"), (["--classes=x"], "a whole number"),
])  # fmt: skip
def test_what_is_refused(config, tmp_path, flags, words, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    file = tiny.config_file(tmp_path / "run.py", config)
    assert cli.main(["plan", f"--config={file}", *flags]) == 64
    assert words in capsys.readouterr().err
