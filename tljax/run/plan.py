"""`tljax plan`: the train step of a config, compiled for devices that need not be here, and what it will cost there."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax import mesh, models, trees
from tljax.config import AdaptConfig, Config
from tljax.mesh import Layout
from tljax.models import Backbone
from tljax.run import adapting, chips, tasks
from tljax.train import collectives, cost, optim, state, step
from tljax.train.collectives import Moved
from tljax.train.objectives import Objective, Prediction
from tljax.train.state import TrainState
from tljax.transfer import phases
from tljax.transfer.floor import floor
from tljax.transfer.freeze import FROZEN
from tljax.transfer.quantise import kernels, quantised

SMALL = 1_000_000  # bytes: nobody needs to be warned of less
SLACK = 1.02  # of bytes that are sent beyond those of the gradient: loss, weights, norm
CLOSE = 1.05  # the search for the largest batch ends where the next one is no larger than that


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device; activations: all that the gradient needs besides, for a while."""

    trainable: int
    frozen: int
    moments: int
    gradients: int
    activations: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """One step on one device; bytes, FLOPs and seconds."""

    network: str
    strategy: str
    parallel: str
    topology: str
    chip: str
    devices: int
    batch: int
    shape: str
    parameters: int
    trainable: int
    memory: Memory
    chip_memory: int  # 0: not known
    flops: float
    flops_over_floor: float
    bytes_accessed: float
    sent: Mapping[str, Moved]
    seconds: Mapping[str, float]  # compute, memory, interconnect, each alone at the chip's best; empty: not known
    warnings: tuple[str, ...]
    largest: int = 0  # batch that fits; 0: not asked

    @property
    def bound(self) -> str:
        return max(self.seconds, key=lambda name: self.seconds[name]) if self.seconds else ""

    @property
    def intensity(self) -> float:
        """FLOPs for each byte that is read or written."""
        return self.flops / self.bytes_accessed if self.bytes_accessed else 0.0


