"""Law 6: 1, 2, 4 and 8 devices, jit and pmap, parameters whole or divided, give the same losses; and send no more than
the gradient of what trains.

Losses are compared at 1e-5 relative: sums over the batch are added up in another order on another number of devices,
float32 has 6e-8, and 20 steps pass on what differs. A row that is lost, counted twice or in the wrong micro-batch, or
statistics that are not those of the whole batch, change the first loss by 1e-3 and more. SGD, because Adam divides
rounding noise by itself.
"""

import dataclasses

import cases
import jax
import numpy as np
import pytest
from cases import batch_of
from layouts import EVERY, ROWS, SGD, STEPS, batches, setup

from tljax import mesh, trees
from tljax.config import OptimConfig
from tljax.data.batching import OneAnswer
from tljax.evaluate.predict import outputs
from tljax.train import collectives, cost, optim, state, step


def grid() -> list[tuple[str, str, str, int, int]]:
    """(family, strategy, parallel, devices, accumulate)."""
    if EVERY:
        return [(family, strategy, mode, count, times) for family in ("bert", "vit", "resnet", "events-each", "dann")
                for strategy in ("full", "last_k", "feature_extraction", "bitfit", "lora")
                if strategy != "lora" or family in ("bert", "vit")
                for mode in mesh.MODES for count in (2, 4, 8) for times in (1, 2)]  # fmt: skip
    return [
        ("bert", "full", "data", 8, 1), ("bert", "full", "data", 2, 2), ("bert", "full", "fsdp", 8, 1),
        ("bert", "full", "pmap", 4, 2), ("bert", "last_k", "data", 4, 1), ("bert", "last_k", "fsdp", 4, 1),
        ("bert", "lora", "data", 8, 1), ("bert", "lora", "fsdp", 2, 1), ("bert", "bitfit", "pmap", 2, 1),
        ("vit", "full", "data", 8, 1), ("vit", "feature_extraction", "data", 8, 1), ("vit", "last_k", "pmap", 8, 1),
        ("resnet", "full", "data", 8, 1), ("resnet", "full", "fsdp", 4, 1), ("resnet", "full", "pmap", 8, 1),
        ("resnet", "full", "data", 2, 2), ("resnet", "last_k", "data", 4, 1),
        ("events-each", "full", "data", 8, 1), ("events-next", "last_k", "fsdp", 4, 1),
        ("events-item", "full", "pmap", 4, 1), ("bert-masked", "full", "data", 4, 2), ("dann", "full", "data", 8, 1),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone() -> dict:
    """Losses and parameters on one device, by (family, strategy, accumulate); each computed once."""
    return {}


@pytest.mark.parametrize(("family", "strategy", "parallel", "count", "accumulate"), grid())
def test_any_number_of_devices(alone, family, strategy, parallel, count, accumulate):
    case, given = setup(family, strategy), batches(family)
    key = family, strategy, accumulate
    if key not in alone:
        alone[key] = case.run(mesh.single(), given, accumulate)
    losses, params = case.run(mesh.over(jax.devices()[:count], parallel), given, accumulate)
    np.testing.assert_allclose(losses, alone[key][0], rtol=1e-5)
    for path, leaf in params.items():
        np.testing.assert_allclose(leaf, alone[key][1][path], atol=1e-5, err_msg=path)
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("strategy", ["feature_extraction", "last_k", "lora", "full"])
def test_no_more_is_sent_than_the_gradient_of_what_trains(strategy):
    """To the byte: the gradient once, the loss, the weight of the batch. No collective knows of a frozen parameter."""
    case, layout = setup("bert", strategy), mesh.over(jax.devices())
    optimizer = optim.make(SGD, case.plan, STEPS)
    taken = step.make_train_step(case.network, case.plan, optimizer, optim.schedule(SGD, STEPS), layout=layout)
    now = layout.put(state.create(case.params, case.plan, optimizer, jax.random.key(7)))
    batch = batch_of("bert", ROWS, length=cases.CONFIGS["bert"]["max_position_embeddings"])  # reads every position
    gradient, update = taken.compile(now, [layout.abstract(batch, training=True)])[0]
    sent = collectives.of(gradient.as_text())
    assert set(sent) == {"all-reduce"}
    assert sent["all-reduce"].nbytes == trees.nbytes(now.trainable) + 2 * 4
    assert collectives.of(update.as_text()) == {}


def test_divided_parameters_take_less_of_each_device():
    """fsdp: parameters, gradients and moments of a device are an eighth, but for what is too small to divide."""
    case, peaks = setup("bert", "full"), {}
    for parallel in ("data", "fsdp"):
        layout = mesh.over(jax.devices(), parallel)
        network = dataclasses.replace(case.network, gather=layout.everywhere if parallel == "fsdp" else None)
        optimizer = optim.make(OptimConfig(), case.plan, STEPS)
        now = layout.put(state.create(case.params, case.plan, optimizer, jax.random.key(7)))
        taken = step.make_train_step(network, case.plan, optimizer, optim.schedule(SGD, STEPS), layout=layout)
        programs = taken.compile(now, [layout.abstract(batch_of("bert", ROWS), training=True)])[0]
        peaks[parallel] = cost.peak_bytes(*programs, now)
        whole = trees.nbytes(now.trainable)
        held = mesh.local_bytes(now.trainable)
        assert held == whole if parallel == "data" else held < 0.15 * whole
    assert peaks["fsdp"] < 0.6 * peaks["data"]


@pytest.mark.parametrize("count", [2, 8])
def test_evaluation_on_several_devices(count):
    """Every example once, with the same probabilities, where neither batches nor examples divide evenly."""

    class Examples(OneAnswer):
        labels, lengths, where = None, np.full(21, 8), str

        def __len__(self):
            return 21

        def gather(self, indices, length, seed=None):
            return {"input_ids": 1 + np.stack([indices] * 8, 1).astype(np.int32) % 50,
                    "attention_mask": np.ones((len(indices), 8), np.int32)}  # fmt: skip

    case, layout = setup("bert", "full"), mesh.over(jax.devices()[:count])
    evaluate, shown = step.make_eval_step(case.network), []
    alone = outputs(evaluate, case.params, Examples(), 5)
    found = outputs(evaluate, layout.put(case.params), Examples(), 5, 1, shown.append, layout)
    np.testing.assert_allclose(found, alone, atol=1e-6)
    assert sum(shown) == 21
