"""Depthwise convolution: every channel has a kernel of its own."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

IMPLS = ("auto", "shift", "conv")


def depthwise_conv(
    x: Float[Array, "*b h w c"],
    kernel: Float[Array, "k l 1 c"],
    bias: Float[Array, " c"] | None = None,
    *,
    impl: str = "auto",
) -> Float[Array, "*b h w c"]:
    """y[i, j, c] = sum over taps (u, v) of kernel[u, v, 0, c] x[i + u - k // 2, j + v - l // 2, c] + bias[c]; zeros outside.

    Step 1; the map keeps its size. Lowerings, equal up to rounding in values and gradients:
        'conv': one grouped convolution.
        'shift': the sum over the taps, written out as products with shifted maps, with a backward pass of the same form;
            on CPU many times as fast as the convolution, forward and backward.
        'auto': 'shift' on CPU, 'conv' elsewhere.

    Args:
        x: map; every axis before rows and columns is a batch.
        kernel: an odd number of taps per axis; `nnx.Conv` with `feature_group_count` stores it like this.
        bias: added to every position.
        impl: the lowering.

    Returns:
        The map in the dtype of `x`; sums are taken in float32 or wider.

    Raises:
        ValueError: unknown impl, an even side, or a kernel for other channels.
    """
    if impl not in IMPLS:
        raise ValueError(f"depthwise convolution: impl is {impl!r}; allowed: {', '.join(IMPLS)}")
    channels = x.shape[-1]
    if kernel.ndim != 4 or kernel.shape[2:] != (1, channels) or 0 in (kernel.shape[0] % 2, kernel.shape[1] % 2):
        raise ValueError(
            f"depthwise convolution: the kernel has shape {kernel.shape}; allowed: [odd, odd, 1, {channels}], the map's channels"
        )
    if impl == "auto":
        impl = "shift" if jax.default_backend() == "cpu" else "conv"
    precise = jnp.promote_types(x.dtype, jnp.float32)
    y = (_shift if impl == "shift" else _conv)(x, kernel.astype(x.dtype), precise)
    return (y if bias is None else y + bias).astype(x.dtype)


def _conv(x: jax.Array, kernel: jax.Array, precise) -> jax.Array:
    flat = x.reshape(-1, *x.shape[-3:])
    padding = [(side // 2, side // 2) for side in kernel.shape[:2]]
    y = lax.conv_general_dilated(
        flat,
        kernel,
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return y.reshape(x.shape).astype(precise)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shift(x: jax.Array, kernel: jax.Array, precise) -> jax.Array:
    taps = kernel.astype(precise).reshape(-1, x.shape[-1])
    return sum(part.astype(precise) * tap for part, tap in zip(_shifted(x, kernel.shape), taps, strict=True))


def _shift_forward(x, kernel, precise):
    return _shift(x, kernel, precise), (x, kernel)


def _shift_backward(precise, saved, cotangent):
    # The transpose of the sum by itself would be a chain of padded maps, three times as slow.
    x, kernel = saved
    axes = tuple(range(x.ndim - 1))
    taps = [jnp.sum(part.astype(precise) * cotangent, axes) for part in _shifted(x, kernel.shape)]
    of_x = _shift(cotangent, kernel[::-1, ::-1], precise)
    return of_x.astype(x.dtype), jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


_shift.defvjp(_shift_forward, _shift_backward)


def _shifted(x: jax.Array, kernel: tuple[int, ...]) -> list[jax.Array]:
    """The map as each tap sees it, row by row of the kernel."""
    (rows, columns), (h, w) = kernel[:2], x.shape[-3:-1]
    padding = [(0, 0)] * (x.ndim - 3) + [(rows // 2,) * 2, (columns // 2,) * 2, (0, 0)]
    padded = jnp.pad(x, padding)
    return [padded[..., u : u + h, v : v + w, :] for u in range(rows) for v in range(columns)]
