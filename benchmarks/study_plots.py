"""The two pictures of the study: what accuracy costs, and what is left of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks import labelled_points
from benchmarks.labelled_points import Panel, Point
from benchmarks.study_results import Result

SHOWN = {
    "shift": "shifted by 6 pixels",
    "noise_32": "noise of deviation 32 of 255",
    "blur_1": "blur of deviation 1 pixel",
    "blur_2": "blur of deviation 2 pixels",
}
"""Of the groups of variations."""


def draw_accuracy(results: Mapping[str, Result], path: Path) -> bool:
    """Draws accuracy against step time and MACs, as far as they are measured; returns whether
    anything is.
    """
    measured = {name: r for name, r in results.items() if r.accuracy is not None}
    against = {
        "step time": ("training step, multiple of 'none' (log)", lambda r: r.ratio),
        "multiply-adds": ("million multiply-adds for an image (log)", lambda r: r.macs / 1e6),
    }
    panels = []
    for what, (label, value) in against.items():
        points = {
            name: Point(value(r), r.accuracy, r.low, r.high)
            for name, r in measured.items()
            if value(r) is not None
        }
        if points:
            title = f"photographs: test accuracy against {what}"
            panels.append(Panel(title, label, "test accuracy, %", points))
    return _draw(panels, results, path)


def draw_robustness(results: Mapping[str, Result], path: Path) -> bool:
    """Draws accuracy on varied pictures against that on the pictures as they are; returns whether
    anything is measured.
    """
    panels = []
    for group, title in SHOWN.items():
        points = {
            name: Point(r.accuracy, r.varied[group])
            for name, r in results.items()
            if group in r.varied
        }
        if points:
            labels = ("accuracy on the pictures as they are, %", "accuracy on varied pictures, %")
            panels.append(Panel(title, *labels, points, log=False, diagonal=True))
    return _draw(panels, results, path)


def _draw(panels: list[Panel], results: Mapping[str, Result], path: Path) -> bool:
    if not panels:
        return False
    shown = {name: r for name, r in results.items() if any(name in p.points for p in panels)}
    numbers = {name: result.number for name, result in shown.items()}
    kinds = {name: result.kind for name, result in shown.items()}
    labelled_points.draw(panels, numbers, kinds, path)
    return True
