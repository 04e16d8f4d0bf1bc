"""Law 8: evaluation counts every example exactly once, whatever the batch size and the lengths."""

import numpy as np
import pytest
from cases import make_case

from tljax.data.batching import OneAnswer
from tljax.evaluate import predict
from tljax.evaluate.predict import outputs
from tljax.train.step import make_eval_step


class Examples(OneAnswer):
    """Texts of different lengths whose first token is their own number."""

    labels = None

    def __init__(self, n: int):
        self.lengths = np.random.default_rng(n).integers(1, 9, n).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, indices, length, seed=None):
        ids = np.ones((len(indices), length), np.int32)
        ids[:, 0] = indices % 60
        mask = (np.arange(length)[None] < self.lengths[indices][:, None]).astype(np.int32)
        return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (7, 4), (8, 4), (9, 4), (50, 16), (3, 64)])
def test_every_example_once_and_in_order(n, batch_size, monkeypatch):
    monkeypatch.setattr(predict, "ROWS_PER_BUCKET", 4)
    case = make_case("bert", "full", dropout=0.5)  # dropout is off in evaluation
    examples = Examples(n)
    shown: list[int] = []
    probs = outputs(make_eval_step(case.backbone), case.params, examples, batch_size, 1, shown.append)
    assert probs.shape == (n, 5)
    assert sum(shown) == n
    for i in range(n):
        alone = case.backbone.run(case.params, examples.gather(np.array([i]), int(examples.lengths[i])))["logits"]
        alone = np.exp(alone - np.max(alone)) / np.exp(alone - np.max(alone)).sum()
        np.testing.assert_allclose(probs[i], alone[0], atol=1e-6)  # another padding, another order of summation


def test_a_pass_that_skips_or_repeats_is_refused(monkeypatch):
    from tljax.data import batching

    case = make_case("bert", "full")
    plan = batching.plan_evaluation
    for broken in (lambda *a: plan(*a)[:-1], lambda *a: [*plan(*a), plan(*a)[0]]):
        monkeypatch.setattr(predict.batching, "plan_evaluation", broken)
        with pytest.raises(RuntimeError, match="more or less than once"):
            outputs(make_eval_step(case.backbone), case.params, Examples(9), 4, 1)


@pytest.mark.parametrize(("n", "shapes"), [(9, 1), (499, 1), (500, 2), (1000, 3), (1500, 3)])
def test_few_examples_are_worth_few_compilations(n, shapes):
    seen = set()

    def step(params, inputs, labels):
        seen.add(inputs["input_ids"].shape)
        return np.full((inputs["input_ids"].shape[0], 2), 0.5, np.float32)

    outputs(step, None, Examples(n), 32, 1)
    assert len(seen) == shapes
