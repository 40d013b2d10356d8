"""The classes of segmentation on the host: names, IoU, the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from lambdanet.data.record import DataInfo


def class_names(info: DataInfo, config: Any) -> tuple[str, ...]:
    """Returns the names of the classes, () where the data has none."""
    return info.classes[1:] if config.segmentation.reduce_zero_label else info.classes


def all_names(info: DataInfo, config: Any, count: int) -> list[str]:
    """Returns a name for each of `count` classes, 'class 7' where the data has none."""
    names = class_names(info, config)
    return [*names, *(f"class {i}" for i in range(len(names), count))][:count]


def class_iou(
    right: Num[np.ndarray, " k"], union: Num[np.ndarray, " k"], true: Num[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """Returns each class's intersection over union; nan for a class that no pixel has in truth,
    which says nothing about the model. Where such a class is predicted nevertheless, the IoU of the
    true class falls.

    Args:
        right: pixels of the class in truth and prediction.
        union: in one of them.
        true: in truth.
    """
    return np.where(true > 0, right / np.maximum(union, 1), np.nan)


def table(
    counts: Num[np.ndarray, "k k"], names: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Returns (columns, rows, remark): IoU, accuracy and share of the pixels by class, in percent,
    and which classes the mean leaves out.

    Args:
        counts: pixels [true class, predicted class].
        names: of the classes.
    """
    right, true = np.diag(counts), counts.sum(1)
    iou = class_iou(right, true + counts.sum(0) - right, true)
    accuracy = np.where(true > 0, right / np.maximum(true, 1), np.nan)
    columns = (iou, accuracy, true / max(true.sum(), 1))
    rows = [
        (name, *(f"{100 * column[i]:.2f}" for column in columns)) for i, name in enumerate(names)
    ]
    return ("class", "IoU %", "accuracy %", "pixels %"), rows, remark(iou, names)


def remark(iou: Float[np.ndarray, " k"], names: Sequence[str]) -> str:
    """Returns which classes the mean leaves out, '' for none."""
    absent = [name for name, value in zip(names, iou, strict=True) if np.isnan(value)]
    if not absent:
        return ""
    return f"Without a pixel in truth, so nan and left out of the mean: {', '.join(absent)}."
