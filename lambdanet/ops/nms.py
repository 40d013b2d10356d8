"""Non-maximum suppression in static shapes: exact, greedy, by class."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lambdanet.ops.boxes import pairwise_iou

_WORD = 32
_BITS = np.uint32(1) << np.arange(_WORD, dtype=np.uint32)


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
    order, kept = _rank(boxes, scores, iou_threshold, valid, classes)
    return jnp.zeros(len(scores), bool).at[order].set(kept)


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
    order, kept = _rank(boxes, scores, iou_threshold, valid, classes)
    first = jnp.argsort(~kept, stable=True)[:count]
    found, order = kept[first], order[first]
    missing = count - len(found)

    def take(values):
        taken = jnp.where(found.reshape(-1, *(1,) * (values.ndim - 1)), values[order], 0)
        return jnp.pad(taken, [(0, missing)] + [(0, 0)] * (values.ndim - 1))

    return Selected(
        take(boxes), take(scores), take(classes.astype(jnp.int32)), jnp.pad(found, (0, missing))
    )


def _rank(boxes, scores, iou_threshold, valid, classes):
    """The order of falling scores, and which boxes in this order are kept.

    The boxes are gone through in words of 32. Which boxes of a word overlap a box is one integer,
    so that a step takes away what a whole word suppresses: 63 short steps for 2000 boxes, and n^2
    bits in memory.
    """
    count = len(scores)
    alive = jnp.ones(count, bool) if valid is None else valid
    order = jnp.argsort(jnp.where(alive, -scores, jnp.inf), stable=True)
    words = max(-(-count // _WORD), 1)
    padding = words * _WORD - count
    alive = jnp.pad(alive[order], (0, padding))
    boxes = jnp.pad(boxes[order].astype(jnp.float32), ((0, padding), (0, 0)))
    hits = pairwise_iou(boxes, boxes) > iou_threshold
    if classes is not None:
        own = jnp.pad(classes[order], (0, padding))
        hits &= own[:, None] == own
    overlaps = _pack(hits.reshape(words, _WORD, -1), 1)
    place = jnp.arange(words * _WORD)

    def step(word, alive):
        start = word * _WORD
        within = jax.lax.dynamic_slice_in_dim(overlaps[word], start, _WORD)
        kept = _resolve(within, jax.lax.dynamic_slice_in_dim(alive, start, _WORD))
        later = place >= start + _WORD
        alive &= ~(later & ((overlaps[word] & kept) != 0))
        return jax.lax.dynamic_update_slice_in_dim(alive, (kept & _BITS) != 0, start, 0)

    return order, jax.lax.fori_loop(0, words, step, alive)[:count]


def _resolve(overlaps, alive):
    """The bits of the boxes of a word that are kept.

    Args:
        overlaps: uint32 [32], the boxes of the word that each of them overlaps.
        alive: bool [32], those that no earlier word suppresses.
    """
    alive = _pack(alive, 0)

    def keep(kept, box):
        bit, earlier = box
        return kept | jnp.where((earlier & kept) == 0, alive & bit, jnp.uint32(0)), None

    # Always 32 steps: a loop until nothing changes is no faster, and all devices would wait for one
    # another in each step of it.
    boxes = (_BITS, overlaps & (_BITS - 1))
    return jax.lax.scan(keep, jnp.uint32(0), boxes, unroll=8)[0]


def _pack(flags, axis):
    """Flags of an axis of 32 as the bits of one uint32."""
    bits = jnp.expand_dims(_BITS, tuple(range(1, flags.ndim - axis)))
    return jnp.sum(jnp.where(flags, bits, jnp.uint32(0)), axis, dtype=jnp.uint32)
