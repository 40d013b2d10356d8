"""The layout of contact sheets: for every class its name, what is said of it, and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from PIL import Image, ImageDraw

from lambdanet.data import decode
from lambdanet.drawing.names import drawable, font

GAP = 6
NAME_WIDTH = 190  # of the column of names, with its gaps
NAME_SIZE, TEXT_SIZE = 15, 12  # pixels of the letters
FIRST_LINE, LINE = 28, 17  # pixels from the top to what is said of a class, and to the next line
MOST_LINES = 10
SWATCH = 14
GREY = (90, 90, 90)


@dataclasses.dataclass(frozen=True)
class Row:
    """A class on a sheet.

    Attributes:
        name: of the class.
        lines: what is said of it, below its name; of more than `MOST_LINES` the first.
        pictures: what is shown of it.
        colour: that it has in the pictures; None = it has none.
    """

    name: str
    lines: Sequence[str]
    pictures: Sequence[Image.Image]
    colour: tuple[int, int, int] | None = None


def chosen(rows: Sequence[int], count: int) -> list[int]:
    """Returns `count` of the rows, evenly over all of them; all, if there are no more."""
    if len(rows) <= count:
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def arrange(
    rows: Sequence[Row],
    *,
    side: int,
    columns: int,
    beside: int = 1,
    least: int = 0,
    below: Sequence[tuple[str, tuple[int, int, int] | None]] = (),
) -> Image.Image:
    """Returns the sheet.

    Args:
        rows: the classes, in order.
        side: most pixels of a picture's longer side.
        columns: pictures of a class beside each other; further ones stand below them.
        beside: classes that stand beside each other.
        least: pixels that a class takes at least from top to bottom.
        below: last lines, each with the colour that it explains, or None.
    """
    block = NAME_WIDTH + columns * (side + GAP)
    lines = [rows[start : start + beside] for start in range(0, len(rows), beside)]
    heights = [max(least, *(_height(row, columns) for row in line)) for line in lines]
    lowest = GAP + sum(heights) + GAP * len(heights)
    size = (min(beside, max(len(rows), 1)) * block + GAP, lowest + 20 * max(len(below), 1))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for line, height in zip(lines, heights, strict=True):
        for place, row in enumerate(line):
            left = place * block
            _draw_name(pen, row, (left, top))
            first = (left + NAME_WIDTH, top)
            _paste(sheet, row.pictures, first, side=side, columns=columns, height=height)
        top += height + GAP
    for text, colour in below:
        left = GAP if colour is None else _swatch(pen, (GAP, top), colour)
        text = drawable(text, sheet.width - left - GAP, TEXT_SIZE)
        pen.text((left, top), text, fill="black", font=font(TEXT_SIZE))
        top += 20
    return sheet


def _height(row: Row, columns: int) -> int:
    """The pixels that a class needs from top to bottom."""
    text = FIRST_LINE + LINE * len(row.lines[:MOST_LINES])
    tallest = [max(p.height for p in line) for line in _lines(row.pictures, columns)]
    return max(text, sum(tallest) + GAP * (len(tallest) - 1))


def _lines(pictures: Sequence[Image.Image], columns: int) -> list[Sequence[Image.Image]]:
    return [pictures[start : start + columns] for start in range(0, len(pictures), columns)]


def _draw_name(pen: ImageDraw.ImageDraw, row: Row, at: tuple[int, int]) -> None:
    left, top = at
    end = left + NAME_WIDTH - GAP
    start = left + GAP
    if row.colour is not None:
        start = _swatch(pen, (start, top + 5), row.colour)
    name = drawable(row.name, end - start, NAME_SIZE)
    pen.text((start, top + 4), name, fill="black", font=font(NAME_SIZE))
    for number, text in enumerate(row.lines[:MOST_LINES]):
        lower = top + FIRST_LINE + LINE * number
        text = drawable(text, end - left - GAP, TEXT_SIZE)
        pen.text((left + GAP, lower), text, fill=GREY, font=font(TEXT_SIZE))


def _paste(
    sheet: Image.Image,
    pictures: Sequence[Image.Image],
    at: tuple[int, int],
    *,
    side: int,
    columns: int,
    height: int,
) -> None:
    """Pastes pictures, each in the middle of its place; a single line of them is `height` high."""
    left, top = at
    lines = _lines(pictures, columns)
    for line in lines:
        tallest = max(picture.height for picture in line) if len(lines) > 1 else height
        for column, picture in enumerate(line):
            x = left + column * (side + GAP) + (side - picture.width) // 2
            sheet.paste(picture, (x, top + (tallest - picture.height) // 2))
        top += tallest + GAP


def _swatch(pen: ImageDraw.ImageDraw, at: tuple[int, int], colour: tuple[int, int, int]) -> int:
    """Draws a field of a colour, and returns where the text beside it begins."""
    left, top = at
    pen.rectangle((left, top, left + SWATCH, top + SWATCH), fill=colour, outline="black")
    return left + SWATCH + GAP


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns the (width, height) of a picture whose longer side becomes `side` pixels."""
    factor = side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resized(picture: decode.Picture, size: tuple[int, int]) -> Image.Image:
    """Returns the whole of an opened picture, upright and in RGB, at a (width, height)."""
    return decode.crop_and_resize(
        picture,
        (0, 0, *picture.size),
        size=size[::-1],
        channels=3,
        interpolation="bicubic" if max(size) < max(picture.size) else "bilinear",
    )


def more_classes(count: int) -> list[tuple[str, None]]:
    """Returns the last line of a sheet that leaves out this many classes; none if it has all."""
    return [(f"and {count} classes more", None)] if count else []
