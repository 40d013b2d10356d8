"""Convolution as one matrix product, a row per window; or its derivatives alone like that."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from lambdanet.ops.wide_einsum import wide_einsum

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def apart(sides: tuple[int, ...], stride: Pair, padding: Padding) -> bool:
    """Whether windows share no input, so that their rows are the map itself."""
    alone = all(side == 1 or side == step for side, step in zip(sides, stride, strict=True))
    return alone and padding == ((0, 0), (0, 0))


def window_count(size: tuple[int, ...], sides: tuple[int, ...], stride: Pair, padding: Padding):
    """Returns (rows, columns) of the result; not annotated, as exported sides are no ints."""
    given = zip(size, sides, stride, padding, strict=True)
    return tuple((n + sum(pad) - side) // step + 1 for n, side, step, pad in given)


def window_product(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k l c d"], stride: Pair, padding: Padding
) -> Float[Array, "b oh ow d"]:
    """y[n, d] = sum over m of rows[n, m] kernel[m, d], a row being what a window holds, tap by tap.

    Windows that overlap are copies. Along the columns a copy is made of cells of `stride` positions
    with all channels, which lie in a row in memory, and not of single taps: the first convolution
    of a network has few channels.

    Args:
        x: the map.
        kernel: of all channels.
        stride: step per axis.
        padding: zeros before and after, per axis.

    Returns:
        The map in the dtype of `x`; sums in float32 or wider.
    """
    sides, channels = kernel.shape[:2], x.shape[3]
    rows, columns = window_count(x.shape[1:3], sides, stride, padding)
    taken = _apart if apart(sides, stride, padding) else _overlapping
    windows = taken(x, sides, stride, padding, rows, columns)
    length = sides[0] * sides[1] * channels
    matrix = kernel.reshape(length, -1)
    y = wide_einsum("nm,md->nd", windows.reshape(-1, length), matrix)
    return y.reshape(-1, rows, columns, kernel.shape[3]).astype(x.dtype)


def _apart(x, sides, stride, padding, rows, columns) -> jax.Array:
    if sides == (1, 1):
        return x[:, :: stride[0], :: stride[1]]
    # Whole cells; along an axis of one tap per window, every stride-th position.
    counts = zip(sides, stride, (rows, columns), strict=True)
    for axis, (side, step, count) in enumerate(counts, 1):
        x = lax.slice_in_dim(x, 0, (count - 1) * step + side, step if side == 1 else 1, axis)
    x = x.reshape(-1, rows, sides[0], columns, sides[1], x.shape[3])
    return x.transpose(0, 1, 3, 2, 4, 5)


def _overlapping(x, sides, stride, padding, rows, columns) -> jax.Array:
    (down, right), channels = stride, x.shape[3]
    cells = -(-sides[1] // right)  # per window and row of it, the last one cut
    length = (columns - 1 + cells) * right
    last = padding[1][0], padding[1][1] + cells * right - sides[1]
    # Widened before and not in the product, so that gradients of windows add up like that as well.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = jnp.pad(x, ((0, 0), padding[0], last, (0, 0)))[:, :, :length]
    lines = x.reshape(*x.shape[:2], length * channels)
    parts = []
    for u in range(sides[0]):
        seen = lines[:, u : u + down * (rows - 1) + 1 : down]
        for first in range(0, sides[1], right):
            start = first * channels
            part = seen[:, :, start : start + columns * right * channels]
            part = part.reshape(-1, rows, columns, right * channels)
            parts.append(part[..., : min(right, sides[1] - first) * channels])
    return jnp.concatenate(parts, -1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def derived_by_products(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k l c d"], stride: Pair, padding: Padding
) -> Float[Array, "b oh ow d"]:
    """XLA's convolution, with the derivatives of `window_product`, forward and reverse mode.

    XLA's CPU backend turns large kernels around for the gradient of the map, and spreads the
    gradients of strided convolutions with zeros between; see `window_product` for arguments and
    result.
    """
    options = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return lax.conv_general_dilated(x, kernel, stride, padding, **options)


def _derivative(stride, padding, primals, tangents):
    x, kernel = primals
    y = derived_by_products(x, kernel, stride, padding)
    of_x, of_kernel = tangents
    terms = []
    if not isinstance(of_x, SymbolicZero):
        terms.append(window_product(of_x, kernel, stride, padding))
    if not isinstance(of_kernel, SymbolicZero):
        terms.append(window_product(x, of_kernel, stride, padding))
    return y, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(y)


derived_by_products.defjvp(_derivative, symbolic_zeros=True)
