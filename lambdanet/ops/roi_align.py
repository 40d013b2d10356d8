"""RoIAlign: the part of a feature map that lies in a box, resampled to a fixed size.

The result is a gather: each bin is a weighted sum of pixels of one long list of all maps' pixels.
Its transpose, a scatter of single pixels, is slow on CPUs (a second for 1000 boxes). But a box's
gradient is the product of a matrix for its rows, the cotangent, and a matrix for its columns, so
that it is written tile by tile, as many tiles as the boxes cover.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lambdanet.ops.boxes import box_area

_TILE = 8  # pixels; and how many tiles of an image are added at a time: the fastest of 1 .. 64
_TILES = 16
_CHUNK = 32  # boxes at a time, where the number of samples is not known
_EXACT = jax.lax.Precision.HIGHEST


class _Spec(NamedTuple):
    """What is known of a call when it is traced."""

    shapes: tuple[tuple[int, int], ...]  # of the maps
    dtypes: tuple[np.dtype, ...]
    scales: tuple[float, ...]
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool


class _Places(NamedTuple):
    """Where boxes lie on their maps: [b, r, 2] for rows and columns, but for the level [b, r]."""

    level: jax.Array
    start: jax.Array  # of the first bin, pixels of the map
    step: jax.Array  # side of a bin
    samples: jax.Array  # per bin, float32
    size: jax.Array  # of the map, int32


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
    spec = _Spec(shapes, dtypes, scales, tuple(output_size), sampling_ratio, aligned)
    boxes = jax.lax.stop_gradient(boxes.astype(jnp.float32))
    return _align(maps, _locate(boxes, level, spec), spec)


def _locate(boxes, level, spec: _Spec) -> _Places:
    """Boxes that are not finite are put outside of their maps."""
    scale = jnp.asarray(spec.scales, jnp.float32)[level][..., None]
    low, high = boxes[..., 1::-1] * scale, boxes[..., :1:-1] * scale
    length = high - low
    if spec.aligned:
        low -= 0.5
    else:
        length = jnp.maximum(length, 1.0)
    finite = jnp.isfinite(boxes).all(-1, keepdims=True)
    start, length = jnp.where(finite, low, -2.0), jnp.where(finite, length, 0.0)
    step = length / jnp.asarray(spec.output_size, jnp.float32)
    given = jnp.full_like(step, spec.sampling_ratio)
    samples = given if spec.sampling_ratio else jnp.ceil(jnp.maximum(step, 0))
    return _Places(level, start, step, samples, jnp.asarray(spec.shapes, jnp.int32)[level])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _align(maps, places: _Places, spec: _Spec):
    return _gather(maps, places, spec) if spec.sampling_ratio else _dense(maps, places, spec)


def _forward(maps, places, spec):
    return _align(maps, places, spec), places


def _backward(spec, places, cotangent):
    return _spread(cotangent.astype(jnp.float32), places, spec), None


_align.defvjp(_forward, _backward)


# --------------------------------------------------------------------------------------------------
# Forward
# --------------------------------------------------------------------------------------------------


def _gather(maps, places, spec):
    """Sums of four pixels for each sample."""
    batch, count = places.level.shape
    channels = maps[0].shape[-1]
    pixels = jnp.concatenate([m.reshape(batch, -1, channels) for m in maps], 1)
    areas = [height * width for height, width in spec.shapes]
    first = jnp.asarray(np.cumsum([0, *areas[:-1]]), jnp.int32)[places.level]
    (rows, row_weights), (columns, column_weights) = (
        _taps(places, axis, bins, spec.sampling_ratio) for axis, bins in enumerate(spec.output_size)
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


def _taps(places, axis, bins, ratio):
    """The pixels of each bin along an axis, and their weights: [b, r, bins, 2 ratio]."""
    at, counts = _samples(places.start, places.step, places.size, axis, bins, _shares(ratio))
    low = jnp.floor(at)
    share = at - low
    low = low.astype(jnp.int32)
    high = jnp.minimum(low + 1, places.size[..., axis, None, None] - 1)
    weights = jnp.where(counts[..., None], jnp.stack([1 - share, share], -1), 0) / ratio
    flat = (*at.shape[:3], 2 * ratio)
    return jnp.stack([low, high], -1).reshape(flat), weights.reshape(flat)


def _samples(start, step, size, axis, bins, shares):
    """Where samples are on the map [..., bins, n], and which of them count."""
    start, step, size = (values[..., axis, None, None] for values in (start, step, size))
    at = start + (jnp.arange(bins, dtype=jnp.float32)[:, None] + shares) * step
    counts = (at >= -1) & (at <= size)
    return jnp.where(counts, jnp.clip(at, 0, size - 1), 0), counts


def _shares(ratio):
    return (jnp.arange(ratio, dtype=jnp.float32) + 0.5) / ratio


def _dense(maps, places, spec):
    """Products with whole maps, for any number of samples."""
    batch, count = places.level.shape

    def chunk(places):
        total = 0.0
        for level, features in enumerate(maps):
            rows, columns = (
                _axis_weights(places, axis, bins, jnp.arange(size), spec.sampling_ratio)
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


def _axis_weights(places, axis, bins, pixels, ratio):
    """How much each of some pixels of an axis counts in each bin: [..., bins, pixels]."""

    def add(shares, used):
        at, counts = _samples(places.start, places.step, places.size, axis, bins, shares)
        near = jnp.maximum(1 - jnp.abs(at[..., None] - pixels[..., None, None, :]), 0)
        return jnp.sum(jnp.where((counts & used)[..., None], near, 0), -2)

    if ratio:
        return add(_shares(ratio), jnp.bool_(True)) / ratio
    samples = places.samples[..., axis, None, None]

    def next_sample(i, total):
        return total + add((i + 0.5) / jnp.maximum(samples, 1), i < samples)

    shape = jnp.broadcast_shapes((*samples.shape[:-2], 1, 1), (*pixels.shape[:-1], 1, 1))
    zero = jnp.zeros((*shape[:-2], bins, pixels.shape[-1]), jnp.float32)
    most = jnp.max(samples, initial=0).astype(jnp.int32)
    return jax.lax.fori_loop(0, most, next_sample, zero) / jnp.maximum(samples, 1)


# --------------------------------------------------------------------------------------------------
# Gradient
# --------------------------------------------------------------------------------------------------


def _spread(cotangent, places, spec):
    """The gradients of the maps.

    They lie below each other on one sheet for each image. Each step adds the part of the gradient
    of a box that falls on one tile of it, for `_TILES` tiles of every image.
    """
    batch, count, _, across, channels = cotangent.shape
    heights, widths = zip(*spec.shapes, strict=True)
    tops = np.cumsum([0, *heights])
    sheet = jnp.zeros((batch, tops[-1] + _TILE, max(widths) + _TILE, channels), jnp.float32)
    bins = jnp.asarray(spec.output_size)
    low = jnp.floor(jnp.minimum(places.start, places.start + places.step * bins))
    high = jnp.floor(jnp.maximum(places.start, places.start + places.step * bins)) + 1
    first, last = (jnp.clip(side, 0, places.size - 1).astype(jnp.int32) for side in (low, high))
    tiles = (last - first) // _TILE + 1
    ends = jnp.cumsum(tiles[..., 0] * tiles[..., 1], 1)
    top = jnp.asarray(tops[:-1], jnp.int32)[places.level]
    take = jax.vmap(lambda values, at: values.at[at].get(mode="promise_in_bounds"))
    window = jax.lax.ScatterDimensionNumbers((1, 2, 3), (), (0, 1))
    add = jax.vmap(
        lambda sheet, at, tile: jax.lax.scatter_add(
            sheet, at, tile, window, mode="promise_in_bounds"
        )
    )

    def step(state):
        number, sheet = state
        numbers = number + jnp.arange(_TILES)
        box = jnp.sum(ends[:, None] <= numbers[:, None], -1, dtype=jnp.int32)
        box = jnp.minimum(box, count - 1)
        there = numbers < ends[:, -1:]
        its = jax.tree.map(lambda values: take(values, box), places)
        grid, begins = take(tiles, box), take(first, box)
        within = numbers - (take(ends, box) - grid[..., 0] * grid[..., 1])
        within = jnp.where(there, within, 0)
        place = jnp.stack([within // grid[..., 1], within % grid[..., 1]], -1)
        corner = begins + place * _TILE
        rows, columns = (
            _axis_weights(
                its, axis, size, corner[..., axis, None] + jnp.arange(_TILE), spec.sampling_ratio
            )
            for axis, size in enumerate(spec.output_size)
        )
        rows = jnp.where(there[..., None, None], rows, 0)
        part = jnp.einsum("bkpy,bkpqc->bkyqc", rows, take(cotangent, box), precision=_EXACT)
        tile = 0.0
        for q in range(across):  # one loop over all; as a product it would be many small ones
            tile += part[:, :, :, q, None] * columns[:, :, None, q, :, None]
        at = corner + jnp.stack([take(top, box), jnp.zeros_like(box)], -1)
        return number + _TILES, add(sheet, at, tile)

    most = jnp.max(ends[:, -1])
    _, sheet = jax.lax.while_loop(lambda state: state[0] < most, step, (jnp.int32(0), sheet))
    return tuple(
        sheet[:, top : top + height, :width].astype(dtype)
        for top, (height, width), dtype in zip(tops[:-1], spec.shapes, spec.dtypes, strict=True)
    )
