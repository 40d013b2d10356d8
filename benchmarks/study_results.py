"""What the records of the study say of each network: means, intervals, tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import paired_statistics, study_records
from benchmarks.compare_records import KINDS
from benchmarks.study_plan import BASE
from benchmarks.study_variations import CLEAN, GROUPS
from configs import study


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of a network's accuracy from that of 'none', over the seeds that both have; percent points.

    Attributes:
        mean: the difference.
        low: of its 95 % interval.
        high: likewise.
        p: exact two-sided, of this pair alone.
        corrected: by Holm's procedure, for all networks of the task.
    """

    mean: float
    low: float
    high: float
    p: float
    corrected: float = 1.0


@dataclasses.dataclass(frozen=True)
class Result:
    """A network in a task; what is not measured is None or missing.

    Attributes:
        name: of the network.
        number: in tables and pictures.
        kind: one of `KINDS`.
        seeds: that are finished.
        by_seed: accuracy of each of them, percent.
        failure: why a seed failed, '' if none did.
        parameters: their number.
        macs: for one image.
        accuracy: mean over the seeds, percent.
        low: of its 95 % interval.
        high: likewise.
        difference: from 'none'.
        varied: accuracy by group of variations, percent.
        ratio: of the step time to that of 'none'.
    """

    name: str
    number: int
    kind: str
    seeds: tuple[int, ...] = ()
    by_seed: tuple[float, ...] = ()
    failure: str = ""
    parameters: int | None = None
    macs: int | None = None
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    difference: Difference | None = None
    varied: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ratio: float | None = None


def results(
    records: Sequence[dict[str, Any]], task: str, expected: Sequence[str]
) -> dict[str, Result]:
    """Returns the result of every network that is expected, by kind and name.

    Args:
        records: with today's recipes, see `study_records.current`.
        task: 'photos' | 'cued'.
        expected: names, those of networks that no record is of among them.
    """
    steps = {r["net"]: r for r in records if r["suite"] == "step" and r["task"] == task}
    order = sorted(study.NETS, key=lambda name: (KINDS.index(study.kind_of(name)), name))
    numbers = {name: number for number, name in enumerate(order)}
    of_task = [r for r in records if r["suite"] == "net" and r["task"] == task]
    base = _correct(_finished(of_task, BASE), CLEAN)
    found = {}
    for name in sorted(expected, key=numbers.__getitem__):
        result = Result(name, numbers[name], study.kind_of(name))
        failures = [r["error"] for r in of_task if r["net"] == name and "error" in r]
        ratio = steps.get(name, {}).get("ratio")
        result = dataclasses.replace(result, failure=" / ".join(failures), ratio=ratio)
        runs = _finished(of_task, name)
        found[name] = _measured(result, runs, base) if runs else result
    compared = [name for name in found if found[name].difference is not None]
    corrected = paired_statistics.holm([found[name].difference.p for name in compared])
    for name, value in zip(compared, corrected, strict=True):
        difference = dataclasses.replace(found[name].difference, corrected=value)
        found[name] = dataclasses.replace(found[name], difference=difference)
    return found


def _finished(records: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return sorted(
        (r for r in records if r["net"] == name and "error" not in r), key=lambda r: r["seed"]
    )


def _correct(runs: Sequence[dict[str, Any]], variation: str) -> dict[int, np.ndarray]:
    return {r["seed"]: study_records.unpack(r["correct"][variation], r["count"]) for r in runs}


def _measured(
    result: Result, runs: Sequence[dict[str, Any]], base: Mapping[int, np.ndarray]
) -> Result:
    own = _correct(runs, CLEAN)
    correct = np.stack(list(own.values()))
    low, high = paired_statistics.interval(correct)
    varied = {}
    for group, names in GROUPS.items():
        if all(name in run["correct"] for run in runs for name in names):
            rights = [list(_correct(runs, name).values()) for name in names]
            varied[group] = 100 * float(np.mean(rights))
    difference, common = None, [seed for seed in own if seed in base]
    if result.name != BASE and common:
        pair = [np.stack([rows[seed] for seed in common]) for rows in (own, base)]
        ends = paired_statistics.interval(*pair)
        mean = pair[0].mean() - pair[1].mean()
        difference = Difference(
            100 * float(mean), 100 * ends[0], 100 * ends[1], paired_statistics.paired_p(*pair)
        )
    return dataclasses.replace(
        result,
        seeds=tuple(own),
        by_seed=tuple(100 * correct.mean(axis=1)),
        parameters=runs[0]["parameters"],
        macs=runs[0]["macs"],
        accuracy=100 * float(correct.mean()),
        low=100 * low,
        high=100 * high,
        difference=difference,
        varied=varied,
    )
