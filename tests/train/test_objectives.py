"""Objectives against their definitions in float64 NumPy, and the gradients of adversarial ones by explicit formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tljax.train.objectives import (
    DOMAIN_LOSSES,
    Adaptation,
    Certainty,
    Classification,
    Prediction,
    Ranking,
    cross_entropy,
)
from tljax.train.step import make_eval_step, make_train_step
from tljax.transfer import discrepancy
from tljax.transfer.freeze import FreezePlan

CLOSE = {"rtol": 2e-6, "atol": 2e-6}  # float32 against float64
COUNT = jnp.int32(0)
ROWS, PLACES, CLASSES = 3, 4, 5
SHAPES = [("rows", (ROWS,)), ("places in rows", (ROWS, PLACES))]


def softmax(logits):
    exact = np.asarray(logits, np.float64)
    powers = np.exp(exact - exact.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def losses(logits, labels, smoothing=0.0):
    """-sum_c q_c log p_c of every answer, in a loop."""
    found = np.zeros(labels.shape)
    for at in np.ndindex(labels.shape):
        q = np.full(logits.shape[-1], smoothing / logits.shape[-1])
        q[labels[at]] += 1 - smoothing
        found[at] = -(q * np.log(softmax(logits[at]))).sum()
    return found


def drawn(shape, classes=CLASSES, seed=0):
    """(x, batch): random logits (*shape, classes); a weight of each answer, of which some are 0."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (*shape, classes)).astype(np.float32)
    batch = {"labels": rng.integers(0, classes, shape).astype(np.int32),
             "weights": rng.choice([0.0, 0.5, 1.0, 2.0], shape).astype(np.float32)}  # fmt: skip
    return {"logits": jnp.asarray(logits)}, batch


@pytest.mark.parametrize("shape", [row[1] for row in SHAPES], ids=[row[0] for row in SHAPES])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_classification_is_the_weighted_sum_of_its_answers(shape, smoothing):
    x, batch = drawn(shape)
    objective = Classification(smoothing)
    expected = losses(np.asarray(x["logits"]), batch["labels"], smoothing)
    np.testing.assert_allclose(objective.loss(x, batch, COUNT), (expected * batch["weights"]).sum(), **CLOSE)
    np.testing.assert_allclose(cross_entropy(x["logits"], jnp.asarray(batch["labels"]), smoothing), expected, **CLOSE)
    assert objective.weights(batch) is batch["weights"]
    probs = objective.outputs(x, batch)
    assert (probs.shape, probs.dtype) == ((*shape, CLASSES), jnp.float32)
    np.testing.assert_allclose(probs, softmax(x["logits"]), **CLOSE)


@pytest.mark.parametrize("shape", [row[1] for row in SHAPES], ids=[row[0] for row in SHAPES])
def test_class_weights_multiply_those_of_the_answers(shape):
    _, batch = drawn(shape)
    factors = (1.0, 2.0, 0.0, 4.0, 8.0)
    found = Classification(0.0, factors).weights(batch)
    assert np.asarray(found).tolist() == (batch["weights"] * np.float32(factors)[batch["labels"]]).tolist()


@pytest.mark.parametrize("rate", [0.125, 0.5])
@pytest.mark.parametrize("shape", [row[1] for row in SHAPES], ids=[row[0] for row in SHAPES])
def test_probabilities_are_those_before_negatives_were_left_out(rate, shape):
    """Of groups with so many examples of each class, of the first of which a share is left."""
    counts = np.random.default_rng(0).integers(1, 100, (*shape, 3)).astype(np.float64)
    kept = counts * [rate, 1, 1]
    objective = Classification(shares=(rate, 1.0, 1.0))
    x = {"logits": jnp.asarray(np.log(kept), jnp.float32)}
    np.testing.assert_allclose(objective.outputs(x, {}), counts / counts.sum(-1, keepdims=True), rtol=1e-5)
    batch = {"labels": np.zeros(shape, np.int32), "weights": np.ones(shape, np.float32)}
    assert float(objective.loss(x, batch, COUNT)) == float(Classification().loss(x, batch, COUNT))


def test_equal_objectives_are_one_to_the_cache_of_compiled_steps():
    made = [lambda: Classification(0.1, (1.0, 2.0)), lambda: Prediction((3, 4)), lambda: Ranking(3),
            lambda: Adaptation("dann", 0.5, 10)]  # fmt: skip
    assert len({one() for one in made for _ in range(2)}) == len(made)
    network = Logits()
    assert make_eval_step(network, 0, Ranking(3)) is make_eval_step(network, 0, Ranking(3))
    assert make_eval_step(network, 0, Ranking(3)) is not make_eval_step(network, 0, Ranking(2))


