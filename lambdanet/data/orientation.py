"""EXIF orientation: cameras store the picture as the sensor lay and say how to turn it upright."""

from __future__ import annotations

from typing import NamedTuple

from PIL import ExifTags, Image


class Turn(NamedTuple):
    """How a stored picture becomes upright, and the way back for a point (x, y).

    Attributes:
        method: of `Image.transpose`.
        sideways: x and y, width and height change places.
        from_right, from_bottom: then x, y count from the other end of the stored picture.
    """

    method: Image.Transpose | None = None
    sideways: bool = False
    from_right: bool = False
    from_bottom: bool = False


TURNS = {
    1: Turn(),
    2: Turn(Image.Transpose.FLIP_LEFT_RIGHT, from_right=True),
    3: Turn(Image.Transpose.ROTATE_180, from_right=True, from_bottom=True),
    4: Turn(Image.Transpose.FLIP_TOP_BOTTOM, from_bottom=True),
    5: Turn(Image.Transpose.TRANSPOSE, sideways=True),
    6: Turn(Image.Transpose.ROTATE_270, sideways=True, from_bottom=True),
    7: Turn(Image.Transpose.TRANSVERSE, sideways=True, from_right=True, from_bottom=True),
    8: Turn(Image.Transpose.ROTATE_90, sideways=True, from_right=True),
}


def read(image: Image.Image) -> Turn:
    """Returns the turn that an opened file asks for; none if the entry is missing or makes no
    sense.

    A PNG may keep it behind the pixels, which are decoded for that. TIFF files are turned by
    Pillow.

    Raises:
        OSError: a damaged PNG.
    """
    if image.format == "TIFF":
        return TURNS[1]
    if image.format == "PNG":
        image.load()
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), TURNS[1])
    except Exception:  # damaged EXIF data raise many types, and are no reason to lose the picture
        return TURNS[1]


def upright(image: Image.Image, turn: Turn) -> Image.Image:
    """Returns the decoded picture, or a crop of it, upright."""
    return image if turn.method is None else image.transpose(turn.method)


def stored_box(
    box: tuple[float, float, float, float], size: tuple[int, int], turn: Turn
) -> tuple[float, float, float, float]:
    """Returns where a box (left, top, right, bottom) of the upright picture lies in the stored one.

    Args:
        box: in pixels of the upright picture.
        size: (width, height) of the stored picture.
        turn: that makes it upright.
    """
    x, y = (box[1::2], box[0::2]) if turn.sideways else (box[0::2], box[1::2])
    x = (size[0] - x[1], size[0] - x[0]) if turn.from_right else x
    y = (size[1] - y[1], size[1] - y[0]) if turn.from_bottom else y
    return x[0], y[0], x[1], y[1]
