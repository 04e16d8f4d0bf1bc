"""Every kind of adapter on the tiny networks, and on every family: how it starts, what trains, what merging gives."""

import dataclasses
import functools
import math

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CONFIGS, batch_of, make_case

from tljax import models, trees
from tljax.errors import ConfigError
from tljax.train import objectives, optim, state, step
from tljax.transfer import freeze, targets
from tljax.transfer.adapters import KINDS, Adapter, adapted, merge, start

RANK, TOKENS = 4, 3
EXACT = ("lora", "rslora", "ia3", "bottleneck")  # the network is what it was, to the bit
ROUNDED = ("dora", "pissa")
MERGED = ("lora", "rslora", "dora", "pissa", "ia3")
KIND = pytest.mark.parametrize("kind", KINDS)
FAMILY = pytest.mark.parametrize("family", CONFIGS)


@functools.cache
def plain(family):
    return make_case(family, "full", dropout=0.0)


def put(family, kind, **options):
    """(network with adapters, its parameters)."""
    case = plain(family)
    net = adapted(case.backbone, Adapter(kind, rank=RANK, tokens=TOKENS, **options), family)
    return net, start(net, case.params, jax.random.key(3))


def moved(net, params):
    """The parameters with every adapter leaf somewhere else."""
    flat = trees.flatten(params)
    noise = {path: np.random.default_rng(list(path.encode())).normal(0, 0.1, shape).astype(np.float32)
             for path, shape in net.grafted.items()}  # fmt: skip
    return trees.unflatten({path: leaf + noise[path] if path in noise else leaf for path, leaf in flat.items()})


def logits(net, params, family):
    return net.run(params, batch_of(family, 4)["inputs"])["logits"]


@FAMILY
@KIND
def test_at_the_start_the_network_is_what_it_was(family, kind):
    net, params = put(family, kind)
    found, want = logits(net, params, family), logits(plain(family).backbone, plain(family).params, family)
    if kind in EXACT:
        assert np.array_equal(found, want)
    elif kind in ROUNDED:
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=2e-6)
    else:
        assert float(jnp.abs(found - want).max()) > 1e-4  # its tokens are there
    assert {path: leaf.shape for path, leaf in trees.flatten(params).items()} == {
        path: leaf.shape for path, leaf in net.shapes().items()
    }


D, WIDE, LAYERS, HEADS = 64, 128, 3, 4
COUNTS = {  # kind -> parameters of a layer (bert, vit)
    **dict.fromkeys(("lora", "rslora", "pissa"), (2 * RANK * (D + D),) * 2),  # query and value
    "dora": (2 * (RANK * (D + D) + D),) * 2,
    "ia3": (D + D + D + WIDE, D + D + WIDE),  # BERT's "output.dense" names two maps
    "bottleneck": (2 * (2 * RANK * D + RANK + D),) * 2,
    "prefix": (2 * TOKENS * D,) * 2,
}


@FAMILY
@KIND
def test_how_many_parameters(family, kind):
    net, _ = put(family, kind)
    each = COUNTS.get(kind, (0, 0))[list(CONFIGS).index(family)]
    want = TOKENS * D if kind == "prompt" else LAYERS * each
    assert sum(math.prod(shape) for shape in net.grafted.values()) == want
    base = plain(family).backbone.shapes()
    assert trees.count(net.shapes()) - trees.count(base) == want
    assert net.shapes().keys() - net.grafted.keys() == base.keys()


@FAMILY
@KIND
def test_training_moves_the_adapters_and_the_head_alone(family, kind):
    """Law 3."""
    net, params = put(family, kind)
    plan = freeze.plan(net, kind)
    trains = {path for path in plan.labels if plan.trains(path)}
    assert trains == {*net.grafted, "classifier/kernel", "classifier/bias"}
    assert plan.factors == {"adapter": 1.0, "head": 1.0}
    case = plain(family)
    optimizer = optim.make(case.optim, plan, 10)
    now = state.create(params, plan, optimizer, jax.random.key(7))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(now.opt_state) if leaf.ndim) == 2 * trees.nbytes(now.trainable)
    before = trees.digests(trees.flatten(params))
    run = step.make_train_step(net, plan, optimizer, optim.schedule(case.optim, 10))
    for seed in range(2):
        now, metrics = run(now, batch_of(family, 4, seed))
        assert bool(metrics["finite"])
    after = trees.digests(trees.flatten(state.params_of(now)))
    assert {path for path in before if before[path] != after[path]} == trains