SIZES = (3, 5, 2)


@pytest.mark.parametrize("shape", [row[1] for row in SHAPES], ids=[row[0] for row in SHAPES])
@pytest.mark.parametrize("sizes", [SIZES, (10,)])
def test_a_prediction_is_the_sum_over_its_fields(shape, sizes):
    rng = np.random.default_rng(1)
    x, batch = drawn(shape, sum(sizes))
    labels = np.stack([rng.integers(0, size, shape) for size in sizes], axis=-1).astype(np.int32)
    parts = np.split(np.asarray(x["logits"]), np.cumsum(sizes)[:-1], axis=-1)
    labels[0] = np.stack([part[0].argmax(-1) for part in parts], axis=-1)
    batch["labels"] = labels
    each = np.stack([losses(part, labels[..., i]) for i, part in enumerate(parts)], axis=-1)
    objective = Prediction(sizes)
    np.testing.assert_allclose(objective.loss(x, batch, COUNT), (each.sum(-1) * batch["weights"]).sum(), **CLOSE)
    found = np.asarray(objective.outputs(x, batch))
    assert (found.shape, found.dtype) == ((*shape, 2 * len(sizes)), np.float32)
    np.testing.assert_allclose(found[..., : len(sizes)], each, **CLOSE)
    right = np.stack([part.argmax(-1) == labels[..., i] for i, part in enumerate(parts)], axis=-1)
    assert found[..., len(sizes) :].tolist() == right.astype(float).tolist()
    assert not right.all()


def scored(logits):
    """What has these scores of items: hidden vectors that are the scores, and a table that is the identity."""
    classes = logits.shape[-1]
    return {"last_hidden_state": jnp.asarray(logits), "items": jnp.eye(classes), "item_bias": jnp.zeros(classes)}


RANKED = [
    # (name, scores of ids 0 1 | 2 3 4 5, the right one, its rank)
    ("the best", [0, 0, 9, 1, 2, 3], 2, 1),
    ("the second", [0, 0, 2, 1, 9, 0], 2, 2),
    ("the last", [0, 0, 0, 1, 2, 3], 2, 4),
    ("a tie stands before", [0, 0, 5, 5, 1, 1], 2, 2),
    ("also where it has a larger id", [0, 0, 5, 5, 1, 1], 3, 2),
    ("all alike", [0, 0, 0, 0, 0, 0], 5, 4),
    ("padding and unknown are not ranked", [9, 8, 5, 1, 2, 3], 2, 1),
    ("an unknown one is last", [0, 99, 5, 1, 2, 3], 1, 4),
    ("also where it scores least", [0, -99, 5, 1, 2, 3], 1, 4),
    ("padding likewise", [99, 0, 5, 1, 2, 3], 0, 4),
    ("scores that are none", [0, 0, np.nan, 1, 2, 3], 2, np.nan),
    ("those of others likewise", [0, 0, 5, 1, np.inf, 3], 2, np.nan),
]


@pytest.mark.parametrize(("scores", "right", "rank"), [row[1:] for row in RANKED], ids=[row[0] for row in RANKED])
def test_the_rank_of_the_right_item(scores, right, rank):
    shape = ROWS, PLACES
    x = scored(np.broadcast_to(np.asarray(scores, np.float32), (*shape, 6)))
    found = Ranking().outputs(x, {"labels": jnp.full(shape, right, jnp.int32)})
    assert (found.shape, found.dtype) == ((*shape, 1), jnp.float32)
    np.testing.assert_array_equal(found, np.full((*shape, 1), rank))  # NaN equals NaN here


@pytest.mark.parametrize("reserved", [0, 2, 4])
def test_ranks_of_random_scores_by_counting(reserved):
    rng = np.random.default_rng(2)
    logits, labels = rng.integers(0, 6, (200, 9)).astype(np.float32), rng.integers(0, 9, 200).astype(np.int32)
    expected = [9 - reserved if own < reserved else sum(row[other] >= row[own] for other in range(reserved, 9))
                for row, own in zip(logits, labels, strict=True)]  # fmt: skip
    batch = {"labels": jnp.asarray(labels.reshape(20, 10))}
    found = Ranking(reserved).outputs(scored(logits.reshape(20, 10, 9)), batch)
    assert np.asarray(found).reshape(-1).tolist() == expected
    assert min(expected) == 1


