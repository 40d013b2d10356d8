"""One annotation of COCO's format: its box, its mask, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lambdanet.data import run_lengths
from lambdanet.data.findings import counted
from lambdanet.data.objects import check_boxes

LARGEST = float(np.finfo(np.float32).max)
"""Of an area, as it is stored."""


def is_whole(value: Any) -> bool:
    """Whether a value of a JSON file is a whole number that 64 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, float) or is_whole(value) for value in values
    )


def has_mask(value: Any) -> bool:
    """Whether a `segmentation` says anything: some programs write [] or [[]] for no mask."""
    return any(polygon != [] for polygon in value) if isinstance(value, list) else bool(value)


def read_annotation(
    entry: Mapping[str, Any], size: tuple[int, int], classes: Mapping[int, int], masks: bool
) -> tuple[tuple, str]:
    """Returns (box, class, crowd, area, mask) of an annotation, and what had to be cut, or ''.

    Args:
        entry: of the list `annotations`.
        size: (width, height) of the picture.
        classes: number of a category -> class.
        masks: with masks; otherwise they are b''.

    Raises:
        ValueError: what is wrong with it.
    """
    category = entry.get("category_id")
    if not is_whole(category) or category not in classes:
        known = counted(len(classes), "categories")
        raise ValueError(f"category {category!r} is none of the {known}")
    bbox = entry.get("bbox")
    if not _are_numbers(bbox) or len(bbox) != 4:
        raise ValueError(f"bbox is {json.dumps(bbox)[:60]}; it must be [left, top, width, height]")
    left, top, width, height = map(float, bbox)
    box = np.array([[left, top, left + width, top + height]])
    problems, cut, mended = check_boxes(box, size, (f"bbox {json.dumps(bbox)}",))
    if problems and not mended[0]:
        raise ValueError(problems[0])
    mask = read_mask(entry.get("segmentation"), size) if masks else b""
    area = entry.get("area")
    if area is not None and not (_are_numbers([area]) and 0 <= area <= LARGEST):
        raise ValueError(
            f"area is {json.dumps(area)[:60]}; allowed: a number of 0 or more, or none at all"
        )
    if not area:  # no object has the area 0
        area = run_lengths.area(mask, size) if masks else np.prod(cut[0, 2:] - cut[0, :2])
    box = cut[0] if problems else box[0]
    crowd = 0 if entry.get("iscrowd") is None else entry["iscrowd"]
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd is {json.dumps(crowd)[:60]}; allowed: 0, 1")
    return (box, classes[category], bool(crowd), area, mask), problems.get(0, "")


def read_mask(value: Any, size: tuple[int, int]) -> bytes:
    """Returns the compressed run lengths of a mask.

    Args:
        value: COCO's `segmentation`: a list of polygons, or run lengths with `size` and `counts`, a
            list of numbers or compressed.
        size: (width, height) of the picture.

    Raises:
        ValueError: another form, another size, or not a pixel is set.
    """
    if isinstance(value, dict):
        counts = _of_run_lengths(value, size)
    elif isinstance(value, list) and has_mask(value):
        value = [polygon for polygon in value if polygon != []]
        for polygon in value:
            if not _are_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
                text = json.dumps(polygon)[:60]
                raise ValueError(f"polygon {text} must be x, y of three points or more")
            if not np.isfinite(polygon).all() or np.abs(polygon).max() > 1e6:
                raise ValueError(f"polygon {json.dumps(polygon)[:60]} has points beyond all bounds")
        counts = run_lengths.of_polygons(value, size)
    else:
        raise ValueError("it has no mask (segmentation), and others have")
    if not run_lengths.area(counts, size):
        raise ValueError("not a pixel of its mask is set")
    return counts


def _of_run_lengths(value: Mapping[str, Any], size: tuple[int, int]) -> bytes:
    said, counts = value.get("size"), value.get("counts")
    if said is not None and said != [size[1], size[0]]:
        raise ValueError(f"its mask has size {said}; [height, width] is [{size[1]}, {size[0]}]")
    if isinstance(counts, str):
        compressed = counts.encode()
    elif isinstance(counts, list) and all(map(is_whole, counts)) and min(counts, default=0) >= 0:
        if sum(counts) != size[0] * size[1]:
            raise ValueError(
                f"a mask of {sum(counts)} pixels; its picture has {size[0]} x {size[1]}"
            )
        compressed = run_lengths.compress(counts, size)
    else:
        raise ValueError(f"counts is {json.dumps(counts)[:60]}; allowed: text, or whole numbers")
    if reason := run_lengths.why_wrong(compressed, size):
        raise ValueError(reason)
    return compressed
