"""`tljax adapt`: statistics of the target by hand, less entropy by scales alone, and a workdir that eval takes."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
import tiny
from PIL import Image

from tljax import cli, trees
from tljax.data import sources
from tljax.errors import ConfigError, DataError
from tljax.run import inputs, predict, testtime
from tljax.run.workdir import read_config
from tljax.transfer import freeze
from tljax.weights.load import load_pretrained

pytestmark = pytest.mark.usefixtures("compiled_once")
METHODS = ("adabn", "tent")


def resnet(folder: Path) -> Path:
    """A folder that says what the network is, without weights."""
    folder.mkdir()
    config = {**layouts.RESNET, "image_size": 16, "architectures": ["ResNetForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(tiny.PREPROCESSOR))
    return folder


def paler(source: Path, target: Path) -> Path:
    """The same pictures with half of the contrast, and lighter."""
    for file in source.rglob("*.png"):
        pixels = np.asarray(Image.open(file)).astype(np.float64) * 0.4 + 130
        (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(target / file.relative_to(source))
    return target


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_once) -> tiny.Run:
    """A ResNet from scratch; beside it paler/, 42 pictures of a target that it has not seen."""
    root = tmp_path_factory.mktemp("testtime")
    tiny.photos(root / "photos", 16, 0)
    tiny.photos(root / "unseen", 14, 1)
    paler(root / "unseen", root / "paler")
    tiny.checkpoint(root / "vit", "vit")
    changes = {"transfer": {"strategy": "scratch", "layer_decay": 1.0}, "train": {"epochs": 6}}
    config = tiny.image_config(root, model={"ref": str(resnet(root / "resnet"))}, optim={"learning_rate": 5e-3},
                               **changes)  # fmt: skip
    return tiny.run(root, root / "run", config)


@pytest.fixture(scope="module")
def adapted(run) -> dict[str, Path]:
    """method -> the workdir that it leaves."""
    for method in METHODS:
        testtime.adapt(run.path, str(run.root / "paler"), run.root / method, method, lambda text: None)
    return {method: run.root / method for method in METHODS}


def flat(path: Path) -> trees.Flat:
    return {name: np.asarray(leaf) for name, leaf in
            trees.flatten(load_pretrained(str(path / "model")).params).items()}  # fmt: skip


def examples(run: tiny.Run):
    model, config = predict.open_model(run.path)
    records = sources.read_records(str(run.root / "paler"), config.data, "image", labelled=False)
    return inputs.make_examples(records, model, config, None), config


def probs(run: tiny.Run, path: Path) -> np.ndarray:
    model, config = predict.open_model(path)
    return predict.answering(model, config)(sources.read_records(str(run.root / "paler"), config.data, "image"))


def entropy(probs: np.ndarray) -> float:
    return float(-(probs * np.log(np.maximum(probs, 1e-30))).sum(1).mean())


class ByHand:
    """The ResNet of layouts.py, each normalisation by the batch, which it notes: (mean, unbiased variance) by path."""

    def __init__(self, params: trees.Flat):
        self.params, self.seen = params, {}

    def layer(self, x, path: str, stride: int = 1):
        kernel = jnp.asarray(self.params[f"{path}/convolution/kernel"])
        half = kernel.shape[0] // 2
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(half, half)] * 2,
                                         dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
        rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        self.seen[path] = rows.mean(0), rows.var(0, ddof=1)
        own = {name: self.params[f"{path}/normalization/{name}"] for name in ("scale", "bias")}
        rows = (np.asarray(x, np.float64) - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * own["scale"] + own["bias"]
        return jnp.asarray(rows, jnp.float32)

    def __call__(self, pixels) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        x = jax.nn.relu(self.layer(jnp.asarray(pixels), "resnet/embedder/embedder", 2))
        x = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
        for stage, stride in ((0, 1), (1, 2)):
            path = f"resnet/encoder/stages/{stage}/layers/0"
            own = self.layer(jax.nn.relu(self.layer(x, f"{path}/layer/0", stride)), f"{path}/layer/1")
            x = jax.nn.relu(own + (self.layer(x, f"{path}/shortcut", stride) if stride > 1 else x))
        return self.seen


def by_hand(run: tiny.Run, params: trees.Flat) -> trees.Flat:
    """The mean over the batches of the target, each normalised by itself."""
    pictures, config = examples(run)
    found = [dict(ByHand(params)(_normalised(batch["inputs"]["pixel_values"])))
             for batch in testtime._batches(config, pictures)]  # fmt: skip
    assert len(found) == 5  # of 42 pictures, in batches of 8
    return {f"{path}/normalization/{name}": np.mean([seen[path][i] for seen in found], axis=0)
            for path in found[0] for i, name in enumerate(("mean", "var"))}  # fmt: skip


def _normalised(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8:
        return pixels
    return ((pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_are_the_mean_over_the_batches(run, adapted, method):
    """Of tent, with the scales that it has come to."""
    made = flat(adapted[method])
    want = by_hand(run, made)
    assert {path for path in made if freeze.is_statistic(path)} == set(want)
    for path, leaf in want.items():
        np.testing.assert_allclose(made[path], leaf, rtol=2e-4, atol=2e-5, err_msg=path)  # float32 sums


def test_adabn_moves_nothing_else(run, adapted):
    before, after = flat(run.path), flat(adapted["adabn"])
    for path, leaf in before.items():
        assert np.array_equal(after[path], leaf) != freeze.is_statistic(path), path


def test_tent_moves_scales_and_leaves_head_and_convolutions(run, adapted):
    before, after = flat(run.path), flat(adapted["tent"])
    for path, leaf in before.items():
        assert np.array_equal(after[path], leaf) != ("/normalization/" in path), path


def test_tent_is_surer_of_the_target(run, adapted):
    """Surer than with statistics of the target alone, which both have."""
    before, statistics, tent = (entropy(probs(run, path)) for path in (run.path, adapted["adabn"], adapted["tent"]))
    assert tent < statistics
    assert tent < before


@pytest.mark.parametrize("method", METHODS)
def test_eval_takes_what_is_left(run, adapted, capsys, method):
    output = adapted[method]
    assert cli.main(["eval", f"--workdir={output}", f"--data={run.root / 'paler'}"]) == 0
    said = capsys.readouterr().out
    truth = np.repeat([0, 1, 2], 14)
    accuracy = (probs(run, output).argmax(1) == truth).mean()
    assert f"accuracy {accuracy:.3f}" in said.splitlines()[-1]
    assert accuracy >= (probs(run, run.path).argmax(1) == truth).mean()
    found, config = read_config(output)
    assert config == run.config
    assert found["resolved"]["adapted"] == {"method": method, "target": str(run.root / "paler")}
    card = (output / "model" / "README.md").read_text()
    assert f"Adapted by {method} to 42 unlabelled examples" in card
    assert (output / "model" / "preprocessor_config.json").is_file()


def test_a_network_without_batch_normalisation(run, tmp_path, capsys):
    """A ViT: nothing for adabn to measure; for tent, the scales of its layer normalisations."""
    path = tiny.finished(tmp_path / "vit", tiny.changed(run.config, model={"ref": str(run.root / "vit")}))
    command = ["adapt", f"--workdir={path}", f"--target={run.root / 'paler'}", f"--output={tmp_path / 'out'}"]
    assert cli.main([*command, "--method=adabn"]) == 64
    assert "the network has no batch normalisation; expected tent" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main([*command, "--method=tent"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tent on 42 examples: ")
    assert said.endswith(f"model in {tmp_path / 'out'}/model\n")
    before, after = flat(path), flat(tmp_path / "out")
    norms = {name for name in before if "layernorm" in name}
    assert {name for name, leaf in before.items() if not np.array_equal(after[name], leaf)} == norms != set()
    assert entropy(probs(run, tmp_path / "out")) < entropy(probs(run, path))


def test_dropout_is_off(run, tmp_path):
    """The same model comes of it, whatever the rate that it was trained with."""
    path = tiny.finished(tmp_path / "a", tiny.changed(run.config, model={"ref": str(run.root / "vit")}))
    other = tiny.copied(path, tmp_path / "b")
    told = json.loads((other / "model" / "config.json").read_text())
    (other / "model" / "config.json").write_text(json.dumps(told | {"hidden_dropout_prob": 0.5}))
    for one in (path, other):
        testtime.adapt(one, str(run.root / "paler"), tmp_path / f"{one.name}.out", "tent", lambda text: None)
    first, second = (flat(tmp_path / f"{name}.out") for name in "ab")
    assert trees.digests(first) == trees.digests(second)
    assert json.loads((tmp_path / "b.out" / "model" / "config.json").read_text())["hidden_dropout_prob"] == 0.5


def test_what_is_refused(run, adapted, tmp_path):
    adapter = tiny.finished(tmp_path / "adapter", run.config)
    shutil.rmtree(adapter / "model")
    (adapter / "adapter").mkdir()
    (adapter / "adapter" / "adapter.json").write_text("{}")
    masked = tiny.finished(tmp_path / "masked", tiny.changed(run.config, objective="masked"))
    target, new = str(run.root / "paler"), tmp_path / "out"
    rows = [
        (run.path, target, new, "magic", ConfigError, "--method: 'magic'; expected one of adabn, tent"),
        (run.path, target, adapted["tent"], "tent", ConfigError, "exists; expected a new folder"),
        (adapter, target, new, "tent", ConfigError, "cannot be merged into the weights"),
        (masked, target, new, "tent", ConfigError, "no classifier of texts or images"),
        (run.path, str(tmp_path / "none"), new, "tent", DataError, "none"),
        (tmp_path / "nothing", target, new, "tent", DataError, "no config.json"),
    ]
    for path, source, output, method, kind, words in rows:
        with pytest.raises(kind) as caught:
            testtime.adapt(path, source, output, method)
        assert words in str(caught.value)
    assert not new.exists()
    assert not list(tmp_path.glob(".*draft*"))
