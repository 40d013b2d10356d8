"""Detection in the report of a run: precision over recall, confusions, pictures with objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from lambdanet.analysis.figure_text import InsideText, figure_text
from lambdanet.analysis.text import markdown_table, markdown_text
from lambdanet.data.paste_masks import PastedMasks
from lambdanet.data.record import DataInfo
from lambdanet.drawing.box_drawing import class_colour
from lambdanet.tasks import detection_scores
from lambdanet.tasks.detection_matching import confusion
from lambdanet.tasks.shown_examples import examples_of

SHOWN_CLASSES = 15  # curves and confusions of more classes show those with most objects
NAMED = 20  # of more objects in one picture the names would hide the picture
NAME_WIDTH = 80  # points
GRID = (2, 4)  # rows and columns of pictures
MOST_DRAWN = 100  # objects of a picture
TRUTH = "#ffffff"
Rows = Mapping[str, np.ndarray]


def panels(
    side: SubFigure,
    below: SubFigure,
    *,
    rows: Rows,
    examples: Rows,
    info: DataInfo,
    config: Any,
    table: tuple[Sequence[str], Sequence[Sequence[str]], str],
) -> list[str]:
    """Draws precision over recall by class, confusions, and pictures from the worst to the best.

    Args:
        side: figure beside the curves; gets precision over recall.
        below: figure below them; gets confusions and pictures.
        rows: over all counted records, see `detection.score`, and id int64 [n].
        examples: a part of these records, as evaluated: image uint8 [m, h, w, c], image_shape [m,
            2], id int64 [m].
        info: of the data.
        config: reads the section detection.
        table: of `detection.class_table`.

    Returns:
        Lines of Markdown: the table of classes, and what has no objects.
    """
    own = config.detection
    kind, names = "mask" if own.masks else "box", detection_scores.all_names(rows, info)
    draw_curves(side.subplots(), detection_scores.scores(rows, info, kind), names, kind)
    left, right = below.subfigures(1, 2, width_ratios=(1.0, 2.6))
    counts = confusion(rows, len(names), own.shown_score)
    draw_confusion(left.subplots(), counts, names, own.shown_score)
    draw_pictures(right, rows, examples, names, own)
    columns, lines, remark = table
    cells = [[markdown_text(cell) for cell in line] for line in lines]
    text = ["Average precision by class:", "", *markdown_table(columns, cells, left={0}), ""]
    return text + ([markdown_text(remark), ""] if remark else [])


def draw_curves(
    axes: Axes, found: detection_scores.Scores, names: Sequence[str], kind: str
) -> None:
    """Draws precision over recall at IoU 0.5: of all classes, and their mean."""
    shown = np.argsort(-found.objects, kind="stable")[:SHOWN_CLASSES]
    shown = np.sort(shown[found.objects[shown] > 0])
    recall = np.linspace(0, 1, len(found.precision))
    for i in shown:
        name = figure_text(names[i], NAME_WIDTH, size=8)
        label = f"{name} {100 * found.classes['ap50'][i]:.0f}"
        colour = np.array(class_colour(int(i))) / 255
        axes.plot(recall, found.precision[:, i], color=colour, lw=1.0, label=label)
    present = found.objects > 0
    if present.any():
        mean = found.precision[:, present].mean(1)
        label = f"mean {100 * found.statistics['ap50']:.1f}"
        axes.plot(recall, mean, color="black", lw=2.5, label=label)
        columns = 1 if len(shown) < 8 else 2
        axes.legend(fontsize=8, frameon=False, title="AP50", loc="lower left", ncols=columns)
    title = f"Precision over recall, {'masks' if kind == 'mask' else 'boxes'} at IoU 0.5"
    if present.sum() > len(shown):
        title += f"\nthe {len(shown)} of {present.sum()} classes with most objects"
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=13, fontweight="bold")


def draw_confusion(axes: Axes, counts: np.ndarray, names: Sequence[str], least: float) -> None:
    """Draws what is taken for what; the last row is found where nothing is, the last column not
    found.

    Args:
        axes: where.
        counts: of `detection_matching.confusion`.
        names: of the classes.
        least: score from which on detections count.
    """
    title = f"Found as, from score {least:g} on"
    total = len(names)
    if total > SHOWN_CLASSES:
        wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        shown = np.sort(np.argsort(-wrong[:-1], kind="stable")[:SHOWN_CLASSES])
        title += f"\nthe worst {SHOWN_CLASSES} of {total:,} classes"
        counts, names = counts[np.ix_([*shown, total], [*shown, total])], [names[i] for i in shown]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = 8 if len(names) <= 10 else 6
    for i, j in np.argwhere(counts):
        axes.text(
            j, i, str(counts[i, j]), ha="center", va="center", fontsize=size,
            color="white" if share[i, j] > 0.3 else ("#d1242f" if i != j else "black"),
        )  # fmt: skip
    ticks = [figure_text(name, NAME_WIDTH, size=size) for name in names]
    upright = max(map(len, names), default=0) <= 3
    turned = {} if upright else dict(rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xticks(range(len(names) + 1), [*ticks, "missed"], fontsize=size, **turned)
    axes.set_yticks(range(len(names) + 1), [*ticks, "nothing"], fontsize=size)
    axes.set(xlabel="found as", ylabel="true")
    axes.set_title(title, fontsize=13, fontweight="bold")


def draw_pictures(
    figure: SubFigure, rows: Rows, examples: Rows, names: Sequence[str], own: Any
) -> None:
    """Draws pictures from that with most mistakes to that with least: detections as boxes with
    class and score, over their masks; true boxes dashed.
    """
    at = examples_of(rows["id"], examples["id"])
    known = np.flatnonzero(at >= 0)
    wrong = np.array([_mistakes(rows, i, len(names), own.shown_score) for i in known])
    known = known[np.argsort(-wrong, kind="stable")]
    count = min(GRID[0] * GRID[1], len(known))
    chosen = known[np.linspace(0, max(len(known) - 1, 0), count).astype(int)]
    figure.suptitle(
        "Found, with score (true boxes dashed), from most mistakes to least",
        fontsize=13,
        fontweight="bold",
    )
    grid = figure.subplots(*GRID, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, chosen, strict=False):
        example = at[i]
        height, width = (int(side) for side in examples["image_shape"][example])
        image = examples["image"][example][:height, :width]
        factor = np.tile((width, height) / rows["original_shape"][i][::-1], 2)
        draw_picture(axes, image, rows, i, factor, names, own)


def draw_picture(
    axes: Axes,
    image: np.ndarray,
    rows: Rows,
    i: int,
    factor: np.ndarray,
    names: Sequence[str],
    own: Any,
) -> None:
    """Draws record i of the rows on its picture; with name and score, inside of it, unless there
    are more than `NAMED` objects.

    Args:
        axes: where.
        image: uint8 [h, w, c].
        rows: see `panels`.
        i: which of them.
        factor: from pixels of the stored picture to those of the image, for the edges of boxes [4].
        names: of the classes.
        own: the config's section detection.
    """
    image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]
    kept = np.flatnonzero(rows["valid"][i] & (rows["scores"][i] >= own.shown_score))
    kept = kept[np.argsort(-rows["scores"][i, kept], kind="stable")][:MOST_DRAWN][::-1]
    boxes = rows["boxes"][i, kept] * factor
    if own.masks and len(kept):
        soft = rows["masks"][i, kept].astype(np.float32) / 255
        mixed = image.astype(np.float32)
        for mask, number in zip(
            PastedMasks(soft, boxes, image.shape[:2]), rows["classes"][i, kept], strict=True
        ):
            mixed[mask] = 0.5 * mixed[mask] + 0.5 * np.array(class_colour(int(number)), np.float32)
        image = mixed.round().astype(np.uint8)
    axes.imshow(image, interpolation="nearest")
    for box in rows["true_boxes"][i, rows["true_valid"][i]] * factor:
        axes.add_patch(_rectangle(box, TRUTH, 1.0, "--"))
    outline = [withStroke(linewidth=2.5, foreground="black")]
    for box, number, score in zip(
        boxes, rows["classes"][i, kept], rows["scores"][i, kept], strict=True
    ):
        colour = np.array(class_colour(int(number))) / 255
        axes.add_patch(_rectangle(box, colour, 1.5, "-"))
        if len(boxes) > NAMED:
            continue
        text = f"{figure_text(names[number], NAME_WIDTH, size=8)} {100 * score:.0f}"
        light = tuple(0.35 + 0.65 * part for part in to_rgb(colour))
        name = InsideText(
            box[0], box[1], text, fontsize=8, fontweight="bold", color=light, va="bottom",
            path_effects=outline,
        )  # fmt: skip
        name.set_in_layout(False)
        axes.add_artist(name)


def _rectangle(box: np.ndarray, colour: Any, width: float, style: str) -> Rectangle:
    left, top, right, bottom = box - 0.5  # the middle of the first pixel is 0
    return Rectangle(
        (left, top), right - left, bottom - top, fill=False, edgecolor=colour, lw=width, ls=style
    )


def _mistakes(rows: Rows, i: int, count: int, least: float) -> int:
    one = {name: rows[name][i : i + 1] for name in rows}
    counts = confusion(one, count, least)
    return int(counts.sum() - counts.diagonal().sum())
