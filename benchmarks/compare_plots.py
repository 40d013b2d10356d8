"""The two plots of the comparison: accuracy against step time, and memory against map size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.compare_records import Record, accuracies, kinds, memory, numbers, steps, tasks
from lambdanet.atomic import write_file

COLORS = {
    "convolutions": "#24292f",
    "mixer": "#1f6feb",
    "context": "#d1570a",
    "backbone": "#1a7f37",
}
NAMES = {
    "convolutions": "convolutions only",
    "mixer": "mixer in place of 3x3",
    "context": "context block added",
    "backbone": "whole network",
}
SMALLEST_MIB = 2  # blocks that need less on the largest map are named, not drawn
DIRECTIONS = {"fwd": "forward", "train": "forward and backward"}


def draw_accuracy(records: Sequence[Record], path: Path) -> None:
    """Draws test accuracy against step time, one panel per task; the numbers are those of the
    tables.
    """
    order, kind_of = numbers(records), kinds(records)
    shown = tasks(records)
    names, across = math.ceil(len(order) / 5), min(len(shown), 2)
    down = math.ceil(len(shown) / across)
    figure = Figure(
        figsize=(7.2 * across, 6.0 * down + 0.24 * names), layout="constrained", facecolor="white"
    )
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.remove()
    drawn = []
    for axes, task in zip(panels, shown, strict=False):
        points, timed = {}, steps(records, task)
        for name, number in order.items():
            values, ms = accuracies(records, task, name), timed.get(name, {}).get("median_ms")
            if not values or ms is None:
                continue
            color, mean = COLORS[kind_of[name]], statistics.mean(values)
            if len(values) > 1:
                axes.plot(
                    [ms, ms], [min(values), max(values)], color=color, lw=1, alpha=0.3, zorder=1
                )
            axes.plot(ms, mean, "o", color=color, ms=6, mec="white", mew=0.7, zorder=3)
            points[number] = (ms, mean, color)
        _style(
            axes,
            f"{task}: test accuracy against step time",
            "training step, ms (log)",
            "test accuracy, %",
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(axis="x", which="both", length=4, pad=4)
        axes.margins(0.09)
        low, high = axes.get_xlim()
        shown_digits = "2345678" if high < 8 * low else "25"
        axes.xaxis.set_minor_formatter(
            lambda value, _, d=shown_digits: f"{value:g}" if f"{value:.0e}"[0] in d else ""
        )
        drawn.append((axes, points))
    names = [
        Line2D(
            [], [], ls="", marker=f"${n}$", ms=10 if n > 9 else 6, color=COLORS[kind_of[v]], label=v
        )
        for v, n in order.items()
    ]
    figure.legend(handles=names, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.legend(
        handles=_kinds(kind_of.values()), loc="outside upper center", ncols=3, frameon=False
    )
    figure.draw_without_rendering()  # fixes the layout that the labels are placed in
    for axes, points in drawn:
        _label(axes, points)
    write_file(path, lambda file: figure.savefig(file, dpi=110, format="png"))


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
        _style(axes, f"temporary memory, {title}", "positions of the map (log)", "MiB (log)")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        positions = sorted({n for xs, _ in curves.values() for n in xs})
        axes.set_xticks(positions, [f"{math.isqrt(n)}x{math.isqrt(n)}" for n in positions])
        axes.minorticks_off()
        middle = statistics.median(values[0] for _, values in curves.values())
        for power, style in ((1, ":"), (1.5, "-."), (2, "--")):
            ends = [middle * (n / positions[0]) ** power for n in (positions[0], positions[-1])]
            axes.plot(
                [positions[0], positions[-1]],
                ends,
                style,
                color="#8c96a3",
                lw=1.6,
                zorder=0,
                label=f"slope n^{power:g}",
            )
        handles = [
            *axes.get_legend_handles_labels()[0],
            *_kinds({kind_of[name] for name in curves}),
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


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=13, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def _kinds(present: Collection[str]) -> list[Line2D]:
    return [
        Line2D([], [], ls="", marker="o", color=COLORS[k], label=NAMES[k])
        for k in COLORS
        if k in present
    ]


def _label(axes: Axes, points: Mapping[int, tuple[float, float, str]]) -> None:
    """Writes each point's number at the nearest free place around it; with a thin line where that
    is not beside it.
    """
    pixels = {number: axes.transData.transform((x, y)) for number, (x, y, _) in points.items()}
    boxes = [(x - 6, y - 6, x + 6, y + 6) for x, y in pixels.values()]
    frame = axes.get_window_extent()
    for number, (x, y, color) in points.items():
        px, py = pixels[number]
        half = 5 + 4 * len(str(number))
        places = [
            (px + radius * math.cos(angle), py + radius * math.sin(angle))
            for radius in range(15, 150, 8)
            for angle in (
                math.pi * i / 8 for i in (2, 0, 8, 12, 1, 3, 5, 7, 4, 9, 11, 13, 15, 6, 10, 14)
            )
        ]
        free = [
            (cx, cy)
            for cx, cy in places
            if frame.x0 + half < cx < frame.x1 - half and frame.y0 + 9 < cy < frame.y1 - 9
            and not any(_overlap((cx - half, cy - 8, cx + half, cy + 8), box) for box in boxes)
        ]  # fmt: skip
        cx, cy = (free or places)[0]
        boxes.append((cx - half, cy - 8, cx + half, cy + 8))
        there = axes.transData.inverted().transform((cx, cy))
        if math.hypot(cx - px, cy - py) > 24:
            axes.plot([x, there[0]], [y, there[1]], color=color, lw=0.6, alpha=0.6, zorder=1)
        axes.text(*there, str(number), color=color, fontsize=10, ha="center", va="center", zorder=4)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


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
