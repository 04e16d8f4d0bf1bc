"""One train step and one evaluation step, pure and compiled. B rows in a batch, C classes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax import trees
from tljax.models import Backbone
from tljax.train.state import TrainState, params_of
from tljax.transfer.freeze import FreezePlan

Batch = dict[str, Any]  # inputs: dict of arrays (B, …); labels: int32 (B,); weights: float32 (B,), 0 = padding
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def cross_entropy(logits_BC: jax.Array, labels_B: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-log p of the true class for each row (B,), with `smoothing` of the mass spread over all classes."""
    log_p_BC = jax.nn.log_softmax(logits_BC, axis=-1)
    true_B = jnp.take_along_axis(log_p_BC, labels_B[:, None], axis=-1)[:, 0]
    return -(1.0 - smoothing) * true_B - smoothing * log_p_BC.mean(-1)


def make_train_step(backbone: Backbone, plan: FreezePlan, optimizer: optax.GradientTransformation, *,
                    smoothing: float = 0.0, class_weights: Sequence[float] | None = None,
                    accumulate: int = 1) -> TrainStep:  # fmt: skip
    """Compiles (state, batch) -> (state, metrics); the state that goes in is donated and gone.

    Stages below the lowest trainable one run forward only, in eval mode, outside of the differentiated
    function, so no residual of theirs is kept and the backward pass ends where training begins.

    Args:
      accumulate: micro-batches that the batch is cut into. The loss of each is divided by the weight of the
        whole batch, so that their gradients add up to the batch's own however rows are masked.
      class_weights: (C,) factors on the rows of each class.

    Returns a step whose metrics are loss, weight (of the rows), grad_norm (before clipping, trainables
    alone) and finite. Where the loss or the gradient is not finite the update is not applied.
    """
    table_C = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def loss_of(trainable: trees.Flat, frozen: trees.Flat, micro: Batch, key: jax.Array) -> jax.Array:
        params = trees.unflatten(trees.join(trainable, frozen))
        x = backbone.run(params, micro["inputs"], plan.lowest, None, True, key)
        return (cross_entropy(x["logits"], micro["labels"], smoothing) * micro["weights"]).sum()

    def below(frozen: trees.Flat, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return backbone.run(trees.unflatten(frozen), inputs, 0, plan.lowest)

    def gradient(state: TrainState, batch: Batch) -> tuple[jax.Array, trees.Flat]:
        key = jax.random.fold_in(state.key, state.step)
        if accumulate == 1:
            reached = {**batch, "inputs": below(state.frozen, batch["inputs"])}
            return jax.value_and_grad(loss_of)(state.trainable, state.frozen, reached, key)

        def one(total: Any, item: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            index, micro = item
            reached = {**micro, "inputs": below(state.frozen, micro["inputs"])}
            part = jax.value_and_grad(loss_of)(state.trainable, state.frozen, reached, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, part), None

        micros = jax.tree.map(lambda a: a.reshape(accumulate, a.shape[0] // accumulate, *a.shape[1:]), batch)
        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trainable))
        return jax.lax.scan(one, zero, (jnp.arange(accumulate), micros))[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        weights = batch["weights"] if table_C is None else batch["weights"] * table_C[batch["labels"]]
        total = weights.sum()
        scaled = {name: batch[name] for name in ("inputs", "labels")} | {"weights": weights / total}
        loss, grads = gradient(state, scaled)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def move() -> tuple[trees.Flat, Any]:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
            return optax.apply_updates(state.trainable, updates), opt_state

        # A branch, not a select for each leaf: selects keep the old moments alive and double the update's time.
        trainable, opt_state = jax.lax.cond(finite, move, lambda: (state.trainable, state.opt_state))
        metrics = {"loss": loss, "weight": total, "grad_norm": norm, "finite": finite}
        return TrainState(state.step + 1, trainable, state.frozen, opt_state, state.key), metrics

    return jax.jit(step, donate_argnums=0)


def make_eval_step(backbone: Backbone) -> Callable[[TrainState, Batch], jax.Array]:
    """Compiles (state, batch) -> probabilities (B, C) float32, in eval mode."""

    @jax.jit
    def step(state: TrainState, batch: Batch) -> jax.Array:
        x = backbone.run(params_of(state), batch["inputs"])
        return jax.nn.softmax(x["logits"], axis=-1)

    return step
