"""Blended weights: ends and order to the bit, against the plain mean, and the greedy soup against its own score."""

import itertools
import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tljax import trees
from tljax.errors import ConfigError, DivergedError, WeightsError
from tljax.models.kernels import Quantised
from tljax.transfer import blend

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def weights(seed: int, dtype=np.float32) -> trees.Flat:
    random = np.random.default_rng(seed)
    shapes = {"b/kernel": (3, 4), "a/bias": (5,), "scale": (), "empty": (0, 2)}
    return {path: np.asarray(random.normal(size=shape) * 10.0 ** random.integers(-3, 4), dtype)
            for path, shape in shapes.items()}  # fmt: skip


def same(found: trees.Flat, wanted: trees.Flat) -> bool:
    return list(found) == sorted(wanted) and trees.digests(found) == trees.digests(dict(sorted(wanted.items())))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ends_are_bit_identical(dtype):
    start, end = weights(0, dtype), weights(1, dtype)
    start["a/bias"][:3], end["a/bias"][:3] = (-0.0, np.inf, np.nan), (0.0, -np.inf, 1)
    assert same(blend.interpolated(start, end, 0), start)
    assert same(blend.interpolated(start, end, 1.0), end)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_between(dtype, alpha):
    start, end = weights(0, dtype), weights(1, dtype)
    found = blend.interpolated(start, end, alpha)
    for path in start:
        a, b = (np.asarray(flat[path], np.float64) for flat in (start, end))
        np.testing.assert_array_equal(found[path], ((1 - alpha) * a + alpha * b).astype(dtype), path)
        assert found[path].dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("alpha", [0.1, 1 / 3, 0.7, 0.999])
def test_what_training_left_alone_stays_as_it_is(dtype, alpha):
    kept = weights(0, dtype)
    info = ml_dtypes.finfo(dtype)
    kept["a/bias"][:] = -0.0, info.max, info.min, info.smallest_subnormal, info.smallest_normal
    assert same(blend.interpolated(kept, dict(kept), alpha), kept)
    assert same(blend.averaged([kept] * 7), kept)


@pytest.mark.parametrize("dtype", DTYPES[:2])  # 1e16 is no float16; narrower sums are exact in float64 anyway
def test_the_mean_does_not_depend_on_the_order(dtype):
    models = [weights(seed, dtype) for seed in range(4)]
    for model, value in zip(models, (1e16, 1.0, -1e16, 3.0), strict=True):  # added as they stand, small ones get lost
        model["scale"] = np.asarray(value, dtype)
    found = [blend.averaged(order) for order in itertools.permutations(models)]
    assert all(same(other, found[0]) for other in found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_mean_is_that_of_the_exact_sum(dtype, count):
    models = [weights(seed, dtype) for seed in range(count)]
    for path, mean in blend.averaged(models).items():
        rows = zip(*(np.asarray(model[path], np.float64).ravel().tolist() for model in models), strict=True)
        exact = np.asarray([math.fsum(row) / count for row in rows], np.float64).reshape(mean.shape)
        assert mean.dtype == dtype
        # float64 has no digits to spare for the sum of others of its kind; for narrower ones it is as good as exact
        np.testing.assert_allclose(mean.astype(np.float64), exact.astype(dtype).astype(np.float64),
                                   rtol=1e-13 if dtype == np.float64 else 0)  # fmt: skip


def test_leaves_larger_than_a_block(monkeypatch):
    whole = [blend.averaged([weights(0), weights(1)]), blend.interpolated(weights(0), weights(1), 0.3)]
    monkeypatch.setattr(blend, "BLOCK", 5)  # 12 numbers of a kernel: blocks of 5, 5 and 2
    parts = [blend.averaged([weights(0), weights(1)]), blend.interpolated(weights(0), weights(1), 0.3)]
    assert all(same(part, one) for part, one in zip(parts, whole, strict=True))


def test_arrays_of_jax_are_taken_and_nothing_given_changes():
    given = [{path: jnp.asarray(leaf) for path, leaf in weights(seed).items()} for seed in (0, 1)]
    assert same(blend.interpolated(*given, 0.25), blend.interpolated(weights(0), weights(1), 0.25))
    assert same(blend.averaged(given), blend.averaged([weights(0), weights(1)]))
    first, second = weights(0), weights(1)
    blend.interpolated(first, second, 0.25)
    blend.averaged([first, second])
    assert trees.digests(first) == trees.digests(weights(0))
    assert trees.digests(second) == trees.digests(weights(1))


F, N = np.zeros(3, np.float32), np.zeros(3, np.int32)
PACKED = Quantised(jnp.zeros((2, 3), jnp.int8), jnp.ones(3))
MISMATCHED = [  # (name, first, second, details)
    ("not shared", {"a": F, "b": F}, {"b": F, "c": F}, ["a: in {0}, not in {1}", "c: in {1}, not in {0}"]),
    ("shape", {"a": F}, {"a": F[:2]}, ["a: float32 (3,) in {0}, float32 (2,) in {1}"]),
    ("shape that would be broadcast", {"a": F}, {"a": F[:1]}, ["a: float32 (3,) in {0}, float32 (1,) in {1}"]),
    ("dtype", {"a": F}, {"a": F.astype(np.float16)}, ["a: float32 (3,) in {0}, float16 (3,) in {1}"]),
    ("integers", {"a": N, "b": F}, {"a": N, "b": F}, ["a: int32, expected floating numbers"]),
    ("complex numbers", {"a": F + 0j}, {"a": F + 0j}, ["a: complex64, expected floating numbers"]),
    ("quantised", {"a": PACKED}, {"a": PACKED}, ["a: int8, expected floating numbers"]),
    ("no array", {"a": None}, {"a": None}, ["a: NoneType, expected floating numbers"]),
    ("all at once", {"a": N, "b": F, "c": F}, {"b": F[:1], "a": N},
     ["a: int32, expected floating numbers", "c: in {0}, not in {1}", "b: float32 (3,) in {0}, float32 (1,) in {1}"]),
]  # fmt: skip
WAYS = [  # (names, blend two)
    (("pretrained", "finetuned"), lambda a, b: blend.interpolated(a, b, 0.5)),
    (("pretrained", "finetuned"), lambda a, b: blend.interpolated(a, b, 0)),
    (("model 0", "model 1"), lambda a, b: blend.averaged([a, b])),
    (("run 7", "run 8"), lambda a, b: blend.greedy([("run 7", a), ("run 8", b)], lambda flat: 0.0)),
]


@pytest.mark.parametrize(("names", "blended"), WAYS, ids=["between", "end", "mean", "greedy"])
@pytest.mark.parametrize(
    ("first", "second", "details"), [row[1:] for row in MISMATCHED], ids=[r[0] for r in MISMATCHED]
)
def test_mismatches_are_named_all_at_once(names, blended, first, second, details):
    with pytest.raises(WeightsError) as caught:
        blended(first, second)
    assert caught.value.details == tuple(detail.format(*names) for detail in details)
    assert str(caught.value).startswith(f"{names[0]} and {names[1]}: {len(details)} leaves cannot be blended")


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan])
def test_alpha_is_a_share(alpha):
    with pytest.raises(ConfigError, match=r"alpha: .*; expected 0 \(pretrained\) to 1 \(fine-tuned\)"):
        blend.interpolated({"a": F}, {"a": F}, alpha)