@FAMILY
@pytest.mark.parametrize("kind", MERGED)
def test_merged_it_is_a_plain_network_with_the_same_logits_and_gradients(family, kind):
    net, params = put(family, kind)
    params = moved(net, params)
    whole = merge(net, params)
    assert trees.flatten(whole).keys() == plain(family).backbone.shapes().keys()
    np.testing.assert_allclose(logits(net, params, family), logits(net.plain, whole, family), rtol=2e-5, atol=5e-6)

    batch = batch_of(family, 4)
    own, rest = trees.partition(trees.flatten(params), net.grafted.__contains__)

    def loss(own, merging):
        params = trees.unflatten(trees.join(own, rest))
        run = functools.partial(net.plain.run, merge(net, params)) if merging else functools.partial(net.run, params)
        return objectives.cross_entropy(run(batch["inputs"])["logits"], batch["labels"]).sum()

    found, want = (jax.jit(jax.grad(loss), static_argnums=1)(own, merging) for merging in (False, True))
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, want[path], rtol=1e-3, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in MERGED])
def test_what_cannot_be_merged_says_why(kind):
    net, params = put("bert", kind)
    with pytest.raises(ConfigError, match=KINDS[kind].unmergeable):
        merge(net, params)


@FAMILY
@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix"])
def test_adapters_in_the_top_layers_leave_a_frozen_bottom(family, kind):
    net, params = put(family, kind, layers=1)
    plan = freeze.plan(net, kind)
    assert net.stage_names[plan.lowest] == f"layer_{LAYERS - 1}"
    assert {net.stage_of(path) for path in net.grafted} == {f"layer_{LAYERS - 1}"}
    params = moved(net, params)
    inputs = batch_of(family, 4)["inputs"]
    below = net.plain.run(plain(family).params, inputs, 0, plan.lowest)
    cached = net.run(params, below, plan.lowest)["logits"]
    assert np.array_equal(cached, net.run(params, inputs)["logits"])
    bottom = {path: leaf for path, leaf in trees.flatten(params).items() if path not in net.grafted}
    reached = net.run(trees.unflatten(bottom), inputs, 0, plan.lowest)  # as the train step: with what is frozen alone
    assert all(np.array_equal(reached[name], below[name]) for name in below)


def test_without_its_leaves_a_network_does_not_run():
    net, _ = put("bert", "lora")
    with pytest.raises(ValueError, match="layer/0/attention/self/query/lora_a: missing"):
        logits(net, plain("bert").params, "bert")


def test_equal_networks_are_equal_and_share_a_step():
    (net, _), (again, _), (other, _) = put("bert", "lora"), put("bert", "lora"), put("bert", "lora", alpha=8.0)
    assert (net, hash(net)) == (again, hash(again))
    assert net != other
    assert net != net.plain
    assert step.make_eval_step(net) is step.make_eval_step(again)


@KIND
def test_init_gives_all_or_those_asked_for(kind):
    net, _ = put("bert", kind)
    whole = net.init(jax.random.key(1))
    assert {path: leaf.shape for path, leaf in whole.items()} == {p: leaf.shape for p, leaf in net.shapes().items()}
    some = net.init(jax.random.key(1), lambda path: path in net.grafted)
    assert some.keys() == net.grafted.keys()
    assert all(np.array_equal(some[path], whole[path]) for path in some)


