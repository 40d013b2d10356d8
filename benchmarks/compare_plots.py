"""The two plots of the comparison: accuracy against step time, and memory against map size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import labelled_points
from benchmarks.compare_records import Record, accuracies, kinds, memory, numbers, steps, tasks
from benchmarks.labelled_points import COLORS, kind_handles, style
from lambdanet.atomic import write_file

SMALLEST_MIB = 2  # blocks that need less on the largest map are named, not drawn
DIRECTIONS = {"fwd": "forward", "train": "forward and backward"}


def draw_accuracy(records: Sequence[Record], path: Path) -> None:
    """Draws test accuracy against step time, one panel per task; the numbers are those of the
    tables.
    """
    order, panels = numbers(records), []
    for task in tasks(records):
        points, timed = {}, steps(records, task)
        for name in order:
            values, ms = accuracies(records, task, name), timed.get(name, {}).get("median_ms")
            if values and ms is not None:
                ends = (min(values), max(values)) if len(values) > 1 else ()
                points[name] = labelled_points.Point(ms, statistics.mean(values), *ends)
        title = f"{task}: test accuracy against step time"
        labels = ("training step, ms (log)", "test accuracy, %")
        panels.append(labelled_points.Panel(title, *labels, points))
    labelled_points.draw(panels, order, kinds(records), path)


def draw_memory(records: Sequence[Record], path: Path) -> None:
    """Draws temporary bytes against positions, log-log, one panel per direction, with lines of
    slope 1, 1.5 and 2.
    """
    order, kind_of = numbers(records), kinds(records)
    figure = Figure(figsize=(17, 9), layout="constrained", facecolor="white")
    for axes, (direction, title) in zip(figure.subplots(1, 2), DIRECTIONS.items(), strict=True):
        measured = {name: r for name, r in memory(records, direction).items() if "bytes" in r}
        tiny = [
            f"{order[name]} {name}"
            for name, r in measured.items()
            if r["bytes"][-1] < SMALLEST_MIB * 2**20
        ]
        curves = {
            name: (
                [side**2 for side in r["sides"]],
                [max(count, 1) / 2**20 for count in r["bytes"]],
            )
            for name, r in measured.items()
            if r["bytes"][-1] >= SMALLEST_MIB * 2**20
        }
        for name, (positions, values) in curves.items():
            axes.plot(
                positions, values, "-o", color=COLORS[kind_of[name]], lw=1.3, ms=3.5, alpha=0.85
            )
        if not curves:
            continue
        style(axes, f"temporary memory, {title}", "positions of the map (log)", "MiB (log)")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        positions = sorted({n for xs, _ in curves.values() for n in xs})
        axes.set_xticks(positions, [f"{math.isqrt(n)}x{math.isqrt(n)}" for n in positions])
        axes.minorticks_off()
        middle = statistics.median(values[0] for _, values in curves.values())
        for power, dash in ((1, ":"), (1.5, "-."), (2, "--")):
            ends = [middle * (n / positions[0]) ** power for n in (positions[0], positions[-1])]
            axes.plot(
                [positions[0], positions[-1]],
                ends,
                dash,
                color="#8c96a3",
                lw=1.6,
                zorder=0,
                label=f"slope n^{power:g}",
            )
        handles = [
            *axes.get_legend_handles_labels()[0],
            *kind_handles({kind_of[name] for name in curves}),
        ]
        axes.legend(handles=handles, frameon=False, loc="upper left", fontsize=10)
        if tiny:
            note = f"below {SMALLEST_MIB} MiB: {', '.join(tiny)}"
            axes.text(
                0.99, 0.01, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=9.5
            )
        axes.set_xlim(right=positions[-1] * (positions[-1] / positions[0]) ** 0.34)
        _name_ends(
            axes,
            {
                f"{order.get(name, '')} {name}": (x[-1], y[-1], COLORS[kind_of[name]])
                for name, (x, y) in curves.items()
            },
        )
    write_file(path, lambda file: figure.savefig(file, dpi=100, format="png"))


def _name_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float, str]], gap: float = 0.024
) -> None:
    """Writes the curves' names at the right, evenly pushed apart where the curves end together."""
    low, high = (math.log(v) for v in axes.get_ylim())
    order = sorted(ends, key=lambda name: ends[name][1])
    heights = [(math.log(ends[name][1]) - low) / (high - low) for name in order]
    for _ in range(200):  # neighbours closer than the gap move apart by half of what is missing
        for i in range(len(heights) - 1):
            missing = gap - (heights[i + 1] - heights[i])
            if missing > 0:
                heights[i] -= missing / 2
                heights[i + 1] += missing / 2
        heights = [min(max(h, 0.01), 0.99) for h in heights]
    for name, height in zip(order, heights, strict=True):
        x, y, color = ends[name]
        axes.annotate(
            name,
            (x, y),
            (x * 1.5, math.exp(low + height * (high - low))),
            color=color,
            fontsize=9.5,
            va="center",
            arrowprops=dict(
                arrowstyle="-",
                color=color,
                lw=0.5,
                alpha=0.6,
                shrinkA=0,
                shrinkB=2,
                relpos=(0, 0.5),
            ),
        )
