"""The tables: complete, without overlap, and spelled as transformers spells."""

import pytest

from tljax import models
from tljax.weights import rules
from tljax.weights.families import FAMILIES

POOLINGS = [(family, pooling) for family, table in FAMILIES.items() for pooling in table.poolings]
DECODERS = [family for family, architecture in models.FAMILIES.items() if architecture.decoder]


def test_every_family_has_a_table():
    assert set(FAMILIES) == set(models.FAMILIES)


def build(family, pooling="pooler", num_labels=3, **fields):
    return models.build({"model_type": family, **fields}, num_labels=num_labels, pooling=pooling)


@pytest.mark.parametrize(("family", "pooling"), POOLINGS)
@pytest.mark.parametrize("format", ["safetensors", "flax"])
def test_no_name_belongs_to_two_parameters(family, pooling, format):
    table, owners = FAMILIES[family], {}
    for path, leaf in build(family, pooling).shapes().items():
        names, axes = rules.sources(table, format, path, leaf.ndim)
        assert sorted(axes) == (list(range(leaf.ndim)) if axes else [])
        for name in names:
            assert owners.setdefault(name, path) == path
            assert rules.fate(table, name) != "buffer"


@pytest.mark.parametrize(("family", "pooling"), POOLINGS)
def test_the_head_is_what_the_table_says(family, pooling):
    """A new number of labels needs other shapes in the head alone, and in the module that gives the logits."""
    few, many = (build(family, pooling, count).shapes() for count in (3, 4))
    changed = {path.rpartition("/")[0] for path in few if few[path] != many[path]}
    assert changed == {FAMILIES[family].logits(pooling)}
    assert all(FAMILIES[family].in_head(f"{module}/kernel") for module in changed)


@pytest.mark.parametrize("family", DECODERS)
def test_a_language_model_is_the_trunk_and_at_most_a_table_of_words(family):
    trunk = {path for path in build(family).shapes() if not FAMILIES[family].in_head(path)}
    assert set(build(family, num_labels=0).shapes()) - trunk <= {"lm_head/kernel"}
    assert set(build(family, num_labels=0, tie_word_embeddings=True).shapes()) == trunk


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
        ("vit", "classifier/bias", "safetensors", {"classifier.bias", "classifier.beta"}),
    ],
)  # fmt: skip
def test_spellings(family, path, format, names):
    assert set(rules.sources(FAMILIES[family], format, path, 2 if path.endswith("/kernel") else 1)[0]) == names


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
    assert rules.fate(FAMILIES[family], name) == fate
