"""The floor of a step, counted by hand. B rows, T tokens, D width, F inner width, C classes, V words."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from cases import CLASSES, CONFIGS, batch_of, make_case
from flax import linen as nn

from tljax import models, trees
from tljax.errors import ConfigError
from tljax.models import Stage
from tljax.transfer import boundary, freeze
from tljax.transfer.floor import Work, floor, theoretical

B, T, D, F = 8, 8, 64, 128
TOKENS = B * T
WEIGHTS = 2 * TOKENS * (4 * D * D + 2 * D * F)  # query, key, value, output; in and out of the block
QKV = 2 * TOKENS * 3 * D * D
ATTENTION = 2 * 2 * B * T * T * D
LAYER = WEIGHTS + ATTENTION
POOLER, HEAD = 2 * B * D * D, 2 * B * D * CLASSES

BERT = [  # (strategy, embeddings, layer_0, layer_1, layer_2, pooler, head), backward work
    ("full", 0, 2 * LAYER, 2 * LAYER, 2 * LAYER, 2 * POOLER, 2 * HEAD),
    # The input of layer_0 comes from frozen tables: no gradient for the input of its first product.
    ("embeddings_frozen", 0, 2 * LAYER - QKV, 2 * LAYER, 2 * LAYER, 2 * POOLER, 2 * HEAD),
    ("last_k", 0, 0, 2 * LAYER - QKV, 2 * LAYER, 2 * POOLER, 2 * HEAD),
    ("feature_extraction", 0, 0, 0, 0, 0, HEAD),
    # Biases: gradients to inputs alone, but both sides of an attention's products are inputs.
    ("bitfit", 0, *[WEIGHTS + 2 * ATTENTION] * 3, POOLER, 2 * HEAD),
    ("norms", 0, *[WEIGHTS + 2 * ATTENTION] * 3, POOLER, 2 * HEAD),
    ("custom", 0, 0, 2 * LAYER - QKV, WEIGHTS + 2 * ATTENTION, POOLER, 2 * HEAD),
]


@pytest.mark.parametrize(("strategy", "backward"), [(row[0], row[1:]) for row in BERT], ids=[row[0] for row in BERT])
def test_bert_by_hand(strategy, backward):
    case = make_case("bert", strategy)
    found = floor(case.backbone, case.plan, batch_of("bert", B)["inputs"])
    assert list(found.stages) == ["embeddings", "layer_0", "layer_1", "layer_2", "pooler", "head"]
    assert [work.forward for work in found.stages.values()] == [0, LAYER, LAYER, LAYER, POOLER, HEAD]
    assert [work.backward for work in found.stages.values()] == list(backward)
    assert found.forward == 3 * LAYER + POOLER + HEAD
    assert found.total == found.forward + sum(backward)


@pytest.mark.parametrize("strategy", ["last_k", "feature_extraction", "custom", "embeddings_frozen"])
@pytest.mark.parametrize("family", list(CONFIGS))
def test_from_cached_activations_nothing_below_costs(family, strategy):
    case = make_case(family, strategy)
    inputs = batch_of(family, B)["inputs"]
    for start in range(1, case.plan.lowest + 1):
        reached = jax.eval_shape(lambda p, x, k=start: case.backbone.run(p, x, 0, k), case.params, inputs)
        whole, cached = floor(case.backbone, case.plan, inputs), floor(case.backbone, case.plan, reached, start)
        names = case.backbone.stage_names[start:]
        assert cached.stages == {name: whole.stages[name] for name in names}


@pytest.mark.parametrize("family", list(CONFIGS))
def test_activations_that_nobody_reads_may_be_left_out(family):
    """As the cache does (transfer/boundary.py)."""
    case = make_case(family, "feature_extraction")
    head, pooled = case.plan.lowest, jax.ShapeDtypeStruct((B, D), jnp.float32)
    assert [leaf.name for leaf in boundary.layout(case.backbone, head)] == ["pooled"]
    found = floor(case.backbone, case.plan, {"pooled": pooled}, head)
    assert found.stages == {"head": Work(HEAD, HEAD)}


def test_a_start_above_what_trains_is_refused():
    case = make_case("bert", "last_k")
    with pytest.raises(ConfigError, match="activations of stage layer_2 and parameters of layer_1 that train"):
        floor(case.backbone, case.plan, {}, start=3)


def test_the_first_product_of_a_vit_takes_no_gradient_to_pixels():
    case = make_case("vit", "full")
    found = floor(case.backbone, case.plan, batch_of("vit", B)["inputs"]).stages["embeddings"]
    patches = 2 * B * 16 * (4 * 4 * 3) * D
    assert found == Work(patches, patches)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("remat", [False, True])
def test_neither_dtype_nor_remat_changes_it(dtype, remat):
    """What remat computes again is no least work."""
    plain = make_case("bert", "full")
    backbone = dataclasses.replace(models.build(CONFIGS["bert"], num_labels=CLASSES, dtype=dtype), remat=remat)
    inputs = batch_of("bert", B)["inputs"]
    assert floor(backbone, plain.plan, inputs) == floor(plain.backbone, plain.plan, inputs)


def test_a_tied_table_is_a_weight_of_the_head():
    config = {"model_type": "gpt2", "vocab_size": 90, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}
    backbone = models.build(config, num_labels=0)
    inputs = {"input_ids": jax.ShapeDtypeStruct((2, 8), jnp.int32)}
    head = 2 * 2 * 8 * 16 * 90
    rows = [("full", 2 * head), ("norms", head)]  # the table trains, and what is below; what is below alone
    for strategy, backward in rows:
        assert floor(backbone, freeze.plan(backbone, strategy), inputs).stages["head"] == Work(head, backward)


class Plain(nn.Module):
    """x (N, D) -> x W."""

    @nn.compact
    def __call__(self, x, train):
        hidden = x["hidden"]
        out = hidden @ self.param("kernel", nn.initializers.normal(), (hidden.shape[-1],) * 2)
        return {"hidden": out, "logits": out}


class Branched(nn.Module):
    """x (N, D) -> x W + x A B, a product that nobody reads, and one that is read without a gradient."""

    rank: int

    @nn.compact
    def __call__(self, x, train):
        hidden, D = x["hidden"], x["hidden"].shape[-1]
        shapes = {"a": (D, self.rank), "b": (self.rank, D), "kernel": (D, D), "unread": (D, 3 * D)}
        p = {name: self.param(name, nn.initializers.normal(), shape) for name, shape in shapes.items()}
        wide, branch = hidden @ p["kernel"], hidden @ p["a"] @ p["b"]
        size = jax.lax.stop_gradient((p["a"] @ p["b"]).sum())
        return {"hidden": (wide + branch) * size, "logits": wide + branch, "unread": wide @ p["unread"]}


N, RANK = 10, 4
SQUARE = 2 * N * D * D


def stacked(layer: nn.Module, layers: int) -> models.Backbone:
    names = [*(f"layer_{i}" for i in range(layers - 1)), "head"]
    stages = tuple(Stage(name, f"layer/{i}", layer) for i, name in enumerate(names))
    return models.Backbone(stages, lambda: {"hidden": jax.ShapeDtypeStruct((1, D), jnp.float32)})


def test_low_rank_branches_by_path():
    """Parameters are asked for by path alone: a frozen kernel with a branch that trains needs no rule of its own."""
    backbone = stacked(Branched(RANK), 2)
    plan = freeze.plan(backbone, "custom", rules=[(".*/(a|b)", "body"), (".*", "frozen")])
    below, above = floor(backbone, plan, {"hidden": jnp.ones((N, D))}).stages.values()
    half = 2 * N * D * RANK
    # x is data: gradients for A, for x A and for B. `size` is needed above, where nobody needs it again.
    assert below == Work(SQUARE + 2 * half + 2 * D * RANK * D, 3 * half)
    assert above == Work(SQUARE + 2 * half, SQUARE + 4 * half)


def test_the_rule_of_thumb_charges_one_gradient_more():
    backbone = stacked(Plain(), 4)
    for frozen in range(4):
        below = [(f"layer/[0-{frozen - 1}]/.*", "frozen")] if frozen else []
        plan = freeze.plan(backbone, "custom", rules=[*below, (".*", "body")])
        for start, cached in ((0, False), (frozen, True)):
            found = floor(backbone, plan, {"hidden": jnp.ones((N, D))}, start).total
            assert found == (theoretical(4, frozen, cached) - 1) * SQUARE


def test_theoretical_speed_ups_of_design():
    rows = [(9, False, 2.0), (9, True, 4.0), (11, False, 36 / 14), (11, True, 12.0), (12, False, 3.0)]
    for frozen, cached, speed_up in rows:
        assert theoretical(12, 0) / theoretical(12, frozen, cached) == speed_up


def test_nothing_is_allocated():
    """BERT-large on 64 x 512 tokens, in shapes."""
    backbone = models.build({"model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 24,
                             "num_attention_heads": 16, "intermediate_size": 4096}, num_labels=2)  # fmt: skip
    inputs = {"input_ids": jax.ShapeDtypeStruct((64, 512), jnp.int32)}
    found = floor(backbone, freeze.plan(backbone, "full"), inputs)
    tokens, D = 64 * 512, 1024
    assert found.stages["layer_7"].forward == 2 * tokens * 12 * D * D + 4 * tokens * 512 * D
    assert trees.count(backbone.shapes()) > 3e8
