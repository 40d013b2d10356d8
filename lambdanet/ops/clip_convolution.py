"""Convolution of clips over time, height and width, written as two-dimensional ones where those are
faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lambdanet.ops.convolution import convolution

IMPLS = ("auto", "conv", "lines", "frames", "stacked")

_FEW = 16  # channels over all taps of time up to which 'auto' takes 'stacked'


def clip_convolution(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "f k l c d"],
    *,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[Sequence[int]] = ((0, 0), (0, 0), (0, 0)),
    dilation: Sequence[int] = (1, 1, 1),
    impl: str = "auto",
) -> Float[Array, "b ot oh ow d"]:
    """Sums kernel[r, u, v, c, d] x[frame, row, column, c] over taps and channels, as `convolution`
    does over two axes; zeros outside.

    Lowerings, equal up to rounding in values and gradients:
        'conv': XLA's convolution over three axes.
        'lines': for kernels of one pixel, side by side and without padding: the pixels of a frame
            are one axis, and time the other one of a convolution over two.
        'frames': for every tap of time a convolution of all frames that it sees, as one batch, and
            their sum. With one tap this is the convolution of the frames, without a copy.
        'stacked': one convolution of frames that hold all frames which their taps see, as channels:
            copies of the input, one per tap.
        'auto': 'frames' for kernels of one frame. On CPU, where 'conv' takes two to four times as
            long in training, else 'lines' where it is allowed, 'stacked' for clips of few channels
            and 'frames' for others; elsewhere 'conv'.

    Args:
        x: the clips.
        kernel: rounded to the dtype of `x`.
        stride: step per axis.
        padding: zeros before and after, per axis.
        dilation: positions between taps per axis; that of time is 1.
        impl: the lowering.

    Returns:
        The clips in the dtype of `x`.

    Raises:
        ValueError: unknown impl, or one that the operation does not allow; channels that do not fit
            the kernel.
    """
    if impl not in IMPLS:
        raise ValueError(f"clip convolution: impl is {impl!r}; allowed: {', '.join(IMPLS)}")
    if x.shape[-1] != kernel.shape[3] or dilation[0] != 1:
        raise ValueError(
            f"clip convolution: clips {x.shape}, kernel {kernel.shape}, dilation "
            f"{tuple(dilation)}; allowed: as many channels in both, and a dilation of 1 over time"
        )
    stride, dilation = tuple(stride), tuple(dilation)
    padding = tuple((before, after) for before, after in padding)
    kernel = kernel.astype(x.dtype)
    pixels = kernel.shape[1:3] == stride[1:] == (1, 1) and padding[1:] == ((0, 0), (0, 0))
    if impl == "auto":
        impl = _fastest(kernel.shape, pixels)
    if impl == "lines" and not pixels:
        raise ValueError(
            f"clip convolution: impl 'lines' does not allow kernel {kernel.shape}, stride "
            f"{stride}, padding {padding}; allowed: one pixel with stride 1 and no padding"
        )
    if impl == "conv":
        return lax.conv_general_dilated(
            x,
            kernel,
            stride,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
    if impl == "lines":
        flat = x.reshape(*x.shape[:2], -1, x.shape[-1])
        over_time = dict(stride=(stride[0], 1), padding=(padding[0], (0, 0)))
        y = convolution(flat, kernel[:, 0], **over_time)
        return y.reshape(x.shape[0], y.shape[1], *x.shape[2:4], -1)

    x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    count = (x.shape[1] - kernel.shape[0]) // stride[0] + 1
    views = [
        lax.slice_in_dim(x, tap, tap + stride[0] * (count - 1) + 1, stride[0], axis=1)
        for tap in range(kernel.shape[0])
    ]
    if impl == "stacked":
        views = [jnp.concatenate(views, axis=-1)]
        kernel = jnp.concatenate(kernel, axis=2)[None]  # the taps' channels in a row, as there
    in_frame = dict(stride=stride[1:], padding=padding[1:], dilation=dilation[1:])
    terms = [
        convolution(view.reshape(-1, *view.shape[2:]), per_tap, **in_frame)
        for view, per_tap in zip(views, kernel, strict=True)
    ]
    y = sum(terms[1:], terms[0])
    return y.reshape(x.shape[0], count, *y.shape[1:])


def _fastest(kernel: tuple[int, ...], pixels: bool) -> str:
    if kernel[0] == 1:
        return "frames"
    if jax.default_backend() != "cpu":
        return "conv"
    if pixels:
        return "lines"
    return "stacked" if math.prod((kernel[0], kernel[3])) <= _FEW else "frames"
