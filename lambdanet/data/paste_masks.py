"""Masks that a detector gives for its boxes, put into the picture; on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    result = np.zeros(image_shape, np.float32)
    if (found := _window(mask, box, image_shape)) is not None:
        result[found[0]] = found[1]
    return result


class PastedMasks:
    """Where each object is in its picture, bool [height, width]: `paste_mask` above the threshold.

    A sequence that pastes a mask whenever it is looked at, so that only one of them need be there
    at a time: a hundred in a photograph of 12 million pixels are more than a gigabyte.
    `np.asarray` of it has all, [n, height, width].

    Args:
        masks: probabilities [n, size, size].
        boxes: [n, 4] in pixels of the picture.
        image_shape: height and width of the picture.
        threshold: see above; not below 0, which the rest of the picture has.
    """

    def __init__(
        self,
        masks: np.ndarray,
        boxes: np.ndarray,
        image_shape: tuple[int, int],
        threshold: float = 0.5,
    ):
        if len(masks) != len(boxes):
            raise ValueError(f"{len(masks)} masks and {len(boxes)} boxes; give as many of both")
        self._masks, self._boxes, self._threshold = masks, boxes, threshold
        self.shape = (len(masks), *image_shape)

    def __len__(self) -> int:
        return len(self._masks)

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, at: Any) -> np.ndarray | PastedMasks:
        """Returns one mask by its number, or those of a slice, not yet pasted."""
        if isinstance(at, slice):
            return PastedMasks(self._masks[at], self._boxes[at], self.shape[1:], self._threshold)
        result = np.zeros(self.shape[1:], bool)
        found = _window(self._masks[at], self._boxes[at], self.shape[1:])
        if found is not None:
            result[found[0]] = found[1] > self._threshold
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        result = np.zeros(self.shape, bool)
        for number, mask in enumerate(self):
            result[number] = mask
        return result if dtype is None else result.astype(dtype)


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, image_shape: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """Returns all of `PastedMasks` at once, bool [n, height, width]."""
    return np.asarray(PastedMasks(masks, boxes, image_shape, threshold))


def _window(
    mask: np.ndarray, box: np.ndarray, image_shape: tuple[int, int]
) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """The part of the picture that `paste_mask` gives another value than 0, and its values; None
    where the object lies outside.
    """
    size = len(mask)
    padded = np.pad(np.asarray(mask, np.float32), 1)
    box = np.asarray(box, np.float32)
    half = (box[2:] - box[:2]) * np.float32(0.5) * np.float32((size + 2) / size)
    centre = (box[2:] + box[:2]) * np.float32(0.5)
    low, high = (side.astype(np.int64) for side in (centre - half, centre + half))
    weights, places = [], []
    for axis, limit in ((1, image_shape[0]), (0, image_shape[1])):
        first, last = max(int(low[axis]), 0), min(int(high[axis]) + 1, limit)
        if first >= last:
            return None
        length = max(int(high[axis] - low[axis]) + 1, 1)
        weights.append(_resize(len(padded), length, np.arange(first, last) - low[axis]))
        places.append(slice(first, last))
    return (places[0], places[1]), weights[0] @ padded @ weights[1].T


def _resize(before: int, after: int, places: np.ndarray) -> np.ndarray:
    """Rows `places` of the matrix that resizes an axis bilinearly (half-pixel centres)."""
    at = np.clip((places + 0.5) * (before / after) - 0.5, 0, before - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(before)), 0).astype(np.float32)
