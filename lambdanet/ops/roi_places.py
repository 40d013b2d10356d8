"""Where boxes lie on feature maps, and how much each pixel counts in their bins (`roi_align`)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Spec(NamedTuple):
    """What is known of a call when it is traced; the arguments of `roi_align`.

    Attributes:
        shapes: height and width of each map.
        dtypes: of each map.
        scales: of each map.
        output_size: bins down and across.
        sampling_ratio: samples per bin and axis, 0 = adaptive.
        aligned: whether boxes are shifted by half a pixel.
    """

    shapes: tuple[tuple[int, int], ...]
    dtypes: tuple[np.dtype, ...]
    scales: tuple[float, ...]
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool


class Places(NamedTuple):
    """Where boxes lie on their maps; the last axis is (rows, columns).

    Attributes:
        level: int32 [b, r], the map of each box.
        start: [b, r, 2], where the first bin begins, in pixels of the map.
        step: [b, r, 2], the side of a bin.
        samples: float32 [b, r, 2], samples per bin.
        size: int32 [b, r, 2], of the map.
    """

    level: jax.Array
    start: jax.Array
    step: jax.Array
    samples: jax.Array
    size: jax.Array


def locate(boxes: Float[Array, "b r 4"], level: Int[Array, "b r"], spec: Spec) -> Places:
    """Returns where boxes lie; those that are not finite lie outside of their maps."""
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
    return Places(level, start, step, samples, jnp.asarray(spec.shapes, jnp.int32)[level])


def taps(
    places: Places, axis: int, bins: int, ratio: int
) -> tuple[Int[Array, "b r bins n"], Float[Array, "b r bins n"]]:
    """Returns the n = 2 ratio pixels of each bin along an axis, and their weights.

    Args:
        places: of the boxes.
        axis: 0 = rows, 1 = columns.
        bins: along it.
        ratio: samples per bin, > 0.
    """
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


def axis_weights(
    places: Places, axis: int, bins: int, pixels: Int[Array, "*k n"], ratio: int
) -> Float[Array, "b r bins n"]:
    """Returns how much each of some pixels of an axis counts in each bin.

    Args:
        places: of the boxes.
        axis: 0 = rows, 1 = columns.
        bins: along it.
        pixels: their numbers on the map, the same for all boxes [n] or each box's own [b, r, n].
        ratio: samples per bin, 0 = adaptive.
    """

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
