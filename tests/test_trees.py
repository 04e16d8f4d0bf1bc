"""Nested dicts and their flat names: inverses of each other, rules that match, digests that tell one bit."""

import random

import jax.numpy as jnp
import numpy as np
import pytest

from tljax import trees
from tljax.errors import ConfigError

PAIRS = [
    ("empty", {}, {}),
    ("one leaf", {"a": 1}, {"a": 1}),
    ("sorted", {"b": 1, "a": {"y": 2, "x": 3}}, {"a/x": 3, "a/y": 2, "b": 1}),
    ("deep", {"a": {"b": {"c": {"d": 0}}}}, {"a/b/c/d": 0}),
    ("digits sort as text", {"layer": {"10": 1, "2": 2}}, {"layer/10": 1, "layer/2": 2}),
    ("one name on two levels", {"a": {"a": {"a": 1}, "b": 2}}, {"a/a/a": 1, "a/b": 2}),
]


@pytest.mark.parametrize(("tree", "flat"), [row[1:] for row in PAIRS], ids=[row[0] for row in PAIRS])
def test_flatten_and_unflatten_are_inverses(tree, flat):
    assert trees.flatten(tree) == flat
    assert list(trees.flatten(tree)) == list(flat)  # in this order
    assert trees.unflatten(flat) == tree


def test_flatten_leaves_empty_nodes_out():
    assert trees.flatten({"a": {}, "b": 1}) == {"b": 1}


@pytest.mark.parametrize(("path", "expected"), [
    ("", {"a": {"b": {"c": 1}}, "d": {"e": 2}}), ("a", {"b": {"c": 1}}), ("a/b", {"c": 1}), ("x", {}), ("a/x/y", {}),
])  # fmt: skip
def test_subtree(path, expected):
    assert trees.subtree({"a": {"b": {"c": 1}}, "d": {"e": 2}}, path) == expected


def test_partition_and_join_are_inverses():
    rng = random.Random(0)
    for _ in range(50):
        flat = {f"{rng.choice('abc')}/{i:03}": i for i in range(rng.randint(0, 20))}
        chosen = {path for path in flat if rng.random() < 0.5}
        kept, rest = trees.partition(flat, lambda path, chosen=chosen: path in chosen)
        assert set(kept) == chosen
        assert not kept.keys() & rest.keys()
        joined = trees.join(kept, rest)
        assert joined == flat
        assert list(joined) == sorted(flat)


def test_join_refuses_a_name_that_stands_twice_and_says_which():
    with pytest.raises(ValueError, match=r"\['b'\] stand in more than one part"):
        trees.join({"a": 1, "b": 2}, {"c": 1}, {"b": 2})


NAMES = ["head/bias", "head/kernel", "layer/0/kernel", "layer/1/kernel"]
MATCHES = [
    ("one for all", [(".*", 1)], [1, 1, 1, 1]),
    ("the first wins", [(".*/bias", 0), ("head/.*", 1), (".*", 2)], [0, 1, 2, 2]),
    ("values may repeat", [("head/.*", 0), ("layer/1/.*", 0), (".*", 2)], [0, 0, 2, 0]),
]


@pytest.mark.parametrize(("rules", "expected"), [row[1:] for row in MATCHES], ids=[row[0] for row in MATCHES])
def test_match(rules, expected):
    assert trees.match(rules, NAMES) == dict(zip(NAMES, expected, strict=True))


REFUSED = [
    ("part of a name is no match", [("head", 1), (".*", 2)], ["head: matches no name of its own"]),
    ("start of a name is no match", [("head/b", 1), (".*", 2)], ["head/b: matches no name of its own"]),
    ("hidden by an earlier rule", [(".*", 1), ("head/bias", 2)], ["head/bias: matches no name of its own"]),
    ("twice", [("head/.*", 1), ("head/.*", 2), (".*", 3)], ["head/.*: matches no name of its own"]),
    ("not covered", [("head/.*", 1)],
     ["layer/0/kernel: no pattern matches", "layer/1/kernel: no pattern matches"]),
    ("both, at once", [("head/.*", 1), ("layer/0/.*", 1), ("pooler/.*", 1)],
     ["layer/1/kernel: no pattern matches", "pooler/.*: matches no name of its own"]),
    ("no rules", [], [f"{name}: no pattern matches" for name in NAMES]),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "details"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_match_lists_what_is_not_covered_and_what_is_idle(rules, details):
    with pytest.raises(ConfigError) as caught:
        trees.match(rules, NAMES, "--the.table")
    assert caught.value.details == tuple(details)
    assert caught.value.where == "--the.table"


def test_match_names_a_pattern_that_is_no_regular_expression():
    with pytest.raises(ConfigError, match=r"pattern '\(' is no regular expression"):
        trees.match([("(", 1)], NAMES)


FLAT = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.int32), "c": jnp.zeros((0, 4), jnp.bfloat16),
        "d": jnp.ones((5,), jnp.bfloat16)}  # fmt: skip


def test_count_and_nbytes():
    assert trees.count(FLAT) == 6 + 1 + 0 + 5
    assert trees.nbytes(FLAT) == 24 + 4 + 0 + 10
    assert (trees.count({}), trees.nbytes({})) == (0, 0)


def test_a_digest_tells_every_bit_the_shape_and_the_dtype():
    array = np.arange(6, dtype=np.float32)
    others = [
        array.reshape(2, 3),
        array.reshape(3, 2),
        array.view(np.int32),
        array.view(np.uint32),
        array[:5],
        array * -0.0,
    ]
    for byte in range(array.nbytes):
        for bit in range(8):
            flipped = array.copy()
            flipped.view(np.uint8)[byte] ^= 1 << bit
            others.append(flipped)
    digests = [trees.digest(array), *map(trees.digest, others)]
    assert len(set(digests)) == len(digests)


def test_a_digest_sees_the_values_and_not_where_they_lie():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    same = (
        array.copy(),
        np.asfortranarray(array),
        np.arange(24, dtype=np.float32)[::2].reshape(3, 4) / 2,
        jnp.array(array),
    )
    assert {trees.digest(a) for a in same} == {trees.digest(array)}
    assert trees.digest(np.array(0.0)) != trees.digest(np.array(-0.0))


def test_combined_is_independent_of_order_and_of_nothing_else():
    parts = trees.digests(FLAT)
    assert trees.combined(parts) == trees.combined(dict(reversed(parts.items())))
    assert trees.combined(parts) != trees.combined({**parts, "a": parts["b"]})
    assert trees.combined(parts) != trees.combined({"z" if k == "a" else k: v for k, v in parts.items()})
