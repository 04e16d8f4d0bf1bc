"""Law 5: k micro-batches equal one batch, also when rows or tokens are masked."""

import numpy as np
import pytest
from cases import CLASSES, OBJECTIVES, batch_of, make_case

from tljax.train.objectives import Classification


@pytest.mark.parametrize(("k", "weighted"), [(2, False), (4, True)])
def test_micro_batches_equal_the_batch(pair, k, weighted):
    row, strategy = pair
    # SGD, because Adam divides rounding noise by itself; tolerance for another order of summation.
    case = make_case(row, strategy, name="sgd", dropout=0.0, clip_norm=0.1)
    batch = batch_of(row, 8)
    batch["weights"][[1, 6, 7]] = 0.0  # masked rows, unequal between the micro-batches
    weighted &= row not in OBJECTIVES
    options = {"objective": Classification(0.0, tuple(np.linspace(0.5, 2, CLASSES)))} if weighted else {}
    one, metrics_one = case.step(**options)(case.state(), batch)
    many, metrics_many = case.step(accumulate=k, **options)(case.state(), batch)
    assert float(metrics_many["loss"]) == pytest.approx(float(metrics_one["loss"]), rel=1e-6)
    for path in one.trainable:
        np.testing.assert_allclose(many.trainable[path], one.trainable[path], atol=2e-7, err_msg=path)


def test_masked_rows_do_not_matter(row):
    case = make_case(row, "full", name="sgd", dropout=0.0)
    batch = batch_of(row, 8)
    batch["weights"][4:] = 0.0
    other = batch_of(row, 8, seed=9)
    for name in batch["inputs"]:
        other["inputs"][name][:4] = batch["inputs"][name][:4]
    other["labels"][:4], other["weights"] = batch["labels"][:4], batch["weights"]
    a, b = case.step()(case.state(), batch)[0], case.step()(case.state(), other)[0]
    for path in a.trainable:
        np.testing.assert_allclose(a.trainable[path], b.trainable[path], atol=1e-7)
