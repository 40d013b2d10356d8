"""How often every class occurs in the label maps of the splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lambdanet.data.class_folders import printable
from lambdanet.data.label_maps import IGNORE

MAX_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Count:
    """What the label maps of a split hold.

    Attributes:
        pixels: of each class, int [k + 1]; the last entry counts those of no class.
        pictures: that hold each class, likewise.
    """

    pixels: np.ndarray
    pictures: np.ndarray


def of_labels(labels: np.ndarray) -> np.ndarray:
    """Returns the pixels of every value of a label map uint8 [h, w], int [256]."""
    return np.bincount(labels.ravel(), minlength=IGNORE + 1)


def occurring(counts: Mapping[str, Sequence[np.ndarray]]) -> int:
    """Returns the largest class of all pictures, plus 1; 0 if no pixel has one.

    Args:
        counts: split -> values of `of_labels`.
    """
    largest = [
        pixels[:IGNORE].nonzero()[0].max(initial=-1)
        for pictures in counts.values()
        for pixels in pictures
    ]
    return int(max(largest, default=-1)) + 1


def by_picture(pictures: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Returns the pixels of each class in each picture, int32 [n, k + 1]; the last column counts
    those of no class.

    Args:
        pictures: values of `of_labels`.
        classes: how many there are, k; those that a label map cannot have (a list of names may be
            too long) have no pixels.
    """
    whole = np.array(pictures, np.int32).reshape(-1, IGNORE + 1)
    kept = np.zeros((len(whole), classes + 1), np.int32)
    kept[:, : min(classes, IGNORE)] = whole[:, : min(classes, IGNORE)]
    kept[:, -1] = whole[:, -1]
    return kept


def total(pixels: np.ndarray) -> Count:
    """Returns the sums of a split over its pictures, from the pixels of `by_picture`."""
    return Count(pixels.sum(axis=0, dtype=np.int64), (pixels > 0).sum(axis=0))


def absent(counts: Mapping[str, Count], names: Sequence[str]) -> tuple[str, ...]:
    """Returns a note for every split that lacks classes: their IoU there is not a number."""
    notes = []
    for split, count in counts.items():
        missing = [name for name, pixels in zip(names, count.pixels, strict=False) if not pixels]
        if missing:
            listed = ", ".join(map(printable, missing[:MAX_LISTED]))
            more = " ..." if len(missing) > MAX_LISTED else ""
            notes.append(f"classes that never occur in {split}: {listed}{more}")
    return tuple(notes)


def table(counts: Mapping[str, Count], names: Sequence[str]) -> list[str]:
    """Returns lines: share of the pixels, and pictures, of every class and split."""
    labels = [f"{number:3}  {printable(name)}" for number, name in enumerate(names)]
    labels += ["     (ignored)"]
    width = max(map(len, labels)) + 2
    lines = ["     class".ljust(width) + "".join(f"{split:>22}" for split in counts)]
    for row, label in enumerate(labels):
        cells = [
            f"{100 * c.pixels[row] / max(c.pixels.sum(), 1):11.2f} % {c.pictures[row]:8}"
            for c in counts.values()
        ]
        lines.append(label.ljust(width) + "".join(cells))
    return [*lines, "(share of the pixels, number of pictures)"]
