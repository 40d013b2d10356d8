"""Anchor boxes of feature maps, as constants of a canvas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def base_anchors(
    sizes: Sequence[float], ratios: Sequence[float], *, rounded: bool = False
) -> Float[np.ndarray, "a 4"]:
    """Returns the anchors around (0, 0): one for each ratio and size, sizes running fastest.

    With ratio q = height / width and size s: width s / sqrt(q), height s sqrt(q), the same area for
    all ratios.

    Args:
        sizes: square roots of areas, in pixels; mmdetection's are stride * scale.
        ratios: heights over widths.
        rounded: coordinates to whole pixels, halves to even ones: torchvision's anchors;
            mmdetection's are not rounded.
    """
    heights = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    sizes = np.asarray(sizes, np.float32)
    width, height = (np.ravel(factor * sizes) for factor in (1 / heights, heights))
    base = np.stack([-width, -height, width, height], -1) / 2
    return np.round(base) if rounded else base


def level_anchors(
    map_shape: tuple[int, int],
    stride: tuple[int, int],
    sizes: Sequence[float],
    ratios: Sequence[float],
    *,
    rounded: bool = False,
) -> Float[np.ndarray, "n 4"]:
    """Returns the anchors of one map [h w a, 4], in pixels of the image: rows, columns, then those
    of `base_anchors`, whose centre of cell (y, x) is (y, x) * stride.

    Args:
        map_shape: height and width of the map.
        stride: pixels of the image between cells, down and across.
        sizes: see `base_anchors`.
        ratios: see `base_anchors`.
        rounded: see `base_anchors`.
    """
    y, x = (np.arange(n, dtype=np.float32) * s for n, s in zip(map_shape, stride, strict=True))
    y, x = np.meshgrid(y, x, indexing="ij")
    corners = np.stack([x, y, x, y], -1)[:, :, None]
    return (corners + base_anchors(sizes, ratios, rounded=rounded)).reshape(-1, 4)


def pyramid_anchors(
    map_shapes: Sequence[tuple[int, int]],
    strides: Sequence[tuple[int, int]],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    *,
    rounded: bool = False,
) -> list[Float[np.ndarray, "_ 4"]]:
    """Returns the anchors of each level of a pyramid, see `level_anchors`.

    Args:
        map_shapes: of each level.
        strides: of each level. torchvision takes `whole_strides`, which at odd maps are smaller
            than the network's.
        sizes: of each level.
        ratios: of all levels.
        rounded: see `base_anchors`.
    """
    levels = zip(map_shapes, strides, sizes, strict=True)
    return [
        level_anchors(shape, stride, own, ratios, rounded=rounded) for shape, stride, own in levels
    ]


def whole_strides(
    image_shape: tuple[int, int], map_shapes: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Returns the strides that torchvision's detectors take for maps of an image: the image's size
    over the map's, rounded down.
    """
    height, width = image_shape
    return [(height // rows, width // columns) for rows, columns in map_shapes]
