"""The document of the comparison: tables and plots from records alone, and the hand-written
reading, which is kept.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import compare_plots
from benchmarks.compare_records import (
    BASES,
    Record,
    accuracies,
    kinds,
    memory,
    numbers,
    steps,
    tasks,
)
from lambdanet.analysis.text import markdown_table
from lambdanet.atomic import write_file

BEGIN, END = (
    "<!-- reading: written by hand, kept by `make compare` -->",
    "<!-- end of the reading -->",
)
NOT_WRITTEN = "(not written yet)"
INTRODUCTIONS = {
    "backbones": "Whole networks of the digits' size by [configs/digits.py](../configs/digits.py), "
    "for the same number of "
    "steps; the Transformers have half the ResNets' learning rate, a longer warm-up and a clipped "
    "gradient, without which "
    "they diverge. What differs is the family, not the attention alone. Options: `python eval.py "
    "--mode=describe "
    "--name='*_digits'`.",
    "lavit": "`lavit_digits` with its parts added one after the other: attention of its own in "
    "every layer (`vanilla`), the "
    "first layer's logits of a stage reused unchanged (`reuse`), less-attention (`less`), the "
    "attention residual between the "
    "stages as well (the preset), and the diagonality-preserving loss as well.",
}


def write(records: Sequence[Record], document: Path, images: Path, results: Path) -> None:
    """Writes the document, keeping its reading, and its two plots; `results` is the file of the
    records, for the link.
    """
    reading = read_reading(document)
    compare_plots.draw_accuracy(records, images / "comparison_accuracy.png")
    compare_plots.draw_memory(records, images / "comparison_memory.png")
    links = (Path(os.path.relpath(path, document.parent)).as_posix() for path in (images, results))
    write_file(document, markdown(records, reading, *links))


def read_reading(document: Path) -> str:
    """Returns the hand-written part of an existing document; ValueError if its marks are broken."""
    if not document.is_file():
        return NOT_WRITTEN
    text = document.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"{document}: the hand-written part must stand once between {BEGIN!r} and {END!r}"
        )
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


# --------------------------------------------------------------------------------------------------
# Text
# --------------------------------------------------------------------------------------------------
def markdown(records: Sequence[Record], reading: str, images: str, results: str) -> str:
    """Returns the whole document.

    Args:
        records: of benchmarks/compare.py.
        reading: its hand-written part.
        images: folder of the plots, relative to the document.
        results: file of the records, likewise.
    """
    (machine,) = [r for r in records if r["suite"] == "environment"]
    parts = [
        "# Comparison of the attention blocks",
        "",
        "Written by `make compare` (`python -m benchmarks.compare`) but for the section Reading; "
        "every number stands in "
        f"[{results.rpartition('/')[2]}]({results}), with the command of every run. "
        f"Python {machine['python']}, jax {machine['jax']}, {machine['device']}, "
        f"{machine['cores']} cores, float32.",
        "",
        "One small ResNet, one recipe and the same number of steps for every variant of "
        "[configs/attention_zoo.py](../configs/attention_zoo.py). A mixer replaces the 3x3 "
        "convolutions of the last stage, a "
        "context block stands after the last block of the first stage, `none` has convolutions "
        "only. Nothing was tuned for "
        "any variant.",
        "",
        "## Reading",
        "",
        BEGIN,
        reading,
        END,
        "",
        f"![accuracy against step time]({images}/comparison_accuracy.png)",
        "",
    ]
    for task in tasks(records):
        parts += _task_section(records, task)
    parts += _memory_section(records, images)
    return "\n".join(parts).rstrip() + "\n"


def _task_section(records: Sequence[Record], task: str) -> list[str]:
    runs = [r for r in records if r["suite"] == "accuracy" and r["task"] == task]
    finished = [r for r in runs if "accuracy" in r]
    seeds = sorted({r["seed"] for r in runs})
    timed = steps(records, task)
    base = timed.get(BASES[task], {}).get("median_ms")
    rows, kind_of = [], kinds(records)
    for name, number in numbers(records).items():
        if not any(r["variant"] == name for r in runs):
            continue
        values, step = accuracies(records, task, name), timed.get(name, {})
        ms = step.get("median_ms")
        accuracy = f"{statistics.mean(values):.2f}" if values else "failed"
        rows.append(
            [
                str(number),
                f"`{name}`",
                kind_of[name],
                f"{step['parameters']:,}" if step else "",
                f"{step['macs'] / 1e6:.2f}" if step else "",
                f"{ms:.2f}" if ms else step.get("error", ""),
                f"{ms / base:.2f}" if ms and base else "",
                accuracy,
                *([", ".join(f"{value:.2f}" for value in values)] if len(seeds) > 1 else []),
            ]
        )
    head = [
        "#",
        "variant",
        "kind",
        "parameters",
        "MMACs",
        "step ms",
        f"x {BASES[task]}",
        "test accuracy %",
    ]
    head += [f"seeds {', '.join(map(str, seeds))}"] if len(seeds) > 1 else []
    lengths = sorted({r["total_steps"] for r in finished})
    counts = sorted({r["count"] for r in finished})
    batch = sorted({r["batch_size"] for r in timed.values() if "batch_size" in r})
    return [
        f"## {task}",
        "",
        *([INTRODUCTIONS[task], ""] if task in INTRODUCTIONS else []),
        f"{_listed(lengths)} steps of batch {_listed(batch)}; {_listed(counts)} test images, one "
        "of which is "
        f"{_listed([f'{100 / count:.2f}' for count in counts])} points; "
        f"seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}. "
        "Step: forward, backward and update on all cores, median of rounds in which all variants "
        "take turns.",
        "",
        *markdown_table(head, rows, left=(1, 2)),
        "",
    ]


def _memory_section(records: Sequence[Record], images: str) -> list[str]:
    forward, train = memory(records, "fwd"), memory(records, "train")
    measured = [r for r in (*forward.values(), *train.values()) if "bytes" in r]
    if not measured:
        return []
    sides, channels = measured[0]["sides"], measured[0]["channels"]
    rows = []
    for name, number in numbers(records).items():
        if name not in forward:
            continue
        cells = []
        for record in (forward[name], train[name]):
            if "error" in record:
                cells += [record["error"], *[""] * len(sides)]
            else:
                cells += [*map(mib, record["bytes"]), f"{record['growth']:.2f}"]
        record = forward[name]
        formula = [mib(record["formula_bytes"][-1])] if "formula_bytes" in record else [""]
        rows.append([str(number), f"`{name}`", *cells, record.get("formula", ""), *formula])
    sizes = [f"{side}x{side}" for side in sides]
    head = [
        "#",
        "block",
        *(f"fwd {size}" for size in sizes),
        "p",
        *(f"train {size}" for size in sizes),
        "p",
    ]
    head += ["largest intermediate", f"MiB at {sizes[-1]}"]
    map_mib = mib(4 * channels * sides[-1] ** 2)
    return [
        "## Memory",
        "",
        "MiB of temporary memory that the compiled block needs beside inputs and outputs, for one "
        f"float32 map of {channels} "
        f"channels, n positions ({map_mib} MiB for the map of {sizes[-1]} itself); `train` is "
        "forward and backward. p: bytes "
        f"grow as n^p from {sizes[-2]} to {sizes[-1]}. Beside it the formula of the method's "
        "largest intermediate. Options and "
        "formulas: [benchmarks/memory_suite.py](../benchmarks/memory_suite.py); `python -m "
        "benchmarks memory` measures it alone.",
        "",
        f"![memory against positions]({images}/comparison_memory.png)",
        "",
        *markdown_table(head, rows, left=(1, len(head) - 2)),
        "",
    ]


def mib(count: int) -> str:
    """Returns bytes in MiB with three significant digits."""
    value = count / 2**20
    return (
        "0"
        if count == 0
        else f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
        if value >= 0.01
        else "<0.01"
    )


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
