"""RoIAlign: the part of a feature map that lies in a box, resampled to a fixed size.

The result is a gather: each bin is a weighted sum of pixels of one long list of all maps' pixels.
Its transpose, a scatter of single pixels, is slow on CPUs (a second for 1000 boxes). But a box's
gradient is the product of a matrix for its rows, the cotangent, and a matrix for its columns, so
that it is written tile by tile, as many tiles as the boxes cover.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lambdanet.ops.boxes import box_area
from lambdanet.ops.roi_gradient import spread
from lambdanet.ops.roi_places import Places, Spec, axis_weights, locate, taps

_CHUNK = 32  # boxes at a time, where the number of samples is not known
_EXACT = jax.lax.Precision.HIGHEST


def roi_align(
    features: Float[Array, "b h w c"],
    boxes: Float[Array, "b r 4"],
    *,
    output_size: tuple[int, int],
    scale: float,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Float[Array, "b r ph pw c"]:
    """Returns the mean of bilinear samples in each of the ph x pw bins of each box, in float32.

    The box times `scale`, minus 1/2 if aligned, is cut into bins; the samples of a bin along an
    axis are at (i + 1/2) / s, i < s. One that is further than a pixel outside the map (not in
    [-1, size]) counts 0; the others are moved to [0, size - 1]. A box that is not finite gives 0.
    Boxes get no gradient.

    Sources: torchvision and detectron2 `roi_align` (Mask R-CNN; `aligned=True` is detectron2's).

    Args:
        features: maps of any precision.
        boxes: in pixels of the images.
        output_size: (ph, pw).
        scale: size of the map over that of the image, 1 / stride.
        sampling_ratio: s; 0 = adaptive: for each box the side of a bin, rounded up. That is slower:
            it reads whole maps.
        aligned: False is the way of torchvision's detectors: no shift by 1/2, and sides of at least
            one pixel of the map.

    Raises:
        ValueError: a negative sampling ratio.
    """
    level = jnp.zeros(boxes.shape[:2], jnp.int32)
    return _checked((features,), boxes, level, (scale,), output_size, sampling_ratio, aligned)


def multi_level_roi_align(
    maps: Sequence[Float[Array, "b _ _ c"]],
    boxes: Float[Array, "b r 4"],
    *,
    strides: Sequence[int],
    output_size: tuple[int, int],
    sampling_ratio: int = 2,
    aligned: bool = True,
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
        canonical_size: see `roi_levels`.

    Raises:
        ValueError: as many strides as maps are needed; see `roi_align`.
    """
    if len(strides) != len(maps):
        raise ValueError(f"multi_level_roi_align: {len(strides)} strides for {len(maps)} maps")
    level = roi_levels(boxes, len(maps), canonical_size)
    scales = tuple(1 / stride for stride in strides)
    return _checked(tuple(maps), boxes, level, scales, output_size, sampling_ratio, aligned)


def roi_levels(
    boxes: Float[Array, "*n 4"], count: int, canonical_size: float = 56.0
) -> Int[Array, "*n"]:
    """Returns the place in a pyramid that suits each box: floor(log2(sqrt(area) / canonical_size)),
    between 0 and count - 1.

    With 56 that is the level 4 + log2(sqrt(area) / 224) of a pyramid that begins at level 2 (stride
    4), in torchvision's arithmetic. Source: FPN (Lin et al., 2017), equation 1.

    Args:
        boxes: in pixels of the images.
        count: of the pyramid's maps.
        canonical_size: side of the smallest square of the first map, of half the smallest of the
            second.
    """
    size = jnp.sqrt(box_area(boxes.astype(jnp.float32)))
    level = jnp.floor(4 + jnp.log2(size / (4 * canonical_size)) + 1e-6) - 2
    return jnp.nan_to_num(jnp.clip(level, 0, count - 1)).astype(jnp.int32)


def _checked(maps, boxes, level, scales, output_size, sampling_ratio, aligned):
    if sampling_ratio < 0:
        raise ValueError(
            f"roi_align: sampling_ratio={sampling_ratio}; give a number of samples, or 0 for "
            "adaptive"
        )
    shapes, dtypes = zip(*((m.shape[1:3], m.dtype) for m in maps), strict=True)
    spec = Spec(shapes, dtypes, scales, tuple(output_size), sampling_ratio, aligned)
    boxes = jax.lax.stop_gradient(boxes.astype(jnp.float32))
    return _align(maps, locate(boxes, level, spec), spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _align(maps, places: Places, spec: Spec):
    return _gather(maps, places, spec) if spec.sampling_ratio else _dense(maps, places, spec)


def _forward(maps, places, spec):
    return _align(maps, places, spec), places


def _backward(spec, places, cotangent):
    return spread(cotangent.astype(jnp.float32), places, spec), None


_align.defvjp(_forward, _backward)


def _gather(maps, places, spec):
    """Sums of four pixels for each sample."""
    batch, count = places.level.shape
    channels = maps[0].shape[-1]
    pixels = jnp.concatenate([m.reshape(batch, -1, channels) for m in maps], 1)
    areas = [height * width for height, width in spec.shapes]
    first = jnp.asarray(np.cumsum([0, *areas[:-1]]), jnp.int32)[places.level]
    (rows, row_weights), (columns, column_weights) = (
        taps(places, axis, bins, spec.sampling_ratio) for axis, bins in enumerate(spec.output_size)
    )
    rows = first[..., None, None] + rows * places.size[..., 1, None, None]
    take = jax.vmap(lambda pixels, at: pixels.at[at].get(mode="promise_in_bounds"))
    total = 0.0
    for i in range(rows.shape[-1]):
        for j in range(columns.shape[-1]):
            at = rows[..., :, None, i] + columns[..., None, :, j]
            weight = row_weights[..., :, None, i] * column_weights[..., None, :, j]
            found = take(pixels, at.reshape(batch, -1)).astype(jnp.float32)
            total += found * weight.reshape(batch, -1, 1)
    return total.reshape(batch, count, *spec.output_size, channels)


def _dense(maps, places, spec):
    """Products with whole maps, for any number of samples."""
    batch, count = places.level.shape

    def chunk(places):
        total = 0.0
        for level, features in enumerate(maps):
            rows, columns = (
                axis_weights(places, axis, bins, jnp.arange(size), spec.sampling_ratio)
                for axis, (bins, size) in enumerate(
                    zip(spec.output_size, spec.shapes[level], strict=True)
                )
            )
            rows = jnp.where((places.level == level)[..., None, None], rows, 0)
            features = features.astype(jnp.float32)
            equation = "brph,brqw,bhwc->brpqc"
            total += jnp.einsum(equation, rows, columns, features, precision=_EXACT)
        return total

    chunks = -(-count // _CHUNK)
    padding = chunks * _CHUNK - count

    def split(values):
        values = jnp.pad(values, [(0, 0), (0, padding)] + [(0, 0)] * (values.ndim - 2))
        return jnp.moveaxis(values.reshape(batch, chunks, _CHUNK, *values.shape[2:]), 1, 0)

    found = jax.lax.map(chunk, jax.tree.map(split, places))
    return jnp.moveaxis(found, 0, 1).reshape(batch, -1, *found.shape[3:])[:, :count]
