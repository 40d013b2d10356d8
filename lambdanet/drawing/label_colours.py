"""Colours of classes in pictures of label maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

from lambdanet.drawing.names import drawable, font

IGNORED_COLOUR = (224, 224, 192)
UNPAINTED = "  (overlays: not painted)"
SIZE, WIDEST = 14, 600  # pixels: of the legend's letters, and of a name there


def palette(count: int = 256) -> UInt8[np.ndarray, "count 3"]:
    """Returns one colour per class, far apart for neighbouring numbers: Pascal VOC's, which spread
    the bits of the number over red, green and blue from the highest on; 255 (ignored) is cream.
    """
    colours = np.zeros((count, 3), np.uint8)
    numbers = np.arange(count)
    for place in range(7, -1, -1):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> channel) & 1) << place).astype(np.uint8)
        numbers = numbers >> 3
    if count > 255:
        colours[255] = IGNORED_COLOUR
    return colours


def paint(labels: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a label map in its colours."""
    return palette()[np.asarray(labels)]


def index_image(labels: Integer[np.ndarray, "h w"]) -> Image.Image:
    """Returns a label map as a palette image: its values are the classes, its look the colours."""
    image = Image.fromarray(np.asarray(labels, np.uint8), mode="P")
    image.putpalette(palette().tobytes())
    return image


def overlay(
    image: UInt8[np.ndarray, "h w c"], labels: Integer[np.ndarray, "h w"], strength: float = 0.5
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a picture (grey or RGB) with its label map laid over it; where the label is 0, mostly
    the background, it is as it was: black would only darken it.
    """
    plain = np.broadcast_to(image[..., :3], (*image.shape[:2], 3))
    mixed = np.round((1 - strength) * plain + strength * paint(labels))
    return np.where(np.asarray(labels)[..., None] == 0, plain, mixed).astype(np.uint8)


def legend(names: Sequence[str], *, rows: int = 30) -> Image.Image:
    """Returns a picture of all classes' colours and names, in columns of `rows`."""
    letters = font(SIZE)
    texts = [f"{number}  {drawable(name, WIDEST, SIZE)}" for number, name in enumerate(names)]
    texts[0] += UNPAINTED
    widths = [
        max(int(letters.getlength(text)) for text in texts[i : i + rows]) + 50
        for i in range(0, len(texts), rows)
    ]
    image = Image.new("RGB", (sum(widths), 22 * min(rows, len(texts)) + 8), "white")
    drawing, colours = ImageDraw.Draw(image), palette()
    for number, text in enumerate(texts):
        column, row = divmod(number, rows)
        left, top = sum(widths[:column]) + 8, 22 * row + 6
        box = (left, top, left + 24, top + 16)
        drawing.rectangle(box, fill=tuple(map(int, colours[number])), outline="black")
        drawing.text((left + 32, top), text, fill="black", font=letters)
    return image
