"""`tljax show`: a checkpoint's stages and freeze table; alone, the families and the files that each is opened from."""

import subprocess
import sys

import checkpoints
import pytest

from tljax import cli, models
from tljax.run import show

FIVE = ("safetensors", "Flax msgpack", "Orbax", "timm", "npz")


def test_every_family_has_a_row():
    header, *rows = show.families().split("\n\n")[0].splitlines()
    assert tuple(show.FILES) == FIVE
    assert all(file in header for file in FIVE)
    assert [row.split()[0] for row in rows] == list(models.FAMILIES)
    count = {row.split()[0]: row.count("yes") for row in rows}
    assert (count["vit"], count["resnet"], count["bert"], count["qwen2"]) == (5, 4, 3, 2)
    assert [row.split()[0] for row in rows if "next token" in row] == ["gpt2", "llama", "mistral", "qwen2", "qwen3"]


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_a_checkpoint_is_shown_by_stage(name, capsys):
    assert cli.main(["show", str(checkpoints.DATA / name), "--strategy=last_k", "--k=1"]) == 0
    said = capsys.readouterr().out
    for stage in checkpoints.load(name).backbone.stage_names:
        assert f"\n{stage} " in said
    assert "3 labels" in said
    assert cli.main(["show"]) == 0
    assert capsys.readouterr().out.startswith("family")


def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m tljax show; echo $? >&2"
    done = subprocess.run(["bash", "-c", f"( {command} ) | head -c 10"], capture_output=True, text=True, timeout=120)
    assert done.stdout == "family    "
    assert "Traceback" not in done.stderr
