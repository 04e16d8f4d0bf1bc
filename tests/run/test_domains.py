"""Runs on labelled examples of one domain and unlabelled ones of another."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

from tljax import trees
from tljax.config import AdaptConfig
from tljax.config.special import METHODS
from tljax.errors import ConfigError, DataError
from tljax.run import predict
from tljax.run.train import train
from tljax.weights.load import load_pretrained

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """photos/ and unseen/, and dark/: those of unseen/ in half the light, and without labels."""
    root = tmp_path_factory.mktemp("domains")
    tiny.image_config(root)
    (root / "dark").mkdir()
    for number, file in enumerate(sorted((root / "unseen").rglob("*.png"))):
        with Image.open(file) as photo:
            Image.fromarray((np.asarray(photo) // 2).astype(np.uint8)).save(root / "dark" / f"{number}.png")
    return root


def config(root, method, **changes):
    strategy = {"strategy": "full"} if method == "adda" else {}
    c = tiny.image_config(root, **{"train": {"epochs": 2}, "transfer": strategy, **changes})
    c.adapt = AdaptConfig(target=str(root / "dark"), method=method, weight=0.5)
    return c


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_what_is_left_is_the_network_alone(root, tmp_path, method):
    c = config(root, method)
    run = tiny.run(root, tmp_path / "w", c)
    assert np.isfinite(run.result.scores.loss)
    assert all(np.isfinite(line["loss"]) for line in run.history("train"))
    model = load_pretrained(str(run.path / "model"))
    assert (model.reinitialised, model.dropped) == ((), ())
    assert not any("discriminator" in path for path in trees.flatten(model.params))
    found, _ = predict.evaluate(run.path)
    assert found.accuracy == run.result.scores.accuracy
    assert found.loss == pytest.approx(run.result.scores.loss, rel=1e-4)
    resolved = json.loads((run.path / "config.json").read_text())
    assert resolved["config"]["adapt"]["method"] == method


def test_the_classifier_of_adda_is_the_sources(root, tmp_path):
    source = tiny.run(root, tmp_path / "source", tiny.image_config(root, train={"epochs": 2}))
    c = config(root, "adda", model={"ref": str(source.path)})
    run = tiny.run(root, tmp_path / "w", c)
    before, after = (trees.flatten(load_pretrained(str(one.path / "model")).params) for one in (source, run))
    moved = {path for path in after if (before[path] != after[path]).any()}
    head = {path for path in after if path.startswith("classifier/")}
    assert head
    assert moved
    assert not head & moved


def test_what_is_refused(root, tmp_path):
    c = config(root, "dann")
    c.adapt.target = str(root / "nowhere")
    with pytest.raises(DataError, match="nowhere"):
        train(c, tmp_path / "w", lambda text: None)
    c = config(root, "dann")
    c.task, c.objective = "events", "next"
    with pytest.raises(ConfigError):
        train(c, tmp_path / "v", lambda text: None)
