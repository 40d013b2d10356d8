"""Pictures with boxes, masks, names and scores on them, legible whatever the picture's size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from lambdanet.analysis.label_colours import palette
from lambdanet.analysis.text import visible

SHORTEST = 480  # pixels of the longer side; smaller pictures are enlarged by a whole factor
LONGEST_NAME = 40  # characters of a label


def class_colour(number: int) -> tuple[int, int, int]:
    """Returns the colour of a class; black is none."""
    colours = palette()
    return tuple(int(part) for part in colours[1 + number % 254])


def draw_objects(
    image: UInt8[np.ndarray, "h w c"],
    boxes: Float[np.ndarray, "n 4"],
    classes: Integer[np.ndarray, " n"],
    labels: Sequence[str],
    masks: Bool[np.ndarray, "n h w"] | None = None,
) -> Image.Image:
    """Returns the picture with its objects, the last one on top.

    Lines and text grow with the picture. A label stands above its box, or where there is no room
    inside of it, and never beyond the border.

    Args:
        image: grey or RGB.
        boxes: left, top, right, bottom in pixels.
        classes: of the objects, for the colour.
        labels: texts.
        masks: where each object is; None draws boxes alone.
    """
    pixels = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]
    factor = max(1, -(-SHORTEST // max(image.shape[:2])))
    if masks is not None and len(masks):
        mixed = pixels.astype(np.float32)
        for mask, number in zip(masks, classes, strict=True):
            mixed[mask] = 0.5 * mixed[mask] + 0.5 * np.array(class_colour(int(number)), np.float32)
        pixels = np.round(mixed).astype(np.uint8)
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    drawn = Image.fromarray(np.ascontiguousarray(pixels))
    pen, longer = ImageDraw.Draw(drawn), max(drawn.size)
    line, size = max(2, round(longer / 300)), max(13, round(longer / 50))
    font = ImageFont.load_default(size=size)
    for box, number in zip(boxes, classes, strict=True):
        pen.rectangle(
            _whole(box, factor, drawn.size), outline=class_colour(int(number)), width=line
        )
    for box, number, label in zip(boxes, classes, labels, strict=True):
        left, top, _, _ = _whole(box, factor, drawn.size)
        text = visible(label)
        text = text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
        width, height = round(font.getlength(text)) + 6, size + 6
        left = max(0, min(left, drawn.width - width))
        top = top - height if top >= height else min(top, drawn.height - height)
        colour = class_colour(int(number))
        pen.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
        pen.text((left + 3, top + 1), text, fill=_readable_on(colour), font=font)
    return drawn


def _whole(box: np.ndarray, factor: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels at the corners of a box, inside of the picture, right and bottom included."""
    left, top, right, bottom = (float(edge) * factor for edge in box)
    left, top = (int(min(max(a, 0), b - 1)) for a, b in zip((left, top), size, strict=True))
    right, bottom = (
        int(min(max(round(a) - 1, low), b - 1))
        for a, low, b in zip((right, bottom), (left, top), size, strict=True)
    )
    return left, top, right, bottom


def _readable_on(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
