"""Relative embedding tables: clipping, masking, resizing and writing them out for all pairs of a
map.

A table [*r, u, k] holds one embedding per offset = key position - query position, an odd number r
of taps per spatial axis, the centre tap at (r - 1) / 2; offsets outside it have the embedding zero.
A global table has 2
* size - 1 taps. Letters as in `position_lambda`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lambdanet.ops import cost_model

CAUSAL = ("none", "inclusive", "strict")


def clip_table(
    table: Float[Array, "*r u k"], shape: Sequence[int], dilation: Sequence[int]
) -> Float[Array, "*c u k"]:
    """Crops the taps that no key of a map of this size can reach; exact, since they only ever meet
    zero padding.

    Args:
        table: relative embeddings, an odd number of taps per axis.
        shape: map size per axis.
        dilation: pixels between taps, per axis.

    Returns:
        The central 2 * min((r - 1) / 2, (size - 1) // dilation) + 1 taps of every axis.
    """
    taps = cost_model.clipped_taps(table.shape[: len(shape)], shape, dilation)
    starts = [(r - c) // 2 for r, c in zip(table.shape[: len(taps)], taps, strict=True)]
    return table[tuple(slice(s, s + c) for s, c in zip(starts, taps, strict=True))]


def mask_taps(table: Float[Array, "*r u k"], causal: str) -> Float[Array, "*r u k"]:
    """Zeroes the taps that point to the raster-order future, so that position lambdas are causal in
    every lowering.

    Args:
        table: relative embeddings, an odd number of taps per axis.
        causal: 'none' changes nothing, 'inclusive' keeps the query's own position, 'strict' drops
            it too.
    """
    if causal == "none":
        return table
    taps = table.shape[:-2]
    order = np.arange(math.prod(taps)).reshape(
        taps
    )  # row-major tap order is raster order of the offsets
    centre = order.size // 2
    keep = order <= centre if causal == "inclusive" else order < centre
    return jnp.where(keep[..., None, None], table, 0)


def dense_embeddings(
    table: Float[Array, "*r u k"], shape: Sequence[int], *, dilation: int | Sequence[int] = 1
) -> Float[Array, "n m k u"]:
    """Writes a relative table out as one embedding per (query, key) pair of the map.

    Args:
        table: relative embeddings, an odd number of taps per axis; a global table has 2 * size - 1.
        shape: map size per axis.
        dilation: pixels between taps.

    Returns:
        E[n, m] = table[(position of m - position of n) / dilation + (r - 1) / 2], zero where there
        is no such tap.
    """
    return dense_table(table, shape, per_axis(dilation, len(shape))).transpose(0, 3, 1, 2)


def resize_table(
    table: Float[Array, "*r u k"], old: Sequence[int], new: Sequence[int]
) -> Float[Array, "*t u k"]:
    """Converts a global table from one map size to another.

    Per axis, a smaller map takes the centre, which leaves the embedding of every offset as it is; a
    larger map interpolates linearly, with both ends and the centre kept in place.

    Args:
        table: global table for a map of size `old`; axes before the taps (heads) are left alone.
        old: map size per axis.
        new: map size per axis.

    Raises:
        ValueError: the table is not a global table for `old`.
    """
    first = table.ndim - 2 - len(old)
    if len(old) != len(new) or first < 0 or table.shape[first:-2] != tuple(2 * s - 1 for s in old):
        raise ValueError(
            f"cannot resize an embedding of shape {table.shape} from map size {tuple(old)} to "
            f"{tuple(new)}: "
            f"a global table for {tuple(old)} has {tuple(2 * s - 1 for s in old)} taps"
        )
    for axis, (before, after) in enumerate(zip(old, new, strict=True), start=first):
        if after <= before:
            table = lax.slice_in_dim(table, before - after, before + after - 1, axis=axis)
            continue
        at = np.linspace(0, 2 * before - 2, 2 * after - 1)
        low = np.minimum(at.astype(int), max(2 * before - 3, 0))
        part = (at - low).reshape(-1, *[1] * (table.ndim - axis - 1)).astype(table.dtype)
        above = jnp.take(table, np.minimum(low + 1, 2 * before - 2), axis=axis)
        table = jnp.take(table, low, axis=axis) * (1 - part) + above * part
    return table


def dense_table(table: jax.Array, shape: Sequence[int], dilation: Sequence[int]) -> jax.Array:
    """[*r, u, k] -> [n, k, u, m]: keys last, as the matrix products want them."""
    offsets = channels_first(table)
    dense = skew(spread(offsets, 2, shape[0], dilation[0]), 2, shape[0], shape[0])
    return pairs_of_rest(dense, shape[1:], dilation[1:])


def channels_first(table: jax.Array) -> jax.Array:
    """[*r, u, k] -> [k, u, *r]."""
    axes = table.ndim - 2
    return table.transpose(axes + 1, axes, *range(axes))


def pairs_of_rest(dense: jax.Array, rest: Sequence[int], dilation: Sequence[int]) -> jax.Array:
    """[k, u, N, M, *r], first axis already in pairs -> [N * rest, k, u, M * rest] with the other
    axes in pairs too.
    """
    for i, (size, step) in enumerate(zip(rest, dilation, strict=True)):
        dense = skew(spread(dense, 2 * i + 4, size, step), 2 * i + 4, size, size)
    return merge_pairs(dense)


def merge_pairs(dense: jax.Array) -> jax.Array:
    """[k, u, n0, m0, n1, m1, ..] -> [n, k, u, m]."""
    queries, keys = range(2, dense.ndim, 2), range(3, dense.ndim, 2)
    sizes = [math.prod(dense.shape[axis] for axis in axes) for axes in (queries, keys)]
    return dense.transpose(*queries, 0, 1, *keys).reshape(sizes[0], *dense.shape[:2], sizes[1])


def spread(table: jax.Array, axis: int, size: int, dilation: int) -> jax.Array:
    """One entry per pixel offset -(size - 1) .. size - 1: zeros between and beyond the taps, far
    taps cropped.
    """
    beyond = size - 1 - (table.shape[axis] - 1) // 2 * dilation
    config = [(0, 0, 0)] * table.ndim
    config[axis] = (beyond, beyond, dilation - 1)
    return lax.pad(table, jnp.zeros((), table.dtype), config)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def skew(table: jax.Array, axis: int, n: int, m: int) -> jax.Array:
    """Splits an axis of n + m - 1 offsets into [n, m] with out[i, j] = table[j - i + n - 1].

    Rows of the output are windows that move by one: repeat the axis, then cut the repetition at a
    row length one shorter. Tangents are cut out window by window, because the transpose of that, n
    padded rows added up in one pass, takes a tenth of the time of the repetition's transpose on a
    CPU; the transpose of a gather would be a scatter-add.
    """
    if n == 1:
        return jnp.expand_dims(table, axis)
    length = n + m - 1
    before, after = table.shape[:axis], table.shape[axis + 1 :]
    flat = jnp.broadcast_to(jnp.expand_dims(table, axis), (*before, n, length, *after))
    flat = flat.reshape(*before, n * length, *after)
    flat = lax.slice_in_dim(flat, n - 1, n - 1 + n * (length - 1), axis=axis)
    flat = flat.reshape(*before, n, length - 1, *after)
    return lax.slice_in_dim(flat, 0, m, axis=axis + 1)


@skew.defjvp
def _skew_tangent(axis, n, m, operands, tangents):
    windows = [lax.slice_in_dim(tangents[0], n - 1 - i, n - 1 - i + m, axis=axis) for i in range(n)]
    return skew(*operands, axis, n, m), jnp.stack(windows, axis)


def per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Returns one value per spatial axis."""
    value = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(value) != axes:
        raise ValueError(
            f"dilation {value} has {len(value)} entries; the map has {axes} spatial axes"
        )
    return value
