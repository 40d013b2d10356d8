"""Classification in the report of a run: confusion matrix, sample predictions, the results by
class, and the most frequent confusions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase, SubFigure
from ml_collections import ConfigDict

from lambdanet.analysis.figure_text import figure_text, has_glyphs, text_width
from lambdanet.analysis.text import markdown_table, markdown_text
from lambdanet.tasks import class_confusions
from lambdanet.tasks.shown_examples import examples_of

RIGHT, WRONG = "#1a7f37", "#d1242f"
SHOWN_CLASSES = 20  # a confusion matrix of more classes is drawn for those with the most errors
TICK_WIDTH = 95  # points; most of a class name beside the matrix
GRIDS = ((4, 12, 10), (3, 9, 9), (3, 7, 9), (2, 6, 9))
"""Rows, columns and font size of the samples; the first whose cells have room for every caption is
taken, or the last, where names are shortened. In the first a caption is one line, else two."""
GAP = 10  # points between two captions
LISTED_CLASSES = 40  # rows of the table of all classes; of more, only the SHOWN_CLASSES worst


def panels(
    side: SubFigure,
    below: SubFigure,
    *,
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, np.ndarray],
    names: Sequence[str],
    table: tuple[tuple[str, ...], list[tuple[str, ...]], str],
    confusions: class_confusions.Table,
    config: ConfigDict,
) -> list[str]:
    """Draws the confusion matrix and sample predictions.

    Args:
        side: figure beside the curves; gets the matrix.
        below: figure below them; gets the samples.
        rows: over all counted records: label int32 [n], prediction int32 [n], confidence float32
            [n] in [0, 1], id int64 [n].
        examples: a part of these records, as evaluated: image uint8 [m, h, w, c], id int64 [m].
        names: of all classes.
        table: of `classification.class_table`.
        confusions: of `classification.confusions`.
        config: the run's config.

    Returns:
        Lines of Markdown: the results by class, the most frequent confusions, and what the loss
        holds.
    """
    labels, predictions = (np.asarray(rows[k], np.int64) for k in ("label", "prediction"))
    # A name that no font has would be a row of boxes; the text says what the number stands for.
    numbered = [i for i, name in enumerate(names) if not has_glyphs(name)]
    drawn = [f"#{i}" if i in set(numbered) else name for i, name in enumerate(names)]
    draw_confusion(side.subplots(), labels, predictions, drawn)
    draw_samples(below, rows, examples, drawn)

    lines = _class_lines(*table) + class_confusions.markdown(confusions)
    if numbered:
        listed = ", ".join(f"#{i} is {names[i]}" for i in numbered[:SHOWN_CLASSES])
        more = ", ..." if len(numbered) > SHOWN_CLASSES else "."
        lines += [f"In the picture, for lack of a font, {markdown_text(listed)}{more}", ""]
    own = config.classification
    if own.label_smoothing or own.mixup_alpha or own.cutmix_alpha:
        lines += ["The training loss includes label smoothing and mixing, the other losses do not."]
        lines += [""]
    if own.class_weights != "none":
        lines += ["In the training loss every class weighs the same, in the other losses every "]
        lines[-1] += "image does."
        lines += [""]
    return lines


def confusion_matrix(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], num_classes: int
) -> np.ndarray:
    """Returns counts [true class, predicted class]."""
    flat = np.asarray(labels, np.int64) * num_classes + np.asarray(predictions, np.int64)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def draw_confusion(
    axes: Axes,
    labels: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> None:
    """Draws a confusion matrix with counts; of more than SHOWN_CLASSES classes, those with the most
    errors, and no matrix of all of them is made.
    """
    title, total = "Confusion matrix", len(names)
    if total > SHOWN_CLASSES:
        wrong = labels != predictions
        errors = np.bincount(np.concatenate([labels[wrong], predictions[wrong]]), minlength=total)
        shown = np.sort(np.argsort(-errors, kind="stable")[:SHOWN_CLASSES])
        kept = np.isin(labels, shown) & np.isin(predictions, shown)
        labels, predictions = (np.searchsorted(shown, x[kept]) for x in (labels, predictions))
        names = [names[i] for i in shown]
        title += f"\nthe worst {SHOWN_CLASSES} of {total:,} classes"
    counts = confusion_matrix(labels, predictions, len(names))
    # Each row is coloured by its share, so that a few errors show beside hundreds of right answers.
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = 10 if len(names) <= 12 else 7
    for i, j in np.argwhere(counts):
        axes.text(
            j,
            i,
            str(counts[i, j]),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if share[i, j] > 0.3 else (WRONG if i != j else "black"),
            fontweight="bold" if i != j else "normal",
        )
    ticks = [figure_text(name, TICK_WIDTH, size=size) for name in names]
    upright = max(map(len, names)) <= 3
    turned = {} if upright else dict(rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xticks(range(len(names)), ticks, fontsize=size, **turned)
    axes.set_yticks(range(len(names)), ticks, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=13, fontweight="bold")


def draw_samples(
    figure: FigureBase,
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> None:
    """Draws a grid of images with predicted class, confidence and, if it is another, true class:
    wrong ones first and of them the most confident, then right ones.
    """
    labels, predictions, confidences, ids = (
        np.asarray(rows[key]) for key in ("label", "prediction", "confidence", "id")
    )
    at = examples_of(ids, np.asarray(examples["id"]))
    known = np.flatnonzero(at >= 0)
    wrong = known[labels[known] != predictions[known]]
    right = known[labels[known] == predictions[known]]
    wrong = wrong[np.argsort(-confidences[wrong], kind="stable")]
    width = float(72 * figure.bbox.width / figure.dpi)
    for down, across, size in GRIDS:
        chosen = _choose(wrong, right, down * across)
        room = width / across - GAP if (down, across, size) == GRIDS[-1] else None
        captions = [
            _caption(
                names[predictions[i]],
                f"{100 * confidences[i]:.0f} %",
                None if labels[i] == predictions[i] else names[labels[i]],
                one_line=across == GRIDS[0][1],
                size=size,
                room=room,
            )
            for i in chosen
        ]
        if all(text_width(c, size=size, weight="bold") <= width / across - GAP for c in captions):
            break
    figure.suptitle(
        "Predictions: the wrong ones first "
        f"({int((labels != predictions).sum()):,} of {len(labels):,} are wrong)",
        fontsize=13,
        fontweight="bold",
    )
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i, caption in zip(grid.flat, chosen, captions, strict=False):
        axes.imshow(_picture(examples["image"][at[i]]), "gray", vmin=0, vmax=255)
        ok = labels[i] == predictions[i]
        style = dict(color=RIGHT, fontweight="normal") if ok else dict(color=WRONG)
        axes.set_title(caption, **{"fontsize": size, "fontweight": "bold", "pad": 3} | style)


def _choose(wrong: np.ndarray, right: np.ndarray, most: int) -> np.ndarray:
    """Returns at most so many records: the first wrong ones, then right ones from the whole range
    of the examples, which may be sorted by class.
    """
    wrong = wrong[:most]
    count = min(len(right), most - len(wrong))
    spread = np.linspace(0, max(len(right) - 1, 0), count).astype(int)
    return np.concatenate([wrong, right[spread]])


def _caption(
    said: str, percent: str, true: str | None, *, one_line: bool, size: float, room: float | None
) -> str:
    """Returns the predicted class with its confidence, and the true one if it is another; names
    are shortened to what fits into `room` points, None for as they are.
    """
    cut = dict(size=size, weight="bold")
    beside = text_width(f"  {percent}", **cut)
    text = f"{figure_text(said, room and room - beside, **cut)}  {percent}"
    if true is None:
        return text
    prefix = "  (is " if one_line else "\nis "
    shown = figure_text(true, room and room - text_width("is ", **cut), **cut)
    return text + prefix + shown + (")" if one_line else "")


def _picture(image: np.ndarray) -> np.ndarray:
    """Returns an image of any number of channels as one of three (red, green, blue), or as grey."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def _class_lines(columns: tuple[str, ...], rows: list[tuple[str, ...]], remark: str) -> list[str]:
    """Returns the results by class as Markdown; of many classes those that are worst by the last
    column.
    """
    head = "Results by class:"
    if len(rows) > LISTED_CLASSES:
        head = f"The {SHOWN_CLASSES} classes with the lowest {columns[-1].rstrip(' %')}, of "
        head += f"{len(rows):,} (all: `python eval.py --mode=accuracy`):"
        rows = sorted(rows, key=lambda row: float(row[-1]) if row[-1] != "nan" else math.inf)
        rows = rows[:SHOWN_CLASSES]
    cells = [[markdown_text(cell) for cell in row] for row in rows]
    return [head, "", *markdown_table(columns, cells, left=(0,)), "", markdown_text(remark), ""]
