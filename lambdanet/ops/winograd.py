"""3x3 convolutions with 16 multiplications for every four outputs in place of 36."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_TILE = 2  # outputs per axis of a tile; it reads two more positions

Line = Any  # arrays along an axis: a list, or an array's first axis
Grid = list[list]  # 4 x 4 arrays, one per position of a tile


def winograd_convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], dilation: int = 1
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

    Returns:
        The map in the dtype of `x`.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return _convolve(x.astype(wide), kernel.astype(wide), dilation).astype(x.dtype)


def tile_count(shape: Sequence[int], dilation: int) -> int:
    """Returns into how many tiles a map of the shape [b, h, w, c] is cut."""
    b, h, w, _ = shape
    return b * _tiles(h, dilation) * _tiles(w, dilation) * dilation**2


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    return _apply(x, _kernels(kernel), "nc,cd->nd", dilation)


def _forward(x, kernel, dilation):
    return _convolve(x, kernel, dilation), (x, kernel)


def _backward(dilation, kept, gradient):
    x, kernel = kept
    turned = (3, 1, 2, 0)  # where `_kernels` puts those of the kernel read backwards
    grid = _kernels(kernel)
    grid = [[grid[i][j] for j in turned] for i in turned]
    return (_apply(gradient, grid, "nd,cd->nc", dilation), _kernel_gradient(x, gradient, dilation))


_convolve.defvjp(_forward, _backward)


# --------------------------------------------------------------------------------------------------
# Tiles: [b, rows, e, columns, e, c], each of the e x e maps being cut by itself
# --------------------------------------------------------------------------------------------------


def _apply(x: jax.Array, kernels: Grid, spec: str, dilation: int) -> jax.Array:
    """A^T [kernels * (B^T x B)] A, the products over channels by `spec`."""
    b, h, w, channels = x.shape
    tiles, found = _inputs(x, dilation), []
    for parts, matrices in zip(tiles, kernels, strict=True):
        products = [
            jnp.einsum(spec, part.reshape(-1, channels), matrix).reshape(*part.shape[:-1], -1)
            for part, matrix in zip(parts, matrices, strict=True)
        ]
        found.append(jnp.stack(_reduce(products), 4))  # [b, rows, e, columns, 2, e, d]
    y = jnp.stack(_reduce(found), 2)
    rows, columns = (n * _TILE * dilation for n in (y.shape[1], y.shape[4]))
    return y.reshape(b, rows, columns, -1)[:, :h, :w]


def _kernel_gradient(x: jax.Array, gradient: jax.Array, dilation: int) -> jax.Array:
    found = []
    for parts, others in zip(_inputs(x, dilation), _outputs(gradient, dilation), strict=True):
        products = [
            jnp.einsum("nc,nd->cd", *(a.reshape(-1, a.shape[-1]) for a in pair))
            for pair in zip(parts, others, strict=True)
        ]
        found.append(jnp.stack(_three(products)))
    return jnp.stack(_three(found))


def _inputs(x: jax.Array, dilation: int) -> Grid:
    """B^T x B."""
    rows = _differences(_overlapping(x, 1, dilation))
    return [_differences(_overlapping(row, 3, dilation)) for row in rows]


def _outputs(y: jax.Array, dilation: int) -> Grid:
    """A y A^T."""
    b, h, w, channels = y.shape
    rows, columns = (_tiles(n, dilation) for n in (h, w))
    step = _TILE * dilation
    y = jnp.pad(y, ((0, 0), (0, rows * step - h), (0, columns * step - w), (0, 0)))
    y = y.reshape(b, rows, _TILE, dilation, columns, _TILE, dilation, channels)
    return [
        _spread(row[:, :, :, :, 0], row[:, :, :, :, 1]) for row in _spread(y[:, :, 0], y[:, :, 1])
    ]


def _kernels(kernel: jax.Array) -> Grid:
    """G k G^T."""
    return [_halves(row) for row in _halves(kernel)]


def _tiles(length: int, dilation: int) -> int:
    return -(-length // (_TILE * dilation))


def _overlapping(x: jax.Array, axis: int, dilation: int) -> Line:
    """The four positions of every tile along an axis [..., length, ...], as [..., tiles, e, ...];
    zeros outside.
    """
    tiles, step = _tiles(x.shape[axis], dilation), _TILE * dilation
    padding = [(0, 0)] * x.ndim
    padding[axis] = (dilation, (tiles + 1) * step - x.shape[axis] - dilation)
    x = jnp.pad(x, padding)
    x = x.reshape(*x.shape[:axis], tiles + 1, _TILE, dilation, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(x, n, axis + 1, keepdims=False) for n in range(_TILE))
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
