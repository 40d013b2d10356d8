"""A contact sheet of pictures with their objects: boxes, masks where there are any, and names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from lambdanet.data import box_sets, decode, dense_sheet, run_lengths, sheet_layout
from lambdanet.drawing import box_drawing

CROWD_AMOUNT = 1e-6
"""What counts of a crowd's area in the choice of pictures: other objects show better what a class
is."""


def draw(found: box_sets.BoxSet) -> Image.Image:
    """Draws the sheet: for every class its colour, its name, how many objects each split has of it,
    and pictures that show it, of the split that has most; see `dense_sheet`.

    In a picture the name of a class stands at its largest object alone, as far as there is room;
    the colour says what the others are.

    Args:
        found: whose pictures can be read.
    """
    counts = {
        split: box_sets.objects_of_classes(pictures, len(found.classes))
        for split, pictures in found.splits.items()
    }
    tables = {split: _Table(pictures) for split, pictures in found.splits.items()}
    crowds = any(number for *_, number in counts.values())
    return dense_sheet.draw(
        found.classes,
        place_of=lambda label: dense_sheet.largest(
            [dense_sheet.Place(split, *table.of_class(label)) for split, table in tables.items()]
        ),
        lines_of=lambda label: [
            f"{split} {objects[label]} in {pictures[label]}"
            for split, (objects, pictures, _) in counts.items()
        ],
        colour_of=box_drawing.class_colour,
        picture_of=lambda split, row: picture(found, found.splits[split][row]),
        below=[
            ("beside the splits: objects, and in how many pictures", None),
            *[("dashed: crowds and difficult objects, which are neither found nor missed", None)]
            * crowds,
        ],
    )


class _Table:
    """The objects of a split, sorted by class."""

    def __init__(self, pictures: list[box_sets.BoxedPicture]):
        found = [picture.found for picture in pictures]
        rows = np.repeat(np.arange(len(found)), np.array([len(of) for of in found], np.int64))
        classes = np.concatenate([np.zeros(0, np.int32), *(of.classes for of in found)])
        areas = [_parts(picture) for picture in pictures]
        areas = np.concatenate([np.zeros(0), *areas])
        order = np.lexsort((rows, classes))
        self.rows, self.classes, self.areas = rows[order], classes[order], areas[order]

    def of_class(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pictures with objects of a class, and what part of each the largest is."""
        start, stop = np.searchsorted(self.classes, [label, label + 1])
        rows, first = np.unique(self.rows[start:stop], return_index=True)
        areas = self.areas[start:stop]
        return rows, np.maximum.reduceat(areas, first) if len(rows) else areas


def _parts(picture: box_sets.BoxedPicture) -> np.ndarray:
    """Returns how much of the picture each box is, of a crowd next to nothing."""
    sides = picture.found.boxes[:, 2:] - picture.found.boxes[:, :2]
    parts = np.prod(sides, axis=1, dtype=np.float64) / (picture.size[0] * picture.size[1])
    return np.where(picture.found.crowd, CROWD_AMOUNT * parts, parts)


def picture(found: box_sets.BoxSet, boxed: box_sets.BoxedPicture) -> Image.Image:
    """Returns a picture with its objects, as large as it is shown.

    Args:
        found: for the names of the classes.
        boxed: one of its pictures.
    """
    opened = decode.open_image(boxed.file.read_bytes())
    size = sheet_layout.fitted(boxed.size, dense_sheet.SIDE)
    drawn = sheet_layout.resized(opened, size)
    order = np.argsort(-_parts(boxed), kind="stable")  # small ones on top
    of = boxed.found.take(order)
    boxes = of.boxes * np.array([b / a for a, b in zip(boxed.size, size, strict=True)] * 2)
    if of.masks:
        masks = _masks(of.masks, boxed.size, size)
        filled = box_drawing.fill_masks(np.asarray(drawn), masks, of.classes, of.crowd)
        drawn = Image.fromarray(filled)
    box_drawing.outline(drawn, boxes, of.classes, line=1, crowds=of.crowd)
    named = np.sort(np.unique(of.classes, return_index=True)[1])
    labels = [found.classes[of.classes[i]] for i in named]
    colours = [box_drawing.class_colour(int(of.classes[i])) for i in named]
    dense_sheet.write_names(drawn, boxes[named], colours, labels)
    return drawn


def _masks(
    masks: tuple[bytes, ...], size: tuple[int, int], shown: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yields the masks of a picture of (width, height) `size` as they are shown, bool [h, w]: one
    at a time, since all of a large picture may be more than the memory holds.
    """
    for counts in masks:
        whole = Image.fromarray(run_lengths.decode(counts, size))
        yield np.asarray(whole.resize(shown, Image.Resampling.NEAREST)) > 0
