"""Resizing of maps with PyTorch's conventions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def resize_bilinear(
    x: Float[Array, "b h w c"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "b oh ow c"]:
    """Resizes a map to any size by linear interpolation along rows and columns, without
    anti-aliasing.

    Equals `torch.nn.functional.interpolate(mode="bilinear")` of both `align_corners`. Rows are
    resized first; an axis that keeps its length is left alone. Computed in float32 or better.

    Args:
        x: map [b, h, w, c].
        size: height and width of the result.
        align_corners: True puts the first and last positions of input and result on each other (an
            axis of length one takes the first position); False takes positions for squares and puts
            the outer borders on each other.

    Returns:
        Map [b, *size, c] in the dtype of `x`.

    Raises:
        ValueError: a size below 1.
    """
    if min(size) < 1:
        raise ValueError(f"resize: size is {size}; allowed: a height and a width of 1 or more")
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, (before, after) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        if before == after:
            continue
        scale, shift = after / before, 0.0
        if align_corners and before > 1:  # a single position spreads over the whole axis either way
            scale = (after - 1) / (before - 1) if after > 1 else 1.0
            shift = 0.5 - 0.5 * scale
        shape = (*y.shape[:axis], after, *y.shape[axis + 1 :])
        scale, shift = jnp.asarray([scale], y.dtype), jnp.asarray([shift], y.dtype)
        y = jax.image.scale_and_translate(
            y, shape, (axis,), scale, shift, "linear", antialias=False
        )
    return y.astype(x.dtype)


def resize_nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b oh ow c"]:
    """Resizes a map to any size, each position from the one at floor(i * before / after) of its
    axis, as `torch.nn.functional.interpolate(mode="nearest")`.

    `jax.image.resize` takes floor((i + 0.5) * before / after) instead, which is another position
    where the sizes are not multiples of each other.

    Args:
        x: map [b, h, w, c].
        size: height and width of the result.

    Returns:
        Map [b, *size, c].

    Raises:
        ValueError: a size below 1.
    """
    if min(size) < 1:
        raise ValueError(f"resize: size is {size}; allowed: a height and a width of 1 or more")
    for axis, (before, after) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        if after == before:
            continue
        if after % before == 0:  # its gradient is a sum, that of a gather a scatter
            x = jnp.repeat(x, after // before, axis=axis)
        else:
            x = jnp.take(x, jnp.arange(after) * before // after, axis=axis, mode="clip")
    return x


def resize_macs(before: tuple[int, int], after: tuple[int, int], channels: int) -> int:
    """Multiply-accumulates of `resize_bilinear` for one map: the product with one matrix per axis
    that changes.
    """
    (h, w), (oh, ow) = before, after
    rows = h * oh * w if h != oh else 0
    columns = w * ow * oh if w != ow else 0
    return channels * (rows + columns)
