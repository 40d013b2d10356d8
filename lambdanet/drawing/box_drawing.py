"""Pictures with boxes, masks, names and scores on them, legible whatever the picture's size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image, ImageDraw

from lambdanet.drawing.label_colours import palette
from lambdanet.drawing.names import drawable, font

SHORTEST = 480  # pixels of the longer side; smaller pictures are enlarged by a whole factor
LONGEST_NAME = 22  # a label's width, in heights of its letters
MARGIN = 3  # pixels around a label's letters
DASH = 4  # lengths of a dash, and of the gap behind it, in widths of the line
STRIPE = 3  # pixels: width of the stripes in masks of crowds


def class_colour(number: int) -> tuple[int, int, int]:
    """Returns the colour of a class; black is none."""
    colours = palette()
    return tuple(int(part) for part in colours[1 + number % 254])


def draw_objects(
    image: UInt8[np.ndarray, "h w c"],
    boxes: Float[np.ndarray, "n 4"],
    classes: Integer[np.ndarray, " n"],
    labels: Sequence[str],
    masks: Iterable[Bool[np.ndarray, "h w"]] | None = None,
) -> Image.Image:
    """Returns the picture with its objects, the last one on top.

    Lines and text grow with the picture. A label stands above its box, or where there is no room
    inside of it, and never beyond the border.

    Args:
        image: grey or RGB.
        boxes: left, top, right, bottom in pixels.
        classes: of the objects, for the colour.
        labels: texts.
        masks: where each object is, one at a time is looked at; None draws boxes alone.
    """
    pixels = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]
    factor = max(1, -(-SHORTEST // max(image.shape[:2])))
    if masks is not None:
        pixels = fill_masks(pixels, masks, classes)
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    drawn = Image.fromarray(np.ascontiguousarray(pixels))
    longer = max(drawn.size)
    outline(drawn, boxes * factor, classes, line=max(2, round(longer / 300)))
    colours = [class_colour(int(number)) for number in classes]
    write_labels(drawn, boxes * factor, colours, labels, size=max(13, round(longer / 50)))
    return drawn


def fill_masks(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Iterable[Bool[np.ndarray, "h w"]],
    classes: Integer[np.ndarray, " n"],
    crowds: Bool[np.ndarray, " n"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a picture with half of the class's colour where the masks are, the last one on top.

    Args:
        image: RGB.
        masks: where each object is; one at a time is looked at.
        classes: of the objects.
        crowds: which are crowds, filled in stripes; None = none.
    """
    mixed = image.astype(np.float32)
    diagonal = np.add.outer(np.arange(image.shape[0]), np.arange(image.shape[1]))
    crowds = np.zeros(len(classes), bool) if crowds is None else crowds
    for mask, number, crowd in zip(masks, classes, crowds, strict=True):
        mask = mask & (diagonal // STRIPE % 2 == 0) if crowd else mask
        mixed[mask] = 0.5 * mixed[mask] + 0.5 * np.array(class_colour(int(number)), np.float32)
    return np.round(mixed).astype(np.uint8)


def outline(
    drawn: Image.Image,
    boxes: Float[np.ndarray, "n 4"],
    classes: Integer[np.ndarray, " n"],
    *,
    line: int,
    crowds: Bool[np.ndarray, " n"] | None = None,
) -> None:
    """Draws boxes into a picture.

    Args:
        drawn: the picture, RGB.
        boxes: left, top, right, bottom in its pixels; cut at its border.
        classes: of the objects, for the colour.
        line: pixels of its width.
        crowds: which are crowds, drawn in dashes; None = none.
    """
    pen = ImageDraw.Draw(drawn)
    crowds = np.zeros(len(classes), bool) if crowds is None else crowds
    for box, number, crowd in zip(boxes, classes, crowds, strict=True):
        whole, colour = _whole(box, drawn.size), class_colour(int(number))
        if crowd:
            for dash in _dashes(whole, line):
                pen.rectangle(dash, fill=colour)
        else:
            pen.rectangle(whole, outline=colour, width=line)


def _dashes(box: tuple[int, int, int, int], line: int) -> list[tuple[int, int, int, int]]:
    """Returns the dashes of a box's four sides, inside of it, right and bottom included."""
    left, top, right, bottom = box
    found = []
    for first in range(left, right + 1, 2 * DASH * line):
        last = min(first + DASH * line - 1, right)
        found.append((first, top, last, min(top + line - 1, bottom)))
        found.append((first, max(bottom - line + 1, top), last, bottom))
    for first in range(top, bottom + 1, 2 * DASH * line):
        last = min(first + DASH * line - 1, bottom)
        found.append((left, first, min(left + line - 1, right), last))
        found.append((max(right - line + 1, left), first, right, last))
    return found


def write_labels(
    drawn: Image.Image,
    boxes: Float[np.ndarray, "n 4"],
    colours: Sequence[tuple[int, int, int]],
    labels: Sequence[str],
    *,
    size: int,
    widest: int | None = None,
    apart: bool = False,
) -> None:
    """Writes a label at every box: above it, or where there is no room inside of it, and never
    beyond the picture's border.

    Args:
        drawn: the picture, RGB.
        boxes: left, top, right, bottom in its pixels.
        colours: of the labels.
        labels: texts; of those that are too long the middle is left out.
        size: of the letters, in pixels.
        widest: most pixels of a label; None = `LONGEST_NAME`.
        apart: a label that would cover an earlier one goes inside of its box or below it, and is
            left out if it would cover one there, too.
    """
    pen, letters, taken = ImageDraw.Draw(drawn), font(size), []
    most = LONGEST_NAME * size if widest is None else widest
    for box, colour, label in zip(boxes, colours, labels, strict=True):
        left, top, _, bottom = _whole(box, drawn.size)
        room = min(drawn.width, most)
        text = drawable(label, room - 2 * MARGIN, size)
        width, height = label_size(text, size, room)
        left = max(0, min(left, drawn.width - width))
        lowest = max(0, drawn.height - height)
        places = [top - height, min(top, lowest)] if top >= height else [min(top, lowest)]
        if apart:
            places += [min(bottom + 1, lowest)]
            frames = [(left, y, left + width, y + height) for y in places]
            places = [y for y, f in zip(places, frames, strict=True) if not _covers(f, taken)]
            if not places:
                continue
        top = places[0]
        taken.append((left, top, left + width, top + height))
        pen.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
        pen.text((left + MARGIN, top + 1), text, fill=_readable_on(colour), font=letters)


def label_size(label: str, size: int, widest: int) -> tuple[int, int]:
    """Returns the (width, height) of a label in pixels; arguments as in `write_labels`."""
    text = drawable(label, widest - 2 * MARGIN, size)
    return round(font(size).getlength(text)) + 2 * MARGIN, size + 2 * MARGIN


def _covers(frame: tuple[int, int, int, int], others: Iterable[tuple[int, int, int, int]]) -> bool:
    """Whether a frame (right and bottom outside) has a pixel of one of the others."""
    left, top, right, bottom = frame
    return any(left < r and a < right and top < b and t < bottom for a, t, r, b in others)


def _whole(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels at the corners of a box, inside of the picture, right and bottom included."""
    left, top, right, bottom = (float(edge) for edge in box)
    left, top = (int(min(max(a, 0), b - 1)) for a, b in zip((left, top), size, strict=True))
    right, bottom = (
        int(min(max(round(a) - 1, low), b - 1))
        for a, low, b in zip((right, bottom), (left, top), size, strict=True)
    )
    return left, top, right, bottom


def _readable_on(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
