"""Classification in the report of a run: confusion matrix, sample predictions, and the most
frequent confusions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from ml_collections import ConfigDict

from lambdanet.analysis.figure_text import figure_text, has_glyphs
from lambdanet.analysis.text import markdown_table, markdown_text, visible

RIGHT, WRONG = "#1a7f37", "#d1242f"
SHOWN_CLASSES = 20  # a confusion matrix of more classes is drawn for those with the most errors
TICK_WIDTH = 95  # points; most of a class name beside the matrix
SHORT_NAME = 2  # characters; up to here a wrong prediction and the truth fit into one line
CONFUSIONS = 5  # rows of the table


def panels(
    side: SubFigure,
    below: SubFigure,
    *,
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, np.ndarray],
    info: Any,
    config: ConfigDict,
) -> list[str]:
    """Draws the confusion matrix and sample predictions.

    Args:
        side: figure beside the curves; gets the matrix.
        below: figure below them; gets the samples.
        rows: over all counted records: label int32 [n], prediction int32 [n], confidence float32
            [n] in [0, 1], id int64 [n].
        examples: a part of these records, as evaluated: image uint8 [m, h, w, c], id int64 [m].
        info: its `classes` are the class names.
        config: the run's config.

    Returns:
        Lines of Markdown: the most frequent confusions, and what the loss holds.
    """
    labels, predictions = (np.asarray(rows[k], np.int64) for k in ("label", "prediction"))
    count = max(len(info.classes), int(max(labels.max(initial=0), predictions.max(initial=0))) + 1)
    names = [*info.classes, *(f"class {i}" for i in range(len(info.classes), count))]
    # A name that no font has would be a row of boxes; the text says what the number stands for.
    numbered = [i for i, name in enumerate(names) if not has_glyphs(name)]
    drawn = [f"#{i}" if i in set(numbered) else name for i, name in enumerate(names)]
    draw_confusion(side.subplots(), labels, predictions, drawn)
    draw_samples(below, rows, examples, drawn)

    lines = _common_confusions(labels, predictions, names)
    if numbered:
        listed = ", ".join(f"#{i} is {names[i]}" for i in numbered[:SHOWN_CLASSES])
        more = ", ..." if len(numbered) > SHOWN_CLASSES else "."
        lines += [f"In the picture, for lack of a font, {markdown_text(listed)}{more}", ""]
    own = config.classification
    if own.label_smoothing or own.mixup_alpha or own.cutmix_alpha:
        lines += ["The training loss includes label smoothing and mixing, the other losses do not."]
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
    figure: SubFigure,
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
    short = max(len(visible(name)) for name in names) <= SHORT_NAME
    down, across = (4, 12) if short else (3, 9)
    images = {int(record): i for i, record in enumerate(examples["id"])}
    known = np.flatnonzero([int(record) in images for record in ids])
    wrong = known[labels[known] != predictions[known]]
    right = known[labels[known] == predictions[known]]
    wrong = wrong[np.argsort(-confidences[wrong], kind="stable")][: down * across]
    # Right ones from the whole range of the examples, which may be sorted by class.
    most = min(len(right), down * across - len(wrong))
    right = right[np.linspace(0, max(len(right) - 1, 0), most).astype(int)]
    figure.suptitle(
        "Predictions: the wrong ones first "
        f"({int((labels != predictions).sum()):,} of {len(labels):,} are wrong)",
        fontsize=13,
        fontweight="bold",
    )
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, np.concatenate([wrong, right]), strict=False):
        axes.imshow(_picture(examples["image"][images[int(ids[i])]]), "gray", vmin=0, vmax=255)
        said, true = names[predictions[i]], names[labels[i]] if i in wrong else None
        _caption(axes, said, f"{100 * confidences[i]:.0f} %", true, short=short)


def _caption(axes: Axes, said: str, percent: str, true: str | None, *, short: bool) -> None:
    """Writes the predicted class above an image, and the true one if it is another."""
    ok = true is None
    size, weight = 10 if short else 9, "normal" if ok else "bold"
    if short:
        text = figure_text(said) + f"  {percent}" + ("" if ok else f"  (is {figure_text(true)})")
    else:
        cut = dict(size=size, weight=weight)
        text = f"{figure_text(said, 85, **cut)}  {percent}"
        text += f"\nis {figure_text(true, 105, **cut)}" if not ok else ""
    axes.set_title(text, fontsize=size, color=RIGHT if ok else WRONG, fontweight=weight, pad=3)


def _picture(image: np.ndarray) -> np.ndarray:
    """Returns an image of any number of channels as one of three (red, green, blue), or as grey."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def _common_confusions(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], names: Sequence[str]
) -> list[str]:
    pairs = np.stack([labels, predictions], axis=1)[labels != predictions]
    if not len(pairs):
        return []
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:CONFUSIONS]
    rows = [[*(markdown_text(names[c]) for c in pairs[i]), f"{counts[i]:,}"] for i in order]
    head = ("true", "predicted", "images")
    return ["Most frequent confusions:", "", *markdown_table(head, rows), ""]
