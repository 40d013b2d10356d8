"""What the records of the comparison say: the lines of benchmarks/results/cpu_compare.jsonl, which
the document and its plots are made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("convolutions", "mixer", "context", "backbone")
BASES = {"digits": "none", "cued": "none", "backbones": "resnet_digits", "lavit": "vanilla"}
"""What the step times of a task are compared with."""

Record = Mapping[str, Any]


def kinds(records: Sequence[Record]) -> dict[str, str]:
    """Returns the kind of every variant, one of `KINDS`."""
    return {r["variant"]: r["kind"] for r in records if r["suite"] == "accuracy"}


def tasks(records: Sequence[Record]) -> list[str]:
    """Returns the tasks in the order of `BASES`."""
    return [
        task
        for task in BASES
        if any(r["suite"] == "accuracy" and r["task"] == task for r in records)
    ]


def numbers(records: Sequence[Record]) -> dict[str, int]:
    """Returns the number of every variant in tables and plots: convolutions, mixers, context
    blocks, backbones, by name each.
    """
    found = kinds(records)
    order = sorted(found, key=lambda name: (KINDS.index(found[name]), name))
    return {name: number for number, name in enumerate(order)}


def accuracies(records: Sequence[Record], task: str, variant: str) -> list[float]:
    """Returns the test accuracies in percent of all finished seeds."""
    runs = [
        r
        for r in records
        if r["suite"] == "accuracy" and (r["task"], r["variant"]) == (task, variant)
    ]
    return [100 * r["accuracy"] for r in runs if "accuracy" in r]


def steps(records: Sequence[Record], task: str) -> dict[str, Record]:
    """Returns the step record of every variant."""
    return {r["impl"]: r for r in records if r["suite"] == "step" and r["case"] == task}


def memory(records: Sequence[Record], direction: str) -> dict[str, Record]:
    """Returns the memory record of every variant for one direction."""
    return {r["case"]: r for r in records if r["suite"] == "memory" and r["direction"] == direction}
