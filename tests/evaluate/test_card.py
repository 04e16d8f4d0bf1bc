"""The model card: YAML that a YAML reader reads, Markdown in which no name is markup, no licence that is guessed."""

import numpy as np
import pytest
import yaml

from tljax.evaluate import metrics
from tljax.evaluate.card import model_card

SCORES = metrics.classification(np.array([0, 1, 1]), np.eye(2)[[0, 1, 0]], ["a", "b"])
PLAIN = {
    "title": "tickets", "task": "text", "base_model": "org/model-1.0", "dataset": "tickets.csv", "classes": ["a", "b"],
    "scores": SCORES, "strategy": "last_k, k = 2",
}  # fmt: skip


def parts(**changes) -> tuple[dict, str]:
    """(front matter, text)."""
    empty, front, text = model_card(**{**PLAIN, **changes}).split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), text


def test_front_matter():
    front, _ = parts()
    assert front["base_model"] == "org/model-1.0"
    assert front["pipeline_tag"] == "text-classification"
    assert front["tags"][0] == "tljax"
    result = front["model-index"][0]["results"][0]
    assert result["metrics"][0] == {"type": "accuracy", "value": 0.666667}
    assert result["dataset"] == {"name": "tickets.csv", "type": "tickets.csv", "split": "test"}


BASES = [("org/model", True), ("pypi:package", False), ("/home/ann/model", False), ("./model", False),
         ("../a", False), ("a/b/c", False), ("plain", False)]  # fmt: skip


@pytest.mark.parametrize(("ref", "on_the_hub"), BASES)
def test_only_a_hub_id_is_metadata(ref, on_the_hub):
    front, text = parts(base_model=ref)
    assert ("base_model" in front) == on_the_hub
    assert f"`{ref}`" in text


def test_licence_is_not_guessed():
    front, text = parts()
    assert "license" not in front
    assert "licence of the base model and of the data was not recorded" in text
    front, text = parts(license="apache-2.0")
    assert front["license"] == "apache-2.0"
    assert "not recorded" not in text


def test_undefined_scores_are_no_metadata():
    empty = metrics.classification(np.zeros(0, np.int32), np.zeros((0, 2)), ["a", "b"])
    front, text = parts(scores=empty)
    assert "model-index" not in front
    assert "| accuracy | undefined |" in text


@pytest.mark.parametrize("name", ['a"\n---\nlicense: mit', "a: b # c", "{x}", "é\ud800\x00", "'", "- y", "yes"])
def test_no_name_breaks_out_of_the_yaml(name):
    front, _ = parts(title=name, dataset=name)
    assert "license" not in front
    assert set(front) == set(parts()[0])


def test_no_name_is_markup():
    _, text = parts(title="<b>x</b> [a](b)", classes=["`a`", "b|c"], dataset="a|b")
    assert "<b>" not in text.replace("\\<b", "")
    assert "`` `a` ``" in text
    assert "| data | `a\\|b` |" in text


def test_loading():
    assert "transformers" not in parts()[1]
    text = parts(transformers_class="AutoModelForSequenceClassification")[1]
    assert "AutoModelForSequenceClassification.from_pretrained" in text
    image = parts(task="image", transformers_class="AutoModelForImageClassification")[1]
    assert "AutoImageProcessor" in image


def test_many_classes_are_cut():
    text = parts(classes=[f"c{i}" for i in range(500)])[1]
    assert "and 300 more" in text
