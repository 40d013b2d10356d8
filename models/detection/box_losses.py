"""Losses of boxes by name."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from lambdanet.ops.boxes import decode_boxes, encode_boxes
from lambdanet.ops.detection_loss import giou_loss, smooth_l1

BOX_LOSSES = ("l1", "smooth_l1", "giou")
"""The first is the default."""


@dataclass(frozen=True)
class BoxCoder:
    """How boxes are written as offsets from anchors or proposals, and what an error costs.

    Args:
        stds: of the offsets.
        clamp: of the logarithms of sides, 'both' | 'upper', see `decode_boxes`.
        loss: 'l1' | 'smooth_l1' of offsets, summed over the four; 'giou' of boxes.
        beta: of 'smooth_l1', where it turns linear.
    """

    stds: tuple[float, float, float, float]
    clamp: str
    loss: str
    beta: float

    def decode(
        self, deltas: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"]
    ) -> Float[Array, "*n 4"]:
        """Returns the boxes of offsets."""
        return decode_boxes(deltas, anchors, self.stds, self.clamp)

    def losses(
        self,
        deltas: Float[Array, "*n 4"],
        anchors: Float[Array, "*n 4"],
        boxes: Float[Array, "*n 4"],
    ) -> Float[Array, "*n"]:
        """Returns the loss of each prediction.

        Args:
            deltas: predicted.
            anchors: what they are offsets from.
            boxes: the truth.
        """
        if self.loss == "giou":
            return giou_loss(self.decode(deltas, anchors), boxes)
        beta = self.beta if self.loss == "smooth_l1" else 0.0
        wanted = encode_boxes(boxes, anchors, self.stds)
        return jnp.sum(smooth_l1(deltas, wanted, beta=beta), axis=-1)
