"""Anchors of a canvas, those of a picture on it, and the objects that they are to find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lambdanet.ops.anchors import pyramid_anchors, whole_strides
from lambdanet.ops.boxes import pairwise_coverage, pairwise_iou
from lambdanet.ops.matching import Match, ignore_crowds, match

from .parts import Sizes

STYLES = ("mmdet", "torchvision")
"""Conventions of anchors; the first is the default."""

Targets = Mapping[str, jax.Array]
"""boxes [b, m, 4], classes [b, m], valid [b, m], crowd [b, m], and masks [b, m, s, s] in the
coordinates of the objects' boxes for detectors that give masks.
"""


@dataclass(frozen=True)
class Anchors:
    """Which anchors a detector has, and which of them find objects.

    The anchors of a level have sides of `scale` strides, times 2^(i / octaves), i < octaves; the
    first is centred at the first pixel's corner.

        mmdet: exact sides; steps are the level's stride; an object may force anchors with an
            overlap of `force_minimum` or more.
        torchvision: sides in whole pixels and corners rounded; the step is the canvas's side over
            the level's, rounded down, so canvases should be multiples of the largest stride.

    Args:
        style: 'mmdet' | 'torchvision'.
        scale: side over stride.
        octaves: sides per octave.
        ratios: heights over widths.
        padding: whether anchors that are centred in the padding of a canvas take part, as in
            torchvision; without them what is found does not depend on the canvas.
        high: overlap from which on an anchor is positive.
        low: overlap below which it is negative.
        force_minimum: see above.
    """

    style: str
    scale: float
    octaves: int
    ratios: tuple[float, ...]
    padding: bool
    high: float
    low: float
    force_minimum: float = 0.0

    @property
    def count(self) -> int:
        """Anchors per position."""
        return self.octaves * len(self.ratios)

    def boxes(
        self, sizes: Sizes, strides: Sequence[int], canvas: tuple[int, int]
    ) -> list[np.ndarray]:
        """Returns the anchors [h * w * count, 4] of every level.

        Args:
            sizes: of the levels.
            strides: of the levels.
            canvas: height and width of the pictures.
        """
        whole = self.style == "torchvision"
        sides = [
            [self.scale * stride * 2 ** (i / self.octaves) for i in range(self.octaves)]
            for stride in strides
        ]
        return pyramid_anchors(
            sizes,
            whole_strides(canvas, sizes) if whole else [(stride, stride) for stride in strides],
            [[int(side) for side in own] for own in sides] if whole else sides,
            self.ratios,
            rounded=whole,
        )

    def inside(self, boxes: np.ndarray, image_shape: Int[Array, "2"]) -> Bool[Array, " n"]:
        """Returns which anchors take part in a picture of that height and width."""
        if self.padding:
            return jnp.ones(len(boxes), bool)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        return jnp.all(centres < image_shape[::-1], axis=-1)

    def assign(
        self,
        boxes: np.ndarray,
        image_shape: Int[Array, "2"],
        objects: Float[Array, "m 4"],
        valid: Bool[Array, " m"],
        crowd: Bool[Array, " m"],
    ) -> Match:
        """Returns the object of every anchor of one picture.

        Args:
            boxes: all anchors.
            image_shape: of the picture.
            objects: their boxes.
            valid: which of them there are.
            crowd: which of them are crowds, in which anchors are ignored.
        """
        inside = self.inside(boxes, image_shape)
        found = match(
            jnp.where(inside[:, None], pairwise_iou(jnp.asarray(boxes), objects), -1.0),
            valid & ~crowd,
            high=self.high,
            low=self.low,
            force_match=self.style,
            force_minimum=self.force_minimum,
        )
        label = ignore_in_crowds(found.label, jnp.asarray(boxes), objects, valid & crowd, self.high)
        return Match(found.index, jnp.where(inside, label, -1).astype(label.dtype))


def ignore_in_crowds(
    label: Int[Array, " n"],
    boxes: Float[Array, "n 4"],
    objects: Float[Array, "m 4"],
    crowd: Bool[Array, " m"],
    above: float,
) -> Int[Array, " n"]:
    """Returns labels in which negative boxes are ignored of which more than the share `above` lies
    in a crowd.
    """
    return ignore_crowds(label, pairwise_coverage(boxes, objects), crowd, above=above)