@dataclasses.dataclass(frozen=True)
class Planner:
    """A config on devices, ready to be compiled for any batch size.

    Attributes:
      network: with `gather` where parameters are divided.
      kind, parameters: of the network.
      plan: of the phase that trains most.
      length: tokens of a text.
    """

    config: Config
    network: Backbone
    objective: Objective
    kind: str
    parameters: trees.Flat
    phase: phases.Phase
    layout: Layout
    topology: str
    length: int

    def at(self, batch: int) -> Plan:
        """Compiles the step for a batch of so many rows."""
        c, plan = self.config, self.phase.plan
        optimizer, rate = self._optimizer()
        made = step.make_train_step(self.network, plan, optimizer, rate, objective=self.objective,
                                    accumulate=c.optim.accumulate, layout=self.layout)  # fmt: skip
        now, rows = self._state(), self._batch(batch)
        gradient, update = made.compile(now, [self.layout.abstract(rows, training=True)])[0]
        first, sent = cost.cost(gradient), collectives.of(gradient.as_text())
        for kind, moved in collectives.of(update.as_text()).items():
            sent[kind] = moved if kind not in sent else sent[kind].joined(moved)
        trainable = mesh.local_bytes(now.trainable)
        memory = Memory(trainable, mesh.local_bytes(now.frozen), mesh.local_bytes(now.opt_state), first.output_bytes,
                        first.temp_bytes, cost.peak_bytes(gradient, update, now))  # fmt: skip
        chip = chips.of(self.layout.mesh.devices.flat[0])
        least = floor(self.network, plan, rows["inputs"]).total / self.layout.count
        flops = cost.flops(gradient, least)
        accessed = first.bytes_accessed + cost.cost(update).bytes_accessed
        full = trees.nbytes(now.trainable)
        return Plan(
            self.kind, c.transfer.strategy, c.parallel, self.topology, chip.name, self.layout.count, batch,
            _shape(rows["inputs"]), trees.count(self.parameters), trees.count(now.trainable), memory, chip.memory,
            flops, flops / least, accessed, sent,
            chip.seconds(flops, accessed, sent, self.layout.count),
            tuple(self._warnings(now, sent, full, memory, chip.memory)))  # fmt: skip

    def largest(self, first: Plan) -> Plan:
        """The largest batch whose step fits, by bisection over compilations; `first` where the chip is not known."""
        if not first.chip_memory:
            return first
        each = self.layout.count * self.config.optim.accumulate
        best = first
        low, high = (first.batch, 0) if first.memory.peak <= first.chip_memory else (0, first.batch)
        while True:
            if high:
                guess = (low + high) // 2
            else:  # memory grows about in proportion: what is left over what a row took
                guess = max(round(low * min(4.0, 0.95 * first.chip_memory / max(best.memory.peak, 1))), low + each)
            guess = guess // each * each
            if guess <= low or (high and high <= low * CLOSE):
                return dataclasses.replace(first, largest=low)
            tried = self.at(guess)
            if tried.memory.peak <= first.chip_memory:
                low, best = guess, tried
            else:
                high = guess

    def _optimizer(self) -> Any:
        c = self.config
        rate = optim.schedule(c.optim, 1000)
        return optim.make(c.optim, self.phase.plan, rate, c.transfer.l2sp), rate

    def _state(self) -> TrainState:
        optimizer, _ = self._optimizer()

        def made(flat: trees.Flat) -> TrainState:
            return state.create(trees.unflatten(flat), self.phase.plan, optimizer, jax.random.key(0),
                                jnp.dtype(self.config.model.dtype))  # fmt: skip

        flat = dict(self.parameters)
        if self.config.model.frozen == "int8":
            for path in kernels({p: s for p, s in flat.items() if self.phase.plan.labels[p] == FROZEN}):
                flat[path] = jax.eval_shape(quantised, flat[path])
        return jax.tree.map(self._placed, jax.eval_shape(made, flat))

    def _placed(self, leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.layout.sharding(leaf.shape))

    def _batch(self, rows: int) -> dict[str, Any]:
        inputs = {}
        for name, s in self.network.example().items():
            shape = (rows, self.length) if len(s.shape) == 2 else (rows, *s.shape[1:])
            inputs[name] = jax.ShapeDtypeStruct(shape, s.dtype)
        if self.config.objective == "masked":
            hidden = max(int(self.config.pretrain.masked * self.length), 1)
            inputs["predicted"] = jax.ShapeDtypeStruct((rows, hidden), jnp.int32)
        given = jax.eval_shape(lambda flat, x: self.network.run(trees.unflatten(flat), x)["logits"],
                               self.network.shapes(), inputs)  # fmt: skip
        answers = given.shape[:-1]
        labels = (*answers, len(self.objective.sizes)) if isinstance(self.objective, Prediction) else answers
        return {"inputs": inputs, "labels": jax.ShapeDtypeStruct(labels, jnp.int32),
                "weights": jax.ShapeDtypeStruct(answers, jnp.float32)}  # fmt: skip

    def _warnings(self, now: TrainState, sent: Mapping[str, Moved], full: int, memory: Memory, room: int) -> list[str]:
        found, c = [], self.config
        gathered = sent["all-gather"].nbytes if "all-gather" in sent else 0
        reduced = sum(sent[kind].nbytes for kind in ("all-reduce", "reduce-scatter") if kind in sent)
        if c.parallel != "fsdp" and gathered > SMALL:
            found.append(f"{_size(gathered)} are gathered in each step, and nothing is divided that needs it")
        if reduced > SLACK * full * c.optim.accumulate + SMALL:
            found.append(f"{_size(reduced)} are added up in each step, and the gradient has {_size(full)}")
        frozen = trees.nbytes(now.frozen)
        saved = frozen - memory.frozen
        if c.parallel == "fsdp" and saved > SMALL and room and memory.peak + saved < room:
            found.append(f"{_size(frozen)} of frozen parameters are gathered in each step, and would fit: "
                         "--config.parallel=data keeps them whole")  # fmt: skip
        if c.optim.accumulate > 1 and self.layout.divided and reduced > 1.5 * full:
            found.append(f"the gradient is added up among devices for each of {c.optim.accumulate} micro-batches")
        return found


