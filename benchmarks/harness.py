"""Measuring candidates side by side: one process, correctness before speed, interleaved rounds,
best and median.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.table import Table

from lambdanet.analysis.text import console_table

SLOWEST_CALL = (
    3.0  # seconds; a candidate whose call takes longer is dropped, it would eat everybody's time
)
SHORTEST_SAMPLE = 0.02  # seconds; shorter calls are repeated inside one sample
BUDGET = 20.0  # seconds of sampling per group of candidates
# What every line of JSON has; null where it is not known, such as PyTorch's temporary memory.
LINE = (
    "suite",
    "case",
    "direction",
    "framework",
    "impl",
    "ms",
    "median_ms",
    "cpu_ms",
    "temp_mib",
    "flops",
    "bytes",
)
# seconds before a sample where two frameworks take turns: their idle threads spin for a while
PAUSE = 0.005


@dataclasses.dataclass
class Prepared:
    """A candidate that is ready to run.

    Attributes:
        run: does the work once and waits for it; or returns (wall seconds, CPU seconds) of the part
            that counts. None: nothing is timed, `facts` are the measurement.
        check: raises AssertionError unless the candidate's results are right.
        items: pieces of work per call (images); adds two rates to the record.
        temp_mib: temporary memory of the compiled program, MiB.
        flops, bytes: useful work per call, the same for all candidates of a case: operations of the
            formula, and its operands and results once.
        facts: further entries of the record, found while preparing.
        close: called at the end.
    """

    run: Callable[[], tuple[float, float] | None] | None
    check: Callable[[], None]
    items: int | None = None
    temp_mib: float | None = None
    flops: float | None = None
    bytes: float | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    close: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Case:
    """One candidate: `name` and `direction` ('fwd' or 'train') say what is computed, `impl` and
    `framework` how and by whom.

    `impl` is 'auto' for our public modules at their defaults; `framework` is 'ours' or 'torch'.
    """

    suite: str
    name: str
    direction: str
    impl: str
    prepare: Callable[[], Prepared]
    framework: str = "ours"


def run_cases(
    cases: Iterable[Case], *, rounds: int, out: TextIO | None = None
) -> list[dict[str, Any]]:
    """Measures all cases; those with the same name and direction take turns, round by round.

    Args:
        cases: what to measure.
        rounds: samples per case (fewer when a group exceeds its time budget).
        out: an open file for one JSON object per line, with all keys of `LINE`; None writes none.

    Returns:
        The records. A candidate that failed its check has no times and `error` instead; a too slow
        one likewise.
    """
    records, limits = [], None
    for group in in_turns(cases):
        for record in run_group(group, rounds):
            if {"flops", "bytes", "ms"} <= record.keys():
                limits = limits or ceilings()
                record["gemm_share"] = record["flops"] / (limits[0] * record["ms"] / 1e3)
                record["copy_share"] = record["bytes"] / (limits[1] * record["ms"] / 1e3)
            records.append(record)
            if out is not None:
                print(json.dumps(dict.fromkeys(LINE) | record), file=out, flush=True)
    return records


def in_turns(cases: Iterable[Case]) -> list[list[Case]]:
    """Returns the groups of cases that take turns: those with the same name and direction."""
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.suite, case.name, case.direction), []).append(case)
    return list(groups.values())


def run_group(
    group: Sequence[Case], rounds: int, *, kept: type[Exception] = AssertionError
) -> list[dict[str, Any]]:
    """Measures cases that take turns.

    Args:
        group: one of `in_turns`.
        rounds: samples per case.
        kept: what a candidate may raise while it is prepared, checked and first run; becomes its
            `error`. Whatever else is raised ends the measurement.

    Returns:
        The records, see `run_cases`.
    """
    records, ready = [], []
    for case in group:
        record = dict(
            suite=case.suite,
            case=case.name,
            direction=case.direction,
            framework=case.framework,
            impl=case.impl,
        )
        records.append(record)
        prepared = None
        try:
            prepared = case.prepare()
            prepared.check()
            record |= prepared.facts
            wall = 0.0 if prepared.run is None else _sample(prepared, 1)[0]
        except kept as error:
            record["error"] = said(error)
            if prepared is not None:
                prepared.close()
            continue
        if prepared.run is None:
            prepared.close()
            continue
        if wall > SLOWEST_CALL:
            record["error"] = f"dropped: one call takes {wall:.1f} s"
            prepared.close()
            continue
        ready.append((record, prepared, max(1, round(SHORTEST_SAMPLE / max(wall, 1e-9)))))
    samples: dict[int, list[tuple[float, float]]] = {i: [] for i in range(len(ready))}
    mixed = len({case.framework for case in group}) > 1
    started = time.perf_counter()
    for _ in range(rounds):
        for i, (_, prepared, repeats) in enumerate(ready):
            if mixed:
                time.sleep(PAUSE)
            if repeats > 1:
                prepared.run()  # what the others left in the caches is nobody's time
            samples[i].append(_sample(prepared, repeats))
        if time.perf_counter() - started > BUDGET:
            break
    for i, (record, prepared, _) in enumerate(ready):
        wall, cpu = zip(*samples[i], strict=True)
        record |= dict(
            ms=1e3 * min(wall), median_ms=1e3 * statistics.median(wall), cpu_ms=1e3 * min(cpu)
        )
        if prepared.items is not None:
            record |= dict(
                items_per_s=prepared.items / min(wall), items_per_cpu_s=prepared.items / min(cpu)
            )
        extra = dict(temp_mib=prepared.temp_mib, flops=prepared.flops, bytes=prepared.bytes)
        record |= {key: value for key, value in extra.items() if value is not None}
        prepared.close()
    return records


def said(error: Exception) -> str:
    """Returns one line about an error for a record."""
    first = next(iter(str(error).splitlines()), "")[:300]
    kind = "wrong result" if isinstance(error, AssertionError) else type(error).__name__
    return f"{kind}: {first}"


def _sample(prepared: Prepared, repeats: int) -> tuple[float, float]:
    """Returns (wall, CPU) seconds per call; the latter of all threads of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        own = prepared.run()
        if own is not None:
            return own
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


