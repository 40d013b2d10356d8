"""Masks that a detector gives for its boxes, put into the picture; on the host."""

from __future__ import annotations

import numpy as np


def paste_mask(mask: np.ndarray, box: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    """Returns the probabilities of one object in its picture, float32 [height, width].

    The mask gets a border of one zero, the box grows with it about its centre and is cut to whole
    pixels, the last included; between the mask's cells it is bilinear. Source: torchvision
    `paste_masks_in_image`, which this equals.

    Args:
        mask: probabilities [n, n], in the box.
        box: (x0, y0, x1, y1) in pixels of the picture; may reach outside.
        image_shape: height and width of the picture.
    """
    size = len(mask)
    padded = np.pad(np.asarray(mask, np.float32), 1)
    box = np.asarray(box, np.float32)
    half = (box[2:] - box[:2]) * np.float32(0.5) * np.float32((size + 2) / size)
    centre = (box[2:] + box[:2]) * np.float32(0.5)
    low, high = (side.astype(np.int64) for side in (centre - half, centre + half))
    result = np.zeros(image_shape, np.float32)
    weights, places = [], []
    for axis, limit in ((1, image_shape[0]), (0, image_shape[1])):
        first, last = max(int(low[axis]), 0), min(int(high[axis]) + 1, limit)
        if first >= last:
            return result
        length = max(int(high[axis] - low[axis]) + 1, 1)
        weights.append(_resize(len(padded), length, np.arange(first, last) - low[axis]))
        places.append(slice(first, last))
    result[tuple(places)] = weights[0] @ padded @ weights[1].T
    return result


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, image_shape: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """Returns where each object is in its picture, bool [n, height, width]: `paste_mask` above the
    threshold.

    Args:
        masks: probabilities [n, size, size].
        boxes: [n, 4] in pixels of the picture.
        image_shape: height and width of the picture.
        threshold: see above.
    """
    result = np.zeros((len(masks), *image_shape), bool)
    for number, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        result[number] = paste_mask(mask, box, image_shape) > threshold
    return result


def _resize(before: int, after: int, places: np.ndarray) -> np.ndarray:
    """Rows `places` of the matrix that resizes an axis bilinearly (half-pixel centres)."""
    at = np.clip((places + 0.5) * (before / after) - 0.5, 0, before - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(before)), 0).astype(np.float32)
