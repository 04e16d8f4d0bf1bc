"""How the arrays of a run lie on its devices: batches divided, parameters on all of them or divided too.

One axis, over all devices of all processes. A run on one device has the same layout, of one.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"
MODES = ("data", "fsdp", "pmap")
SMALLEST = 1024  # elements: fsdp divides no smaller array, because to gather it takes longer than it saves

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays lie.

    Attributes:
      mesh: the devices, along `AXIS`. Made by `Mesh` and not `jax.make_mesh`, whose explicit axes flax's Dropout does
        not take.
      mode: "data": parameters and optimizer state on every device; "fsdp": divided among them too, each stage gathered
        where it is read (Rajbhandari et al. 2020, ZeRO-3); "pmap": as "data", with the gradient by jax.pmap.
    """

    mesh: Mesh
    mode: str = "data"

    @property
    def count(self) -> int:
        return int(self.mesh.devices.size)

    @property
    def divided(self) -> bool:
        return self.count > 1

    @property
    def by_hand(self) -> bool:
        """Whether the gradient is a program of each device, which adds up with the others' itself."""
        return self.mode == "pmap" and self.divided

    @property
    def processes(self) -> int:
        return len({device.process_index for device in self.mesh.devices.flat})

    @property
    def everywhere(self) -> NamedSharding:
        """The same on all devices."""
        return NamedSharding(self.mesh, PartitionSpec())

    def sharding(self, shape: Sequence[int]) -> NamedSharding:
        """Of a parameter, a moment or a gradient: by its shape alone, so that all three lie alike."""
        if self.mode != "fsdp" or int(np.prod(shape)) < SMALLEST:
            return self.everywhere
        # the largest axis that can be divided, of equal ones the last
        sizes = [(size, axis) for axis, size in enumerate(shape) if size % self.count == 0]
        if not sizes:
            return self.everywhere
        axis = max(sizes)[1]
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))

    def put(self, tree: Tree) -> Tree:
        """A state on the devices, from what every process holds whole."""
        return jax.tree.map(lambda leaf: _put(leaf, self.sharding(leaf.shape)), tree) if self.divided else tree

    def constrained(self, tree: Tree) -> Tree:
        """Within a program: parameters or gradients as `put` lays them."""
        if not self.divided:
            return tree
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.sharding(x.shape)), tree)

    def held(self, size: int, accumulate: int = 1) -> np.ndarray | None:
        """Which rows of a batch of `size` this process makes, in the order of its devices; None: all, as they are.

        Args:
          accumulate: micro-batches. The rows of each are spread over all devices, so that what stands together in one
            is the same on any number of them.

        Raises:
          ValueError: the batch cannot be divided.
        """
        if not self.divided:
            return None
        each, rest = divmod(size, self.count * accumulate)
        if rest:
            raise ValueError(f"a batch of {size} rows, expected a multiple of {self.count} x {accumulate}")
        numbers = np.arange(size).reshape(accumulate, self.count, each)
        own = [i for i, device in enumerate(self.mesh.devices.flat) if device.process_index == jax.process_index()]
        return numbers[:, own].transpose(1, 0, 2).reshape(-1)

    def micros(self, batch: Any, accumulate: int) -> Any:
        """Within a program: rows as `held` lays them -> (accumulate, rows of a micro-batch, …)."""
        parts = self.count if self.divided and not self.by_hand else 1

        def one(x: jax.Array) -> jax.Array:
            apart = x.reshape(parts, accumulate, -1, *x.shape[1:]).swapaxes(0, 1)
            made = apart.reshape(accumulate, -1, *x.shape[1:])
            return made if parts == 1 else jax.lax.with_sharding_constraint(made, self._rows(1))

        return jax.tree.map(one, batch)

    def send(self, batch: Any, axis: int = 0, training: bool = False) -> Any:
        """A batch on the devices, divided along `axis`, from the rows that `held` names; scalars go everywhere.

        Args:
          training: for the gradient; jax.pmap takes the devices as an axis of their own.
        """
        if not self.divided:
            return jax.device_put(batch)

        def one(leaf: Any) -> Any:
            leaf = np.asarray(leaf)
            if leaf.ndim <= axis:
                return _put(leaf, self.everywhere)
            if training and self.by_hand:
                leaf = leaf.reshape(self._local, -1, *leaf.shape[1:])
            return jax.make_array_from_process_local_data(self._rows(axis), leaf)

        return jax.tree.map(one, batch)

    def abstract(self, batch: Any, axis: int = 0, training: bool = False) -> Any:
        """Shapes of a batch (all rows) -> shapes as `send` makes them, and where they lie."""
        if not self.divided:
            return batch

        def one(leaf: Any) -> Any:
            shape = tuple(leaf.shape)
            if training and self.by_hand:
                shape = (self.count, shape[0] // self.count, *shape[1:])
            where = self._rows(axis) if len(shape) > axis else self.everywhere
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=where)

        return jax.tree.map(one, batch)

    def whole(self, size: int) -> int:
        """The next batch size that can be divided."""
        return -(-size // self.count) * self.count

    @property
    def _local(self) -> int:
        return sum(device.process_index == jax.process_index() for device in self.mesh.devices.flat)

    def _rows(self, axis: int) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))


def over(devices: Sequence[Any], mode: str = "data") -> Layout:
    """A layout over these devices."""
    return Layout(Mesh(np.asarray(devices), (AXIS,)), mode)


def single() -> Layout:
    """Of one device, the first."""
    return over(jax.local_devices()[:1])


def fetch(tree: Tree) -> Tree:
    """Arrays of any layout -> the same on the host, whole, in every process; all processes have to call it."""
    return jax.tree.map(_fetched, tree)


def lead() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def agreed(value: Any) -> Any:
    """What the lead has, in every process; of what JSON can say. All processes have to call it."""
    if jax.process_count() == 1:
        return value
    said = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    whole = multihost_utils.broadcast_one_to_all(np.resize(said, size))
    return json.loads(whole.astype(np.uint8).tobytes())


def gathered(values: Sequence[int]) -> np.ndarray:
    """(processes, n): n numbers of every process. All processes have to call it."""
    own = np.asarray(values, np.int32)
    return own[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(own))


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def local_bytes(tree: Any) -> int:
    """Bytes on one device, of arrays or shapes that say where they lie."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        total += int(np.prod(shape)) * leaf.dtype.itemsize
    return total


def _put(leaf: Any, where: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array) and leaf.sharding == where:  # before each evaluation most of it lies there already
        return leaf
    if jax.process_count() == 1:
        return jax.device_put(leaf, where)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), where), impl=jax.random.key_impl(leaf))
    host = _fetched(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def _fetched(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
