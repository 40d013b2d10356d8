"""RoIAlign: the part of a feature map that lies in a box, resampled to a fixed size."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lambdanet.ops.boxes import box_area


def roi_align(
    features: Float[Array, "b h w c"],
    boxes: Float[Array, "b r 4"],
    *,
    output_size: tuple[int, int],
    scale: float,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Float[Array, "b r ph pw c"]:
    """Returns the mean of bilinear samples in each of the ph x pw bins of each box.

    The box times `scale`, minus 1/2 if aligned, is cut into bins; the samples of a bin along an
    axis are at (i + 1/2) / s, i < s. One that is further than a pixel outside the map ([-1, size])
    counts 0; the others are moved to [0, size - 1]. Not differentiable in the boxes.

    Sources: torchvision and detectron2 `roi_align` (Mask R-CNN; `aligned=True`: detectron2 only).

    Args:
        features: maps; float32 results for any precision.
        boxes: in pixels of the images.
        output_size: (ph, pw).
        scale: size of the map over that of the image, 1 / stride.
        sampling_ratio: s; 0 = adaptive, the side of a bin rounded up, for each box.
        aligned: False is torchvision's detectors' way: no shift by 1/2, and sides of at least 1.
    """
    boxes = jax.lax.stop_gradient(boxes.astype(jnp.float32))
    rows, columns = (
        axis_weights(boxes, axis, size, bins, scale, sampling_ratio, aligned)
        for axis, size, bins in zip((1, 0), features.shape[1:3], output_size, strict=True)
    )
    return jnp.einsum(
        "brph,brqw,bhwc->brpqc",
        rows,
        columns,
        features.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def multi_level_roi_align(
    maps: Sequence[Float[Array, "b _ _ c"]],
    boxes: Float[Array, "b r 4"],
    *,
    strides: Sequence[int],
    output_size: tuple[int, int],
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_level: int = 2,
    canonical_size: float = 56.0,
) -> Float[Array, "b r ph pw c"]:
    """Returns `roi_align` of each box on the one map of a pyramid that suits its size.

    Args:
        maps: the pyramid, finest first.
        boxes: in pixels of the images.
        strides: of each map.
        output_size: see `roi_align`.
        sampling_ratio: see `roi_align`.
        aligned: see `roi_align`.
    """
    own = roi_levels(boxes, len(maps))
    total = 0
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        found = roi_align(
            features,
            boxes,
            output_size=output_size,
            scale=1 / stride,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
        total += jnp.where((own == level)[..., None, None, None], found, 0)
    return total


def roi_levels(boxes: Float[Array, "*n 4"], count: int) -> Int[Array, "*n"]:
    """Returns the place in a pyramid that suits each box: floor(log2(sqrt(area) / 56)), between 0
    and count - 1.

    That is the level 4 + log2(sqrt(area) / 224) of a pyramid that begins at level 2 (stride 4), in
    torchvision's arithmetic.
    """
    size = jnp.sqrt(box_area(boxes.astype(jnp.float32)))
    level = jnp.floor(4 + jnp.log2(size / 224) + 1e-6) - 2
    return jnp.clip(level, 0, count - 1).astype(jnp.int32)


def axis_weights(boxes, axis, size, bins, scale, sampling_ratio, aligned):
    """How much each pixel of a map's axis counts in each bin of a box: [*n, bins, size]."""
    start = boxes[..., axis] * scale - (0.5 if aligned else 0.0)
    length = (boxes[..., axis + 2] - boxes[..., axis]) * scale
    if not aligned:
        length = jnp.maximum(length, 1.0)
    bin_size = length / bins
    count = jnp.ceil(bin_size) if sampling_ratio == 0 else jnp.full_like(length, sampling_ratio)
    pixels = jnp.arange(size, dtype=jnp.float32)

    def add(i, total):
        share = (i + 0.5) / jnp.maximum(count, 1.0)
        place = jnp.arange(bins, dtype=jnp.float32) + share[..., None]
        at = start[..., None] + place * bin_size[..., None]
        counts = (at >= -1) & (at <= size) & (i < count[..., None])
        at = jnp.clip(at, 0, size - 1)
        weight = jnp.maximum(1 - jnp.abs(at[..., None] - pixels), 0)
        return total + jnp.where(counts[..., None], weight, 0)

    most = jnp.max(count).astype(jnp.int32) if sampling_ratio == 0 else sampling_ratio
    zero = jnp.zeros((*length.shape, bins, size), jnp.float32)
    total = jax.lax.fori_loop(0, most, add, zero)
    return total / jnp.maximum(count, 1.0)[..., None, None]
