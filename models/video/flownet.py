"""FlowNet-S: the flow from one picture to another, on the grid of a feature map."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jaxtyping import Array, Float

from lambdanet.layers import Conv2d, avg_pool, resize_bilinear
from lambdanet.ops.convolution import convolution

from ..backbone import Row

_ENCODER = ((64, 7), (128, 5), (256, 5), (512, 3), (512, 3), (1024, 3))
"""Channels, and side of the strided kernel, of every level; from the third on a 3x3 follows."""
_DECODER = {5: 512, 4: 256, 3: 128, 2: 64}
_UNIT = 20  # pixels of the picture that the network reads, per unit of its flow
_LAST_STD = 1e-3
_HE = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")

LEVELS = (3, len(_ENCODER))
"""Least and most levels of a network."""


class Motion(NamedTuple):
    """What the network says of a pair of pictures, on the grid of the features.

    Attributes:
        flow: float32 [b, h, w, 2], (dx, dy) in cells, from the current frame to the key frame.
        scale: [b, h, w, c], factors of the warped features, or None.
        quality: float32 [b, h, w], or None.
    """

    flow: jax.Array
    scale: jax.Array | None
    quality: jax.Array | None


class FlowNetS(nnx.Module):
    """Flow between two pictures: convolutions with steps of 2, and a way back up that adds what the
    levels have and a flow of each.

    The last level's map has a quarter of the picture's resolution, an eighth with `half`; it is
    averaged (or interpolated) to the features' grid, where one convolution gives the flow. Flows
    inside the network are pixels / 20 of the picture that it reads, so the last one is multiplied
    by 20 * (2 if half else 1) / stride to be in cells.

    Activations are leaky ReLU of slope 0.1; all layers have biases. The pictures are those of the
    backbone, normalised, while the reference has BGR with means taken off, divided by 255.

    Sources: FlowNet (Dosovitskiy et al., 2015), "FlowNetSimple"; the form of Deep Feature Flow (Zhu
    et al., 2017), whose flow and scale are read from the last level instead of a fifth flow. Both
    begin with trained weights; here kernels start He-normal, those of the last flow near zero: at
    the beginning features are carried nearly as they are. The scale map starts at 1 everywhere
    (weight 0, bias 1). In the reference its bias is not trained: `FROZEN` for `optim.frozen`.

    Args:
        in_channels: of one picture.
        stride: pixels per cell of the features.
        scale_channels: of the scale map, 0 for none.
        quality: a further output of one channel (Zhu et al., 2018).
        width: factor of all channels.
        levels: steps of 2; 6 in the source, fewer for small pictures.
        half: read pictures of half the size.
        dtype: activation dtype; None follows input and parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        stride: int = 16,
        scale_channels: int = 0,
        quality: bool = False,
        width: float = 1.0,
        levels: int = 6,
        half: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        host = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.in_channels, self.stride, self.half, self.levels = in_channels, stride, half, levels
        self.gain = _UNIT * (2 if half else 1) / stride
        widths = {n + 1: max(round(width * full), 1) for n, (full, _) in enumerate(_ENCODER)}
        self.encode, dim = nnx.List(), 2 * in_channels
        for level, (_, side) in enumerate(_ENCODER[:levels], 1):
            layers = nnx.List([_conv(dim, widths[level], side, stride=2, **host)])
            dim = widths[level]
            if level > 2:
                layers.append(_conv(dim, dim, 3, **host))
            self.encode.append(layers)
        self.predict, self.raise_flow, self.raise_features = nnx.List(), nnx.List(), nnx.List()
        for level in range(levels - 1, 1, -1):
            raised = max(round(width * _DECODER[level]), 1)
            self.predict.append(_conv(dim, 2, 3, **host))
            self.raise_flow.append(Upconv(2, 2, **host))
            self.raise_features.append(Upconv(dim, raised, **host))
            dim = widths[level] + raised + 2
        last = nnx.initializers.normal(_LAST_STD)
        self.flow = _conv(dim, 2, 3, kernel_init=last, **host)
        zeros, ones = nnx.initializers.zeros_init(), nnx.initializers.ones_init()
        start = dict(kernel_init=zeros, bias_init=ones)
        self.scale = _conv(dim, scale_channels, 1, **start, **host) if scale_channels else None
        self.quality = _conv(dim, 1, 3, kernel_init=last, **host) if quality else None

    def __call__(
        self, current: Float[Array, "b y x c"], key: Float[Array, "b y x c"], size: tuple[int, int]
    ) -> Motion:
        """Returns the motion from the current picture to the key's, on a grid of that size."""
        x = jnp.concatenate([current, key], -1)
        x = avg_pool(x, 2, 2) if self.half else x
        skips = []
        for layers in self.encode:
            for layer in layers:
                x = _leaky(layer(x))
            skips.append(x)
        skips.pop()
        for predict, raise_flow, raise_features in zip(
            self.predict, self.raise_flow, self.raise_features, strict=True
        ):
            skip, flow = skips.pop(), predict(x)
            grid = skip.shape[1:3]
            x = jnp.concatenate([skip, _leaky(raise_features(x, grid)), raise_flow(flow, grid)], -1)
        window = self.stride // (8 if self.half else 4)
        x = avg_pool(x, window, window) if window > 1 else x
        x = resize_bilinear(x, size)
        quality = None if self.quality is None else self.quality(x)[..., 0].astype(jnp.float32)
        scale = None if self.scale is None else self.scale(x)
        return Motion(self.gain * self.flow(x).astype(jnp.float32), scale, quality)

    def rows(self, name: str, image: tuple[int, int], size: tuple[int, int]) -> list[Row]:
        """Returns the lines of the summary for pictures and features of these sizes.

        Args:
            name: the network's path.
            image: (height, width) of the pictures.
            size: of the features.
        """
        rows: list[Row] = []
        grid = tuple(-(-side // 2) for side in image) if self.half else image
        grids = []
        for level, layers in enumerate(self.encode):
            grid = tuple(-(-side // 2) for side in grid)
            grids.append(grid)
            for number, layer in enumerate(layers):
                rows.append(conv_row(f"{name}/encode/{level}/{number}", layer, grid))
        for number in range(len(self.predict)):
            below, grid = grids[-1 - number], grids[-2 - number]
            rows.append(conv_row(f"{name}/predict/{number}", self.predict[number], below))
            for kind in ("raise_flow", "raise_features"):
                layer = getattr(self, kind)[number]
                shape = (*grid, layer.dim_out)
                rows.append((f"{name}/{kind}/{number}", "upconv 4x4", shape, layer.macs(*below)))
        for kind in ("flow", "scale", "quality"):
            if getattr(self, kind) is not None:
                rows.append(conv_row(f"{name}/{kind}", getattr(self, kind), size))
        return rows


class Upconv(nnx.Module):
    """A transposed convolution of 4x4 in steps of 2, cut to a size from its second row and column.

    Written as one 2x2 convolution with the four places between the steps as channels, which are
    then put in their order: XLA's CPU backend has no fast form of a convolution with holes.

    Args:
        dim: input channels.
        dim_out: output channels.
        dtype: activation dtype; None follows input and parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. Kernels start He-normal over the four taps of an output.
    """

    def __init__(self, dim: int, dim_out: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.dim, self.dim_out, self.dtype = dim, dim_out, dtype
        normal = nnx.initializers.normal((2 / (4 * dim)) ** 0.5)
        self.kernel = nnx.Param(normal(rngs.params(), (4, 4, dim, dim_out), param_dtype))
        self.bias = nnx.Param(jnp.zeros(dim_out, param_dtype))

    def __call__(
        self, x: Float[Array, "b h w c"], size: tuple[int, int]
    ) -> Float[Array, "b y x d"]:
        """Maps [b, h, w, dim] to [b, *size, dim_out], each side of size at most twice the map's:
        y[Y] = sum over k of x[i] W[k] where Y + 1 = 2 i + k.
        """
        x, kernel, bias = promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        # Output 2 j + p has the taps p, at input j, and p + 2, at input j - 1.
        kernel = kernel.reshape(2, 2, 2, 2, self.dim, self.dim_out)[::-1, :, ::-1]
        kernel = jnp.moveaxis(kernel, (1, 3), (3, 4)).reshape(2, 2, self.dim, 4 * self.dim_out)
        y = convolution(x, kernel, padding=((1, 1), (1, 1)))
        batch, height, width, _ = y.shape
        y = y.reshape(batch, height, width, 2, 2, self.dim_out)
        y = jnp.swapaxes(y, 2, 3).reshape(batch, 2 * height, 2 * width, self.dim_out)
        return y[:, 1 : size[0] + 1, 1 : size[1] + 1] + bias

    def macs(self, h: int, w: int) -> int:
        """Multiply-accumulates for one [h, w] map."""
        return 16 * h * w * self.dim * self.dim_out


def _conv(dim: int, dim_out: int, side: int, *, stride: int = 1, **options: Any) -> Conv2d:
    options = {"kernel_init": _HE, **options}
    return Conv2d(
        dim, dim_out, (side, side), stride=(stride,) * 2, padding=(side // 2,) * 2, **options
    )


def _leaky(x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, 0.1)


def conv_row(path: str, layer: Conv2d, grid: tuple[int, int]) -> Row:
    """Returns the line of the summary of a convolution whose result is of size `grid`."""
    (side, _), dim, dim_out = layer.kernel_size, layer.in_features, layer.out_features
    macs = grid[0] * grid[1] * side**2 * dim * dim_out
    return path, f"conv {side}x{side}", (*grid, dim_out), macs
