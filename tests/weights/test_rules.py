"""The tables: complete, without overlap, and spelled as transformers spells."""

import pytest

from tljax import models
from tljax.weights import rules

POOLINGS = [(family, pooling) for family, table in rules.FAMILIES.items() for pooling in table.poolings]


def test_every_family_has_a_table():
    assert set(rules.FAMILIES) == set(models.FAMILIES)


@pytest.mark.parametrize(("family", "pooling"), POOLINGS)
@pytest.mark.parametrize("format", ["safetensors", "flax"])
def test_each_parameter_has_one_row_and_no_name_has_two(family, pooling, format):
    table = rules.FAMILIES[family]
    shapes = models.build({"model_type": family, "num_hidden_layers": 12}, num_labels=3, pooling=pooling).shapes()
    owners: dict[str, str] = {}
    for path, shape in shapes.items():
        names, axes = rules.sources(table, format, path)
        assert sorted(axes) == (list(range(len(shape.shape))) if axes else [])
        for name in names:
            assert owners.setdefault(name, path) == path
            kind = rules.fate(table, name)  # no table calls a parameter a buffer; only a pooler may be dropped
            assert kind == "unexpected" or (kind == "droppable" and "pooler" in path)


def test_each_row_is_used():
    for family, table in rules.FAMILIES.items():
        shapes = models.build({"model_type": family}, num_labels=3).shapes()
        written = {rules.lookup(table, path)[0][0] for path in shapes}
        rows = {names[0].replace("{i}", "0") for _, names, _ in rules.rows(table)}
        assert rows <= written


@pytest.mark.parametrize(
    ("family", "path", "format", "names"),
    [
        ("bert", "bert/encoder/layer/11/attention/self/query/kernel", "safetensors",
         {"bert.encoder.layer.11.attention.self.query.weight", "encoder.layer.11.attention.self.query.weight"}),
        ("bert", "bert/embeddings/LayerNorm/scale", "safetensors",
         {"bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight",
          "embeddings.LayerNorm.gamma"}),
        ("bert", "bert/pooler/dense/bias", "flax", {"bert/pooler/dense/bias", "pooler/dense/bias"}),
        ("vit", "vit/encoder/layer/3/attention/output/dense/kernel", "safetensors",
         {"vit.encoder.layer.3.attention.output.dense.weight", "encoder.layer.3.attention.output.dense.weight",
          "vit.layers.3.attention.o_proj.weight", "layers.3.attention.o_proj.weight"}),
        ("vit", "classifier/bias", "safetensors", {"classifier.bias"}),
    ],
)  # fmt: skip
def test_spellings(family, path, format, names):
    assert set(rules.sources(rules.FAMILIES[family], format, path)[0]) == names


@pytest.mark.parametrize(
    ("family", "name", "fate"),
    [
        ("bert", "embeddings.position_ids", "buffer"),
        ("bert", "cls.predictions.transform.dense.weight", "droppable"),
        ("bert", "cls/predictions/bias", "droppable"),
        ("bert", "qa_outputs.weight", "droppable"),
        ("bert", "bert.pooler.dense.weight", "droppable"),
        ("bert", "bert.pooler.dense.weight.extra\n", "droppable"),
        ("bert", "encoder.layer.0.adapter.weight", "unexpected"),
        ("bert", "xcls.weight", "unexpected"),
        ("vit", "pooler.dense.bias", "droppable"),
        ("vit", "vit.embeddings.mask_token", "droppable"),
        ("vit", "vit.distillation_token", "unexpected"),
    ],
)
def test_fates(family, name, fate):
    assert rules.fate(rules.FAMILIES[family], name) == fate


def test_a_parameter_without_a_row_is_a_fault_of_the_table():
    with pytest.raises(ValueError, match="0 rows"):
        rules.lookup(rules.FAMILIES["bert"], "bert/encoder/layer/x/output/dense/kernel")
