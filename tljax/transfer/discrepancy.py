"""What a training step can make small so that features of two domains look alike: pure functions for jit, in float32.

Legend: B rows in a batch (source and target may have different numbers), D features, C classes.

Weights of rows are 0 for padding, and else count as often as they say; a row of weight 0 changes neither a value nor
a gradient, whatever it holds.
"""

import jax
import jax.numpy as jnp
import numpy as np

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the bandwidth, from 2**-2 to 2**2
TINY = float(np.finfo(np.float32).tiny)  # the smallest normal number: a probability below it is none
ALIKE = 1e-12  # squared distances below this share of the squared lengths are rounding: about 70 eps²
NOTHING = 1e-30  # a bandwidth for rows that are all 0; times a factor it is still a normal number
EXACT = jax.lax.Precision.HIGHEST  # GPUs and TPUs would round the operands of a product to 10 or 7 bits


def coral(source_BD: jax.Array, target_BD: jax.Array, source_weights_B: jax.Array,
          target_weights_B: jax.Array) -> jax.Array:  # fmt: skip
    """||cov(source) - cov(target)||² / (4 D²) with the Frobenius norm (Sun & Saenko 2016, Deep CORAL).

    Covariances are divided by rows - 1. A batch with fewer than two rows of a domain has none, and the loss is 0.
    """
    source_DD, enough = _covariance(source_BD, source_weights_B)
    target_DD, enough_too = _covariance(target_BD, target_weights_B)
    D = source_BD.shape[1]
    return jnp.where(enough & enough_too, jnp.square(source_DD - target_DD).sum() / (4.0 * D * D), 0.0)


def _covariance(rows_BD: jax.Array, weights_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the covariance (D, D), whether there are rows enough for one)."""
    x_BD, w_B = _counting(rows_BD, weights_B)
    count = w_B.sum()
    x_BD = x_BD - (w_B[:, None] * x_BD).sum(0, keepdims=True) / jnp.maximum(count, TINY)
    scatter_DD = jnp.matmul((w_B[:, None] * x_BD).T, x_BD, precision=EXACT)
    return scatter_DD / jnp.where(count > 1, count - 1, 1.0), count > 1


def mmd(source_BD: jax.Array, target_BD: jax.Array, source_weights_B: jax.Array, target_weights_B: jax.Array,
        factors: tuple[float, ...] = FACTORS) -> jax.Array:  # fmt: skip
    """Squared maximum mean discrepancy, at least 0 (Gretton et al. 2012; Long et al. 2015, DAN).

    The mean over the kernels exp(-|x - y|² / (factor h)) of E k(s, s') + E k(t, t') - 2 E k(s, t), with pairs of a row
    with itself among the pairs (the biased estimate). The bandwidth h is the mean of |x - y|² over the pairs of
    different rows of both domains together; no gradient flows through it. 0 where a domain has no row.
    """
    source_BD, source_B = _counting(source_BD, source_weights_B)
    target_BD, target_B = _counting(target_BD, target_weights_B)
    sums = source_B.sum(), target_B.sum()
    x_ND, w_N = jnp.concatenate([source_BD, target_BD]), jnp.concatenate([source_B, target_B])
    count = jnp.maximum(w_N.sum(), TINY)
    lengths = (w_N * jnp.square(x_ND).sum(1)).sum() / count
    # Distances stay as they are where all is moved, and those of features far from 0 would drown in rounding.
    x_ND = x_ND - (w_N[:, None] * x_ND).sum(0, keepdims=True) / count
    squares_N = jnp.square(x_ND).sum(1)
    apart_NN = squares_N[:, None] + squares_N[None, :] - 2.0 * jnp.matmul(x_ND, x_ND.T, precision=EXACT)
    apart_NN = jnp.maximum(apart_NN, 0.0)
    pairs_NN = w_N[:, None] * w_N[None, :] * (1.0 - jnp.eye(len(w_N), dtype=jnp.float32))
    mean = (pairs_NN * apart_NN).sum() / jnp.maximum(pairs_NN.sum(), TINY)
    bandwidth = jax.lax.stop_gradient(jnp.maximum(mean, ALIKE * lengths + NOTHING))
    kernel_NN = sum((jnp.exp(-apart_NN / (f * bandwidth)) for f in factors), jnp.zeros_like(apart_NN)) / len(factors)
    shares_N = jnp.concatenate([source_B / jnp.maximum(sums[0], TINY), -target_B / jnp.maximum(sums[1], TINY)])
    found = (shares_N[:, None] * shares_N[None, :] * kernel_NN).sum()  # no product of matrices: it would be rounded
    return jnp.where((sums[0] > 0) & (sums[1] > 0), jnp.maximum(found, 0.0), 0.0)


def _counting(rows_BD: jax.Array, weights_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows and weights in float32, rows of weight 0 as zeros: a product with 0 would not undo an overflow in them."""
    w_B = weights_B.astype(jnp.float32)
    return jnp.where(w_B[:, None] > 0, rows_BD.astype(jnp.float32), 0.0), w_B


def reversal_strength(progress: jax.Array | float) -> jax.Array:
    """2 / (1 + exp(-10 p)) - 1, from 0 to almost 1 over the training (Ganin et al. 2016, eq. 14), as tanh(5 p).

    Args:
      progress: the share of the training that is done, 0 to 1.

    >>> [round(float(reversal_strength(p)), 3) for p in (0.0, 0.1, 1.0)]
    [0.0, 0.462, 1.0]
    """
    return jnp.tanh(5.0 * jnp.asarray(progress, jnp.float32))


def entropy(logits_BC: jax.Array) -> jax.Array:
    """(B,): the entropy of softmax(logits) in nats, which Tent makes small at test time (Wang et al. 2021)."""
    log_BC = jax.nn.log_softmax(logits_BC.astype(jnp.float32))
    return -(jnp.exp(log_BC) * jnp.maximum(log_BC, np.log(TINY).item())).sum(1)  # a logit of -inf counts 0


def binary_cross_entropy(logits_B: jax.Array, labels_B: jax.Array) -> jax.Array:
    """(B,): -y log sigmoid(z) - (1 - y) log(1 - sigmoid(z)) in nats, for logits of any size.

    Args:
      labels_B: 0 or 1, or what lies between; of integers or floats.
    """
    z_B, y_B = logits_B.astype(jnp.float32), labels_B.astype(jnp.float32)
    return y_B * jax.nn.softplus(-z_B) + (1.0 - y_B) * jax.nn.softplus(z_B)
