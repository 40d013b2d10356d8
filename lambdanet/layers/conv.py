"""Convolution, batch norm and activation: the unit that convolutional backbones are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.layers.norm import batch_norm
from lambdanet.ops.clip_convolution import clip_convolution
from lambdanet.ops.convolution import convolution
from lambdanet.registry import suggest

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "leaky_relu_0.01": lambda x: jax.nn.leaky_relu(x, 0.01),
    "none": lambda x: x,
}


def activation_function(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the activation of that name; raises ValueError with the allowed names otherwise."""
    if name not in ACTIVATIONS:
        raise ValueError(
            f"activation is {name!r}.{suggest(name, list(ACTIVATIONS))} Allowed: "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


_LECUN, _ZEROS = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()


class Conv2d(nnx.Conv):
    """`nnx.Conv` over two axes with numbers for padding, computed by `lambdanet.ops.convolution`:
    fast on CPU as well.

    Parameters, their names and their initialisation are those of `nnx.Conv`.

    Args:
        dim: input channels.
        dim_out: output channels.
        sides: of the kernel.
        stride: step per axis.
        padding: zeros on each side, per axis.
        dilation: positions from one tap to the next, per axis.
        groups: of channels.
        bias: whether there is one.
        kernel_init: of the kernel.
        bias_init: of the bias.
        impl: the lowering.
        dtype: activation dtype; None follows input and parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        sides: tuple[int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
        kernel_init: nnx.Initializer = _LECUN,
        bias_init: nnx.Initializer = _ZEROS,
        impl: str = "auto",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            dim,
            dim_out,
            sides,
            strides=stride,
            padding=tuple((pad, pad) for pad in padding),
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.impl = impl

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow d"]:
        """Maps [b, h, w, dim] to [b, oh, ow, dim_out], n positions to floor((n + 2 p - e (k - 1) -
        1) / s) + 1 on each axis.
        """
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        y = convolution(
            x,
            kernel,
            stride=self.strides,
            padding=self.padding,
            dilation=self.kernel_dilation,
            groups=self.feature_group_count,
            impl=self.impl,
        )
        return y if bias is None else y + bias


class ClipConv(nnx.Conv):
    """`nnx.Conv` over time, height and width with numbers for padding, computed by
    `lambdanet.ops.clip_convolution`; no bias.

    Args:
        dim: input channels.
        dim_out: output channels.
        sides: of the kernel, time first.
        stride: step per axis.
        padding: zeros on each side, per axis.
        dilation: positions from one tap to the next, per axis; 1 over time.
        kernel_init: of the kernel.
        impl: the lowering.
        dtype: activation dtype; None follows input and parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        sides: tuple[int, int, int],
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int] = (0, 0, 0),
        dilation: tuple[int, int, int] = (1, 1, 1),
        kernel_init: nnx.Initializer = _LECUN,
        impl: str = "auto",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            dim,
            dim_out,
            sides,
            strides=stride,
            padding=tuple((pad, pad) for pad in padding),
            kernel_dilation=dilation,
            use_bias=False,
            kernel_init=kernel_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.impl = impl

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b ot oh ow d"]:
        """Maps [b, t, h, w, dim] to [b, ot, oh, ow, dim_out], sizes as in `Conv2d`."""
        x, kernel = self.promote_dtype((x, self.kernel[...]), dtype=self.dtype)
        return clip_convolution(
            x,
            kernel,
            stride=self.strides,
            padding=self.padding,
            dilation=self.kernel_dilation,
            impl=self.impl,
        )


class ConvNormAct(nnx.Module):
    """activation(batch_norm(conv(x))), the convolution padded by dilation * (kernel_size // 2) on
    every side.

    On clips (`frames`) the kernel also reaches over time, by frames // 2 before and after.

    Args:
        dim: input channels.
        dim_out: output channels.
        kernel_size: odd side of the kernel.
        stride: step of the convolution; the output has ceil(size / stride) positions per axis.
        dilation: positions from one tap of the kernel to the next.
        frames: of a clip under the kernel, odd; None for maps.
        frame_stride: step over time, with `frames`.
        bias: whether the convolution of maps has a bias (the norm makes it redundant in training;
            some references have it).
        activation: a name in `ACTIVATIONS`.
        zero_init: start the norm's scale at zero (last norm of a residual branch).
        norm_momentum: decay of the running statistics.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. Kernels start He-normal over the outgoing fan.

    Raises:
        ValueError: even kernel size, unknown activation, or a bias for clips.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        frames: int | None = None,
        frame_stride: int = 1,
        bias: bool = False,
        activation: str = "relu",
        zero_init: bool = False,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if kernel_size % 2 == 0 or (frames is not None and frames % 2 == 0):
            sides = kernel_size if frames is None else (frames, kernel_size, kernel_size)
            raise ValueError(f"kernel size is {sides}; allowed: odd sides")
        if bias and frames is not None:
            raise ValueError("bias is True; allowed for the convolution of clips: False")
        activation_function(activation)
        self.dim, self.dim_out, self.kernel_size = dim, dim_out, kernel_size
        self.stride, self.dilation, self.activation = stride, dilation, activation
        self.frames, self.frame_stride = frames, frame_stride
        options = dict(
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        padding = dilation * (kernel_size // 2)
        if frames is None:
            self.conv = Conv2d(
                dim,
                dim_out,
                (kernel_size, kernel_size),
                stride=(stride, stride),
                padding=(padding, padding),
                dilation=(dilation, dilation),
                bias=bias,
                **options,
            )
        else:
            self.conv = ClipConv(
                dim,
                dim_out,
                (frames, kernel_size, kernel_size),
                stride=(frame_stride, stride, stride),
                padding=(frames // 2, padding, padding),
                dilation=(1, dilation, dilation),
                **options,
            )
        self.norm = batch_norm(
            dim_out,
            momentum=norm_momentum,
            zero_init=zero_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b *t h w c"]) -> Float[Array, "b *ot oh ow d"]:
        """Maps [b, *size, dim] to [b, *size_out(*size), dim_out], a size being (h, w), of clips (t,
        h, w).
        """
        return ACTIVATIONS[self.activation](self.norm(self.conv(x)))

    def size_out(self, *size: int) -> tuple[int, ...]:
        """Returns the size of the output, ceil(n / step) per axis."""
        steps = (self.frame_stride,) * (len(size) - 2) + (self.stride, self.stride)
        return tuple(-(-n // step) for n, step in zip(size, steps, strict=True))

    def macs(self, *size: int) -> int:
        """Multiply-accumulates of the convolution for one input of this size, taps on the padding
        included.
        """
        taps = self.kernel_size**2 * (self.frames or 1)
        return math.prod(self.size_out(*size)) * taps * self.dim * self.dim_out
