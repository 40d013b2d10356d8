"""The classes of classification on the host: precision, recall, F1, the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

COLUMNS = ("class", "images", "precision %", "recall %", "F1 %")


class ClassMetrics(NamedTuple):
    """Results by class, [k] each; nan where there is nothing to divide by.

    Attributes:
        support: images of the class.
        precision: share of the images taken for the class that are of it; nan if none was.
        recall: share of the images of the class that are found; nan if there is none.
        f1: 2 right / (support + predicted), the harmonic mean of both; nan if both are 0.
    """

    support: Int[np.ndarray, " k"]
    precision: Float[np.ndarray, " k"]
    recall: Float[np.ndarray, " k"]
    f1: Float[np.ndarray, " k"]


def class_metrics(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], num_classes: int
) -> ClassMetrics:
    """Returns the results by class of n images; no matrix of all pairs of classes is made.

    Args:
        labels: true classes.
        predictions: predicted ones.
        num_classes: k, above all of both.
    """
    support, predicted, right = (
        np.bincount(classes, minlength=num_classes)
        for classes in (labels, predictions, labels[labels == predictions])
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return ClassMetrics(
            support, right / predicted, right / support, 2 * right / (support + predicted)
        )


def table(
    found: ClassMetrics, names: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Returns (columns, rows, remark): images, precision, recall and F1 in percent by class, and
    the means over classes, each of the same weight.
    """
    percent = [[f"{100 * value:.1f}" for value in column] for column in found[1:]]
    rows = [
        (name, f"{found.support[i]:,}", *(column[i] for column in percent))
        for i, name in enumerate(names)
    ]
    known = [column[~np.isnan(column)] for column in found[1:]]
    means = [f"{100 * column.mean():.1f} %" if len(column) else "none" for column in known]
    words = ("precision", "recall (balanced accuracy)", "F1")
    shown = ", ".join(f"{word} {mean}" for word, mean in zip(words, means, strict=True))
    return COLUMNS, rows, f"Mean over classes: {shown}."
