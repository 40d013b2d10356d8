"""Scatter plots whose points bear the numbers of the tables beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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


@dataclasses.dataclass(frozen=True)
class Point:
    """A variant in a panel; `low` and `high` are the ends of its bar, if it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """What one panel shows.

    Attributes:
        title: above it.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        points: by variant.
        log: the horizontal axis is logarithmic.
        diagonal: draw where both are equal, as far as that is in sight.
    """

    title: str
    x: str
    y: str
    points: Mapping[str, Point]
    log: bool = True
    diagonal: bool = False


def draw(
    panels: Sequence[Panel], numbers: Mapping[str, int], kinds: Mapping[str, str], path: Path
) -> None:
    """Draws the panels, two beside each other, above the names of all variants.

    Args:
        panels: at least one.
        numbers: of the variants, in the order of the names.
        kinds: of the variants, keys of `COLORS`.
        path: the PNG.
    """
    across = min(len(panels), 2)
    down, columns = math.ceil(len(panels) / across), 5 if across > 1 else 3
    size = (7.2 * across, 6.0 * down + 0.24 * math.ceil(len(numbers) / columns))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    places = figure.subplots(down, across, squeeze=False).ravel()
    for axes in places[len(panels) :]:
        axes.remove()
    drawn = []
    for axes, panel in zip(places, panels, strict=False):
        points = {}
        for name, point in panel.points.items():
            color = COLORS[kinds[name]]
            if point.low is not None:
                axes.plot(
                    [point.x] * 2, [point.low, point.high], color=color, lw=1, alpha=0.3, zorder=1
                )
            axes.plot(point.x, point.y, "o", color=color, ms=6, mec="white", mew=0.7, zorder=3)
            points[numbers[name]] = (point.x, point.y, color)
        style(axes, panel.title, panel.x, panel.y)
        if panel.log:
            axes.set_xscale("log")
        axes.margins(0.09)
        if panel.log:
            _log_ticks(axes)
        if panel.diagonal:
            ends = axes.get_xlim(), axes.get_ylim()
            axes.axline((0, 0), slope=1, color="#8c96a3", lw=1, ls="--", zorder=0)
            axes.set(xlim=ends[0], ylim=ends[1])  # the line's point counts as data
        drawn.append((axes, points))
    handles = [_number_handle(n, v, COLORS[kinds[v]]) for v, n in numbers.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    handles = kind_handles(kinds.values())
    figure.legend(handles=handles, loc="outside upper center", ncols=across + 1, frameon=False)
    figure.draw_without_rendering()  # fixes the layout that the labels are placed in
    for axes, points in drawn:
        _label(axes, points)
    write_file(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """Writes title and labels, and draws the grid."""
    axes.set_title(title, fontsize=13, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def kind_handles(present: Collection[str]) -> list[Line2D]:
    """Returns the legend's entries of the kinds that are present."""
    return [
        Line2D([], [], ls="", marker="o", color=COLORS[k], label=NAMES[k])
        for k in COLORS
        if k in present
    ]


def _number_handle(number: int, name: str, color: str) -> Line2D:
    size = 10 if number > 9 else 6
    return Line2D([], [], ls="", marker=f"${number}$", ms=size, color=color, label=name)


def _log_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(axis="x", which="both", length=4, pad=4)
    low, high = axes.get_xlim()
    digits = "2345678" if high < 8 * low else "25"
    axes.xaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in digits else ""
    )


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