def planner(config: Config, topology: str, classes: int, data: Mapping[str, Any] | None = None) -> Planner:
    """Prepares a config for a topology.

    Args:
      topology: "local", or a TPU slice as "v5e:4x4".
      classes: of the head.
      data: fields of config.json, which the data decides.

    Raises:
      ConfigError: no such topology, or the batch cannot be divided among its devices.
    """
    fields, network = adapting.outlined(config, classes if config.objective == "classes" else 0, data)
    objective = tasks.of(dataclasses.replace(config, adapt=AdaptConfig()), fields, [""] * classes).objective
    layout = chips.layout(config, topology)
    planned = phases.of(network, config.transfer, config.train.epochs, config.adapter.factor)
    shapes = network.shapes()

    def breadth(phase: phases.Phase) -> int:
        return trees.count({path: leaf for path, leaf in shapes.items() if phase.plan.trains(path)})

    length = models.max_tokens(fields, config.data.max_length) if config.task != "image" else 0
    if config.parallel == "fsdp" and layout.divided:
        network = dataclasses.replace(network, gather=layout.everywhere)
    broadest = max(planned, key=breadth)
    return Planner(config, network, objective, str(fields["model_type"]), shapes, broadest, layout, topology, length)


def render(plan: Plan) -> str:
    """For people."""
    m, size = plan.memory, _size
    room = f" of {size(plan.chip_memory)}: {100 * m.peak / plan.chip_memory:.0f} %" if plan.chip_memory else ""
    lines = [
        f"{plan.network}, {plan.parameters:,} parameters, {plan.strategy}: {plan.trainable:,} train",
        f"{plan.devices} × {plan.chip} ({plan.topology}), {plan.parallel}; batch {plan.batch:,} of {plan.shape}, "
        f"{plan.batch // plan.devices:,} on each",
        "",
        "memory of each device",
        *(f"  {name:<28}{size(value):>10}" for name, value in (
            ("trainable parameters", m.trainable), ("frozen parameters", m.frozen), ("optimizer state", m.moments),
            ("gradients", m.gradients), ("activations, temporaries", m.activations))),
        f"  {'peak':<28}{size(m.peak):>10}{room}",
        "",
        "each step of each device",
        f"  {'FLOPs':<28}{plan.flops:>10.3g}  {plan.flops_over_floor:.2f} × the least that the products take",
        f"  {'memory read and written':<28}{size(plan.bytes_accessed):>10}  {plan.intensity:.0f} FLOPs for each byte",
        *(f"  {kind:<28}{size(moved.nbytes):>10}  in {moved.count}" for kind, moved in plan.sent.items()),
    ]  # fmt: skip
    if plan.seconds:
        parts = ", ".join(f"{name} {1000 * seconds:.3g} ms" for name, seconds in plan.seconds.items())
        lines += [f"  {'at the best of the chip':<28}{parts}: bound by {plan.bound}"]
    if plan.largest:
        lines += ["", f"largest batch that fits: {plan.largest:,} ({plan.largest // plan.devices:,} on each)"]
    return "\n".join([*lines, *(f"WARNING: {text}" for text in plan.warnings)])


def as_json(plan: Plan) -> dict[str, Any]:
    """For programs."""
    return dataclasses.asdict(plan) | {"bound": plan.bound, "intensity": plan.intensity}


def _shape(inputs: Mapping[str, Any]) -> str:
    shape = next(iter(inputs.values())).shape[1:]
    return f"{shape[0]} tokens" if len(shape) == 1 else " × ".join(map(str, shape))


def _size(nbytes: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}" if nbytes < 100 * factor else f"{nbytes / factor:.0f} {unit}"
    return f"{nbytes / 1e3:.1f} kB" if nbytes else "0"
