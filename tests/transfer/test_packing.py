"""Packing: each text once, no row too long, few rows and one shape; and arrays from which the texts come back."""

import numpy as np
import pytest

from tljax.transfer import packing

RNG = np.random.default_rng(0)
CASES = {
    "one": (np.array([5]), 1, 100),
    "equal": (np.full(50, 33), 1, 200),
    "short": (RNG.integers(1, 34, 500), 3, 704),
    "long tail": (np.clip(np.exp(RNG.normal(4, 0.8, 2000)), 8, 512).astype(int), 2, 64 * 74),
    "a row longer than a batch": (np.array([512, 3, 4, 500, 64, 65]), 1, 100),
    "a group without long ones": (np.concatenate([np.full(40, 300), np.full(40, 7)]), 2, 900),
}


def grouped(lengths, groups):
    return np.array_split(np.arange(len(lengths)), groups)


@pytest.mark.parametrize("name", CASES)
def test_each_text_once_in_rows_that_hold_it(name):
    lengths, groups, tokens = CASES[name]
    shapes = {}
    for group, packs in zip(
        grouped(lengths, groups), packing.plan(lengths, grouped(lengths, groups), tokens), strict=True
    ):
        assert sorted(np.concatenate([pack.texts for pack in packs])) == list(group)
        for pack in packs:
            rows, length, texts = pack.shape
            assert shapes.setdefault(length, pack.shape) == pack.shape, "one program for a length of rows"
            assert len(pack.rows) <= rows
            assert len(pack.texts) <= texts
            assert all(lengths[row].sum() <= length for row in pack.rows)
            assert rows * length <= max(tokens, length)
    assert len(shapes) <= len(packing.row_lengths(int(lengths.max())))


@pytest.mark.parametrize("name", ["short", "long tail"])
def test_little_is_padding(name):
    """One batch of each length and group may be partial, which is most of it; buckets leave 25 % and 42 % here."""
    lengths, groups, tokens = CASES[name]
    packs = [pack for some in packing.plan(lengths, grouped(lengths, groups), tokens) for pack in some]
    assert sum(pack.shape[0] * pack.shape[1] for pack in packs) / lengths.sum() - 1 < 0.09


def test_the_plan_is_a_function_of_its_arguments():
    lengths, groups, tokens = CASES["short"]
    one, two = (packing.plan(lengths, grouped(lengths, groups), tokens) for _ in range(2))
    assert [[row.tolist() for pack in packs for row in pack.rows] for packs in one] == [
        [row.tolist() for pack in packs for row in pack.rows] for packs in two]  # fmt: skip


def test_texts_come_back_from_the_rows():
    lengths = np.array([3, 1, 4, 2])
    pack = packing.Pack((np.array([0, 1]), np.array([2])), (3, 5, 4))
    ids = np.array([[11, 12, 13, 0, 0], [21, 0, 0, 0, 0], [31, 32, 33, 34, 0]], np.int32)
    halves = (ids / 2).astype(np.float32)  # the numbers of events
    made, at = packing.packed({"input_ids": ids, "halves": halves}, lengths[pack.texts], pack)
    assert made["input_ids"].tolist() == [[11, 12, 13, 21, 0], [31, 32, 33, 34, 0], [0] * 5]
    assert made["position_ids"].tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 0], [0] * 5]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 2, 0], [1, 1, 1, 1, 0], [0] * 5]
    assert at.tolist() == [[0, 1, 2, -1, -1], [3, -1, -1, -1, -1], [5, 6, 7, 8, -1], [-1] * 5]
    assert made["halves"].tolist() == [[5.5, 6, 6.5, 10.5, 0], [15.5, 16, 16.5, 17, 0], [0] * 5]
    assert {name: value.dtype.name for name, value in made.items()} == {
        **dict.fromkeys(("input_ids", "position_ids", "attention_mask"), "int32"), "halves": "float32"}  # fmt: skip
