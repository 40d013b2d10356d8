"""How bytes and collectives of a training step grow with the number of devices.

The state's bytes follow from shapes, for any mesh. The temporary memory of a device depends on its
own images alone. Of the collectives, what is gathered, and what is reduced and then used in slices,
grows with the bytes of the parameters that the mesh splits; all that is reduced, sliced or not, is
the same for every number of devices; and so is everything else. A group of devices is the axis
'data', the axis 'fsdp' or both, and has their size. All of it is taken from the smallest number of
devices that was compiled; `errors` says how far off it is at the others.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.collectives import bytes_sent

LAYOUTS = ("data", "fsdp", "both")
BOTH = 4
"""Size of the axis 'fsdp' in the layout 'both': the devices of one host."""
STATE = ("params", "opt_state", "stats", "ema", "step")

Found = Mapping[str, Any]


def mesh_sizes(layout: str, devices: int) -> tuple[int, int]:
    """Returns the sizes (data, fsdp) of a layout's mesh; 'both' has fewer on 'fsdp' where there are
    no `BOTH`.
    """
    fsdp = {"data": 1, "fsdp": devices, "both": min(BOTH, devices)}[layout]
    return devices // fsdp, fsdp


def held(state: Found) -> int:
    """Returns the bytes of the state on one device."""
    return sum(state[part] for part in STATE)


@dataclasses.dataclass(frozen=True)
class Moved:
    """What moves between devices in one step: number of operations, bytes of their results on one
    device, bytes that a device sends, and those if sliced all-reduces are reduce-scatters.
    """

    number: float = 0
    bytes: float = 0
    sent: float = 0
    sent_scattered: float = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other),
                                   strict=True)))  # fmt: skip


def moved(kind: str, group: int, size: float, sliced: bool, number: float) -> Moved:
    """Returns what some equal collectives move: nothing in a group of one device."""
    if group == 1:
        return Moved()
    sent = [number * bytes_sent(kind, group, size, scattered) for scattered in (False, sliced)]
    return Moved(number, number * size, *sent)


def measured(program: Found) -> dict[tuple[str, bool], Moved]:
    """Returns what a compiled program moves, by kind and whether it is used in slices."""
    found: dict[tuple[str, bool], Moved] = collections.defaultdict(Moved)
    for kind, group, size, sliced, number in program["collectives"]:
        found[kind, sliced] += moved(kind, group, size, sliced, number)
    return dict(found)


def total(parts: Mapping[Any, Moved]) -> Moved:
    """Returns the sum over all kinds."""
    return sum(parts.values(), Moved())


def predicted(
    program: Found, base: tuple[int, int], sizes: tuple[int, int], split: float
) -> dict[tuple[str, bool], Moved]:
    """Returns what the law says that a step moves on another mesh.

    Args:
        program: compiled for the mesh `base`, whose two axes and product are different numbers,
            but for axes of size 1.
        base: sizes (data, fsdp).
        sizes: of the other mesh.
        split: bytes of the parameters that are split there.
    """
    axes = {base[0]: sizes[0], base[1]: sizes[1]}
    axes[base[0] * base[1]] = sizes[0] * sizes[1]
    before = program["state"]["split_params"]
    share_split = split / before if before else 1
    found: dict[tuple[str, bool], Moved] = collections.defaultdict(Moved)
    for kind, group, size, sliced, number in program["collectives"]:
        now = axes[group]
        share = share_split if kind == "all-gather" or sliced else 1
        if share:
            found[kind, sliced] += moved(kind, now, size, sliced, number * share)
        if sliced and share != 1:  # the others are reduced whole
            found[kind, False] += moved(kind, now, size, False, number * (1 - share))
    return dict(found)


def errors(
    program: Found, base: tuple[int, int], others: Mapping[tuple[int, int], Found]
) -> dict[tuple[int, int], dict[str, float]]:
    """Returns how far the law is off at other meshes that were compiled, by mesh: the relative
    errors of number, bytes, bytes sent, and temporary memory.
    """
    found = {}
    for sizes, other in others.items():
        split = other["state"]["split_params"]
        said, true = total(predicted(program, base, sizes, split)), total(measured(other))
        temporary = program["temporary"] / other["temporary"] - 1
        found[sizes] = {
            name: getattr(said, name) / getattr(true, name) - 1 for name in ("number", "bytes",
                                                                           "sent_scattered")
        } | {"temporary": temporary}  # fmt: skip
    return found
