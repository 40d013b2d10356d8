"""Segmentation in the report of a run: IoU by class; pictures beside truth and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import Patch

from lambdanet.analysis.figure_text import figure_text
from lambdanet.analysis.text import markdown_table, markdown_text
from lambdanet.drawing.label_colours import paint, palette
from lambdanet.tasks.segmentation_classes import class_iou, remark
from lambdanet.tasks.shown_examples import examples_of

SHOWN_CLASSES = 20  # bars and legend of more classes show those with the lowest IoU
NAME_WIDTH = 95  # points
GRID = (2, 3)  # rows and columns of samples, three pictures each


def panels(
    side: SubFigure,
    below: SubFigure,
    *,
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> list[str]:
    """Draws IoU by class as bars, and samples from the worst image to the best.

    Args:
        side: figure beside the curves; gets the bars.
        below: figure below them; gets the samples.
        rows: over all counted records: intersection, union and true [n, k], prediction uint8 [n,
            h', w'], id int64 [n].
        examples: a part of these records, as evaluated: image uint8 [m, h, w, c], label_map [m, h,
            w], id int64 [m].
        names: of the k classes.

    Returns:
        Lines of Markdown: the table of classes, and those that never occur.
    """
    right, union = (rows[k].astype(np.int64) for k in ("intersection", "union"))
    iou = class_iou(right.sum(0), union.sum(0), rows["true"].astype(np.int64).sum(0))
    draw_bars(side.subplots(), iou, names)
    present = np.maximum((union > 0).sum(1), 1)
    quality = (right / np.maximum(union, 1)).sum(1) / present
    draw_samples(below, rows, examples, quality, names)
    return table(iou, names)


def draw_bars(axes: Axes, iou: Float[np.ndarray, " k"], names: Sequence[str]) -> None:
    """Draws IoU by class in percent; of more than SHOWN_CLASSES, the lowest."""
    known = np.flatnonzero(~np.isnan(iou))
    title = f"IoU by class: mean {100 * iou[known].mean():.2f} %" if len(known) else "IoU by class"
    shown = np.arange(len(names))
    if len(names) > SHOWN_CLASSES:
        shown = known[np.argsort(iou[known], kind="stable")][:SHOWN_CLASSES]
        title += f"\nthe lowest {len(shown)} of {len(names)} classes"
    values, at, colours = 100 * iou[shown], np.arange(len(shown)), palette()[shown] / 255
    axes.barh(at, np.nan_to_num(values), color=colours, edgecolor="black", linewidth=0.5)
    size = 9 if len(shown) <= 12 else 7
    for place, value in zip(at, values, strict=True):
        text = "never occurs" if np.isnan(value) else f"{value:.1f}"
        axes.text(np.nan_to_num(value) + 1, place, text, va="center", fontsize=size)
    axes.set_yticks(
        at, [figure_text(names[i], NAME_WIDTH, size=size) for i in shown], fontsize=size
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=13, fontweight="bold")


def draw_samples(
    figure: SubFigure,
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, np.ndarray],
    quality: Float[np.ndarray, " n"],
    names: Sequence[str],
) -> None:
    """Draws picture, truth and prediction of samples spread over all qualities, the worst first,
    with a legend of the classes in them.
    """
    at = examples_of(rows["id"], examples["id"])
    known = np.flatnonzero(at >= 0)
    known = known[np.argsort(quality[known], kind="stable")]
    count = min(GRID[0] * GRID[1], len(known))
    chosen = known[np.linspace(0, max(len(known) - 1, 0), count).astype(int)]
    figure.suptitle(
        "Picture, truth and prediction, from the worst image to the best",
        fontsize=13,
        fontweight="bold",
    )
    grid = figure.subplots(GRID[0], 3 * GRID[1], squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    seen: set[int] = set()
    for place, i in zip(grid.reshape(-1, 3), chosen, strict=False):
        example = at[i]
        image, truth = examples["image"][example], examples["label_map"][example]
        image = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
        place[0].imshow(image, "gray", vmin=0, vmax=255)
        for axes, labels in ((place[1], truth), (place[2], rows["prediction"][i])):
            axes.imshow(paint(labels), interpolation="nearest")
            axes.set_aspect("auto" if labels.shape != truth.shape else "equal")
            if labels.shape != truth.shape:
                axes.set_box_aspect(truth.shape[0] / truth.shape[1])
            seen |= set(np.unique(labels).tolist())
        place[1].set_title(f"mean IoU {100 * quality[i]:.0f} %", fontsize=9, pad=3)
    marks = [
        Patch(color=palette()[i] / 255, label=figure_text(names[i], NAME_WIDTH))
        for i in sorted(seen)
        if i < len(names)
    ][:SHOWN_CLASSES]
    if 255 in seen:
        marks.append(Patch(color=palette()[255] / 255, label="(ignored)"))
    if marks:
        figure.legend(
            handles=marks, loc="outside lower center", ncols=11, fontsize=8, frameon=False
        )


def table(iou: Float[np.ndarray, " k"], names: Sequence[str]) -> list[str]:
    """Returns IoU by class as Markdown."""
    cells = [
        [markdown_text(name), "nan" if np.isnan(v) else f"{100 * v:.2f}"]
        for name, v in zip(names, iou, strict=True)
    ]
    lines = ["IoU by class, in percent:", ""]
    lines += [*markdown_table(("class", "IoU"), cells, left={0}), ""]
    absent = remark(iou, names)
    return lines + ([markdown_text(absent), ""] if absent else [])
