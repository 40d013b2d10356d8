"""COCO's run lengths: masks as the lengths of runs of 0 and 1, by columns, in printable characters.

They keep every pixel, and need a fraction of a bitmap's room. pycocotools does the work; what comes
from a file is checked before it.
"""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_masks


def total(counts: bytes) -> int:
    """Returns how many pixels compressed run lengths stand for, -1 if they are none.

    A length is a number of 5 bits per character, whose sixth says that more follow; from the fourth
    on it is the difference to the last but one. Source: pycocotools, rleFrString.

    Args:
        counts: the `counts` of COCO's format.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return -1
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    characters = ends - starts + 1
    if characters.max() > 7:
        return -1
    place = np.arange(len(codes)) - np.repeat(starts, characters)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * characters), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return int(runs.sum()) if runs.min() >= 0 else -1


def why_wrong(counts: bytes, size: tuple[int, int]) -> str:
    """Returns '' if run lengths fill a picture of (width, height) exactly, else what is wrong."""
    pixels = total(counts)
    if pixels == size[0] * size[1]:
        return ""
    if pixels < 0:
        return "a mask whose run lengths cannot be read"
    return f"a mask of {pixels} pixels; its picture has {size[0]} x {size[1]}"


def area(counts: bytes | str, size: tuple[int, int]) -> int:
    """Returns the pixels that are set; 0 for run lengths that do not fit the (width, height)."""
    counts = counts if isinstance(counts, bytes) else counts.encode()
    if why_wrong(counts, size):
        return 0
    return int(coco_masks.area({"size": [size[1], size[0]], "counts": counts}))


def decode(counts: bytes, size: tuple[int, int]) -> np.ndarray:
    """Returns the bitmap, uint8 [h, w] of 0 and 1, of run lengths that fit the (width, height)."""
    return coco_masks.decode({"size": [size[1], size[0]], "counts": counts})


def encode(bitmap: np.ndarray) -> bytes:
    """Returns the run lengths of a bitmap [h, w]."""
    return coco_masks.encode(np.asfortranarray(bitmap, np.uint8))["counts"]


def of_polygons(polygons: list[list[float]], size: tuple[int, int]) -> bytes:
    """Returns the run lengths of polygons (x, y, x, y, ...) together, in a picture of (width,
    height); pixels as pycocotools sets them.
    """
    width, height = size
    return coco_masks.merge(coco_masks.frPyObjects(polygons, height, width))["counts"]


def compress(counts: list[int], size: tuple[int, int]) -> bytes:
    """Returns run lengths in printable characters, from numbers that fill the (width, height)."""
    width, height = size
    whole = {"size": [height, width], "counts": counts}
    return coco_masks.frPyObjects(whole, height, width)["counts"]
