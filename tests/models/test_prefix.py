"""A prefix before keys and values: what attention makes of it, by hand; and prompts among the embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CONFIGS, batch_of
from flax import linen as nn

from tljax import models, trees
from tljax.models.attention import attend, causal, real
from tljax.models.prompt import Inserted, Removed
from tljax.transfer.adapters import Adapter, adapted, start

B, T, H, P = 2, 5, 4, 3
MASK = jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], jnp.int32)


class Attending(nn.Module):
    options: tuple = ()

    @nn.compact
    def __call__(self, q, k, v):
        return attend(q, k, v, **dict(self.options))


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def by_hand(q, k, v, prefix, visible=None, bias=None):
    """Softmax over prefix and tokens, one query at a time, in float64."""
    q, k, v, key, value = (np.asarray(x, np.float64) for x in (q, k, v, prefix["key"], prefix["value"]))
    N, M = q.shape[1], k.shape[1]
    out = np.zeros((B, T, N, H))
    for b, n, t in np.ndindex(B, N, T):
        m = n // (N // M)
        keys, values = np.concatenate([key[:, m], k[b, m]]), np.concatenate([value[:, m], v[b, m]])
        scores = keys @ q[b, n, t] / np.sqrt(H)
        if bias is not None:
            scores[P:] += np.broadcast_to(bias, (B, N, T, T))[b, n, t]
        if visible is not None:
            scores[P:][~np.broadcast_to(visible, (B, N, T, T))[b, n, t]] = -np.inf
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ values
    return out.reshape(B, T, N * H)


CASES = {  # name -> (heads, key-value heads, options of attend)
    "plain": (4, 4, {}),
    "padding": (4, 4, {"visible": real(MASK)}),
    "causal": (4, 4, {"visible": causal(MASK)}),
    "shared heads": (4, 2, {"visible": causal(MASK)}),
    "bias": (2, 2, {"bias": random(1, 2, T, T, seed=9)}),
    "bias of none": (2, 2, {"bias": jnp.zeros(())}),
    "broadcast": (2, 2, {"bias": random(1, 2, T, 1, seed=9), "visible": jnp.ones((1, 1, 1, 1), bool)}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_token_sees_the_prefix(name):
    N, M, options = CASES[name]
    q, k, v = random(B, N, T, H), random(B, M, T, H, seed=1), random(B, M, T, H, seed=2)
    prefix = {"key": random(P, M, H, seed=3), "value": random(P, M, H, seed=4)}
    module = Attending(tuple(options.items()))
    found = module.apply({"params": {"prefix": prefix}}, q, k, v)
    np.testing.assert_allclose(found, by_hand(q, k, v, prefix, **options), rtol=1e-5, atol=1e-6)
    without = module.apply({"params": {}}, q, k, v)
    assert float(jnp.abs(found - without).max()) > 0.1


def test_attention_tells_which_prefix_it_takes():
    shapes = jax.eval_shape(Attending().init, jax.random.key(0), *(jnp.zeros((1, n, 1, H)) for n in (4, 2, 2)))
    assert {path: leaf.shape for path, leaf in trees.flatten(shapes).items()} == {"heads/prefix/shape": (2, H)}


@pytest.mark.parametrize(("after", "order"), [(0, [7, 7, 0, 1, 2]), (1, [0, 7, 7, 1, 2])])
def test_where_a_prompt_stands_and_that_it_goes_again(after, order):
    hidden = jnp.broadcast_to(jnp.arange(3.0)[None, :, None], (2, 3, 4))
    x = {"hidden": hidden, "attention_mask": jnp.asarray([[1, 1, 0], [1, 0, 0]], jnp.int32)}
    params = {"params": {"tokens": jnp.full((2, 4), 7.0)}}
    found = Inserted(2, after).apply(params, x, False)
    assert found["hidden"][:, :, 0].tolist() == [order, order]
    at = order.index(7)
    assert found["attention_mask"].dtype == jnp.int32
    assert (found["attention_mask"][:, at : at + 2] == 1).all()
    back = Removed(2, after).apply({}, found, False)
    assert all(np.array_equal(back[name], x[name]) for name in x)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_mean_does_not_count_the_prompt_and_a_decoder_has_it_in_front(kind):
    """The layers see the tokens; what stands above sees the text alone."""
    config = {"bert": CONFIGS["bert"], "gpt2": {"model_type": "gpt2", "vocab_size": 800, "n_embd": 64, "n_layer": 2,
                                                "n_head": 4, "n_positions": 24}}[kind]  # fmt: skip
    plain = models.build(config, num_labels=2, pooling="mean" if kind == "bert" else "pooler", dropout=0.0)
    params = trees.unflatten(plain.init(jax.random.key(0)))
    net = adapted(plain, Adapter("prompt", tokens=P), kind)
    params = start(net, params, jax.random.key(1))
    inputs = batch_of("bert", 4)["inputs"]
    x = net.run(params, inputs, 0, 1)
    learned = jnp.broadcast_to(params["prompt"]["tokens"][None], (4, P, 64))
    first = 1 if kind == "bert" else 0
    hidden = jnp.concatenate([x["hidden"][:, :first], learned, x["hidden"][:, first:]], axis=1)
    mask = jnp.concatenate([jnp.ones((4, P), jnp.int32), jnp.asarray(inputs["attention_mask"])], axis=1)
    top = net.index("prompt_end")
    y = plain.run(params, {"hidden": hidden, "attention_mask": mask}, 1, top - 1)["hidden"]
    y = jnp.concatenate([y[:, :first], y[:, first + P :]], axis=1)
    want = plain.run(params, {"hidden": y, "attention_mask": inputs["attention_mask"]}, top - 1)
    found = net.run(params, inputs)
    np.testing.assert_allclose(found["logits"], want["logits"], rtol=1e-5, atol=1e-6)
    assert found["last_hidden_state"].shape == (4, 8, 64)
