"""A contact sheet of pictures with their label maps laid over them, in the classes' colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from lambdanet.data import decode, dense_sheet, sheet_layout
from lambdanet.data.label_maps import IGNORE
from lambdanet.data.mask_folders import MaskFolders
from lambdanet.drawing import label_colours

FINER = 4
"""Large pictures are painted at up to this many times their size on the sheet, so that lines of a
few pixels are not lost."""
COARSE = 120
"""Pixels of the longer side of the label map in which places for names are looked for."""
IGNORED_DEPTH = 3
"""Pixels there from a place to the border of the ignored ones, from which on they are named:
outlines of objects are not."""
ROOM = 16
"""Pixels of a picture from a place to its region's border, from which on the name stands within the
region; what is smaller would be hidden by it, so there the name stands above."""


def draw(folders: MaskFolders) -> Image.Image:
    """Draws the sheet: for every class its colour, its name, in how many pictures of each split it
    is, and pictures that show it, of the split that has most; see `dense_sheet`.

    In a picture the name of a class stands where most of the class is around it, as far as there is
    room; the colour says what the others are.

    Args:
        folders: whose pictures and masks can be read.
    """
    names = folders.coding.names
    colours = label_colours.palette(max(256, len(names)))  # more names than can be are no crash
    counts = folders.counts

    def place_of(label: int) -> dense_sheet.Place | None:
        places = []
        for split, pixels in folders.pixels.items():
            rows = np.flatnonzero(pixels[:, label])
            shares = pixels[rows, label] / pixels[rows].sum(axis=1)
            places.append(dense_sheet.Place(split, rows, shares))
        return dense_sheet.largest(places)

    def lines_of(label: int) -> list[str]:
        lines = [f"{split} {count.pictures[label]}" for split, count in counts.items()]
        return ["not painted", *lines] if label == 0 else lines

    ignored = any(count.pixels[-1] for count in counts.values())
    return dense_sheet.draw(
        names,
        place_of=place_of,
        lines_of=lines_of,
        colour_of=lambda label: tuple(map(int, colours[label])) if label else (255, 255, 255),
        picture_of=lambda split, row: picture(folders, split, row),
        below=[("ignored: these pixels count nowhere", label_colours.IGNORED_COLOUR)] * ignored,
    )


def picture(folders: MaskFolders, split: str, row: int) -> Image.Image:
    """Returns a picture with its label map laid over it, as large as it is shown.

    Args:
        folders: with it.
        split, row: which it is.
    """
    pair = folders.splits[split][row]
    opened = decode.open_image((folders.images / pair.image).read_bytes())
    labels = folders.coding.read((folders.masks / pair.mask).read_bytes(), opened.size)
    size = sheet_layout.fitted(opened.size, dense_sheet.SIDE)
    finer = max(1, min(FINER, max(opened.size) // dense_sheet.SIDE))
    large = (size[0] * finer, size[1] * finer)
    plain = np.asarray(sheet_layout.resized(opened, large))
    nearest = Image.fromarray(labels).resize(large, Image.Resampling.NEAREST)
    drawn = Image.fromarray(label_colours.overlay(plain, np.asarray(nearest))).reduce(finer)
    _write_names(drawn, labels, folders.coding.names)
    return drawn


def _write_names(drawn: Image.Image, labels: np.ndarray, names: Sequence[str]) -> None:
    """Writes the names of the classes of a label map into its picture, those with the fewest pixels
    first.
    """
    size = sheet_layout.fitted(drawn.size, COARSE)
    coarse = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    scale = drawn.width / size[0]
    colours = label_colours.palette()
    numbers, counts = np.unique(coarse, return_counts=True)
    boxes, shown, texts = [], [], []
    for label in map(int, numbers[np.argsort(counts, kind="stable")]):
        row, column, depth = _deepest(coarse == label)
        if label and (label != IGNORE or depth >= IGNORED_DEPTH):
            text = "ignored" if label == IGNORE else names[label]
            x, y, room = scale * (column + 0.5), scale * (row + 0.5), scale * (depth + 0.5)
            half = dense_sheet.name_size(text)[0] / 2
            top = y - room if room < ROOM else y + dense_sheet.name_size(text)[1] / 2
            boxes.append((x - half, top, x + half, max(y + room, top + 1)))
            shown.append(label)
            texts.append(text)
    places = np.array(boxes, np.float64).reshape(-1, 4)
    of_label = [tuple(map(int, colours[label])) for label in shown]
    dense_sheet.write_names(drawn, places, of_label, texts)


def _deepest(mask: np.ndarray) -> tuple[int, int, int]:
    """Returns row and column of a pixel of a mask that is farthest from its border, in steps to
    neighbours above, below, left and right, and how far that is; of several, one in their middle.
    """
    depth = 0
    while True:
        padded = np.pad(mask, 1)
        inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        if not inner.any():
            break
        mask, depth = inner, depth + 1
    places = np.argwhere(mask)
    row, column = places[np.square(places - places.mean(axis=0)).sum(axis=1).argmin()]
    return int(row), int(column), depth
