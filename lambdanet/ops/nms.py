"""Non-maximum suppression in static shapes: exact, greedy, by class."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lambdanet.ops.boxes import pairwise_iou


class Selected(NamedTuple):
    """What suppression leaves of the boxes of one image, by falling score.

    Attributes:
        boxes: [count, 4]; zeros where not valid, as the next two are.
        scores: [count].
        classes: int32 [count].
        valid: bool [count]; the valid ones come first.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    valid: jax.Array


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    iou_threshold: float,
    *,
    valid: Bool[Array, " n"] | None = None,
    classes: Int[Array, " n"] | None = None,
) -> Bool[Array, " n"]:
    """Returns which boxes are kept.

    By falling score (the first of equal ones first), a box is kept unless its IoU with a kept one
    of its class is strictly greater than the threshold: what torchvision's `nms` and `batched_nms`
    keep.

    Args:
        boxes: of one image.
        scores: any numbers; NaN comes last.
        iou_threshold: see above.
        valid: boxes that take part; the others are not kept and suppress none. None = all.
        classes: only boxes of the same class suppress each other. None = all of one class.
    """
    order = _order(scores, valid)
    ranked = boxes[order].astype(jnp.float32)
    suppresses = pairwise_iou(ranked, ranked) > iou_threshold
    if classes is not None:
        suppresses &= classes[order][:, None] == classes[order]
    count = len(boxes)
    suppresses &= jnp.arange(count)[:, None] < jnp.arange(count)
    alive = jnp.ones(count, bool) if valid is None else valid[order]

    def step(i, alive):
        return alive & ~(suppresses[i] & alive[i])

    alive = jax.lax.fori_loop(0, count, step, alive)
    return jnp.zeros(count, bool).at[order].set(alive)


def select(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    classes: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    iou_threshold: float,
    count: int,
) -> Selected:
    """Returns the `count` kept boxes with the largest scores, padded.

    Args:
        boxes: of one image.
        scores: finite.
        classes: see `nms`.
        valid: see `nms`.
        iou_threshold: see `nms`.
        count: how many to return, whatever n is.
    """
    kept = nms(boxes, scores, iou_threshold, valid=valid, classes=classes)
    order = _order(scores, kept)[:count]
    missing = count - len(order)
    found = kept[order]

    def take(values):
        taken = jnp.where(found.reshape(-1, *(1,) * (values.ndim - 1)), values[order], 0)
        return jnp.pad(taken, [(0, missing)] + [(0, 0)] * (values.ndim - 1))

    return Selected(
        take(boxes), take(scores), take(classes.astype(jnp.int32)), jnp.pad(found, (0, missing))
    )


def _order(scores, valid):
    """Indices by falling score, those that are not valid last; stable."""
    ranked = -scores if valid is None else jnp.where(valid, -scores, jnp.inf)
    return jnp.argsort(ranked, stable=True)
