"""Position lambdas in lambda order, by frequencies along the last axis: the lowering 'spectral'.

    lambda^[f, y, k, :] = sum_{dy, u} E^[dy, f, u, k] v^[f, y + dy, u, :],    y[x, h, :] = sum_k q[x, h, k] lambda[x, k, :]

A correlation along x is a product of spectra, and every transform here is a product with a small
matrix: values to spectra, one matrix product per frequency (the table written out for the pairs of
rows of a tile), spectra to the map of lambdas. Per query that takes about (c + W) / 2 * (t + c) / W
+ W + c / 2 multiply-adds per entry of a lambda for c taps per axis, W columns and tiles of t rows,
where the direct sum takes c * c; and all of them run at the speed of matrix products.

Frequencies are odd multiples of half the base frequency. That makes the transform "skew-circular"
(what wraps around changes sign), which does not matter because nothing that wraps around is kept,
and leaves no purely real frequency: F / 2 complex numbers are F real ones. The map is cut into
tiles with a halo (overlap-save), all alike, so that memory and time stay linear in the map; tiles
are worked on in groups when the map of lambdas is large, each made anew in the backward pass.

Everything computes in float32 or, for float64 operands, in float64. The last step has its own
tangent rule, because the automatic one would pad and add where a sum is enough; forward and reverse
mode work and may be nested.

Letters as in `position_lambda`; f frequency, t (tile) and s (span) rows of a tile with and without
its halo.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lambdanet import batch_split
from lambdanet.ops.halo_windows import halo_windows

TILE_ROWS, TILE_COLUMNS = 8, 64  # a tile has at most so many queries per axis
GROUP_ELEMENTS = 2**21  # entries of the map of lambdas that are held at once
UNROLLED_KEY_DEPTH = 32


@dataclasses.dataclass(frozen=True)
class Axis:
    """How one axis is cut: `tiles` of `size` queries that see `span` keys, the first key `start`
    away from the first query.
    """

    tiles: int
    size: int
    span: int
    start: int
    reach: int  # pixels from a query to its farthest tap

    @property
    def frequencies(self) -> int:
        """Complex frequencies that keep apart all offsets between a kept key and a kept answer."""
        last = self.start + self.span - 1
        length = max(last + self.reach, self.size - 1 + self.reach - self.start) + 1
        return -(-length // 2)


def cut(size: int, taps: int, dilation: int, largest: int) -> Axis:
    """Cuts an axis into equal tiles of at most `largest` queries; where they would see as much as
    the map, it stays whole.
    """
    reach = taps // 2 * dilation
    part = -(-size // -(-size // largest))
    if part + 2 * reach >= size:
        return Axis(1, size, size, 0, reach)
    return Axis(-(-size // part), part, part + 2 * reach, -reach, reach)


def plan(shape: Sequence[int], taps: Sequence[int], dilation: Sequence[int]) -> tuple[Axis, Axis]:
    """Returns the cuts of rows and columns; a map with one axis has one row."""
    if len(shape) == 1:
        return Axis(1, 1, 1, 0, 0), cut(shape[0], taps[0], dilation[0], TILE_COLUMNS)
    return (
        cut(shape[0], taps[0], dilation[0], TILE_ROWS),
        cut(shape[1], taps[1], dilation[1], TILE_COLUMNS),
    )


def tiles_per_group(rows: Axis, columns: Axis, key_depth: int, value_depth: int) -> int:
    """Tiles that are worked on at once."""
    return max(1, GROUP_ELEMENTS // (rows.size * columns.size * key_depth * value_depth))


def by_frequencies(
    q: jax.Array,
    v: jax.Array,
    table: jax.Array,
    dilation: Sequence[int],
    content: jax.Array | None = None,
) -> jax.Array:
    """q [b, *s, h, k], v [b, *s, u, v], clipped table [*c, u, k] -> [b, *s, h, v]; one or two
    spatial axes. Content lambdas [b, k, v] are added to the position lambdas where these are read.

    Raises:
        ValueError: more than two spatial axes.
    """
    shape, dtype = v.shape[1:-2], q.dtype
    if len(shape) > 2:
        raise ValueError(
            f"impl 'spectral' needs a map with one or two axes; this one has size {shape}"
        )
    if len(shape) == 1:
        y = by_frequencies(q[:, None], v[:, None], table[None], (1, *dilation), content)
        return y[:, 0]
    rows, columns = plan(shape, table.shape[:2], dilation)
    q, v, table = (a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in (q, v, table))
    forward, kernel, inverse = _transforms(columns, table.shape[1], dilation[1], v.dtype)
    spectrum = jnp.einsum("frx,yxuk->yfruk", kernel, table)
    pairs = _row_pairs(spectrum, rows, dilation[0])

    def some(queries, keys, content=None):
        return _tiles(queries, keys, pairs, forward, inverse, content)

    for axis, part in ((1, rows), (2, columns)):
        q, v = _windows(q, axis, part, halo=False), _windows(v, axis, part, halo=True)
    parts, count, key_depth, depth = [q, v], q.shape[0], q.shape[-1], v.shape[-1]
    if content is not None:  # the batch is the last of what the axis of tiles is merged from
        tiles = rows.tiles * columns.tiles
        content = jnp.broadcast_to(content.astype(v.dtype), (tiles, *content.shape))
        parts.append(content.reshape(-1, key_depth, depth))
    per_group = tiles_per_group(rows, columns, key_depth, depth) * batch_split.devices()
    if (
        not isinstance(count, int) or count <= per_group
    ):  # a symbolic batch (`jax.export`) cannot be cut into groups
        y = some(*parts)
    else:
        groups = -(-count // per_group)
        per_group = -(-count // groups)
        filled = [
            jnp.pad(a, [(0, groups * per_group - count)] + [(0, 0)] * (a.ndim - 1)) for a in parts
        ]
        y = lax.map(
            lambda part: jax.checkpoint(some)(*part),
            [a.reshape(groups, per_group, *a.shape[1:]) for a in filled],
        )
        y = y.reshape(groups * per_group, *y.shape[2:])[:count]
    y = y.reshape(columns.tiles, rows.tiles, -1, *y.shape[1:]).transpose(2, 1, 3, 0, 4, 5, 6)
    y = y.reshape(y.shape[0], rows.tiles * rows.size, columns.tiles * columns.size, *y.shape[5:])
    return y[:, : shape[0], : shape[1]].astype(dtype)


def _tiles(
    q: jax.Array,
    v: jax.Array,
    pairs: jax.Array,
    forward: np.ndarray,
    inverse: np.ndarray,
    content: jax.Array | None,
) -> jax.Array:
    """q [b, t, x, h, k], v [b, s, z, u, v], pairs [f, 2 t k, s 2 u], content [b, k, v] -> [b, t, x,
    h, v]; the batch is one of tiles.
    """
    (batch, size, width, _, key_depth), depth, count = q.shape, v.shape[-1], pairs.shape[0]
    spectra = jnp.einsum("frz,bszuv->fsrubv", forward, v).reshape(count, pairs.shape[-1], -1)
    lambdas = jnp.einsum("fmj,fjn->fmn", pairs, spectra)
    lambdas = inverse.reshape(width, -1) @ lambdas.reshape(2 * count, -1)
    lambdas = lambdas.reshape(width, size, key_depth, batch, depth)
    return _apply(q, lambdas) if content is None else _sum(q, lambdas, content.swapaxes(0, 1))


@jax.custom_jvp
def _apply(q: jax.Array, lambdas: jax.Array) -> jax.Array:
    """q [b, t, x, h, k], lambdas [x, t, k, b, v] -> [b, t, x, h, v]."""
    if q.shape[-1] > UNROLLED_KEY_DEPTH:
        return jnp.einsum("btxhk,xtkbv->btxhv", q, lambdas)
    return _sum(q, lambdas)


def _sum(q: jax.Array, lambdas: jax.Array, content: jax.Array | None = None) -> jax.Array:
    """`_apply` of the lambdas, and content [k, b, v] added to them, written out: one pass over the
    lambdas where they lie; a matrix product would want them rearranged first.
    """
    q = q.transpose(2, 1, 3, 4, 0)  # x t h k b
    y = 0.0
    for i in range(q.shape[3]):
        one = lambdas[:, :, None, i] if content is None else lambdas[:, :, None, i] + content[i]
        y = y + q[:, :, :, i, :, None] * one
    return y.transpose(3, 1, 0, 2, 4)


@_apply.defjvp
def _apply_tangent(operands, tangents):
    """The same bilinear map, written so that its transpose is fast: a matrix product for q, h outer
    products for the lambdas.
    """
    (q, lambdas), (to_q, to_lambdas) = operands, tangents
    y = jnp.einsum("btxhk,xtkbv->btxhv", to_q, lambdas)
    q = q.transpose(3, 2, 1, 4, 0)[..., None]  # h x t k b 1
    by_query = jnp.stack([jnp.sum(q[i] * to_lambdas, 2) for i in range(q.shape[0])])  # h x t b v
    return _apply(*operands), y + by_query.transpose(3, 2, 1, 0, 4)


def _transforms(
    columns: Axis, taps: int, dilation: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns values to spectra [f, 2, z], taps to spectra [f, 2, c] and spectra to answers [x, f,
    2]; 2 is real, imaginary.
    """
    count = columns.frequencies
    angles = (np.arange(count) + 0.5) * (math.pi / count)

    def turned(places):
        phase = angles[:, None] * places
        return np.cos(phase), np.sin(phase)

    keys = turned(np.arange(columns.span) + columns.start)
    offsets = turned((np.arange(taps) - taps // 2) * dilation)
    answers = turned(np.arange(columns.size))
    forward = np.stack([keys[0], -keys[1]], 1)
    kernel = np.stack(offsets, 1)  # conjugate: a correlation, no flip
    inverse = np.stack([answers[0].T, -answers[1].T], 2) / count
    return forward.astype(dtype), kernel.astype(dtype), inverse.astype(dtype)


def _row_pairs(spectrum: jax.Array, rows: Axis, dilation: int) -> jax.Array:
    """Spectrum of the table [c, f, 2, u, k] -> complex products as real matrices for all pairs of
    rows, [f, 2 t k, s 2 u].
    """
    real, imaginary = spectrum[:, :, 0], spectrum[:, :, 1]  # c f u k
    block = jnp.stack([jnp.stack([real, -imaginary], 2), jnp.stack([imaginary, real], 2)])
    block = block.transpose(
        2, 0, 5, 1, 3, 4
    )  # f, real and imaginary of the answer, k, c, of the value, u
    # One entry per row offset key - query from `lowest` up; rows of the matrix are windows that
    # move by one.
    lowest, highest = rows.start - (rows.size - 1), rows.start + rows.span - 1
    config = [(0, 0, 0)] * block.ndim
    config[3] = (-rows.reach - lowest, highest - rows.reach, dilation - 1)
    block = lax.pad(block, jnp.zeros((), block.dtype), config)
    first = [rows.size - 1 - i for i in range(rows.size)]
    pairs = jnp.stack([lax.slice_in_dim(block, at, at + rows.span, axis=3) for at in first], 2)
    return pairs.reshape(pairs.shape[0], 2 * rows.size * pairs.shape[3], -1)


def _windows(a: jax.Array, axis: int, cut: Axis, *, halo: bool) -> jax.Array:
    """Cuts an axis into its tiles, with or without halo, and puts them into the batch, tile by
    tile.
    """
    if cut.tiles == 1:
        return a
    reach, length = (cut.reach, cut.span) if halo else (0, cut.size)
    # Joined from whole steps: a slice per tile would have a padded map per tile as its gradient.
    windows = jnp.moveaxis(halo_windows(a, axis, cut.tiles, cut.size, length, reach), axis, 0)
    return windows.reshape(-1, *windows.shape[2:])
