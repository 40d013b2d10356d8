"""3x3 convolutions with 16 multiplications for every four outputs in place of 36."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BAND_ELEMENTS = 2**22
"""Numbers of transformed tiles that a band has at most."""
FEWEST_TILES = 256
"""Tiles of a band in any case: matrix products of few rows are slow."""
_SIDE = 2  # outputs per axis of a tile; it reads two more positions
_TILES = 16  # positions of a transformed tile

Line = Any  # arrays along an axis: a list, or an array's first axis
Grid = list[list]  # 4 x 4 arrays, one per position of a tile


def winograd_convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "3 3 c d"],
    dilation: int = 1,
    band_rows: int = 0,
) -> Float[Array, "b h w d"]:
    """Convolution of stride 1 with zeros around the map that keep its size, in 2.25 times fewer
    multiplications.

        y = A^T [ (G k G^T) * (B^T x B) ] A        for tiles of 2 x 2 outputs and 4 x 4 inputs

    where * multiplies each of the 16 transformed positions and, over the channels, is a matrix
    product of all tiles. With dilation e every e-th row and column make a map of their own. Both
    gradients are of the same form, so they take as few multiplications: that of the input is the
    convolution with the kernel turned round, that of the kernel G^T [ (B^T x B) * (A y A^T) ] G.
    They keep the input alone, not the transformed tiles, which have four times as many numbers.

    Equals `lax.conv_general_dilated` up to rounding, which is about as large: the constants are 1
    and 1/2. Computed in float32 or better.

    Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", F(2x2, 3x3).

    Args:
        x: the map; sides that are no multiple of twice the dilation are filled up with zeros.
        kernel: [row, column, input channel, output channel].
        dilation: positions between taps, e; as many zeros lie on every side.
        band_rows: rows of tiles of all images that are worked on at once, at most half of them; 0 =
            by `BAND_ELEMENTS`, whole images where that allows.

    Returns:
        The map in the dtype of `x`.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return _convolve(x.astype(wide), kernel.astype(wide), dilation, band_rows).astype(x.dtype)


def tile_count(shape: Sequence[int], dilation: int) -> int:
    """Returns into how many tiles a map of the shape [b, h, w, c] is cut."""
    b, h, w, _ = shape
    return b * _tiles(h, dilation) * _tiles(w, dilation) * dilation**2


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, dilation: int, band_rows: int) -> jax.Array:
    return _apply(x, _kernels(kernel), "nc,cd->nd", dilation, band_rows)


def _forward(x, kernel, dilation, band_rows):
    return _convolve(x, kernel, dilation, band_rows), (x, kernel)


def _backward(dilation, band_rows, kept, gradient):
    x, kernel = kept
    turned = (3, 1, 2, 0)  # where `_kernels` puts those of the kernel read backwards
    grid = _kernels(kernel)
    grid = [[grid[i][j] for j in turned] for i in turned]
    back = _apply(gradient, grid, "nd,cd->nc", dilation, band_rows)
    return back, _kernel_gradient(x, gradient, dilation, band_rows)


_convolve.defvjp(_forward, _backward)


# --------------------------------------------------------------------------------------------------
# Bands of tiles, one after the other. Outside a loop XLA's CPU backend keeps the forward pass's
# tiles for the backward pass, four times the map, makes those of many layers at once, and fuses
# what makes the map (norms, activations) into all sixteen of its transforms. Bands of whole images
# need no rows of their neighbours and no empty ones; every n-th image is of one band, so that a
# batch that lies on several devices stays where it is.
# --------------------------------------------------------------------------------------------------


