"""Depthwise convolution: every channel has a kernel of its own."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lambdanet.ops.window_taps import gather_back, tap_views

IMPLS = ("auto", "shift", "conv")


def depthwise_conv(
    x: Float[Array, "*b h w c"],
    kernel: Float[Array, "k l 1 c"],
    bias: Float[Array, " c"] | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    impl: str = "auto",
) -> Float[Array, "*b oh ow c"]:
    """y[i, j, c] = sum over taps (u, v) of kernel[u, v, 0, c] x[s i + u - k // 2, t j + v - l // 2,
    c] + bias[c]; zeros outside.

    With step 1 the map keeps its size. Lowerings, equal up to rounding in values and gradients:
        'conv': one grouped convolution.
        'shift': the sum over the taps, written out as products with shifted maps, with a backward
            pass of the same form; on CPU many times as fast as the convolution, forward and
            backward.
        'auto': 'shift' on CPU, 'conv' elsewhere.

    Args:
        x: map; every axis before rows and columns is a batch.
        kernel: an odd number of taps per axis; `nnx.Conv` with `feature_group_count` stores it like
            this.
        bias: added to every position.
        stride: step per axis, (s, t).
        impl: the lowering.

    Returns:
        Map [*b, ceil(h / s), ceil(w / t), c] in the dtype of `x`; sums are taken in float32 or
        wider.

    Raises:
        ValueError: unknown impl, an even side, or a kernel for other channels.
    """
    if impl not in IMPLS:
        raise ValueError(f"depthwise convolution: impl is {impl!r}; allowed: {', '.join(IMPLS)}")
    channels = x.shape[-1]
    if (
        kernel.ndim != 4
        or kernel.shape[2:] != (1, channels)
        or 0 in (kernel.shape[0] % 2, kernel.shape[1] % 2)
    ):
        raise ValueError(
            f"depthwise convolution: the kernel has shape {kernel.shape}; allowed: [odd, odd, 1, "
            f"{channels}], the map's channels"
        )
    if impl == "auto":
        impl = "shift" if jax.default_backend() == "cpu" else "conv"
    precise = jnp.promote_types(x.dtype, jnp.float32)
    y = (_shift if impl == "shift" else _conv)(x, kernel.astype(x.dtype), stride, precise)
    return (y if bias is None else y + bias).astype(x.dtype)


def _conv(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], precise) -> jax.Array:
    flat = x.reshape(-1, *x.shape[-3:])
    padding = [(side // 2, side // 2) for side in kernel.shape[:2]]
    y = lax.conv_general_dilated(
        flat,
        kernel,
        stride,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return y.reshape(*x.shape[:-3], *y.shape[1:]).astype(precise)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shift(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], precise) -> jax.Array:
    taps, views = (
        kernel.astype(precise).reshape(-1, x.shape[-1]),
        tap_views(x, kernel.shape[:2], stride),
    )
    return sum(part.astype(precise) * tap for part, tap in zip(views, taps, strict=True))


def _shift_forward(x, kernel, stride, precise):
    return _shift(x, kernel, stride, precise), (x, kernel)


def _shift_backward(stride, precise, saved, cotangent):
    # The transpose of the sum by itself would be a chain of padded maps, three times as slow.
    x, kernel = saved
    whole = kernel.astype(precise).reshape(-1, x.shape[-1])

    taps = _kernel_gradient(x, cotangent, kernel.shape[:2], stride, precise)
    of_x = gather_back(
        [cotangent],
        x.shape[-3:-1],
        kernel.shape[:2],
        stride,
        lambda tap, moved: moved[0] * whole[tap],
    )
    return of_x.astype(x.dtype), taps.reshape(kernel.shape).astype(kernel.dtype)


_shift.defvjp(_shift_forward, _shift_backward)


def _kernel_gradient(x, cotangent, sides, stride, precise) -> jax.Array:
    """Sums of x as each tap sees it times the cotangent, over images and positions: [taps, c].

    Row by row, into one map row per tap: sums over all positions, for each channel by itself, are
    no loop that XLA's CPU backend runs well, and a row stays in the cache while every tap reads it.
    Four rows a turn, so that the sums are read and written once for four.
    """
    images, cotangents = (a.reshape(-1, *a.shape[-3:]) for a in (x, cotangent))
    images = jnp.pad(images, [(0, 0), *((side // 2, side // 2) for side in sides), (0, 0)])
    count, rows, columns, channels = cotangents.shape
    last = (columns - 1) * stride[1] + 1
    zeros = [jnp.zeros((columns, channels), precise)] * (sides[0] * sides[1])
    if count == 0:  # there is no row to slice
        return jnp.stack(zeros).sum(1)

    def row(a: jax.Array, *start: Any, length: int) -> jax.Array:
        return lax.dynamic_slice(a, (*start, 0), (1, 1, length, channels))[0, 0]

    def add_row(image, number, sums):
        of_row = row(cotangents, image, number, 0, length=columns)
        views = [
            row(images, image, number * stride[0] + u, v, length=last)[:: stride[1]]
            for u in range(sides[0])
            for v in range(sides[1])
        ]
        return [
            total + view.astype(precise) * of_row for total, view in zip(sums, views, strict=True)
        ]

    def add_image(image, sums):
        return lax.fori_loop(0, rows, functools.partial(add_row, image), sums, unroll=4)

    return jnp.stack(lax.fori_loop(0, count, add_image, zeros)).sum(1)
