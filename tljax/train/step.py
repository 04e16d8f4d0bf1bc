"""One train step and one evaluation step, pure and compiled. B rows in a batch, C classes."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax import trees
from tljax.mesh import AXIS, Layout
from tljax.models import Backbone, rows
from tljax.train.objectives import CLASSIFICATION, Objective
from tljax.train.state import TrainState
from tljax.transfer import boundary
from tljax.transfer.freeze import FreezePlan

Batch = dict[str, Any]  # inputs: dict of arrays (B, …); labels: int32 (B, …); weights: float32 (B, …), 0 = padding
Metrics = dict[str, jax.Array]
Found = tuple[trees.Flat, Metrics, trees.Flat]  # gradients: arrays, or Rows of tables; metrics; batch_stats after it
COMPILERS = 4  # at most, because a large program takes gigabytes to compile


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A train step in two compiled parts.

    `gradient` knows the shape of the batch and is compiled once a shape; `update` does not and is compiled once.
    As one program the update, a quarter of the time that all takes to compile, would be compiled for every bucket.
    """

    gradient: Any  # (trainable, frozen, batch_stats, step, key, batch) -> Found
    update: Any  # (*Found, trainable, batch_stats, opt_state, step) -> (…the last 4, which it donates; learning rate)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step. The moving part of `state` is donated: it must not be used again. The frozen part is kept."""
        found = self.gradient(state.trainable, state.frozen, state.batch_stats, state.step, state.key, batch)
        moved = self.update(*found, state.trainable, state.batch_stats, state.opt_state, state.step)
        trainable, batch_stats, opt_state, count, rate = moved
        metrics = found[1] | {"learning_rate": rate}
        return TrainState(count, trainable, state.frozen, batch_stats, opt_state, state.key, state.settled), metrics

    def compile(self, state: TrainState, batches: Iterable[Batch]) -> list[tuple[Any, Any]]:
        """Compiles for batches of these shapes (arrays or jax.ShapeDtypeStruct), several at a time.

        Returns the programs of `gradient` and `update` for each of them. The steps then find the programs. Tracing
        holds Python's lock and XLA uses one core for half of a compilation, so that one program is traced and another
        compiled meanwhile.
        """
        moving = state.trainable, state.batch_stats, state.opt_state, state.step
        updates: dict[Any, Any] = {}  # two where some batches read most of a table and others do not
        with ThreadPoolExecutor(min(COMPILERS, 1 + (os.cpu_count() or 1))) as pool:
            begun = []
            for batch in batches:
                program = self.gradient.lower(state.trainable, state.frozen, state.batch_stats, state.step, state.key,
                                              batch)  # fmt: skip
                form = jax.tree.structure(program.out_info)
                begun.append((pool.submit(program.compile), form))
                if form not in updates:
                    updates[form] = pool.submit(self.update.lower(*program.out_info, *moving).compile)
            return [(done.result(), updates[form].result()) for done, form in begun]


def make_train_step(backbone: Backbone, plan: FreezePlan, optimizer: optax.GradientTransformation,
                    rate: optax.Schedule, *, objective: Objective = CLASSIFICATION, accumulate: int = 1,
                    start: int = 0, layout: Layout | None = None) -> TrainStep:  # fmt: skip
    """Compiles (state, batch) -> (state, metrics).

    Stages below the lowest trainable one run forward only, in eval mode, outside of the differentiated
    function, so no residual of theirs is kept and the backward pass ends where training begins.

    Args:
      rate: the schedule that `optimizer` follows, for the log.
      objective: what is minimised.
      accumulate: micro-batches that the batch is cut into. The loss of each is divided by the weight of the
        whole batch, so that their gradients add up to the batch's own however rows are masked.
      start: the stage that a batch's inputs enter at: 0, or, where they are cached activations (transfer/cache.py), at
        most the lowest trainable one. Nothing below is computed, and of its parameters none need be in the state.
      layout: where state and batches lie; None: on one device.

    Raises:
      ValueError: `start` lies above what trains.

    Returns a step whose metrics are loss, weight (of the answers), grad_norm (before clipping, trainables
    alone), learning_rate, finite, and first_bad (number of the first parameter whose gradient is not finite). Where
    loss or gradient are not finite the update is not applied.
    """
    if not 0 <= start <= plan.lowest:
        raise ValueError(f"start is {start}, expected 0 to {plan.lowest}, the lowest stage that trains")
    optimizer = optax.with_extra_args_support(optimizer)

    def update(grads: trees.Flat, metrics: Metrics, moved_stats: trees.Flat, trainable: trees.Flat,
               batch_stats: trees.Flat, opt_state: Any, count: jax.Array) -> tuple[Any, ...]:  # fmt: skip
        def move() -> tuple[trees.Flat, trees.Flat, Any]:
            whole = {path: grad.dense() if isinstance(grad, rows.Rows) else grad for path, grad in grads.items()}
            with jax.numpy_dtype_promotion("standard"):  # optax raises float decay rates to int32 counts
                updates, moments = optimizer.update(whole, opt_state, trainable, grad_norm=metrics["grad_norm"])
            return optax.apply_updates(trainable, updates), moved_stats, moments

        # A branch, not a select for each leaf: selects keep the old moments alive and take 2.6 times as long.
        moved = jax.lax.cond(metrics["finite"], move, lambda: (trainable, batch_stats, opt_state))
        moved = moved if layout is None else layout.constrained(moved)  # donated arrays are taken where they lie
        return *moved, count + 1, jnp.asarray(rate(count), jnp.float32)

    divided = layout if layout is not None and layout.divided else None
    gradient = _make_gradient(backbone, start, plan.lowest, objective, accumulate, divided)
    return TrainStep(gradient, jax.jit(update, donate_argnums=(3, 4, 5, 6)))