@functools.cache
def ceilings() -> tuple[float, float]:
    """Returns what this device reaches now in float32: operations per second of a matrix product,
    bytes per second of a copy.
    """
    import jax
    import jax.numpy as jnp

    side, length = (1536, 2**25) if jax.default_backend() == "cpu" else (8192, 2**29)
    a, x = jnp.ones((side, side), jnp.float32), jnp.ones(length, jnp.float32)
    programs = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1)
    seconds = []
    for program, operand in zip(programs, (a, x), strict=True):
        jax.block_until_ready(program(operand))
        times = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(program(operand))
            times.append(time.perf_counter() - began)
        seconds.append(min(times))
    return 2 * side**3 / seconds[0], 2 * x.nbytes / seconds[1]


def environment() -> dict[str, Any]:
    """Returns what a reader of the numbers has to know about the machine and the packages."""
    import jax
    import numpy as np

    return dict(
        python=platform.python_version(),
        jax=jax.__version__,
        numpy=np.__version__,
        device=jax.devices()[0].device_kind,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        load=round(os.getloadavg()[0], 2),
    )


COLUMNS = (
    ("case", "{}"),
    ("direction", "{}"),
    ("framework", "{}"),
    ("impl", "{}"),
    ("ms", "{:.3f}"),
    ("median_ms", "{:.3f}"),
    ("cpu_ms", "{:.3f}"),
    ("items_per_s", "{:.0f}"),
    ("items_per_cpu_s", "{:.0f}"),
    ("temp_mib", "{:.1f}"),
    ("total_mib", "{:.1f}"),
    ("grown_mib", "{:.1f}"),
    ("trace_s", "{:.1f}"),
    ("compile_s", "{:.1f}"),
    ("gemm_share", "{:.2f}"),
    ("copy_share", "{:.2f}"),
    ("sides", "{}"),
    ("bytes", "{}"),
    ("growth", "{:.2f}"),
    ("formula", "{}"),
    ("formula_bytes", "{}"),
    ("dtype", "{}"),
    ("off", "{:.1e}"),
    ("allowed", "{:.0e}"),
    ("needs_mib", "{:.1f}"),
    ("limit_mib", "{:.1f}"),
    ("fits", "{}"),
    ("skipped", "{}"),
    ("error", "{}"),
)


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Returns the records as a table; columns that no record has are left out."""
    columns = [(key, form) for key, form in COLUMNS if any(key in record for record in records)]
    rows = [
        [form.format(record[key]) if key in record else "" for key, form in columns]
        for record in records
    ]
    numbers = [i for i, (_, form) in enumerate(columns) if form != "{}"]
    return console_table([key for key, _ in columns], rows, right=numbers)
