"""What moves between the devices of a compiled program: its collectives, read from XLA's text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BITS = {"pred": 8, "bf16": 16}
"""Of the types whose name does not end with them."""

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_OPERATION = re.compile(rf"%?([\w.\-]+) = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ANY = re.compile(r" = .*? ([a-z][\w\-]*)\((.*?)\)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"\b(\w+)=(?:%([\w.\-]+)|\{(%[^}]*)\})")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GRID = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}")
_AXIS_SIZE = re.compile(r"'(\w+)'=(\d+)")
_AXIS_USED = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")
_PARTITIONS = re.compile(r"^HloModule .*\bnum_partitions=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation of a program.

    Attributes:
        kind: one of `KINDS`.
        group: how many devices take part together.
        bytes: of its result on one device.
        sliced: an all-reduce of which every device uses a slice alone. Compilers of accelerators
            make a reduce-scatter of it; XLA's for CPU does not.
        times: how often a call of the program runs it; more than once inside a loop.
    """

    kind: str
    group: int
    bytes: int
    sliced: bool = False
    times: int = 1


def bytes_sent(kind: str, group: int, result: float, sliced: bool = False) -> float:
    """Returns the bytes that each of n devices sends to its neighbour when they pass parts around a
    ring, which is the least that does it.

    2 (n - 1) / n of what is reduced for all; (n - 1) / n of what is gathered, of what is reduced
    and then scattered (n times the result), and of what all send to all; all of what is permuted.

    Args:
        kind: one of `KINDS`.
        group: n.
        result: bytes of the operation's result on one device.
        sliced: an all-reduce that is done as a reduce-scatter.
    """
    others = group - 1
    return (
        result
        * {
            "all-reduce": (1 if sliced else 2) * others / group,
            "all-gather": others / group,
            "reduce-scatter": others,
            "all-to-all": others / group,
            "collective-permute": 1,
        }[kind]
    )


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program in the order of its text.

    Both branches of a conditional count as taken.

    Args:
        text: of `compiled.as_text()`.

    Raises:
        ValueError: it is no program; a collective stands in a loop that XLA does not know the
            length of; or it is split into a start and an end, as accelerators have it.
    """
    entry, bodies = _computations(text)
    partitions = _PARTITIONS.search(text)
    devices = int(partitions[1]) if partitions else 1
    found = list(_walk(bodies, entry, 1, devices))
    if any(one.times == 0 for one in found):
        raise ValueError("a collective stands in a loop of unknown length; unroll or scan it")
    return found


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """Returns the name of the main computation, and name -> lines of each."""
    entry, bodies, lines = "", {}, []
    for line in text.splitlines():
        if line[:1] in ("", " ", "}"):
            lines.append(line)
        elif match := _COMPUTATION.match(line):
            lines = bodies[match[2]] = []
            entry = match[2] if match[1] else entry
    if not entry:
        raise ValueError("the text has no ENTRY computation; give that of compiled.as_text()")
    return entry, bodies


def _walk(
    bodies: dict[str, list[str]], name: str, times: int, devices: int
) -> Iterator[Collective]:
    """Yields the collectives of a computation and of what it calls, 0 times for unknown lengths."""
    users: dict[str, set[str]] = {}
    for line in bodies[name]:
        if match := _ANY.search(line):
            for operand in re.findall(r"%([\w.\-]+)", match[2]):
                users.setdefault(operand, set()).add(match[1])
    for line in bodies[name]:
        if match := _OPERATION.search(line):
            if match[4]:
                raise ValueError(
                    f"{match[3]}{match[4]} is split into start and end; compile for CPU devices"
                )
            sliced = match[3] == "all-reduce" and users.get(match[1]) == {"dynamic-slice"}
            yield Collective(match[3], _group(line, devices), _size(match[2]), sliced, times)
        for key, single, several in _CALLED.findall(line):
            inner = times
            if key in ("body", "condition"):
                trips = _TRIPS.search(line)
                inner *= int(trips[1]) if trips else 0
            for called in re.findall(r"[\w.\-]+", single or several):
                if called in bodies:
                    yield from _walk(bodies, called, inner, devices)


def _size(types: str) -> int:
    """Returns the bytes of an array, or of all arrays of a tuple, from its type in the text."""
    return sum(
        math.prod(int(n) for n in dims.split(",") if n) * _bits(kind) // 8
        for kind, dims in _ARRAY.findall(types)
    )


def _bits(kind: str) -> int:
    return BITS.get(kind) or int(re.sub(r"^[a-z]+", "", kind))


def _group(line: str, devices: int) -> int:
    """Returns how many devices take part together, from one of XLA's ways to write groups."""
    if match := _MESH.search(line):
        sizes = {name: int(size) for name, size in _AXIS_SIZE.findall(match[1])}
        return math.prod(
            int(part) if part else sizes[name] for name, part in _AXIS_USED.findall(match[2])
        )
    if match := _GRID.search(line):
        return int(match[1])
    if match := _LISTED.search(line):
        return len(match[1].split(","))
    if "replica_groups={}" in line or "replica_groups" not in line:  # a permutation has pairs
        return devices
    raise ValueError(f"replica groups that are not known here: {line.strip()[:500]}")