@functools.lru_cache(maxsize=8)
def _make_gradient(backbone: Backbone, start: int, lowest: int, objective: Objective, accumulate: int,
                   layout: Layout | None) -> Any:  # fmt: skip
    """`TrainStep.gradient`. Equal networks get the same function: a run from scratch beside one from pretrained
    weights, or with other rates, compiles nothing anew."""
    by_hand = layout is not None and layout.by_hand
    # Activations hold no ids. And on several devices a table's gradient is added up as a table: which rows the others
    # read, a device does not know.
    lookups = () if start or layout is not None else getattr(backbone, "lookups", ())

    def summed(tree: Any) -> Any:
        return jax.lax.psum(tree, AXIS) if by_hand else tree

    def loss_of(trainable: trees.Flat, places: trees.Flat, frozen: trees.Flat, stats: trees.Flat, micro: Batch,
                key: jax.Array, count: jax.Array) -> tuple[jax.Array, trees.Flat]:  # fmt: skip
        params = trees.unflatten(trees.join(rows.placed(trainable, places), frozen, stats))
        if stats:
            x, stats = backbone.run_moving(params, micro["inputs"], lowest, key, stats)
        else:
            x = backbone.run(params, micro["inputs"], lowest, None, True, key)
        return objective.loss(x, micro, count), stats

    def below(frozen: trees.Flat, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return backbone.run(trees.unflatten(frozen), boundary.entering(backbone, start, inputs), start, lowest)

    def differentiated(trainable: trees.Flat, places: trees.Flat, frozen: trees.Flat, stats: trees.Flat, batch: Batch,
                       key: jax.Array, count: jax.Array,
                       ) -> tuple[tuple[jax.Array, trees.Flat], trees.Flat]:  # fmt: skip
        """((loss, batch statistics), gradients)."""
        take = jax.value_and_grad(loss_of, has_aux=True)
        if accumulate == 1:
            reached = {**batch, "inputs": below(frozen, batch["inputs"])}
            return take(trainable, places, frozen, stats, reached, key, count)

        def one(so_far: Any, item: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            (total, stats), grads = so_far
            index, micro = item
            reached = {**micro, "inputs": below(frozen, micro["inputs"])}
            (loss, stats), more = take(trainable, places, frozen, stats, reached, jax.random.fold_in(key, index),
                                               count)  # fmt: skip
            return ((total + loss, stats), jax.tree.map(jnp.add, grads, more)), None

        if layout is None:
            micros = jax.tree.map(lambda a: a.reshape(accumulate, a.shape[0] // accumulate, *a.shape[1:]), batch)
        else:
            micros = layout.micros(batch, accumulate)
        zero = (jnp.zeros(()), stats), jax.tree.map(jnp.zeros_like, trainable)
        return jax.lax.scan(one, zero, (jnp.arange(accumulate), micros))[0]

    def gradient(trainable: trees.Flat, frozen: trees.Flat, stats: trees.Flat, count: jax.Array, key: jax.Array,
                 batch: Batch) -> Found:  # fmt: skip
        weights = objective.weights(batch)
        total = summed(weights.sum())
        scaled = {name: batch[name] for name in ("inputs", "labels")} | {"weights": weights / total}
        read, places = rows.narrowed(trainable, batch["inputs"], lookups)
        drawn = jax.random.fold_in(key, count)
        if by_hand:  # each device draws for its own rows
            drawn = jax.random.fold_in(drawn, jax.lax.axis_index(AXIS))
        (loss, stats), grads = differentiated(read, places, frozen, stats, scaled, drawn, count)
        loss, grads = summed((loss, grads))
        grads = grads if layout is None or by_hand else layout.constrained(grads)
        squares = jnp.stack([jnp.square(grads[path]).sum() for path in sorted(grads)])
        norm = jnp.sqrt(squares.sum())
        found = rows.placed(grads, places)
        metrics = {
            "loss": loss,
            "weight": total,
            "grad_norm": norm,
            "finite": jnp.isfinite(loss) & jnp.isfinite(norm),
            "first_bad": jnp.argmax(jnp.where(jnp.isnan(squares), jnp.inf, squares)),
        }
        return found | {path: found[path].padded() for path in places}, metrics, stats

    if layout is not None and layout.by_hand:
        devices = list(layout.mesh.devices.flat)
        return jax.pmap(gradient, AXIS, in_axes=(*[None] * 5, 0), out_axes=None, devices=devices)
    return jax.jit(gradient)


EvalStep = Callable[[trees.Tree, dict[str, Any], Any], jax.Array]


@functools.lru_cache(maxsize=8)
def make_eval_step(backbone: Backbone, start: int = 0, objective: Objective = CLASSIFICATION) -> EvalStep:
    """Compiles (nested params, inputs, labels or None) -> `objective.outputs` in eval mode: of a classification the
    probabilities (B, C), float32. Inputs enter at stage `start`.

    Equal backbones get the same function, so that strategies trained one after another share what is compiled.
    """

    @jax.jit
    def step(params: trees.Tree, inputs: dict[str, Any], labels: Any = None) -> jax.Array:
        x = backbone.run(params, boundary.entering(backbone, start, inputs), start)
        return objective.outputs(x, {"inputs": inputs, "labels": labels})

    return step
