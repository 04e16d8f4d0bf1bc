"""One vector for each stage: what it is by definition, that one pass gives all of them, and that padding is nothing."""

import dataclasses

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.models import Backbone
from tljax.transfer import features
from tljax.weights.outline import outline

rng = np.random.default_rng(0)
TOKENS, PICTURE = rng.normal(size=(2, 4, 3)).astype(np.float32), rng.normal(size=(2, 3, 3, 5)).astype(np.float32)
LOGITS = np.log(np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
MASK = np.array([[1, 1, 0, 0], [1, 0, 1, 1]], np.int32)
VECTORS = {
    # name: (activations, the vectors)
    "tokens with a mask": ({"hidden": TOKENS, "attention_mask": MASK},
                           np.stack([TOKENS[0, :2].mean(0), TOKENS[1, [0, 2, 3]].mean(0)])),
    "tokens without": ({"hidden": TOKENS}, TOKENS.mean(1)),
    "no real token": ({"hidden": TOKENS, "attention_mask": 0 * MASK}, np.zeros((2, 3))),
    "a picture": ({"hidden": PICTURE}, PICTURE.reshape(2, 9, 5).mean(1)),
    "what the head reads": ({"pooled": TOKENS[:, 1], "last_hidden_state": TOKENS}, TOKENS[:, 1]),
    "the head": ({"logits": LOGITS, "pooled": TOKENS[:, 1]}, np.exp(LOGITS)),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_vector_of_a_stage(name, dtype):
    activations, wanted = VECTORS[name]
    given = {key: jnp.asarray(x, dtype if x.dtype == np.float32 else x.dtype) for key, x in activations.items()}
    found = features.pooled(given)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6 if dtype == "float32" else 2e-2)  # 8 bits of mantissa


@pytest.mark.parametrize("name", checkpoints.SETS)
def test_every_stage_of_every_family_has_one(name):
    backbone = outline(str(checkpoints.DATA / name), 3)[1]
    wide = features.widths(backbone, range(len(backbone.stages)))
    assert tuple(wide) == backbone.stage_names
    assert min(wide.values()) >= 3
    assert wide["head"] == 3


CHOSEN = ["bert", "deberta-v2", "gpt2", "resnet", "swin", "vit"]


@pytest.mark.parametrize("name", CHOSEN)
def test_the_top_is_what_the_network_computes(name):
    model = checkpoints.load(name)
    inputs, _ = checkpoints.given(name)
    network, head = model.backbone, len(model.backbone.stages) - 1
    stages = tuple(range(head + 1))
    made = np.asarray(features.make_step(network, stages)(model.params, inputs, None))
    found = features.split(made, features.widths(network, stages))
    read = network.run(model.params, inputs, 0, head)["pooled"]
    np.testing.assert_array_equal(found[network.stage_names[head - 1]], read)
    probs = jax.nn.softmax(model.apply(model.params, inputs).logits)
    np.testing.assert_allclose(found["head"], probs, rtol=1e-6)  # compiled as one, exp may be another
    for stage in (0, head // 2):
        alone = features.pooled(network.run(model.params, inputs, 0, stage + 1))
        np.testing.assert_allclose(found[network.stage_names[stage]], alone, rtol=1e-6, atol=1e-7)  # and the mean


spans: list[tuple[int, int]] = []


class Watched(Backbone):
    """Notes which stages run."""

    def run(self, params, x, start=0, stop=None, train=False, key=None):
        spans.append((start, stop))
        return super().run(params, x, start, stop, train, key)


@pytest.mark.parametrize("stages", [(0, 1, 2, 3, 4), (1, 3), (2,)])
def test_one_pass_that_ends_at_the_last(stages):
    model = checkpoints.load("bert")
    own = {field.name: getattr(model.backbone, field.name) for field in dataclasses.fields(Backbone)}
    spans.clear()
    jax.eval_shape(features.make_step(Watched(**own), stages), model.params, checkpoints.given("bert")[0])
    run = [stage for start, stop in spans for stage in range(start, stop)]
    assert run == list(range(stages[-1] + 1))


@pytest.mark.parametrize("name", ["bert", "deberta-v2", "gpt2", "modernbert"])
def test_padding_does_not_matter(name):
    """In front of each stage, whatever the padding holds."""
    model, real = checkpoints.load(name), 5
    stages = tuple(range(len(model.backbone.stages)))
    step = features.make_step(model.backbone, stages)
    ids = np.arange(4, 4 + 2 * real, dtype=np.int32).reshape(2, real)
    plain = step(model.params, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    for padding in (0, 7):
        wide = np.pad(ids, ((0, 0), (0, 3)), constant_values=padding)
        padded = step(model.params, {"input_ids": wide, "attention_mask": (np.arange(8) < real)[None].repeat(2, 0) * 1})
        np.testing.assert_allclose(padded, plain, rtol=1e-4, atol=1e-5)  # other shapes, other sums


def test_splitting_needs_all_columns():
    made = np.arange(10.0).reshape(2, 5)
    found = features.split(made, {"a": 2, "b": 3})
    np.testing.assert_array_equal(found["a"], made[:, :2])
    np.testing.assert_array_equal(found["b"], made[:, 2:])
    with pytest.raises(ValueError, match="5 columns, expected 6"):
        features.split(made, {"a": 2, "b": 4})
