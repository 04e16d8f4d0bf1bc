"""Which parameters train under each strategy, by name; their learning-rate factors; and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CONFIGS

from tljax import models, trees
from tljax.config import TransferConfig
from tljax.errors import ConfigError
from tljax.transfer import freeze

FAMILIES = {family: models.build(config, num_labels=5) for family, config in CONFIGS.items()}
MEAN = models.build(CONFIGS["bert"], num_labels=5, pooling="mean")
SHAPES = {family: network.shapes() for family, network in FAMILIES.items()}

# (family, strategy, k) -> patterns of what trains; the lowest stage with a trainable parameter
HEAD = "classifier/(kernel|bias)"
TRAINS = [
    ("bert", "feature_extraction", 2, [HEAD], "head"),
    ("bert", "full", 2, [".*"], "embeddings"),
    ("bert", "scratch", 2, [".*"], "embeddings"),
    ("bert", "last_k", 1, [r"bert/encoder/layer/2/.*", "bert/pooler/.*", HEAD], "layer_2"),
    ("bert", "last_k", 2, [r"bert/encoder/layer/[12]/.*", "bert/pooler/.*", HEAD], "layer_1"),
    ("bert", "last_k", 3, [r"bert/encoder/layer/[012]/.*", "bert/pooler/.*", HEAD], "layer_0"),
    ("bert", "bitfit", 2, [r".*/bias", "classifier/kernel"], "embeddings"),
    ("bert", "norms", 2, [r".*/LayerNorm/(scale|bias)", HEAD], "embeddings"),
    ("bert", "embeddings_frozen", 2, [r"bert/encoder/.*", "bert/pooler/.*", HEAD], "layer_0"),
    ("vit", "feature_extraction", 2, [HEAD], "head"),
    ("vit", "full", 2, [".*"], "embeddings"),
    ("vit", "scratch", 2, [".*"], "embeddings"),
    ("vit", "last_k", 1, [r"vit/encoder/layer/2/.*", "vit/layernorm/.*", HEAD], "layer_2"),
    ("vit", "last_k", 3, [r"vit/encoder/.*", "vit/layernorm/.*", HEAD], "layer_0"),
    ("vit", "bitfit", 2, [r".*/bias", "classifier/kernel"], "embeddings"),
    ("vit", "norms", 2, [r"vit/encoder/layer/\d/layernorm_(before|after)/.*", "vit/layernorm/.*", HEAD], "layer_0"),
    ("vit", "embeddings_frozen", 2, [r"vit/encoder/.*", "vit/layernorm/.*", HEAD], "layer_0"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "strategy", "k", "patterns", "lowest"), TRAINS)
def test_what_trains(family, strategy, k, patterns, lowest):
    plan = freeze.plan(FAMILIES[family], strategy, k=k)
    expected = {path for path in SHAPES[family] if any(re.fullmatch(p, path) for p in patterns)}
    assert {path for path in SHAPES[family] if plan.trains(path)} == expected
    assert all(any(re.fullmatch(p, path) for path in SHAPES[family]) for p in patterns)
    assert list(plan.labels) == sorted(SHAPES[family])
    assert FAMILIES[family].stage_names[plan.lowest] == lowest
    for path, label in plan.labels.items():
        want = "head" if path.startswith("classifier/") else "body"
        assert label == (want if path in expected else "frozen")
    assert plan.factors == dict.fromkeys(sorted(set(plan.labels.values()) - {"frozen"}), 1.0)


def test_every_strategy_is_in_the_table():
    for family in FAMILIES:
        assert {row[1] for row in TRAINS if row[0] == family} == set(freeze.STRATEGIES)


def test_mean_pooling_has_a_stage_without_parameters():
    plan = freeze.plan(MEAN, "last_k", k=1)
    assert "pooler" in MEAN.stage_names
    assert {MEAN.stage_of(path) for path in plan.labels if plan.trains(path)} == {"layer_2", "head"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("k", [0, -1, 4, 100])
def test_k_beyond_the_layers_there_are(family, k):
    with pytest.raises(ConfigError, match="1 to 3, the layers of this network") as caught:
        freeze.plan(FAMILIES[family], "last_k", k=k)
    assert (caught.value.where, caught.value.found) == ("--config.transfer.k", str(k))


@pytest.mark.parametrize("k", [0, 100])
def test_k_is_read_by_last_k_alone(k):
    assert freeze.plan(FAMILIES["bert"], "full", k=k) == freeze.plan(FAMILIES["bert"], "full")


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=f"'half'.*one of {', '.join(freeze.STRATEGIES)}, surgical or custom"):
        freeze.plan(FAMILIES["bert"], "half")


# as BEiT numbers layers: id 0 embeddings, 1..L the layers, L + 1 the rest; rate * decay ** (L + 1 - id)
DECAYED = {
    "bert": {"embeddings": 0.5**4, "layer_0": 0.5**3, "layer_1": 0.5**2, "layer_2": 0.5, "pooler": 1.0},
    "vit": {"embeddings": 0.5**4, "layer_0": 0.5**3, "layer_1": 0.5**2, "layer_2": 0.5, "layernorm": 1.0},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head_factor", [1.0, 30.0])
def test_layer_decay(family, head_factor):
    network = FAMILIES[family]
    plan = freeze.plan(network, "full", layer_decay=0.5, head_factor=head_factor)
    assert plan.factors == {**DECAYED[family], "head": head_factor}  # exact: powers of a half
    assert all(label == network.stage_of(path) for path, label in plan.labels.items())


def test_layer_decay_counts_frozen_layers_too():
    plan = freeze.plan(FAMILIES["bert"], "last_k", k=2, layer_decay=0.5)
    assert plan.factors == {"layer_1": 0.25, "layer_2": 0.5, "pooler": 1.0, "head": 1.0}
    assert freeze.plan(FAMILIES["bert"], "feature_extraction", layer_decay=0.5).factors == {"head": 1.0}


def test_layer_decay_over_twelve_layers_is_beits():
    network = models.build({**CONFIGS["vit"], "num_hidden_layers": 12}, num_labels=2)
    factors = freeze.plan(network, "full", layer_decay=0.65).factors
    scales = [
        0.65 ** (12 + 1 - i) for i in range(12 + 2)
    ]  # BEiT, optim_factory.py: values of the LayerDecayValueAssigner
    stages = ["embeddings", *(f"layer_{i}" for i in range(12)), "layernorm"]
    assert [factors[stage] for stage in stages] == scales


def test_head_factor_alone():
    plan = freeze.plan(FAMILIES["bert"], "full", head_factor=30.0)
    assert plan.factors == {"body": 1.0, "head": 30.0}
    assert freeze.plan(FAMILIES["bert"], "feature_extraction", head_factor=30.0).factors == {"head": 30.0}


CUSTOM = [
    ("the first match wins", [("classifier/.*", "head"), (".*/bias", "frozen"), (".*", "body")],
     {"classifier/bias": "head", "classifier/kernel": "head", "bert/pooler/dense/bias": "frozen",
      "bert/pooler/dense/kernel": "body", "bert/encoder/layer/0/attention/output/LayerNorm/bias": "frozen"}),
    ("order matters", [(".*/bias", "frozen"), ("classifier/.*", "head"), (".*", "body")],
     {"classifier/bias": "frozen", "classifier/kernel": "head"}),
    ("a whole path, not a part", [("classifier/kernel", "body"), ("classifier/k?bias", "head"), (".*", "frozen")],
     {"classifier/bias": "head", "classifier/kernel": "body", "bert/pooler/dense/kernel": "frozen"}),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "expected"), [row[1:] for row in CUSTOM], ids=[row[0] for row in CUSTOM])
def test_custom(rules, expected):
    labels = freeze.plan(FAMILIES["bert"], "custom", rules=rules).labels
    assert {path: labels[path] for path in expected} == expected


def test_custom_lists_uncovered_paths_and_idle_patterns_at_once():
    rules = [("bert/.*", "body"), ("classifier/kernel", "head"), ("gpt/.*", "frozen"), ("bert/pooler/.*", "frozen")]
    with pytest.raises(ConfigError) as caught:
        freeze.plan(FAMILIES["bert"], "custom", rules=rules)
    assert caught.value.where == "--config.transfer.rules"
    assert caught.value.details == (
        "classifier/bias: no pattern matches", "gpt/.*: matches no name of its own",
        "bert/pooler/.*: matches no name of its own",
    )  # fmt: skip


def test_custom_refuses_what_trains_nothing():
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        freeze.plan(FAMILIES["bert"], "custom", rules=[(".*", "frozen")])


def test_custom_refuses_another_label():
    with pytest.raises(ConfigError, match="label 'top'; expected frozen, body or head"):
        freeze.plan(FAMILIES["bert"], "custom", rules=[("classifier/.*", "top"), (".*", "frozen")])


def test_custom_lowest_stage():
    plan = freeze.plan(FAMILIES["bert"], "custom", rules=[(".*/layer/1/.*", "body"), (".*", "frozen")])
    assert plan.lowest == 2  # embeddings, layer_0, layer_1
    assert plan.factors == {"body": 1.0}


def test_custom_with_layer_decay_keeps_both_groups_of_the_head():
    """A parameter of the head that a rule calls body has the body's top rate, and not the head's; and conversely."""
    rules = [("classifier/bias", "head"), ("classifier/.*", "body"), ("bert/pooler/.*", "head"), (".*", "body")]
    plan = freeze.plan(FAMILIES["bert"], "custom", rules=rules, layer_decay=0.5, head_factor=8.0)

    def factor(path):
        return plan.factors[plan.labels[path]]

    assert factor("classifier/bias") == 8.0
    assert factor("classifier/kernel") == 1.0
    assert factor("bert/pooler/dense/kernel") == 8.0
    assert factor("bert/encoder/layer/2/output/dense/kernel") == 0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", list(freeze.STRATEGIES))
def test_labels_and_mask_work_with_optax(family, strategy):
    network = FAMILIES[family]
    params = trees.unflatten({path: jnp.ones(leaf.shape) for path, leaf in SHAPES[family].items()})
    labels, mask = freeze.labels(network, strategy), freeze.mask(network, strategy)
    assert jax.tree.structure(labels) == jax.tree.structure(mask) == jax.tree.structure(params)
    flat_mask, flat_labels = trees.flatten(mask), trees.flatten(labels)
    assert flat_mask == {path: label != "frozen" for path, label in flat_labels.items()}
    assert {type(value) for value in flat_mask.values()} == {bool}

    rules = {"body": optax.sgd(1.0), "head": optax.sgd(2.0), "frozen": optax.set_to_zero()}
    split = optax.partition({name: rules[name] for name in {*flat_labels.values()}}, labels)
    with jax.disable_jit():
        updates, _ = split.update(params, split.init(params), params)
    expected = {"body": -1.0, "head": -2.0, "frozen": 0.0}
    for path, update in trees.flatten(updates).items():
        assert np.all(np.asarray(update) == expected[flat_labels[path]]), path

    masked = optax.masked(optax.scale(0.0), mask)
    updates, _ = masked.update(params, masked.init(params), params)
    for path, update in trees.flatten(updates).items():
        assert np.all(np.asarray(update) == (0.0 if flat_mask[path] else 1.0)), path


def test_a_freeze_table():
    network = models.build({**CONFIGS["bert"], "num_hidden_layers": 2, "vocab_size": 30000}, num_labels=3)
    plan = freeze.plan(network, "last_k", k=1, layer_decay=0.65, head_factor=30.0)
    assert freeze.render(freeze.table(network, plan)) == (
        "stage          parameters    trainable  rate factor mode\n"
        "embeddings      1,921,792       frozen              eval\n"
        "layer_0            33,472       frozen              eval\n"
        "layer_1            33,472       33,472  0.65        train\n"
        "pooler              4,160        4,160  1           train\n"
        "head                  195          195  30          train\n"
        "total           1,993,091       37,827\n"
        "1.90 % of the parameters train"
    )


def test_a_freeze_table_of_scattered_parameters():
    plan = freeze.plan(MEAN, "bitfit")
    assert freeze.render(freeze.table(MEAN, plan)) == (
        "stage          parameters    trainable  rate factor mode\n"
        "embeddings         52,992           64  1           train\n"
        "layer_0            33,472          576  1           train\n"
        "layer_1            33,472          576  1           train\n"
        "layer_2            33,472          576  1           train\n"
        "pooler                  0            –              train\n"
        "head                  325          325  1           train\n"
        "total             153,733        2,117\n"
        "1.38 % of the parameters train"
    )


def test_a_stage_with_two_rates_shows_their_range():
    rules = [("classifier/bias", "head"), (".*", "body")]
    plan = freeze.plan(FAMILIES["vit"], "custom", rules=rules, head_factor=10.0)
    rows = freeze.table(FAMILIES["vit"], plan)
    assert {row.stage: row.factor for row in rows}["head"] == "1–10"
    assert sum(row.parameters for row in rows[:-1]) == rows[-1].parameters == trees.count(SHAPES["vit"])


def test_split_keeps_the_arrays_themselves():
    params = {"bert": {"x": np.zeros(2)}, "classifier": {"kernel": np.ones(3)}}
    plan = freeze.FreezePlan({"bert/x": "frozen", "classifier/kernel": "head"}, {"head": 1.0}, 1)
    trainable, frozen = freeze.split(params, plan)
    assert trainable["classifier/kernel"] is params["classifier"]["kernel"]
    assert frozen["bert/x"] is params["bert"]["x"]


SURGICAL = [
    # stages -> patterns of what trains beside the head; the lowest of them
    ("bert", "layer_1", [r"bert/encoder/layer/1/.*"], "layer_1"),
    ("bert", "layer_0|layer_2", [r"bert/encoder/layer/[02]/.*"], "layer_0"),
    ("bert", " layer_2 | pooler |", [r"bert/encoder/layer/2/.*", "bert/pooler/.*"], "layer_2"),
    ("bert", "embeddings", ["bert/embeddings/.*"], "embeddings"),
    ("bert", "head", [], "head"),
    ("vit", "layer_0", [r"vit/encoder/layer/0/.*"], "layer_0"),
    ("vit", "embeddings|layer_1", [r"vit/embeddings/.*", r"vit/encoder/layer/1/.*"], "embeddings"),
]


@pytest.mark.parametrize(("family", "stages", "patterns", "lowest"), SURGICAL)
def test_surgical_trains_the_stages_that_are_named_and_the_head(family, stages, patterns, lowest):
    network = FAMILIES[family]
    plan = freeze.of(network, TransferConfig(strategy="surgical", stages=stages, head_factor=3.0))
    expected = {path for path in SHAPES[family] if any(re.fullmatch(p, path) for p in [*patterns, HEAD])}
    assert {path for path in SHAPES[family] if plan.trains(path)} == expected
    assert all(any(re.fullmatch(p, path) for path in SHAPES[family]) for p in patterns)
    assert network.stage_names[plan.lowest] == lowest
    assert plan.factors == {"head": 3.0, **({"body": 1.0} if patterns else {})}


def test_surgical_layers_keep_their_place_in_the_decay():
    plan = freeze.plan(FAMILIES["bert"], "surgical", stages=["layer_0", "layer_2"], layer_decay=0.5)
    assert plan.factors == {"head": 1.0, "layer_0": 0.125, "layer_2": 0.5}


def test_surgical_moves_the_statistics_of_its_stages_alone():
    network = models.build({"model_type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
                            "embedding_size": 8, "image_size": 16}, num_labels=2)  # fmt: skip
    plan = freeze.plan(network, "surgical", stages=[network.stage_names[-3]])
    moving = {network.stage_of(path) for path in plan.labels if plan.moves(path)}
    assert moving == {network.stage_names[-3]}


@pytest.mark.parametrize(
    ("stages", "found"), [("layer_7", "no stage 'layer_7'"), ("layer_1,layer_2", "no stage 'layer_1,")]
)
def test_surgical_refuses_a_stage_that_is_not_there(stages, found):
    with pytest.raises(ConfigError) as caught:
        freeze.of(FAMILIES["bert"], TransferConfig(strategy="surgical", stages=stages))
    assert caught.value.where == "--config.transfer.stages"
    assert found in caught.value.found
    assert "embeddings, layer_0, layer_1, layer_2, pooler, head" in caught.value.expected
