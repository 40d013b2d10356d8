"""The picture of the page of `python -m benchmarks gpu`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lambdanet.atomic import write_file


def draw(records: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws images per second against the batch size, one line per network.

    Args:
        records: those of the part `networks` that have times.
        title: what they were measured on.
        path: of the PNG file.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for name in dict.fromkeys(record["network"] for record in records):
        own = sorted((r["batch"], r["items_per_s"]) for r in records if r["network"] == name)
        axes.plot(*zip(*own, strict=True), marker="o", markersize=4, label=name)
    batches = sorted({record["batch"] for record in records})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images per step")
    axes.set_ylabel("images per second")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    write_file(path, lambda file: figure.savefig(file, dpi=130, format="png"))
