"""Law 4 over every family of the table: kept activations give the losses and probabilities that the inputs give.

Steps are taken where few layers train. Right above the embeddings the probabilities are compared, because steps
there take minutes to compile; laws/test_cache.py takes them.
"""

import checkpoints
import jax
import numpy as np
import pytest

from tljax import trees
from tljax.config import OptimConfig
from tljax.data import batching
from tljax.data.batching import OneAnswer
from tljax.train import optim, state, step
from tljax.transfer import boundary, freeze
from tljax.transfer.cache import Cache, Pass

STRATEGIES = {"feature_extraction": {}, "last_k": {"k": 1}, "embeddings_frozen": {}}
TRAINED = ("feature_extraction", "last_k")


class Given(OneAnswer):
    """The inputs of a golden set as examples, twice over; pictures four times, each time turned otherwise.

    Of a few that are nearly equal, batch normalisation makes rounding errors divided by almost nothing.
    """

    where = staticmethod(str)

    def __init__(self, name: str):
        inputs, _ = checkpoints.given(name)
        self.inputs = {key: np.concatenate([np.rot90(value, k, (1, 2)) for k in range(4)] if value.ndim == 4 else
                                           [value, value[::-1]]) for key, value in inputs.items()}  # fmt: skip
        rows = len(next(iter(self.inputs.values())))
        self.labels = np.arange(rows, dtype=np.int32) % 3
        mask = self.inputs.get("attention_mask")
        self.lengths = None if mask is None else mask.sum(1).astype(np.int32)
        if mask is not None:
            assert (mask == (np.arange(mask.shape[1])[None] < mask.sum(1)[:, None])).all()  # padding comes last

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices, length, seed=None):
        found = {key: value[indices] for key, value in self.inputs.items()}
        return found if self.lengths is None else {key: value[:, :length] for key, value in found.items()}

    def content(self) -> str:
        return trees.combined(trees.digests(self.inputs))


@pytest.mark.parametrize("name", checkpoints.CLASSIFIERS)
def test_what_kept_activations_give(name):
    examples = Given(name)
    pixels = examples.inputs.get("pixel_values")
    model = checkpoints.load(name, image_size=None if pixels is None else pixels.shape[1])
    flat = trees.flatten(model.params)
    plans = {strategy: freeze.plan(model.backbone, strategy, **wanted) for strategy, wanted in STRATEGIES.items()}
    starts = {plan.lowest for plan in plans.values() if plan.lowest}  # all of the layers may be one: nothing lies below
    assert starts
    kept = Pass(model.backbone, flat, 3)(Cache(), examples, sorted(starts))
    size = len(examples) // 2
    batches = batching.plan(0, 0, len(examples), examples.lengths, size, batching.buckets(examples.lengths, 1))
    for strategy, plan in plans.items():
        if not plan.lowest:
            continue
        found = {}
        for start, source in ((0, examples), (plan.lowest, kept[plan.lowest])):
            read = boundary.above(model.backbone, flat, start)
            of_batch = trained(model, plan, start) if strategy in TRAINED else evaluated(model, read, start)
            found[start] = [np.asarray(of_batch(batching.collate(source, planned, size))) for planned in batches]
        for with_cache, without in zip(found[plan.lowest], found[0], strict=True):
            # the pass has other rows in its batches, and float32 products their own order
            np.testing.assert_allclose(with_cache, without, rtol=2e-5, atol=1e-6, err_msg=strategy)


def trained(model, plan, start):
    """A batch's loss before a step with it, from stage `start`."""
    settings = OptimConfig(name="sgd", clip_norm=0.0, warmup_fraction=0.0)
    optimizer = optim.make(settings, plan, 10)
    read = boundary.above(model.backbone, trees.flatten(model.params), start)
    now = state.create(model.params, plan, optimizer, jax.random.key(0), reads=read.__contains__)
    assert now.frozen.keys() <= read.keys()
    run = step.make_train_step(model.backbone, plan, optimizer, optim.schedule(settings, 10), start=start)

    def loss(batch):
        nonlocal now
        now, metrics = run(now, {part: batch[part] for part in ("inputs", "labels", "weights")})
        return metrics["loss"]

    return loss


def evaluated(model, read, start):
    """A batch's probabilities, with the parameters that stage `start` and those above read."""
    run, params = step.make_eval_step(model.backbone, start), trees.unflatten(read)
    return lambda batch: run(params, batch["inputs"])[batch["weights"] > 0]
