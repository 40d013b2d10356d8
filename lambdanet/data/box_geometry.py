"""Where the pixels of an example of detection come from, and how boxes and masks follow them.

The canvas is data.image_size; the picture lies at its top left, never distorted, and what is below
and on the right of it is padding. So the `image_shape` of an example, height and width of the part
that is picture, is all that a model needs to know of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from lambdanet.data import geometry, run_lengths
from lambdanet.data.geometry import Geometry
from lambdanet.data.objects import Objects

CROPS = ("none", "scale_crop")
MASK_SIDE = 112
"""Side of the bitmaps of masks; four times that of Mask R-CNN's predictions."""
MIN_SIDE = 1.0
"""Pixels of the canvas: what a crop leaves of an object and is narrower is left out."""


def draw(picture_size: tuple[int, int], data: Any, rng: np.random.Generator) -> Geometry:
    """Draws the geometry of a training example; its `size` is the example's image_shape.

    With data.crop='none' the picture is resized, its aspect kept, so that it just fits into the
    canvas. With 'scale_crop' that size is multiplied by a factor that is uniform in
    data.scale_range (large-scale jitter: Ghiasi et al. 2021, Simple Copy-Paste, (0.1, 2)), and of
    what is larger than the canvas a window is taken, uniformly among those inside. At the end it is
    mirrored, with probability data.flip; the padding comes later, so that it is on the right in any
    case.

    Args:
        picture_size: (width, height).
        data: the config's section; reads image_size, crop, scale_range, flip, interpolation, mean
            and channels.
        rng: of the record. What is off draws nothing.

    Raises:
        ValueError: another crop; those cut objects off without rules, or distort them.
    """
    if data.crop not in CROPS:
        raise ValueError(
            f"data.crop={data.crop!r} is not for boxes; allowed in detection: {', '.join(CROPS)}"
        )
    whole = fitted(picture_size, data)
    interpolation, size, box = geometry.draw_interpolation(data, rng), whole.size, whole.box
    if data.crop == "scale_crop":
        low, high = data.scale_range
        factor = float(rng.uniform(low, high)) if low < high else low
        scaled = geometry.scaled_size(whole.size[::-1], factor)
        size = tuple(map(min, data.image_size, scaled[::-1]))
        top, left = (
            int(rng.integers(side - part + 1)) if side > part else 0
            for side, part in zip(scaled[::-1], size, strict=True)
        )
        window = (left, top, left + size[1], top + size[0])
        box = geometry.box_before(scaled, picture_size, window)
    return dataclasses.replace(
        whole, box=box, size=size, interpolation=interpolation, flip=geometry.draw_flip(data, rng)
    )


def fitted(picture_size: tuple[int, int], data: Any) -> Geometry:
    """Returns the geometry of evaluation, `geometry.fitted` without its padding."""
    return dataclasses.replace(geometry.fitted(picture_size, data), pad=(0, 0))


def on_canvas(image: np.ndarray, data: Any) -> np.ndarray:
    """Lays a warped picture at the top left of the canvas, on the mean colour.

    Args:
        image: uint8 [h, w, c], no larger than the canvas.
        data: the config's section; reads image_size, mean and channels.

    Returns:
        uint8 [height, width, c].
    """
    canvas = np.empty((*data.image_size, image.shape[2]), np.uint8)
    canvas[:] = geometry.mean_colour(data)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def warp_boxes(boxes: np.ndarray, drawn: Geometry) -> np.ndarray:
    """Moves boxes with the picture; those outside of the crop get coordinates outside, too.

    Args:
        boxes: left, top, right, bottom in pixels of the picture, float [n, 4].
        drawn: the geometry.

    Returns:
        The boxes in pixels of the output, float64 [n, 4].
    """
    left, top, right, bottom = drawn.box
    height, width = drawn.size
    scale = np.array([width / (right - left), height / (bottom - top)] * 2)
    moved = (boxes.astype(np.float64) - np.array([left, top] * 2)) * scale
    moved += np.array(drawn.shift * 2)
    if drawn.flip:
        moved[:, [0, 2]] = width + drawn.pad[1] - moved[:, [2, 0]]
    return moved


def unwarp_boxes(boxes: np.ndarray, drawn: Geometry) -> np.ndarray:
    """Moves boxes of the output back to the picture; see `warp_boxes`, whose inverse this is."""
    left, top, right, bottom = drawn.box
    height, width = drawn.size
    moved = boxes.astype(np.float64)
    if drawn.flip:
        moved[:, [0, 2]] = width + drawn.pad[1] - moved[:, [2, 0]]
    scale = np.array([(right - left) / width, (bottom - top) / height] * 2)
    return (moved - np.array(drawn.shift * 2)) * scale + np.array([left, top] * 2)