def test_a_soup_needs_models_with_names_of_their_own():
    with pytest.raises(ConfigError, match="soup: no model"):
        blend.averaged([])
    with pytest.raises(ConfigError, match="soup: no model"):
        blend.greedy([], lambda flat: 0.0)
    with pytest.raises(ConfigError, match="2 models with 1 names"):
        blend.greedy([("a", {"w": F}), ("a", {"w": F})], lambda flat: 0.0)


def at(x: float) -> trees.Flat:
    return {"w": np.array([x], np.float32)}


def nearness(target: float):
    return lambda flat: -abs(float(flat["w"][0]) - target)


GREEDY = [  # (name, models, where the score is best, taken, average)
    ("one", {"a": 3.0}, 0.0, ["a"], 3.0),
    ("both sides of the best", {"a": 1.0, "b": -1.0}, 0.25, ["a", "b"], 0.0),
    ("the second only harms", {"a": 0.5, "b": 9.0}, 0.0, ["a"], 0.5),
    ("by own score, not as given", {"far": 4.0, "near": 1.0, "other": -2.0}, 0.0, ["near", "other"], -0.5),
    ("equal does not fall", {"a": 2.0, "b": 2.0}, 0.0, ["a", "b"], 2.0),
    ("a worse one after one that harms", {"a": 1.0, "b": 2.0, "c": -3.0}, 0.0, ["a", "c"], -1.0),
]


@pytest.mark.parametrize(
    ("models", "target", "taken", "average"), [row[1:] for row in GREEDY], ids=[r[0] for r in GREEDY]
)
def test_greedy(models, target, taken, average):
    for order in itertools.permutations(models.items()):
        names, flat, found = blend.greedy([(name, at(x)) for name, x in order], nearness(target))
        assert (names, flat["w"].tolist(), found) == (taken, [average], nearness(target)(at(average)))


@pytest.mark.parametrize("seed", range(20))
def test_greedy_is_never_below_the_best_single_one(seed):
    random = np.random.default_rng(seed)
    models = [(f"m{i}", {"w": random.normal(size=8).astype(np.float32)}) for i in range(6)]
    direction, asked = random.normal(size=8), []

    def score(flat):
        asked.append(float(np.sin(3 * flat["w"] @ direction)))  # with many tops, so that an average is as often worse
        return asked[-1]

    singles = [score(flat) for _, flat in models]
    asked.clear()
    names, flat, found = blend.greedy(models, score)
    assert len(asked) <= 2 * len(models)
    assert found == score(flat) >= max(singles)
    assert names[0] == models[int(np.argmax(singles))][0]
    assert same(flat, blend.averaged([dict(models)[name] for name in names]))


def test_a_score_that_is_no_number_is_never_good_enough():
    def score(flat):
        return math.nan if flat["w"][0] > 5 else float(flat["w"][0])

    assert blend.greedy([("diverged", at(9.0)), ("a", at(4.0)), ("b", at(3.0))], score)[0] == ["a"]
    with pytest.raises(DivergedError, match="the scores of all 2 models are not numbers"):
        blend.greedy([("a", at(9.0)), ("b", at(8.0))], score)
