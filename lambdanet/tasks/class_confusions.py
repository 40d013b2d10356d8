"""The most frequent confusions of classes, of images or of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Num

from lambdanet.analysis.text import markdown_table, markdown_text

MOST = 10  # rows
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def table(
    true: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    counts: Num[np.ndarray, " n"],
    names: Sequence[str],
    *,
    counted: str,
) -> Table:
    """Returns (columns, rows): true and predicted class, how often, and in percent of the true
    class; the most frequent first, no row where nothing is confused.

    Args:
        true, predicted: pairs of classes, each pair once, those that are right among them.
        counts: how often each pair occurs.
        names: of the classes.
        counted: what occurs, 'images' or 'pixels'.
    """
    of_class = np.bincount(true, weights=counts)
    wrong = np.flatnonzero((true != predicted) & (counts > 0))
    rows = [
        (
            *(names[true[i]], names[predicted[i]]),
            *(f"{counts[i]:,.0f}", f"{100 * counts[i] / of_class[true[i]]:.1f} %"),
        )
        for i in wrong[np.argsort(-counts[wrong], kind="stable")][:MOST]
    ]
    return ("true", "predicted", counted, "of the true class"), rows


def markdown(found: Table) -> list[str]:
    """Returns what `table` gives as lines of Markdown."""
    columns, rows = found
    cells = [[markdown_text(cell) for cell in row] for row in rows]
    lines = ["Most frequent confusions:", "", *markdown_table(columns, cells), ""]
    return lines if rows else []
