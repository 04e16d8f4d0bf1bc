"""Pairs of two domains in one network: each by itself, target statistics, features in place of inputs, and the head."""

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLASSES, CONFIGS, batch_of

from tljax import models, trees
from tljax.models import pairs
from tljax.models.paired import ADVERSARIAL, DISCRIMINATOR, paired, plain
from tljax.transfer import freeze

METHODS = ("coral", "mmd", *ADVERSARIAL)
WIDTH, B = 16, 4
KEY = jax.random.key(3)


def drawn(network, seed=1):
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(0, 0.1, leaf.shape) + path.endswith("/scale"), leaf.dtype)
            for path, leaf in sorted(network.shapes().items())}  # fmt: skip


@pytest.fixture(scope="module")
def plain_bert():
    return models.build(CONFIGS["bert"], num_labels=CLASSES, dropout=0.0)


def inputs(seed):
    return batch_of("bert", B, seed)["inputs"]


def both(source, target):
    return {**source, **{pairs.TARGET + name: value for name, value in target.items()}}


def of(x, prefix=""):
    """What of the activations of pairs is one domain's."""
    inside = {name.removeprefix(pairs.TARGET): value for name, value in x.items() if name.startswith(pairs.TARGET)}
    return inside if prefix else {name: value for name, value in x.items() if not name.startswith(pairs.TARGET)}


def equal(found, expected):
    assert expected.keys() <= found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_each_domain_is_as_the_plain_network_has_it(plain_bert, method):
    """Bit for bit, alone and in pairs, whatever the other domain is."""
    network = paired(plain_bert, method, WIDTH)
    flat = drawn(network)
    params, own = trees.unflatten(flat), trees.unflatten(plain(flat))
    assert plain(flat).keys() == plain_bert.shapes().keys()
    one, other = (plain_bert.run(own, inputs(seed)) for seed in (0, 9))
    equal(network.run(params, inputs(0)), one)
    together = network.run(params, both(inputs(0), inputs(9)))
    equal(of(together), one)
    equal(of(together, pairs.TARGET), other)
    assert network.lookups == ()  # the target reads other rows of a table
    told = {"domain", "domain_still", "target/domain", "target/domain_still"}
    assert told & together.keys() == (told if method in ADVERSARIAL else set())


@pytest.mark.parametrize("features", [False, True])
def test_pairs_cut_at_every_stage(plain_bert, features):
    network = paired(plain_bert, "dann", WIDTH)
    params = trees.unflatten(drawn(network))
    vectors = {pairs.FEATURES: np.random.default_rng(0).normal(size=(B, 64)).astype(np.float32)}
    given = both(vectors if features else inputs(0), inputs(9))
    whole = network.run(params, given)
    for k in range(len(network.stages) + 1):
        parts = network.run(params, network.run(params, given, 0, k), k)
        assert parts.keys() == whole.keys()
        equal(parts, whole)


def test_features_of_another_network_take_the_place_of_the_source(plain_bert):
    """The head alone runs on them; the target goes through all stages as ever."""
    network = paired(plain_bert, "adda", WIDTH)
    params = trees.unflatten(drawn(network))
    reached = network.run(params, inputs(0), 0, len(network.stages) - 1)
    vectors = {pairs.FEATURES: reached["pooled"]}
    found = network.run(params, both(vectors, inputs(9)))
    expected = network.run(params, both(inputs(0), inputs(9)))
    for name in ("logits", "domain", "domain_still"):
        np.testing.assert_array_equal(found[name], expected[name])
    equal(of(found, pairs.TARGET), of(expected, pairs.TARGET))
    shifted = network.run(params, both({pairs.FEATURES: vectors[pairs.FEATURES] + 1}, inputs(9)))
    assert not np.array_equal(shifted["logits"], found["logits"])
    equal(of(shifted, pairs.TARGET), of(found, pairs.TARGET))


def test_the_domains_draw_dropout_of_their_own():
    network = paired(models.build(CONFIGS["bert"], num_labels=CLASSES, dropout=0.5), "coral", WIDTH)
    params = trees.unflatten(drawn(network))
    found = network.run(params, both(inputs(0), inputs(0)), train=True, key=KEY)
    equal(of(found), network.run(params, inputs(0), train=True, key=KEY))  # the source's is as without a target
    assert not np.array_equal(found["logits"], found["target/logits"])
    again = network.run(params, both(inputs(0), inputs(0)), train=True, key=KEY)
    equal(again, found)


@pytest.fixture(scope="module")
def resnet():
    """(network with batch statistics, flat parameters, statistics, pictures of two domains)."""
    model = checkpoints.load("resnet")
    flat = trees.flatten(model.params)
    pixels, _ = checkpoints.given("resnet")
    source = pixels["pixel_values"]
    target = (2.0 * source[::-1] + 1.0).astype(np.float32)
    stats = {path: leaf for path, leaf in flat.items() if freeze.is_statistic(path)}
    return model.backbone, flat, stats, {"pixel_values": source}, {"pixel_values": target}