def test_the_loss_of_a_ranking_is_a_classifications():
    x, batch = drawn((ROWS, PLACES))
    found = Ranking().loss(scored(x["logits"]), batch, COUNT)
    np.testing.assert_allclose(found, Classification().loss(x, batch, COUNT), **CLOSE)
    assert Ranking().weights(batch) is batch["weights"]


def test_certainty_is_the_weighted_sum_of_entropies():
    x, batch = drawn((ROWS,))
    probs = softmax(x["logits"])
    expected = -(probs * np.log(probs)).sum(-1)
    found = Certainty().loss(x, {"weights": batch["weights"]}, COUNT)
    np.testing.assert_allclose(found, (expected * batch["weights"]).sum(), **CLOSE)
    np.testing.assert_allclose(Certainty().outputs(x, batch), probs, **CLOSE)
    assert Certainty().weights(batch) is batch["weights"]


# Domain adaptation. B pairs, D features; a linear classifier, and a discriminator with one hidden layer.
B, D, HIDDEN, STEPS = 8, 4, 3, 10
WEIGHTS = np.array([1, 1, 0, 1, 0, 1, 1, 1], np.float32)  # two pairs that pad
PAIRED = list(DOMAIN_LOSSES)
ADVERSARIAL = ["dann", "cdan", "adda"]


