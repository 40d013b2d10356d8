"""Convolution with far-apart taps, without the products with the zeros around the map.

    y[p] = sum over taps t with p + o_t on the map of x[p + o_t] W[t],   o_t = (t - r // 2) dilation

With dilations of the order of the map's side, as in atrous pyramids, most taps see nothing from
most positions: of a 3x3 with dilation 24 on 28x28 a sixth of the products is left, with 36 only the
middle tap. Each axis is cut where a tap begins or ceases to be on the map; the positions of a
region, a segment of rows times one of columns, have the same taps, and are one matrix product.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lambdanet.ops.wide_einsum import wide_einsum

# First position, one behind the last, and the taps on the map.
Segment = tuple[int, int, range]


def segments(size: int, taps: int, dilation: int) -> list[Segment]:
    """Cuts an axis of so many positions where its taps, an odd number, change."""
    offsets = [(tap - taps // 2) * dilation for tap in range(taps)]
    ends = {0, size, *(end for offset in offsets for end in (-offset, size - offset))}
    cuts = sorted(end for end in ends if 0 <= end <= size)
    found = []
    for start, stop in itertools.pairwise(cuts):
        seen = [tap for tap, offset in enumerate(offsets) if 0 <= start + offset < size]
        found.append((start, stop, range(seen[0], seen[-1] + 1)))
    return found


def seen_share(shape: Sequence[int], sides: Sequence[int], dilation: Sequence[int]) -> float:
    """Returns the share of pairs of positions and taps that lie on a map of this size."""
    share = 1.0
    for size, taps, step in zip(shape, sides, dilation, strict=True):
        pairs = sum((b - a) * len(seen) for a, b, seen in segments(size, taps, step))
        share *= pairs / (size * taps)
    return share


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dilated_convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k l c d"], dilation: tuple[int, int]
) -> Float[Array, "b h w d"]:
    """Convolution with stride 1 and as much padding as keeps the size, region by region.

    Args:
        x: the map.
        kernel: odd sides.
        dilation: positions between taps per axis.

    Returns:
        The map, in the dtype of `x`. Not for forward-mode differentiation.
    """
    rows, columns = (
        segments(*sizes) for sizes in zip(x.shape[1:3], kernel.shape[:2], dilation, strict=True)
    )
    lines = [
        jnp.concatenate([_region(x, kernel, row, column, dilation) for column in columns], 2)
        for row in rows
    ]
    return jnp.concatenate(lines, 1)


def _region(x, kernel, row: Segment, column: Segment, dilation: tuple[int, int]) -> jax.Array:
    (top, bottom, above), (left, right, beside) = row, column
    middle = [side // 2 for side in kernel.shape[:2]]
    views = []
    for u, v in itertools.product(above, beside):
        down, across = (u - middle[0]) * dilation[0], (v - middle[1]) * dilation[1]
        views.append(x[:, top + down : bottom + down, left + across : right + across])
    view = jnp.concatenate(views, -1)
    matrix = kernel[above.start : above.stop, beside.start : beside.stop]
    matrix = matrix.reshape(-1, kernel.shape[3])
    y = wide_einsum("nc,cd->nd", view.reshape(-1, view.shape[-1]), matrix)
    return y.reshape(*view.shape[:-1], -1).astype(x.dtype)


def _forward(x, kernel, dilation):
    return dilated_convolution(x, kernel, dilation), (x, kernel)


def _backward(dilation, kept, gradient):
    x, kernel = kept
    back = dilated_convolution(gradient, kernel[::-1, ::-1].swapaxes(2, 3), dilation)
    taps = []
    for tap in itertools.product(*map(range, kernel.shape[:2])):
        # The part of the map that this tap sees, and the part from which it sees it.
        seen, own = [slice(None)], [slice(None)]
        for size, side, step, place in zip(
            x.shape[1:3], kernel.shape[:2], dilation, tap, strict=True
        ):
            offset = (place - side // 2) * step
            seen.append(slice(max(offset, 0), max(size + min(offset, 0), 0)))
            own.append(slice(max(-offset, 0), max(size - max(offset, 0), 0)))
        parts = (a[tuple(part)] for a, part in ((x, seen), (gradient, own)))
        flat = [part.reshape(-1, part.shape[-1]) for part in parts]
        taps.append(wide_einsum("nc,nd->cd", *flat))
    return back, jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


dilated_convolution.defvjp(_forward, _backward)
