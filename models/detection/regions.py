"""Which proposals the second stage learns from, and what it makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lambdanet.ops.boxes import clip_boxes, pairwise_iou
from lambdanet.ops.matching import match, sample
from lambdanet.ops.nms import Selected, select
from lambdanet.ops.roi_align import roi_align

from .anchoring import Targets, ignore_in_crowds
from .box_losses import BoxCoder

LEAST_SIDE = 1e-2
"""Of a detection, in pixels."""
HALF = 0.5 - 1e-3
"""What counts as half of a pixel of a mask. A box that is its object's own has values of exactly
one half at the mask's edge; without the margin it is rounding that makes them 0 or 1.
"""


@dataclass(frozen=True)
class Cutting:
    """How regions are cut out of levels, see `multi_level_roi_align`.

    Args:
        sampling_ratio: samples per bin and axis.
        aligned: whether regions are shifted by half a pixel.
        canonical_size: side of regions of which the double is cut out of the second level.
    """

    sampling_ratio: int
    aligned: bool
    canonical_size: float


@dataclass(frozen=True)
class Drawing:
    """Which proposals training looks at.

    Args:
        count: the most that are drawn of a picture.
        positive_fraction: the most of them that are positive.
        positive_iou: overlap with an object from which on a proposal is positive; below it is
            negative.
    """

    count: int
    positive_fraction: float
    positive_iou: float

    def most_positive(self, drawn: int) -> int:
        """Returns how many of the first of so many drawn proposals can be positive."""
        return min(int(self.count * self.positive_fraction), drawn)


@dataclass(frozen=True)
class Detecting:
    """What becomes of classes and offsets.

    Args:
        background: 'first' | 'last' of the classes.
        before_nms: pairs of proposal and class with the highest probability that suppression looks
            at.
        score_threshold: least probability, exclusive.
        nms_threshold: overlap above which the lower of the same class is suppressed.
        count: detections of a picture.
    """

    background: str
    before_nms: int
    score_threshold: float
    nms_threshold: float
    count: int


class Drawn(NamedTuple):
    """Proposals that training looks at, the positive ones first.

    Attributes:
        boxes: [b, r, 4].
        positive: bool [b, r].
        valid: bool [b, r], positive or negative.
        index: int32 [b, r], the object of each; of use where positive.
    """

    boxes: jax.Array
    positive: jax.Array
    valid: jax.Array
    index: jax.Array


def draw(
    proposals: Float[Array, "b p 4"],
    valid: Bool[Array, "b p"],
    targets: Targets,
    keys: jax.Array,
    drawing: Drawing,
) -> Drawn:
    """Draws proposals, to which the objects themselves are added; those in crowds are neither
    positive nor negative.

    Args:
        proposals: of every picture.
        valid: which of them there are.
        targets: see `Targets`.
        keys: one per picture.
        drawing: how many and which.
    """

    def one(proposals, valid, objects, exists, crowd, key):
        real = exists & ~crowd
        proposals = jnp.concatenate([proposals, objects])
        valid = jnp.concatenate([valid, real])
        iou = jnp.where(valid[:, None], pairwise_iou(proposals, objects), -1.0)
        found = match(iou, real, high=drawing.positive_iou, low=drawing.positive_iou)
        label = ignore_in_crowds(
            found.label, proposals, objects, exists & crowd, drawing.positive_iou
        )
        label = jnp.where(valid, label, -1)
        drawn = sample(label, key, drawing.count, drawing.positive_fraction)
        rank = 2 * drawn.positive.astype(jnp.int32) + drawn.negative
        best, places = jax.lax.top_k(rank, min(drawing.count, len(rank)))
        return Drawn(proposals[places], best == 2, best > 0, found.index[places])

    return jax.lax.stop_gradient(
        jax.vmap(one)(
            proposals, valid, *(targets[key] for key in ("boxes", "valid", "crowd")), keys
        )
    )


def mask_targets(
    masks: Array,
    objects: Float[Array, "b m 4"],
    boxes: Float[Array, "b q 4"],
    index: Int[Array, "b q"],
    *,
    size: int,
    binary: bool,
) -> Float[Array, "b q s s"]:
    """Returns the part of its object's mask that lies in each box, resampled by RoIAlign.

    Args:
        masks: [b, m, side, side], 0 and 1, in the coordinates of the objects' boxes.
        objects: their boxes.
        boxes: of proposals.
        index: the object of each.
        size: s.
        binary: whether values of one half (`HALF`) and more become 1, the others 0.
    """
    side = masks.shape[-1]
    own = jnp.take_along_axis(objects, index[..., None], axis=1)
    origin = jnp.concatenate([own[..., :2]] * 2, axis=-1)
    sides = jnp.maximum(own[..., 2:] - own[..., :2], 1e-6)
    scaled = (boxes - origin) / jnp.concatenate([sides] * 2, axis=-1) * side
    crops = jnp.take_along_axis(masks, index[..., None, None], axis=1).astype(jnp.float32)
    crops = crops.reshape(-1, side, side, 1)
    found = roi_align(crops, scaled.reshape(-1, 1, 4), output_size=(size, size), scale=1.0)
    found = found.reshape(*index.shape, size, size)
    return jax.lax.stop_gradient((found >= HALF) * 1.0 if binary else found)


def detections(
    logits: Float[Array, "b p k"],
    deltas: Float[Array, "b p n 4"],
    proposals: Float[Array, "b p 4"],
    valid: Bool[Array, "b p"],
    image_shapes: Int[Array, "b 2"],
    coder: BoxCoder,
    detecting: Detecting,
) -> Selected:
    """Returns the detections of every picture: pairs of proposal and class by their probability.

    Args:
        logits: of all classes and the background.
        deltas: of the classes, with 'first' also of the background.
        proposals: what the offsets are from.
        valid: which of them there are.
        image_shapes: height and width of each picture.
        coder: of the offsets.
        detecting: thresholds and numbers.
    """
    real = slice(1, None) if detecting.background == "first" else slice(None, -1)
    offset = 1 if detecting.background == "first" else 0

    def one(logits, deltas, proposals, valid, image_shape):
        scores = jax.nn.softmax(logits, axis=-1)[:, real]
        scores = jnp.where(valid[:, None] & (scores > detecting.score_threshold), scores, -1.0)
        classes = scores.shape[-1]
        best, index = jax.lax.top_k(scores.reshape(-1), min(detecting.before_nms, scores.size))
        places, own = index // classes, index % classes
        boxes = clip_boxes(
            coder.decode(deltas[places, own + offset], proposals[places]), image_shape
        )
        sides = boxes[:, 2:] - boxes[:, :2]
        found = (best >= 0) & jnp.all(sides >= LEAST_SIDE, axis=-1)
        return select(
            boxes,
            jnp.where(found, best, 0.0),
            own.astype(jnp.int32),
            found,
            iou_threshold=detecting.nms_threshold,
            count=detecting.count,
        )

    return jax.vmap(one)(logits, deltas, proposals, valid, image_shapes)


def of_class(values: Any, classes: Int[Array, "*n"]) -> jax.Array:
    """Returns the entries of axis -1 that `classes` name, [*n, ..., k] -> [*n, ...]: by a product,
    whose gradient is no scatter.
    """
    chosen = jax.nn.one_hot(classes, values.shape[-1], dtype=values.dtype)
    missing = values.ndim - chosen.ndim
    chosen = chosen.reshape(*chosen.shape[:-1], *(1,) * missing, chosen.shape[-1])
    return jnp.sum(values * chosen, axis=-1)