def parameters(seed=3):
    rng = np.random.default_rng(seed)
    shapes = {"source": (B, D), "target": (B, D), "classifier": (D, CLASSES), "inner": (D, HIDDEN), "outer": (HIDDEN,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def tell(p, rows_BD):
    return jnp.tanh(rows_BD @ p["inner"]) @ p["outer"]


def network(p):
    """What models/paired.py gives: each domain's vectors, logits, and what the discriminator says of them."""
    x = {}
    for prefix, rows_BD in (("", p["source"]), ("target/", p["target"])):
        x |= {f"{prefix}pooled": rows_BD, f"{prefix}logits": rows_BD @ p["classifier"],
              f"{prefix}domain": tell(p, rows_BD),
              f"{prefix}domain_still": tell(p, jax.lax.stop_gradient(rows_BD))}  # fmt: skip
    return x


def batch(weights=WEIGHTS):
    return {"labels": np.arange(B, dtype=np.int32) % CLASSES, "weights": weights / weights.sum()}


def gradients(objective, p, count=0, weights=WEIGHTS):
    return jax.grad(lambda p: objective.loss(network(p), batch(weights), jnp.int32(count)))(p)


def mean(values_B):
    return (values_B * WEIGHTS).sum() / WEIGHTS.sum()


def told(p, source=1.0, target=0.0):
    """What a discriminator learns by: mean cross-entropy over the rows of both domains."""
    own = discrepancy.binary_cross_entropy(tell(p, p["source"]), jnp.full(B, source))
    other = discrepancy.binary_cross_entropy(tell(p, p["target"]), jnp.full(B, target))
    return 0.5 * (mean(own) + mean(other))


def classes(p):
    return mean(cross_entropy(p["source"] @ p["classifier"], jnp.asarray(batch()["labels"])))


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)  # the same numbers, added up in another order


@pytest.mark.parametrize("method", PAIRED)
def test_the_value_is_that_of_the_classes_and_the_domains(method):
    p, x = parameters(), network(parameters())
    domains = {"coral": lambda: discrepancy.coral(p["source"], p["target"], WEIGHTS, WEIGHTS),
               "mmd": lambda: discrepancy.mmd(p["source"], p["target"], WEIGHTS, WEIGHTS)}  # fmt: skip
    expected = domains.get(method, lambda: told(p))() * 0.7 + (0.0 if method == "adda" else classes(p))
    near(Adaptation(method, 0.7, STEPS).loss(x, batch(), jnp.int32(5)), expected)
    np.testing.assert_allclose(Adaptation(method, 0.7, STEPS).outputs(x, batch()), softmax(x["logits"]), **CLOSE)
    assert float(domains.get(method, lambda: told(p))()) > 0.01


@pytest.mark.parametrize("method", ["dann", "cdan"])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_the_features_learn_against_the_discriminator(method, count):
    """By a strength that rises; the discriminator itself, and the classifier, as if nothing were reversed."""
    p = parameters()
    found = gradients(Adaptation(method, 0.7, STEPS), p, count)
    ordinary, own = jax.grad(told)(p), jax.grad(classes)(p)
    strength = 2 / (1 + np.exp(-10 * count / STEPS)) - 1  # Ganin et al. 2016, eq. 14
    for name in ("inner", "outer"):
        near(found[name], 0.7 * ordinary[name])
    for name in ("source", "target"):
        near(found[name], -0.7 * strength * ordinary[name] + own[name])
    near(found["classifier"], own["classifier"])
    assert np.abs(ordinary["target"]).max() > 1e-3


def test_adda_teaches_the_target_to_be_taken_for_the_source():
    p = parameters()
    found = gradients(Adaptation("adda", 0.7, STEPS), p)
    ordinary = jax.grad(told)(p)
    fooled = jax.grad(lambda p: mean(discrepancy.binary_cross_entropy(tell(p, p["target"]), jnp.ones(B))))(p)
    for name in ("inner", "outer"):
        near(found[name], 0.7 * ordinary[name])
    near(found["target"], 0.7 * fooled["target"])
    assert not np.asarray(found["source"]).any()  # the source's own network stays
    assert not np.asarray(found["classifier"]).any()


@pytest.mark.parametrize("method", ["coral", "mmd"])
def test_discrepancies_draw_both_domains(method):
    p = parameters()
    found = gradients(Adaptation(method, 0.7, STEPS), p)
    apart = jax.grad(lambda p: getattr(discrepancy, method)(p["source"], p["target"], WEIGHTS, WEIGHTS))(p)
    own = jax.grad(classes)(p)
    for name in p:
        near(found[name], 0.7 * apart[name] + own[name])
    assert np.abs(apart["target"]).max() > 1e-4


@pytest.mark.parametrize("method", ["dann", "adda"])
def test_gradients_of_the_discriminator_by_finite_differences(method):
    """The value is the discriminator's own loss, so that its gradient is the slope of the value."""
    p, objective = parameters(), Adaptation(method, 1.0, STEPS)
    found = np.asarray(gradients(objective, p, 5)["outer"])
    for i in range(HIDDEN):
        ends = [objective.loss(network({**p, "outer": p["outer"].at[i].add(step)}), batch(), jnp.int32(5))
                for step in (0.01, -0.01)]  # fmt: skip
        assert found[i] == pytest.approx(float(ends[0] - ends[1]) / 0.02, rel=1e-3)  # of float32 values near 1


@pytest.mark.parametrize("method", PAIRED)
def test_pairs_that_pad_have_no_influence(method):
    p, objective = parameters(), Adaptation(method, 0.7, STEPS)
    padding = (WEIGHTS == 0)[:, None]
    other = {**p, **{name: jnp.where(padding, 50.0 - p[name], p[name]) for name in ("source", "target")}}
    values = [objective.loss(network(which), batch(), jnp.int32(5)) for which in (p, other)]
    assert float(values[0]) == float(values[1])
    found = [gradients(objective, which, 5) for which in (p, other)]
    for name in p:
        np.testing.assert_array_equal(found[0][name], found[1][name], err_msg=name)
    for name in ("source", "target"):
        assert not np.asarray(found[0][name])[WEIGHTS == 0].any()
    everything = gradients(objective, p, 5, np.ones(B, np.float32))
    assert np.asarray(everything["target"])[WEIGHTS == 0].any()


class Logits:
    """A network behind the contract: the pairs come as inputs, and are parameters of `network` here."""

    def run(self, params, x, start=0, stop=None, train=False, key=None):
        return x if stop == 0 else network({**params, **x})


def step(objective, accumulate):
    p = {name: value for name, value in parameters().items() if name in ("classifier", "inner", "outer")}
    plan = FreezePlan(dict.fromkeys(p, "body"), {"body": 1.0}, 0)
    made = make_train_step(Logits(), plan, optax.sgd(1.0), optax.constant_schedule(1.0), objective=objective,
                           accumulate=accumulate)  # fmt: skip
    whole = {**batch(), "weights": WEIGHTS, "inputs": {name: parameters()[name] for name in ("source", "target")}}
    grads, metrics, _ = made.gradient(p, {}, {}, jnp.int32(5), jax.random.key(0), whole)
    return grads, metrics


@pytest.mark.parametrize("method", PAIRED)
@pytest.mark.parametrize("k", [2, 4])
def test_micro_batches_have_the_classification_of_the_batch(method, k):
    (one, metrics), (many, metrics_many) = (step(Adaptation(method, 0.7, STEPS), count) for count in (1, k))
    near(many["classifier"], one["classifier"])
    assert float(metrics["weight"]) == float(metrics_many["weight"]) == WEIGHTS.sum()
    assert np.asarray(one["classifier"]).any() == (method != "adda")
    if method in ADVERSARIAL:  # means over pairs are added up as the classes' are; discrepancies are of a micro-batch
        near(metrics_many["loss"], metrics["loss"])
        for name in ("inner", "outer"):
            near(many[name], one[name])
