"""Boxes (x0, y0, x1, y1) with continuous coordinates: areas, overlaps, clipping, and the coder of
offsets from anchors.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CLAMPS = ("both", "upper")
LARGEST_LOG_RATIO = math.log(1000 / 16)
"""What the log of a box's size over its anchor's is clamped to."""
_LEAST_SIDE = 1e-6  # in pixels, of what is encoded


def box_area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Returns (x1 - x0) (y1 - y0); 0 where a side is negative."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def pairwise_iou(a: Float[Array, "*b m 4"], b: Float[Array, "*b n 4"]) -> Float[Array, "*b m n"]:
    """Returns intersection over union of every box of `a` with every box of `b`; 0 where both are
    empty.
    """
    inner, union = _intersection_and_union(a, b)
    return _ratio(inner, union)


def pairwise_giou(a: Float[Array, "*b m 4"], b: Float[Array, "*b n 4"]) -> Float[Array, "*b m n"]:
    """Returns IoU - (hull - union) / hull, hull being the area of the smallest box around both.

    Between -1 and 1. Source: Rezatofighi et al., Generalized Intersection over Union (CVPR 2019).
    """
    inner, union = _intersection_and_union(a, b)
    a, b = a[..., :, None, :], b[..., None, :, :]
    hull = box_area(
        jnp.concatenate(
            [jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1
        )
    )
    return _ratio(inner, union) - _ratio(hull - union, hull)


def pairwise_coverage(
    a: Float[Array, "*b m 4"], b: Float[Array, "*b n 4"]
) -> Float[Array, "*b m n"]:
    """Returns the share of each box of `a` that lies in each box of `b`: intersection / area of a.

    This, and not IoU, is COCO's overlap with a crowd.
    """
    return _ratio(_intersection(a, b), box_area(a)[..., :, None])


def clip_boxes(
    boxes: Float[Array, "*b n 4"], image_shape: Int[Array, "*b 2"]
) -> Float[Array, "*b n 4"]:
    """Returns the boxes' parts inside their images.

    Args:
        boxes: in pixels.
        image_shape: height and width of the valid part of each image, which begins at (0, 0).
    """
    height, width = image_shape[..., 0], image_shape[..., 1]
    limit = jnp.stack([width, height, width, height], -1)[..., None, :].astype(boxes.dtype)
    return jnp.clip(boxes, 0, limit)


def encode_boxes(
    boxes: Float[Array, "*n 4"],
    anchors: Float[Array, "*n 4"],
    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*n 4"]:
    """Returns what a network is to predict for a box at an anchor.

    With c the centre and s the size of a box along an axis: ((c - c_anchor) / s_anchor,
    log(s / s_anchor)) / std, in the order (dx, dy, dw, dh). Source: R-CNN (Girshick et al., 2014).

    Args:
        boxes: targets. Empty ones, as padding is, give finite numbers.
        anchors: not empty, one for each box.
        stds: one number for each of dx, dy, dw, dh; torchvision's weights are 1 / std.
    """
    sizes, anchor_sizes = (
        jnp.maximum(x[..., 2:] - x[..., :2], _LEAST_SIDE) for x in (boxes, anchors)
    )
    moved = (boxes[..., :2] + boxes[..., 2:]) / 2 - (anchors[..., :2] + anchors[..., 2:]) / 2
    deltas = jnp.concatenate([moved / anchor_sizes, jnp.log(sizes / anchor_sizes)], -1)
    return deltas / jnp.asarray(stds, boxes.dtype)


def decode_boxes(
    deltas: Float[Array, "*n 4"],
    anchors: Float[Array, "*n 4"],
    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    clamp: str = "both",
) -> Float[Array, "*n 4"]:
    """Returns the boxes that offsets from anchors mean: the inverse of `encode_boxes`.

    Args:
        deltas: predictions; float32 whatever the network computes in.
        anchors: one for each prediction.
        stds: as in `encode_boxes`.
        clamp: dw and dh are clamped to log(1000 / 16) on 'both' sides (mmdetection) or only to the
            'upper' one (torchvision).

    Raises:
        ValueError: another clamp.
    """
    if clamp not in CLAMPS:
        raise ValueError(f"decode_boxes: clamp={clamp!r}; allowed: {', '.join(map(repr, CLAMPS))}")
    deltas = deltas * jnp.asarray(stds, deltas.dtype)
    lower = -LARGEST_LOG_RATIO if clamp == "both" else None
    log_ratios = jnp.clip(deltas[..., 2:], lower, LARGEST_LOG_RATIO)
    sizes = anchors[..., 2:] - anchors[..., :2]
    centres = deltas[..., :2] * sizes + anchors[..., :2] + sizes / 2
    half = jnp.exp(log_ratios) * sizes / 2
    return jnp.concatenate([centres - half, centres + half], -1)


def _intersection(a, b):
    a, b = a[..., :, None, :], b[..., None, :, :]
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    return box_area(jnp.concatenate([low, high], -1))


def _intersection_and_union(a, b):
    inner = _intersection(a, b)
    return inner, box_area(a)[..., :, None] + box_area(b)[..., None, :] - inner


def _ratio(part, whole):
    """part / whole; 0, with a gradient of 0, where whole is not positive."""
    positive = whole > 0
    return jnp.where(positive, part / jnp.where(positive, whole, 1), 0)
