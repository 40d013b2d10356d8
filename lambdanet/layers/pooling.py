"""Pooling of channels-last maps."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.ops.max_pool import max_of_slices

MAX_POOL_IMPLS = ("auto", "window", "slices")


def max_pool(
    x: Float[Array, "b h w c"],
    window: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 2,
    *,
    impl: str = "auto",
) -> Float[Array, "b oh ow c"]:
    """Takes the largest value of each window; borders are padded by window // 2 with minus
    infinity, as PyTorch does.

    Both implementations give the same values and gradients; of equally large entries of a window
    the first gets the gradient.

    Args:
        x: map [b, h, w, c].
        window: odd side of the window, or one per axis.
        stride: step between windows, or one per axis.
        impl: 'window' (one reduce_window); 'slices' (maximum over window**2 strided slices, see
            `lambdanet.ops.max_pool`: on CPU XLA lowers the gradient of 'window' to a slow scatter);
                'auto' takes 'slices' on
            CPU and 'window' elsewhere.

    Returns:
        Map [b, ceil(h / stride), ceil(w / stride), c].

    Raises:
        ValueError: even window, or unknown impl.
    """
    if impl not in MAX_POOL_IMPLS:
        raise ValueError(f"max-pool impl is {impl!r}; allowed: {', '.join(MAX_POOL_IMPLS)}")
    sides = (window, window) if isinstance(window, int) else window
    if any(side % 2 == 0 for side in sides):
        raise ValueError(f"max-pool window is {window}; allowed: odd sides")
    strides = (stride, stride) if isinstance(stride, int) else stride
    if impl == "auto":
        impl = "slices" if jax.default_backend() == "cpu" else "window"
    if impl == "window":
        padding = tuple((side // 2, side // 2) for side in sides)
        return nnx.max_pool(x, sides, strides=strides, padding=padding)
    return max_of_slices(x, sides, strides)


def max_pool_cells(
    x: Float[Array, "b *spatial c"], window: Sequence[int]
) -> Float[Array, "b *cells c"]:
    """Takes the largest value of each cell of a grid without overlap; a remainder that fills no
    cell is dropped.

    Args:
        x: map with any number of spatial axes.
        window: positions of a cell along each of them.

    Returns:
        Map with size // window positions per axis. Equal entries of a cell share the gradient.
    """
    for axis, size in enumerate(window, 1):
        last = x.shape[axis] // size * size
        slices = [
            jax.lax.slice_in_dim(x, start, last, stride=size, axis=axis) for start in range(size)
        ]
        x = functools.reduce(jnp.maximum, slices)
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_over(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Returns the maximum along an axis; the first of equal entries gets the gradient, as with
    PyTorch's pooling and `max`.

    The gradient of `jnp.max` compares the input with the result once more and divides by the number
    of equal entries. XLA may compute the input anew for that, with another rounding, and then none
    is equal and the gradient is NaN (seen on CPU with optimisation level 0). Here the position is
    found once, and only for a gradient: on CPU that takes much longer than the maximum.
    """
    return jnp.max(x, axis=axis)


@max_over.defjvp
def _max_over_jvp(axis, primals, tangents):
    (x,), (tangent,) = primals, tangents
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim)
    first = places == jnp.argmax(x, axis=axis, keepdims=True)
    return tuple(jnp.sum(jnp.where(first, a, 0), axis=axis) for a in (x, tangent))


def avg_pool(
    x: Float[Array, "b *t h w c"], window: int, stride: int = 2
) -> Float[Array, "b *t oh ow c"]:
    """Averages each window over its entries inside the map, with TensorFlow's 'SAME' padding and
    float32 sums.

    An even map gets its padding on the far side only, e.g. (0, 1) for a 3x3 window with stride 2;
    padded positions do not count in the mean. With window = stride = 2 on an even map this is the
    plain 2x2 average.

    Args:
        x: map [b, h, w, c], or clips, whose frames are pooled one by one.
        window: side of the window.
        stride: step between windows.

    Returns:
        Map [b, ceil(h / stride), ceil(w / stride), c] in the dtype of `x`.
    """
    sides = (window, window)
    mean = nnx.avg_pool(
        x.astype(jnp.float32),
        sides,
        strides=(stride, stride),
        padding="SAME",
        count_include_pad=False,
    )
    return mean.astype(x.dtype)


def adaptive_avg_pool(
    x: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b oh ow c"]:
    """Averages a map over the bins of a grid, as PyTorch's `AdaptiveAvgPool2d`; sums in float32 or
    better.

    Bin i of n on an axis of length L reaches from floor(i L / n) to ceil((i + 1) L / n): bins share
    positions where n does not divide L, and a shorter axis repeats its positions.

    Args:
        x: map [b, h, w, c].
        size: bins per axis.

    Returns:
        Map [b, *size, c] in the dtype of `x`.

    Raises:
        ValueError: a size below 1.
    """
    if min(size) < 1:
        raise ValueError(
            f"adaptive pooling: size is {size}; allowed: a height and a width of 1 or more"
        )
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, bins in enumerate(size, start=1):
        length = y.shape[axis]
        if length % bins == 0:
            y = y.reshape(*y.shape[:axis], bins, length // bins, *y.shape[axis + 1 :]).mean(
                axis + 1
            )
            continue
        edges = [(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]
        y = jnp.stack(
            [jax.lax.slice_in_dim(y, *edge, axis=axis).mean(axis) for edge in edges], axis
        )
    return y.astype(x.dtype)
