"""The device mesh, and where arrays lie on it: the batch over all devices, large parameters over
'fsdp'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")


def make_mesh(
    data: int = -1, fsdp: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Makes the ('data', 'fsdp') mesh.

    Args:
        data: size of the 'data' axis; -1 takes all devices that `fsdp` leaves.
        fsdp: size of the 'fsdp' axis.
        devices: the devices to use; None = all of all processes.

    Raises:
        ValueError: no device, or sizes that do not use every device exactly once.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    if not devices:
        raise ValueError("devices is empty; allowed: at least one device, or None for all")
    if fsdp < 1 or (data != -1 and data < 1):
        raise ValueError(
            f"mesh.data={data}, mesh.fsdp={fsdp}; allowed: fsdp >= 1, data >= 1 or -1 (all that "
            "are left)"
        )
    if count % fsdp:
        raise ValueError(
            f"mesh.fsdp={fsdp} does not divide the {count} devices; allowed: a divisor of {count}"
        )
    rows = count // fsdp if data == -1 else data
    if rows * fsdp != count:
        raise ValueError(
            f"mesh.data={data} x mesh.fsdp={fsdp} is {rows * fsdp}, but there are {count} devices; "
            f"set mesh.data={count // fsdp} or -1"
        )
    # Auto: the compiler propagates shardings. make_mesh's own default, Explicit, fails on ordinary
    # reshapes of a batch.
    return jax.make_mesh((rows, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def check_batch(name: str, size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises ValueError unless `size` splits evenly over the devices of the mesh (and over
    micro-batches).
    """
    unit = mesh.size * accumulate
    if size % unit:
        extra = f" x {accumulate} micro-batches (train.accumulate)" if accumulate > 1 else ""
        near = max(round(size / unit), 1) * unit
        raise ValueError(
            f"{name}={size} does not divide over {mesh.size} devices{extra}; the nearest that does "
            f"is {near}"
        )


def state_shardings(tree: Any, mesh: Mesh, min_size: int) -> Any:
    """Returns a tree of shardings: each large array is split over 'fsdp' along its largest axis
    that divides.

    Arrays with fewer than `min_size` elements, or without such an axis, are replicated. The rule
    looks at shapes only, so momenta and averages lie where their parameter lies.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s.
        mesh: the mesh.
        min_size: elements.
    """
    ways = mesh.shape["fsdp"]

    def rule(leaf) -> NamedSharding:
        axes = [a for a, n in enumerate(leaf.shape) if n % ways == 0]
        if ways == 1 or np.prod(leaf.shape, dtype=np.int64) < min_size or not axes:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(axes, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(rule, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what lies whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of batches: the leading axis over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Turns each process's own rows into global arrays.

    Args:
        batch: arrays [local rows, ...]; every process gives the same number of rows.
        sharding: of `batch_sharding`.

    Returns:
        Arrays [rows of all processes, ...].
    """
    placed = {
        k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()
    }
    # XLA's CPU backend computes in the calling thread only what finds its operands ready; see
    # `start_up.prepare_cpu`.
    return jax.block_until_ready(placed) if jax.default_backend() == "cpu" else placed


def bytes_per_device(tree: Any) -> dict[str, int]:
    """Returns how many bytes of the arrays of `tree` lie on each device of this process, by device
    name.
    """
    total: dict[str, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            total[str(shard.device)] = total.get(str(shard.device), 0) + shard.data.nbytes
    return total