def warp_objects(
    found: Objects, picture_size: tuple[int, int], drawn: Geometry
) -> tuple[Objects, np.ndarray | None]:
    """Moves objects with the picture, and leaves out those that the crop has cut off.

    A box that crosses the border of the crop is cut there; with masks it is then drawn anew around
    the part of the mask that is left. Of these cut objects, those narrower than `MIN_SIDE` pixels
    or without a pixel of their mask are left out; what is whole stays, however small.

    Args:
        found: the objects, in pixels of the picture.
        picture_size: its (width, height).
        drawn: the geometry, without shift and padding.

    Returns:
        The objects that are left, boxes in pixels of the output; and their masks, uint8 [n,
        MASK_SIDE, MASK_SIDE] of 0 and 1 in the coordinates of their own boxes, or None.
    """
    height, width = drawn.size
    moved = warp_boxes(np.clip(found.boxes, 0, picture_size * 2), drawn)
    boxes = np.clip(moved, 0, [width, height, width, height])
    cut = np.abs(boxes - moved).max(axis=1, initial=0) > 1e-3
    kept = ~cut | ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1)
    if found.masks is None:
        return dataclasses.replace(found, boxes=boxes.astype(np.float32)).take(kept), None
    crops = []
    for i in np.flatnonzero(kept):
        bitmap = run_lengths.decode(found.masks[i], picture_size)
        if cut[i]:
            seen = _seen(bitmap, drawn)
            kept[i] = seen is not None
            if seen is None:
                continue
            around = np.clip(warp_boxes(seen[None], drawn)[0], 0, [width, height, width, height])
            boxes[i, :2] = np.maximum(boxes[i, :2], around[:2])
            boxes[i, 2:] = np.minimum(boxes[i, 2:], around[2:])
            if not ((boxes[i, 2:] - boxes[i, :2]) >= MIN_SIDE).all():
                kept[i] = False
                continue
        crops.append(crop_mask(bitmap, unwarp_boxes(boxes[i : i + 1], drawn)[0], drawn.flip))
    moved = dataclasses.replace(found, boxes=boxes.astype(np.float32)).take(kept)
    masks = np.stack(crops) if crops else np.zeros((0, MASK_SIDE, MASK_SIDE), np.uint8)
    return moved, masks


def _seen(bitmap: np.ndarray, drawn: Geometry) -> np.ndarray | None:
    """Returns the box in the picture around what a crop leaves of a mask; None if that is nothing.

    A pixel is left if more than a hundredth of its width and height is.
    """
    left, top = np.floor(np.array(drawn.box[:2]) + 0.01).astype(int)
    right, bottom = np.ceil(np.array(drawn.box[2:]) - 0.01).astype(int)
    part = bitmap[top:bottom, left:right]
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    if not len(rows):
        return None
    around = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return np.array(around, np.float64) + np.array([left, top] * 2)


def crop_mask(bitmap: np.ndarray, box: np.ndarray, flip: bool = False) -> np.ndarray:
    """Returns the part of a mask that is in a box, resampled to the bitmaps of examples.

    A pixel of the result is set where at least half of what it covers is. So a mask that is
    enlarged keeps its pixels, and of one that is made smaller the border moves least.

    Args:
        bitmap: 0 and 1, uint8 [h, w], of the whole picture.
        box: left, top, right, bottom in its pixels; cut at its border.
        flip: mirror the result.

    Returns:
        uint8 [MASK_SIDE, MASK_SIDE] of 0 and 1.
    """
    height, width = bitmap.shape
    left, top, right, bottom = np.clip(box, 0, [width, height, width, height])
    x, y = int(left), int(top)
    part = bitmap[y : int(np.ceil(bottom)), x : int(np.ceil(right))]
    within = (left - x, top - y, min(right - x, part.shape[1]), min(bottom - y, part.shape[0]))
    image = Image.fromarray(np.ascontiguousarray(part) * np.uint8(255))
    side = (MASK_SIDE, MASK_SIDE)
    found = np.asarray(image.resize(side, Image.Resampling.BOX, within)) >= 128
    return np.ascontiguousarray(found[:, ::-1] if flip else found).astype(np.uint8)
