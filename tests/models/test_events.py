"""Event models: embeddings and heads by hand, causality, padding, packed rows, and strategies at work on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax import models, trees
from tljax.config import OptimConfig
from tljax.models import events
from tljax.train.objectives import CLASSIFICATION, Prediction
from tljax.train.optim import make, schedule
from tljax.train.state import create
from tljax.train.step import make_train_step
from tljax.transfer import adapters, freeze
from tljax.transfer.adapters import Adapter

B, T, D, LAYERS, CLASSES = 3, 7, 64, 2, 4
SIZES = {"kind": 6, "amount": 9, "shop": 400, "gap": 5}
NUMBERS = ("amount", "gap")
FIELDS = [[name, size, name in NUMBERS] for name, size in SIZES.items()]
LENGTHS = np.array([7, 1, 4])
CONFIG = {"model_type": "tljax_events", "n_embd": D, "n_head": 4, "n_layer": LAYERS, "n_inner": 96, "n_positions": 16,
          "fields": FIELDS, "foretold": ["kind", "gap"], "item": "shop"}  # fmt: skip
ANSWERS = {  # -> how many labels, shape of the logits
    "each": (CLASSES, (B, T, CLASSES)),
    "last": (CLASSES, (B, CLASSES)),
    "next": (0, (B, T, SIZES["kind"] + SIZES["gap"])),
    "item": (0, (B, T, SIZES["shop"])),
}


def made(answers: str = "each", **changes):
    """(network, flat parameters of a size at which all of them matter)."""
    network = models.build({**CONFIG, "answers": answers, **changes}, num_labels=ANSWERS[answers][0])
    rng = np.random.default_rng(1)
    return network, {path: jnp.asarray(rng.normal(0, 0.2, leaf.shape) + path.endswith("/scale"), leaf.dtype)
                     for path, leaf in sorted(network.shapes().items())}  # fmt: skip


def batch(rows: int = B, seed: int = 0, places: int = T) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = {name: rng.integers(1, size, (rows, places)).astype(np.int32) for name, size in SIZES.items()}
    x |= {events.number(name): rng.normal(size=(rows, places)).astype(np.float32) for name in NUMBERS}
    return x | {"attention_mask": (np.arange(places)[None] < np.resize(LENGTHS, rows)[:, None]).astype(np.int32)}


REAL = batch()["attention_mask"] != 0


def run(network, flat, x, start: int = 0, stop: int | None = None):
    return jax.jit(network.run, static_argnums=(2, 3))(trees.unflatten(flat), x, start, stop)


def test_shapes_of_parameters():
    network, flat = made("each")
    own = {path.removeprefix("transformer/"): leaf.shape for path, leaf in flat.items()
           if not path.startswith("transformer/h/")}  # fmt: skip
    assert own == {"wpe/embedding": (16, D), "ln_f/scale": (D,), "ln_f/bias": (D,), "score/kernel": (D, CLASSES),
                   "score/bias": (CLASSES,), "numbers/kernel": (len(NUMBERS), D), "numbers/bias": (D,),
                   **{f"fields/{name}/embedding": (size, D) for name, size in SIZES.items()}}  # fmt: skip
    assert flat["transformer/h/0/mlp/c_fc/kernel"].shape == (D, 96)
    assert network.stage_names == ("embeddings", "layer_0", "layer_1", "norm", "head")
    assert network.shapes().keys() == {p for stage in network.stages for p in flat if stage.owns(p)}
    heads = {kind: sorted(path for path in made(kind)[1] if not path.startswith("transformer/")) for kind in ANSWERS}
    assert heads == {"each": ["score/bias", "score/kernel"], "last": ["score/bias", "score/kernel"],
                     "next": ["next/bias", "next/kernel"], "item": ["item_head/bias"]}  # fmt: skip


def test_without_numbers_there_is_no_map_of_them():
    network, flat = made(fields=[["kind", 6, False]], foretold=[])
    assert not any("numbers" in path for path in flat)
    x = {name: batch()[name] for name in ("kind", "attention_mask")}
    assert run(network, flat, x)["logits"].shape == (B, T, CLASSES)


def test_the_embedding_of_an_event_is_a_sum():
    network, flat = made()
    x = batch()
    expected = np.tile(np.asarray(flat["transformer/wpe/embedding"], np.float64)[:T], (B, 1, 1))
    for name in SIZES:
        table = np.asarray(flat[f"transformer/fields/{name}/embedding"], np.float64)
        if name in NUMBERS:  # a bin's row is a step from the one below; padding and unknown are none
            table = np.concatenate([table[:2], np.cumsum(table[2:], axis=0)])
        expected += table[x[name]]
    for row, name in enumerate(NUMBERS):
        expected += x[f"{name}.number"][:, :, None] * np.asarray(flat["transformer/numbers/kernel"])[row]
    expected += np.asarray(flat["transformer/numbers/bias"])
    np.testing.assert_allclose(run(network, flat, x, 0, 1)["hidden"], expected, atol=1e-5)  # float32 of values near 1


def test_the_trunk_is_gpt2s():
    network, flat = made()
    shared = {name: CONFIG[name] for name in ("n_embd", "n_head", "n_layer", "n_inner", "n_positions")}
    plain = models.build({"model_type": "gpt2", "vocab_size": 5, **shared}, num_labels=CLASSES)
    embedded = run(network, flat, batch(), 0, 1)
    top = network.index("norm") + 1
    own = {path: leaf for path, leaf in flat.items() if path in plain.shapes()}
    assert {path for path in plain.shapes() if path.startswith(("transformer/h/", "transformer/ln_f/"))} <= own.keys()
    expected, found = (
        plain.run(trees.unflatten(own), embedded, 1, top),
        network.run(trees.unflatten(flat), embedded, 1, top),
    )
    for name in ("pooled", "last_hidden_state"):
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("answers", ANSWERS)
def test_the_answers_by_hand(answers):
    network, flat = made(answers)
    found = run(network, flat, batch())
    assert (found["logits"].shape, found["logits"].dtype) == (ANSWERS[answers][1], jnp.float32)
    hidden = np.asarray(found["last_hidden_state"], np.float64)
    if answers == "item":
        expected = hidden @ np.asarray(flat["transformer/fields/shop/embedding"]).T + np.asarray(flat["item_head/bias"])
    else:
        head = "next" if answers == "next" else "score"
        read = hidden[np.arange(B), LENGTHS - 1] if answers == "last" else hidden
        expected = read @ np.asarray(flat[f"{head}/kernel"]) + np.asarray(flat[f"{head}/bias"])
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-4)  # sums of 64 float32 products


@pytest.mark.parametrize("answers", ANSWERS)
def test_cut_at_every_stage(answers):
    network, flat = made(answers)
    x, count = batch(), len(network.stages)
    whole = run(network, flat, x)
    for k in range(count + 1):
        parts = run(network, flat, run(network, flat, x, 0, k), k, None)
        assert parts.keys() == whole.keys()
        for name in whole:
            np.testing.assert_array_equal(parts[name], whole[name], err_msg=f"cut at {k}: {name}")


@pytest.mark.parametrize("answers", ["each", "next", "item"])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_later_event_never_changes_what_came_before(answers, at):
    network, flat = made(answers)
    x, other = batch(), batch(seed=5)
    changed = {name: np.where(np.arange(T)[None] >= at, other[name], value) for name, value in x.items()}
    changed["attention_mask"] = x["attention_mask"]
    before, after = (np.asarray(run(network, flat, given)["logits"]) for given in (x, changed))
    np.testing.assert_array_equal(before[:, :at], after[:, :at])
    assert np.abs(before[0, at:] - after[0, at:]).max() > 1e-2
    past = {**x, "kind": np.where(np.arange(T)[None] < at, other["kind"], x["kind"])}
    assert np.abs(np.asarray(run(network, flat, past)["logits"])[0, at:] - before[0, at:]).max() > 1e-3


@pytest.mark.parametrize("answers", ANSWERS)
def test_padding_never_matters(answers):
    network, flat = made(answers)
    x, other = batch(), batch(seed=5)
    filled = {name: np.where(REAL, value, other[name]) for name, value in x.items() if name != "attention_mask"}
    filled["attention_mask"] = x["attention_mask"]
    wider = {name: np.pad(value, ((0, 0), (0, 3))) for name, value in x.items()}
    logits = [np.asarray(run(network, flat, given)["logits"]) for given in (x, filled, wider)]
    if answers != "last":
        logits = [found[:, :T][REAL] for found in logits]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_allclose(logits[0], logits[2], rtol=1e-4, atol=1e-4)  # sums over rows of another length


@pytest.mark.parametrize("name", [*SIZES, *map(events.number, NUMBERS)])
def test_every_field_and_every_number_counts(name):
    network, flat = made()
    x = batch()
    changed = {**x, name: x[name] + 1 if "." in name else np.where(x[name] == 1, 2, 1).astype(np.int32)}
    before, after = (np.asarray(run(network, flat, given)["logits"]) for given in (x, changed))
    assert (np.abs(before - after).max(axis=-1)[REAL] > 1e-4).all()


def test_several_sequences_in_a_row_keep_to_themselves():
    """As transfer/packing.py makes such rows, all stages but the upper two."""
    network, flat = made()
    x, top = batch(), len(network.stages) - 2
    alone = np.asarray(run(network, flat, x, 0, top)["hidden"])
    at = [(row, place) for row in (1, 2, 0) for place in range(LENGTHS[row])]
    rows, places = np.array(at).T
    number = rows[None, :, None] == rows[None, None, :]
    packed = {name: value[rows, places][None] for name, value in x.items()}
    packed |= {"attention_mask": number.astype(np.int32), "position_ids": places[None].astype(np.int32)}
    together = np.asarray(run(network, flat, packed, 0, top)["hidden"])[0]
    np.testing.assert_allclose(together, alone[rows, places], rtol=1e-4, atol=1e-4)  # sums over longer rows
    assert network.packs


def test_dropout_is_that_of_the_settings():
    x = batch()
    for rate, same in ((0.0, True), (0.5, False)):
        network = models.build({**CONFIG, "answers": "each"}, num_labels=CLASSES, dropout=rate)
        params = trees.unflatten(made()[1])
        one, two = (np.asarray(network.run(params, x, train=True, key=jax.random.key(i))["logits"]) for i in (0, 1))
        assert np.array_equal(one, two) == same


def training(network, flat, plan, objective, labels):
    settings = OptimConfig(learning_rate=0.01, warmup_fraction=0.0, weight_decay=0.0)
    rule = make(settings, plan, 10)
    step = make_train_step(network, plan, rule, schedule(settings, 10), objective=objective)
    state = create(trees.unflatten(flat), plan, rule, jax.random.key(0))
    asked = batch()["attention_mask"].astype(np.float32)
    return step, state, {"inputs": batch(), "labels": labels, "weights": asked}


def labels_of(*sizes: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    drawn = np.stack([rng.integers(0, size, (B, T)) for size in sizes], axis=-1).astype(np.int32)
    return drawn[..., 0] if len(sizes) == 1 else drawn


FROZEN = [
    # strategy, options, how paths of what trains begin
    ("feature_extraction", {}, ("score/",)),
    ("last_k", {"k": 1}, ("score/", "transformer/ln_f/", "transformer/h/1/")),
    ("last_k", {"k": 2}, ("score/", "transformer/ln_f/", "transformer/h/")),
    ("embeddings_frozen", {}, ("score/", "transformer/ln_f/", "transformer/h/")),
    ("full", {}, ("score/", "transformer/")),
]


@pytest.mark.parametrize(("strategy", "options", "begins"), FROZEN, ids=[f"{r[0]} {r[1]}" for r in FROZEN])
def test_what_trains_moves_and_the_rest_stays(strategy, options, begins):
    network, flat = made(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    plan = freeze.plan(network, strategy, **options)
    assert {path for path in flat if plan.trains(path)} == {path for path in flat if path.startswith(begins)}
    step, state, given = training(network, flat, plan, CLASSIFICATION, labels_of(CLASSES))
    before = trees.digests(flat)
    losses = []
    for _ in range(3):
        state, metrics = step(state, given)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    after = trees.digests(trees.join(state.trainable, state.frozen))
    moved = {path for path in flat if before[path] != after[path]}
    assert moved <= {path for path in flat if path.startswith(begins)}
    assert {path for path in flat if path.startswith(begins) and path.endswith("/kernel")} <= moved


@pytest.mark.parametrize("answers", ["each", "next"])
def test_the_gradient_of_a_large_table_comes_as_the_rows_that_were_read(answers):
    """21 ids of 400: the train step differentiates rows, and the gradient is that of the table."""
    network, flat = made(answers, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    objective, labels = (CLASSIFICATION, labels_of(CLASSES)) if answers == "each" else (
        Prediction((SIZES["kind"], SIZES["gap"])), labels_of(SIZES["kind"], SIZES["gap"]))  # fmt: skip
    step, state, given = training(network, flat, freeze.plan(network, "full"), objective, labels)
    found, metrics, _ = step.gradient(state.trainable, {}, {}, state.step, state.key, given)

    def loss(flat):
        x = network.run(trees.unflatten(flat), given["inputs"])
        return objective.loss(x, given, jnp.int32(0)) / given["weights"].sum()

    value, expected = jax.jit(jax.value_and_grad(loss))(flat)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-6)
    table = "transformer/fields/shop/embedding"
    assert not isinstance(found[table], jax.Array)
    dense = {path: grad if isinstance(grad, jax.Array) else grad.dense() for path, grad in found.items()}
    for path in expected:
        np.testing.assert_allclose(dense[path], expected[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_table_that_scores_items_is_no_lookup():
    """Nor one of bins, of which each row is in all that are above it."""
    assert made("item")[0].lookups == (("transformer/fields/kind/embedding", "kind"),)
    assert [name for _, name in made("next")[0].lookups] == ["kind", "shop"]


@pytest.mark.parametrize("kind", ["lora", "ia3", "bottleneck", "prefix"])
def test_adapters_change_nothing_at_first_and_then_train_alone(kind):
    network, flat = made(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    grafted = adapters.adapted(network, Adapter(kind, rank=4), "tljax_events")
    params = trees.flatten(adapters.start(grafted, trees.unflatten(flat), jax.random.key(0)))
    if kind != "prefix":
        np.testing.assert_array_equal(run(grafted, params, batch())["logits"], run(network, flat, batch())["logits"])
    plan = freeze.plan(grafted, kind)
    assert {path for path in flat if plan.trains(path)} == {"score/kernel", "score/bias"}
    step, state, given = training(grafted, params, plan, CLASSIFICATION, labels_of(CLASSES))
    for _ in range(3):
        state, _ = step(state, given)
    now = trees.join(state.trainable, state.frozen)
    before, after = trees.digests(params), trees.digests(now)
    moved = {path for path in params if before[path] != after[path]} - {"score/kernel", "score/bias"}
    assert moved
    assert not moved & flat.keys()
    if kind in ("lora", "ia3"):
        merged = trees.flatten(adapters.merge(grafted, trees.unflatten(now)))
        assert merged.keys() == flat.keys()
        np.testing.assert_allclose(run(network, merged, batch())["logits"], run(grafted, now, batch())["logits"],
                                   rtol=1e-4, atol=1e-4)  # products in another order  # fmt: skip


def test_lora_is_on_the_projection_of_every_attention():
    grafted = adapters.adapted(made()[0], Adapter("lora", rank=4), "tljax_events")
    assert [site.path for site in grafted.sites] == [
        f"transformer/h/{i}/attn/c_attn/kernel" for i in range(LAYERS)]  # fmt: skip
