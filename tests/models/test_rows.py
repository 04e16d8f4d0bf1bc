"""Rows in place of a table: what is read, what is differentiated, and that a step comes to the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import batch_of, make_case

from tljax.models import rows
from tljax.transfer import freeze

TABLE = jnp.arange(64.0).reshape(32, 2) + 1
IDS = jnp.array([[3, 3], [31, 0]])
WORDS = "bert/embeddings/word_embeddings/embedding"


def test_rows_are_those_of_the_table():
    read = rows.read(TABLE, IDS)
    np.testing.assert_array_equal(read.take(IDS), TABLE[IDS])
    assert np.isnan(read.take(jnp.array([5, -2, 32]))).all()  # not asked for: loud, and not another row


def test_dense_is_the_table_where_ids_pointed():
    expected = np.zeros(TABLE.shape)
    expected[[0, 3, 31]] = np.asarray(TABLE)[[0, 3, 31]]
    read = rows.read(TABLE, IDS)
    np.testing.assert_array_equal(read.dense(), expected)
    padded = rows.Rows(read.values[:3], read.place).padded()
    assert padded.values.shape == (4, 2)
    assert not padded.values[3].any()


def test_the_gradient_is_that_of_the_table():
    """Equal ids add up, and ids that do not occur have a gradient of zero."""
    weights = jnp.array([[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]])
    read = rows.read(TABLE, IDS)
    values = jax.grad(lambda v: (rows.Rows(v, read.place).take(IDS) ** 2 * weights).sum())(read.values)
    table = jax.grad(lambda t: (t[IDS] ** 2 * weights).sum())(TABLE)
    np.testing.assert_array_equal(rows.Rows(values, read.place).dense(), table)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_comes_to_the_same(accumulate):
    case = make_case("bert", "full", dropout=0.1)
    batch, now = batch_of("bert", 8), case.state()
    whole = dataclasses.replace(case, backbone=dataclasses.replace(case.backbone, lookups=()))
    step, reference = case.step(accumulate=accumulate), whole.step(accumulate=accumulate)
    found, said, _ = step.gradient(now.trainable, now.frozen, now.batch_stats, now.step, now.key, batch)
    expected, same, _ = reference.gradient(now.trainable, now.frozen, now.batch_stats, now.step, now.key, batch)
    assert [path for path in found if isinstance(found[path], rows.Rows)] == [WORDS]
    for path, value in expected.items():
        mine = found[path].dense() if path == WORDS else found[path]
        np.testing.assert_array_equal(mine, value, err_msg=path)
    # the norm adds the same squares in another order
    np.testing.assert_allclose(said["grad_norm"], same["grad_norm"], rtol=1e-6)
    after, expected_after = step(case.state(), batch)[0], reference(case.state(), batch)[0]
    for path, value in expected_after.trainable.items():  # a product and a sum may be rounded once or twice
        np.testing.assert_allclose(after.trainable[path], value, rtol=0, atol=1e-7, err_msg=path)


def test_no_buffer_of_the_tables_size():
    """What the gradient program gives back is smaller than the table alone, where the batch reads an eighth of it."""
    case = make_case("bert", "full")
    alone = freeze.plan(case.backbone, "custom", rules=((WORDS, "body"), (".*", "frozen")))
    case = dataclasses.replace(case, plan=alone)
    now = case.state()
    compiled = (
        case.step()
        .gradient.lower(now.trainable, now.frozen, now.batch_stats, now.step, now.key, batch_of("bert", 8))
        .compile()
    )
    assert compiled.memory_analysis().output_size_in_bytes < now.trainable[WORDS].nbytes / 4


def test_a_batch_that_reads_much_of_the_table_differentiates_it():
    case = make_case("bert", "full")
    now = case.state()
    found, _, _ = case.step().gradient(
        now.trainable, now.frozen, now.batch_stats, now.step, now.key, batch_of("bert", 16)
    )
    assert not isinstance(found[WORDS], rows.Rows)
