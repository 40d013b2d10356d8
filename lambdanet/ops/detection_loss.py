"""Losses of detectors, for each prediction; sums, weights and means are the caller's."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lambdanet.ops.boxes import box_area


def sigmoid_focal_loss(
    logits: Float[Array, "*n"],
    targets: Float[Array, "*n"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*n"]:
    """Returns alpha_t (1 - p_t)^gamma (-log p_t) of each logit, in float32.

    p_t is the probability of the truth, alpha_t is alpha where the target is 1 and 1 - alpha where
    it is 0. Source: RetinaNet (Lin et al., Focal Loss, 2017).

    Args:
        logits: one for each class, without a background.
        targets: 0 or 1.
        alpha: see above.
        gamma: see above.
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return optax.losses.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)


def smooth_l1(
    predictions: Float[Array, "*n"], targets: Float[Array, "*n"], *, beta: float = 0.0
) -> Float[Array, "*n"]:
    """Returns d^2 / (2 beta) where d = |difference| < beta, else d - beta / 2, in float32.

    Args:
        predictions: of any shape.
        targets: of the same.
        beta: 0 is L1.
    """
    distance = jnp.abs(predictions.astype(jnp.float32) - targets.astype(jnp.float32))
    if beta == 0:
        return distance
    return jnp.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2)


def giou_loss(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Returns 1 - GIoU of each box with its target; see `boxes.pairwise_giou`."""
    boxes, targets = boxes.astype(jnp.float32), targets.astype(jnp.float32)
    low, high = jnp.minimum(boxes, targets), jnp.maximum(boxes, targets)
    inner = box_area(jnp.concatenate([high[..., :2], low[..., 2:]], -1))
    hull = box_area(jnp.concatenate([low[..., :2], high[..., 2:]], -1))
    union = box_area(boxes) + box_area(targets) - inner
    iou, rest = (
        jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)
        for part, whole in ((inner, union), (hull - union, hull))
    )
    return 1 - iou + rest


def mask_cross_entropy(
    logits: Float[Array, "*n h w"], targets: Float[Array, "*n h w"]
) -> Float[Array, "*n"]:
    """Returns the mean binary cross entropy of each mask's pixels, in float32.

    Args:
        logits: of the masks of the objects' own classes.
        targets: between 0 and 1.
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return optax.losses.sigmoid_binary_cross_entropy(logits, targets).mean((-2, -1))
