"""A picture of a set of images: some of every class, whole, beside its name and counts."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lambdanet.data import class_sets, decode
from lambdanet.data.class_folders import printable

SIDE, GAP, COLUMNS = 96, 6, 8
NAME_WIDTH = 190
MOST_CLASSES = 40
MAX_SIZE = 15  # points of the names


@functools.cache
def _font(size: int) -> tuple[ImageFont.FreeTypeFont, frozenset[int]]:
    """Returns DejaVu Sans, which comes with matplotlib, and the characters that it has."""
    from matplotlib import font_manager

    file = font_manager.findfont("DejaVu Sans")
    return ImageFont.truetype(file, size), frozenset(font_manager.get_font(file).get_charmap())


def drawable(name: str, width: float, size: int = MAX_SIZE) -> str:
    r"""Returns a name on one line that the font can draw: what it lacks as its escape ('\u732b'),
    and of what is too wide the middle left out, since names often differ in the last part only.
    """
    font, known = _font(size)
    name = "".join(c if ord(c) in known else ascii(c)[1:-1] for c in printable(name))
    kept, whole = len(name), name
    while font.getlength(name) > width and kept > 2:
        kept -= 1
        name = f"{whole[: (kept + 1) // 2]}…{whole[len(whole) - kept // 2 :]}"
    return name


def chosen(rows: Sequence[int], count: int) -> list[int]:
    """Returns `count` of the rows, evenly over all of them; all, if there are no more."""
    if len(rows) <= count:
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def draw(folder: class_sets.Folder) -> Image.Image:
    """Draws the sheet: a row per class with its name, its counts in the splits, and images that are
    spread evenly over those of its largest split.

    Of more than `MOST_CLASSES` classes, evenly chosen ones are shown, and the last line says so.

    Args:
        folder: whose images can be read.
    """
    shown = chosen(range(len(folder.class_names)), MOST_CLASSES)
    left_out = len(folder.class_names) - len(shown)
    of_class: dict[int, dict[str, list[str]]] = {label: {} for label in shown}
    for split, rows in folder.splits.items():
        for file, label in rows:
            if label in of_class:
                of_class[label].setdefault(split, []).append(file)
    height = SIDE + GAP
    width = NAME_WIDTH + COLUMNS * (SIDE + GAP) + GAP
    lowest = GAP + height * len(shown)
    sheet = Image.new("RGB", (width, lowest + 20), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, splits) in enumerate(of_class.items()):
        top = GAP + row * height
        name = drawable(folder.class_names[label], NAME_WIDTH - 2 * GAP)
        pen.text((GAP, top + 4), name, fill="black", font=_font(MAX_SIZE)[0])
        for line, (split, files) in enumerate(splits.items()):
            at = (GAP, top + 28 + 17 * line)
            pen.text(at, f"{split} {len(files)}", fill=(90, 90, 90), font=_font(12)[0])
        for column, file in enumerate(chosen(max(splits.values(), key=len, default=[]), COLUMNS)):
            picture = thumbnail((folder.root / file).read_bytes())
            left = NAME_WIDTH + column * (SIDE + GAP)
            sheet.paste(
                picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2)
            )
    if left_out:
        pen.text((GAP, lowest), f"and {left_out} classes more", fill="black", font=_font(12)[0])
    return sheet


def thumbnail(data: bytes) -> Image.Image:
    """Returns the whole picture of a file, upright, its longer side `SIDE` pixels."""
    picture = decode.open_image(data)
    factor = SIDE / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return decode.crop_and_resize(
        picture,
        (0, 0, *picture.size),
        size=(height, width),
        channels=3,
        interpolation="bicubic" if factor < 1 else "bilinear",
    )


def png(folder: class_sets.Folder) -> bytes:
    """Returns `draw` as a PNG file."""
    file = io.BytesIO()
    draw(folder).save(file, "PNG")
    return file.getvalue()