def test_batch_statistics_that_move_are_the_targets(resnet):
    network, flat, stats, source, target = resnet
    params = trees.unflatten(flat)
    of_source, moved_source = network.run_moving(params, source, 0, KEY, stats)
    of_target, moved_target = network.run_moving(params, target, 0, KEY, stats)
    found, moved = paired(network, "coral", WIDTH).run_moving(params, both(source, target), 0, KEY, stats)
    assert trees.digests(moved) == trees.digests(moved_target) != trees.digests(moved_source)
    assert moved.keys() == stats.keys() != set()
    equal(of(found), of_source)  # each domain is normalised by its own batch
    equal(of(found, pairs.TARGET), of_target)
    assert trees.digests(moved) != trees.digests(stats)


def test_in_evaluation_statistics_are_those_of_the_parameters(resnet):
    network, flat, _, source, target = resnet
    params = trees.unflatten(flat)
    found = paired(network, "mmd", WIDTH).run(params, both(source, target))
    equal(of(found), network.run(params, source))
    equal(of(found, pairs.TARGET), network.run(params, target))


def by_hand(flat, rows_BD):
    """The discriminator in float64."""
    x = np.asarray(rows_BD, np.float64)
    layer = {name: [np.asarray(flat[f"{DISCRIMINATOR}/{name}/{leaf}"], np.float64) for leaf in ("kernel", "bias")]
             for name in ("dense_0", "dense_1", "logit")}  # fmt: skip
    for name in ("dense_0", "dense_1"):
        x = np.maximum(x @ layer[name][0] + layer[name][1], 0.0)
    return (x @ layer["logit"][0] + layer["logit"][1])[:, 0]


@pytest.mark.parametrize("method", ADVERSARIAL)
def test_the_discriminator_by_hand(plain_bert, method):
    network = paired(plain_bert, method, WIDTH)
    flat = drawn(network)
    reads = 64 * CLASSES if method == "cdan" else 64
    assert {path.removeprefix(f"{DISCRIMINATOR}/"): leaf.shape for path, leaf in flat.items()
            if path.startswith(DISCRIMINATOR)} == {
        "dense_0/kernel": (reads, WIDTH), "dense_0/bias": (WIDTH,), "dense_1/kernel": (WIDTH, WIDTH),
        "dense_1/bias": (WIDTH,), "logit/kernel": (WIDTH, 1), "logit/bias": (1,)}  # fmt: skip
    x = network.run(trees.unflatten(flat), inputs(0))
    pooled = np.asarray(x["pooled"], np.float64)
    if method == "cdan":
        powers = np.exp(np.asarray(x["logits"], np.float64))
        probs = powers / powers.sum(-1, keepdims=True)
        pooled = np.stack([np.outer(row, of_row).ravel() for row, of_row in zip(pooled, probs, strict=True)])
    assert x["domain"].shape == (B,)
    np.testing.assert_allclose(x["domain"], by_hand(flat, pooled), rtol=1e-5, atol=1e-6)  # float32
    np.testing.assert_array_equal(x["domain"], x["domain_still"])


@pytest.mark.parametrize("method", ADVERSARIAL)
def test_what_flows_back_from_the_discriminator(plain_bert, method):
    """From "domain_still" nothing to the features, from either nothing to the classifier, to the discriminator from
    both the same."""
    network = paired(plain_bert, method, WIDTH)
    flat = drawn(network)

    def total(flat, name):
        return network.run(trees.unflatten(flat), inputs(0))[name].sum()

    moving, still = (jax.jit(jax.grad(total), static_argnums=1)(flat, name) for name in ("domain", "domain_still"))
    nonzero = [{path for path, grad in found.items() if np.asarray(grad).any()} for found in (moving, still)]
    own = {path for path in flat if path.startswith(DISCRIMINATOR)}
    assert nonzero[1] == own
    assert nonzero[0] > own
    assert any(path.startswith("bert/embeddings") for path in nonzero[0])
    assert not any(path.startswith("classifier") for path in nonzero[0])
    for path in own:
        np.testing.assert_allclose(moving[path], still[path], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_discriminator_belongs_to_the_head(plain_bert, method):
    network = paired(plain_bert, method, WIDTH)
    assert network.stage_names == plain_bert.stage_names
    plan = freeze.plan(network, "feature_extraction")
    heads = {"classifier/bias", "classifier/kernel"} | {p for p in network.shapes() if p.startswith(DISCRIMINATOR)}
    assert {path for path in network.shapes() if plan.trains(path)} == heads
    assert network.init(KEY).keys() == network.shapes().keys()


def test_equal_networks_are_one_to_the_cache_of_compiled_steps(plain_bert):
    assert paired(plain_bert, "dann", WIDTH) == paired(plain_bert, "dann", WIDTH)
    assert len({paired(plain_bert, method, WIDTH) for method in METHODS}) == 3  # coral = mmd, dann = adda, cdan