def _bands(shape: Sequence[int], dilation: int, most: int) -> tuple[int, int]:
    """Returns into how many bands the rows of tiles of a map are cut, and how many each has."""
    rows, channels = _tiles(shape[1], dilation), shape[3]
    row = tile_count((shape[0], 1, *shape[2:]), dilation)
    most = most or max(max(BAND_ELEMENTS // (_TILES * channels), FEWEST_TILES) // row, 1)
    most = min(most, max(rows // 2, 1))  # a loop of one turn is no loop
    count = -(-rows // most)
    return count, -(-rows // count)


def _image_bands(shape: Sequence[int], dilation: int, most: int) -> int:
    """Returns into how many bands of whole images a batch is cut; 1: into rows instead."""
    batch, tiles = shape[0], tile_count((1, *shape[1:]), dilation)
    _, rows = _bands(shape, dilation, most)
    fewest = min(FEWEST_TILES, rows * tile_count((batch, 1, *shape[2:]), dilation))
    room = max(BAND_ELEMENTS // (_TILES * shape[3]), FEWEST_TILES) // tiles
    fitting = (n for n in range(2, batch + 1) if batch % n == 0 and batch // n <= room)
    count = 1 if most else next(fitting, 1)
    return count if batch // count * tiles >= fewest else 1


def _of_band(x: jax.Array, number: Any, bands: int) -> jax.Array:
    """Every image of a band."""
    x = x.reshape(-1, bands, *x.shape[1:])
    return jax.lax.dynamic_index_in_dim(x, number, 1, keepdims=False)


def _filled(x: jax.Array, axis: int, tiles: int, dilation: int, before: int) -> jax.Array:
    """Zeros around an axis: `before`, and up to the last position that so many tiles reach."""
    padding = [(0, 0)] * x.ndim
    length = (tiles + (before > 0)) * _SIDE * dilation
    padding[axis] = (before, length - x.shape[axis] - before)
    return jnp.pad(x, padding)


def _apply(x: jax.Array, kernels: Grid, spec: str, dilation: int, most: int) -> jax.Array:
    """A^T [kernels * (B^T x B)] A, the products over channels by `spec`."""
    (h, w), step = x.shape[1:3], _SIDE * dilation
    if (bands := _image_bands(x.shape, dilation, most)) > 1:
        return _apply_to_images(x, kernels, spec, dilation, bands)
    count, rows = _bands(x.shape, dilation, most)
    x = _filled(x, 1, count * rows, dilation, dilation)

    def band(number: Any) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(x, number * rows * step, (rows + 1) * step, 1)
        return _apply_to_band(part, kernels, spec, dilation)

    def body(number: Any, y: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(y, band(number), number * rows * step, 1)

    if count == 1:
        return band(0)[:, :h, :w]
    one = jax.eval_shape(band, 0)
    y = jnp.zeros((one.shape[0], count * one.shape[1], *one.shape[2:]), one.dtype)
    return jax.lax.fori_loop(0, count, body, y)[:, :h, :w]


def _apply_to_images(
    x: jax.Array, kernels: Grid, spec: str, dilation: int, bands: int
) -> jax.Array:
    h, w = x.shape[1:3]

    def band(number: Any) -> jax.Array:
        part = _filled(_of_band(x, number, bands), 1, _tiles(h, dilation), dilation, dilation)
        return _apply_to_band(part, kernels, spec, dilation)[:, :h, :w]

    def body(number: Any, y: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(y, band(number), number, 1)

    one = jax.eval_shape(band, 0)
    y = jnp.zeros((one.shape[0], bands, *one.shape[1:]), one.dtype)
    return jax.lax.fori_loop(0, bands, body, y).reshape(-1, *one.shape[1:])


def _apply_to_band(x: jax.Array, kernels: Grid, spec: str, dilation: int) -> jax.Array:
    b, channels, found = x.shape[0], x.shape[3], []
    for parts, matrices in zip(_inputs(x, dilation), kernels, strict=True):
        products = [
            jnp.einsum(spec, part.reshape(-1, channels), matrix).reshape(*part.shape[:-1], -1)
            for part, matrix in zip(parts, matrices, strict=True)
        ]
        found.append(jnp.stack(_reduce(products), 4))  # [b, rows, e, columns, 2, e, d]
    y = jnp.stack(_reduce(found), 2)
    rows, columns = (n * _SIDE * dilation for n in (y.shape[1], y.shape[4]))
    return y.reshape(b, rows, columns, -1)


def _kernel_gradient(x: jax.Array, gradient: jax.Array, dilation: int, most: int) -> jax.Array:
    step = _SIDE * dilation
    images = _image_bands(x.shape, dilation, most)
    if images > 1:
        count, rows = images, _tiles(x.shape[1], dilation)
    else:
        count, rows = _bands(x.shape, dilation, most)
        x = _filled(x, 1, count * rows, dilation, dilation)
        gradient = _filled(gradient, 1, count * rows, dilation, 0)

    def band(number: Any) -> Grid:
        if images > 1:
            part = _filled(_of_band(x, number, images), 1, rows, dilation, dilation)
            other = _filled(_of_band(gradient, number, images), 1, rows, dilation, 0)
        else:
            start = number * rows * step
            part = jax.lax.dynamic_slice_in_dim(x, start, (rows + 1) * step, 1)
            other = jax.lax.dynamic_slice_in_dim(gradient, start, rows * step, 1)
        grids = _inputs(part, dilation), _outputs(other, dilation)
        return [
            [
                jnp.einsum("nc,nd->cd", *(a.reshape(-1, a.shape[-1]) for a in pair))
                for pair in zip(*lines, strict=True)
            ]
            for lines in zip(*grids, strict=True)
        ]

    if count == 1:
        found = band(0)
    else:
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(band, 0))
        found = jax.lax.fori_loop(
            0, count, lambda number, sums: jax.tree.map(jnp.add, sums, band(number)), zeros
        )
    return jnp.stack(_three([jnp.stack(_three(products)) for products in found]))


# --------------------------------------------------------------------------------------------------
# Tiles: [b, rows, e, columns, e, c], each of the e x e maps being cut by itself
# --------------------------------------------------------------------------------------------------


def _inputs(x: jax.Array, dilation: int) -> Grid:
    """B^T x B of rows with zeros above and below; those beside them are added here."""
    tiles, rows = _tiles(x.shape[2], dilation), _differences(_overlapping(x, 1, dilation))
    rows = [_filled(row, 3, tiles, dilation, dilation) for row in rows]
    return [_differences(_overlapping(row, 3, dilation)) for row in rows]


def _outputs(y: jax.Array, dilation: int) -> Grid:
    """A y A^T of whole rows of tiles."""
    b, _, w, channels = y.shape
    y = _filled(y, 2, _tiles(w, dilation), dilation, 0)
    y = y.reshape(b, -1, _SIDE, dilation, _tiles(w, dilation), _SIDE, dilation, channels)
    return [
        _spread(row[:, :, :, :, 0], row[:, :, :, :, 1]) for row in _spread(y[:, :, 0], y[:, :, 1])
    ]


def _kernels(kernel: jax.Array) -> Grid:
    """G k G^T."""
    return [_halves(row) for row in _halves(kernel)]


def _tiles(length: int, dilation: int) -> int:
    return -(-length // (_SIDE * dilation))


def _overlapping(x: jax.Array, axis: int, dilation: int) -> Line:
    """The four positions of every tile along an axis [..., (tiles + 1) 2 e, ...] with zeros around,
    as [..., tiles, e, ...].
    """
    tiles = x.shape[axis] // (_SIDE * dilation) - 1
    x = x.reshape(*x.shape[:axis], tiles + 1, _SIDE, dilation, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(x, n, axis + 1, keepdims=False) for n in range(_SIDE))
    return [
        jax.lax.slice_in_dim(part, start, start + tiles, axis=axis)
        for start in (0, 1)
        for part in (even, odd)
    ]


# --------------------------------------------------------------------------------------------------
# The matrices of the transformation, applied along one axis
# --------------------------------------------------------------------------------------------------


def _differences(x: Line) -> Line:
    """B^T."""
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def _halves(k: Line) -> Line:
    """G."""
    ends = k[0] + k[2]
    return [k[0], (ends + k[1]) / 2, (ends - k[1]) / 2, k[2]]


def _three(u: Line) -> Line:
    """G^T."""
    ends = (u[1] + u[2]) / 2
    return [u[0] + ends, (u[1] - u[2]) / 2, u[3] + ends]


def _reduce(m: Line) -> Line:
    """A^T."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _spread(first: jax.Array, second: jax.Array) -> Line:
    """A."""
    return [first, first + second, first - second, -second]