@pytest.mark.parametrize("kind", ["dora", "bottleneck", "prefix", "prompt"])
def test_recomputed_it_is_the_same(kind):
    net, params = put("bert", kind)
    params, again, batch = moved(net, params), dataclasses.replace(net, remat=True), batch_of("bert", 4)

    def loss(params, net):
        return net.run(params, batch["inputs"], train=True, key=jax.random.key(0))["logits"].sum()

    for one, two in zip(*(jax.tree.leaves(jax.grad(loss)(params, n)) for n in (net, again)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_a_plain_strategy_is_the_same_with_adapters():
    net, _ = put("bert", "lora")
    for strategy in ("feature_extraction", "bitfit", "norms"):
        own, base = (freeze.plan(network, strategy) for network in (net, net.plain))
        assert {path: own.labels[path] for path in base.labels} == base.labels
        assert {own.labels[path] for path in net.grafted} == {freeze.FROZEN}


def test_layer_decay_does_not_reach_adapters():
    net, _ = put("bert", "lora")
    plan = freeze.plan(net, "lora", layer_decay=0.5, head_factor=3.0)
    assert plan.factors == {"adapter": 1.0, "head": 3.0}


REFUSED = [  # (what, adapter, family, words)
    ("unknown kind", {"kind": "loha"}, "bert", "'loha'.*one of lora"),
    ("rank 0", {"rank": 0}, "bert", "rank: 0; expected at least 1"),
    ("rank too high", {"rank": 65}, "bert", r"6 kernels.*\n.*query/kernel \(64, 64\): rank 65, at most 64"),
    ("bottleneck too wide", {"kind": "bottleneck", "rank": 65}, "vit", "rank 65, at most 64"),
    ("alpha 0", {"alpha": 0.0}, "bert", "alpha: 0.0; expected above 0"),
    ("alpha nan", {"alpha": math.nan}, "bert", "alpha: nan"),
    ("no tokens", {"kind": "prompt", "tokens": 0}, "bert", "tokens: 0"),
    ("layers below 0", {"layers": -1}, "bert", "layers: -1"),
    ("too many layers", {"layers": 4}, "bert", "0 to 3, the layers of this network"),
    ("a prompt in layers", {"kind": "prompt", "layers": 1}, "bert", "1 for prompt"),
    ("a prefix with targets", {"kind": "prefix", "targets": "query"}, "bert", "'query' for prefix"),
    ("nothing matches", {"targets": "query,valeu"}, "bert", r"1 of 2 patterns(.|\n)*valeu.*nearest are.*self/value"),
    ("one of those joined by a bar", {"targets": "query|q_proj"}, "bert", "q_proj: matches no kernel"),
    ("the head", {"targets": "classifier"}, "bert", "classifier: matches no kernel"),
    ("no pattern", {"targets": "query["}, "bert", "'query\\['.*no regular expression"),
    ("no family", {}, "", "family '' has no usual ones"),
    ("feedforward elsewhere", {"kind": "ia3", "targets": "key", "feedforward": "value"}, "bert", "value: matches no"),
]


@pytest.mark.parametrize(("options", "family", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_makes_no_sense_is_refused(options, family, words):
    with pytest.raises(ConfigError, match=words):
        adapted(plain(family or "bert").backbone, Adapter(**options), family)


def test_a_strategy_wants_its_adapter():
    net, _ = put("bert", "lora")
    with pytest.raises(ConfigError, match="dora, but the network has lora"):
        freeze.plan(net, "dora")
    with pytest.raises(ConfigError, match=r"lora, but the network has no adapters.*put it on first"):
        freeze.plan(net.plain, "lora")
    with pytest.raises(ConfigError, match="on a network with lora"):
        adapted(net, Adapter("ia3"), "bert")


MATCHES = [  # (patterns, modules of layer 0 of a BERT)
    ("query", ["attention/self/query"]),
    ("attention/output/dense", ["attention/output/dense"]),
    ("output/dense", ["attention/output/dense", "output/dense"]),
    (r"layer/\d+/output/dense", ["output/dense"]),
    ("(query|key)", ["attention/self/key", "attention/self/query"]),
    ("query, key/kernel", ["attention/self/key", "attention/self/query"]),
    ("bert/encoder/.*/intermediate/dense", ["intermediate/dense"]),
    ("uery|query", None),
]


@pytest.mark.parametrize(("patterns", "want"), MATCHES, ids=[row[0] for row in MATCHES])
def test_patterns_match_ends_of_paths(patterns, want):
    if want is None:
        with pytest.raises(ConfigError):
            adapted(plain("bert").backbone, Adapter(targets=patterns), "bert")
        return
    net = adapted(plain("bert").backbone, Adapter(targets=patterns), "bert")
    below = "bert/encoder/layer/0/"
    assert [site.module.removeprefix(below) for site in net.sites if site.path.startswith(below)] == want


def test_user_targets_beyond_the_layers():
    net = adapted(plain("vit").backbone, Adapter(targets="patch_embeddings/projection", rank=RANK))
    params = moved(net, start(net, plain("vit").params, jax.random.key(0)))
    assert freeze.plan(net, "lora").lowest == 0
    assert net.grafted["vit/embeddings/patch_embeddings/projection/lora_a"] == (4, 4, 3, RANK)
    want = logits(net.plain, merge(net, params), "vit")
    np.testing.assert_allclose(logits(net, params, "vit"), want, rtol=1e-5, atol=1e-6)


def test_a_depthwise_convolution_shares_nothing():
    network = models.build(
        {"model_type": "convnext", "depths": [1], "hidden_sizes": [8], "image_size": 8}, num_labels=2
    )
    with pytest.raises(ConfigError, match="each channel has a kernel of its own"):
        adapted(network, Adapter(targets="dwconv", rank=1), "convnext")


def test_pissa_trains_the_largest_singular_values():
    net, params = put("bert", "pissa")
    path = "bert/encoder/layer/1/attention/self/value"
    flat, before = trees.flatten(params), np.asarray(trees.flatten(plain("bert").params)[f"{path}/kernel"])
    values = np.linalg.svd(before, compute_uv=False)
    rest = np.linalg.svd(np.asarray(flat[f"{path}/kernel"]), compute_uv=False)
    np.testing.assert_allclose(rest[: D - RANK], values[RANK:], rtol=1e-3, atol=1e-4)
    branch = net.adapter.scale * np.asarray(flat[f"{path}/lora_a"] @ flat[f"{path}/lora_b"])
    np.testing.assert_allclose(np.linalg.svd(branch, compute_uv=False)[:RANK], values[:RANK], rtol=1e-4)


def test_every_family_has_targets():
    assert targets.TARGETS.keys() == models.FAMILIES.keys()


ONE_EACH = {family: next(n for n in checkpoints.CLASSIFIERS if checkpoints.CONFIGS[n]["model_type"] == family)
            for family in checkpoints.THEIRS}  # fmt: skip
NONE = {"prefix": "has no attention", "prompt": "pictures between its layers"}
CONVOLUTIONAL = ("convnext", "convnextv2", "mobilenet_v2", "resnet")


@pytest.mark.parametrize("kind", ["dora", "ia3", "bottleneck", "prefix", "prompt"])
@pytest.mark.parametrize("family", ONE_EACH)
def test_every_family(family, kind):
    """On its usual targets: merged it gives the same (or starts as the plain network), and each leaf counts."""
    model, (inputs, _) = checkpoints.load(ONE_EACH[family]), checkpoints.given(ONE_EACH[family])
    adapter = Adapter(kind, rank=2, tokens=2)
    if (kind in NONE and family in CONVOLUTIONAL) or (kind, family) == ("prompt", "swin"):
        with pytest.raises(ConfigError, match=f"{family} .*{NONE[kind]}"):
            adapted(model.backbone, adapter, family)
        return
    net = adapted(model.backbone, adapter, family)
    params = start(net, model.params, jax.random.key(0))
    base = model.backbone.run(model.params, inputs)
    if kind == "bottleneck":
        assert np.array_equal(net.run(params, inputs)["logits"], base["logits"])
    params = moved(net, params)
    found = net.run(params, inputs)
    assert found["last_hidden_state"].shape == base["last_hidden_state"].shape
    # Not the logits: a window of Mistral's ends before the prompt.
    assert float(jnp.abs(found["last_hidden_state"] - base["last_hidden_state"]).max()) > 1e-4
    if kind in MERGED:
        want = model.backbone.run(merge(net, params), inputs)["logits"]
        size = float(jnp.abs(want).max())
        np.testing.assert_allclose(found["logits"], want, rtol=1e-4, atol=1e-5 * max(size, 1))
