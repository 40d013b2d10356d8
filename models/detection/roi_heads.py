"""What runs on regions: classes and boxes of proposals, masks of boxes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .parts import Tower, WideLinear

_XAVIER = nnx.initializers.xavier_uniform()
_HE = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class BoxHead(nnx.Module):
    """x = relu(fc2(relu(fc1(flat(region)))));  classes = classify(x),  offsets = regress(x).

    Source: Lin et al. 2017, "Feature Pyramid Networks for Object Detection". Fully connected layers
    start Xavier-uniform, the classifier normal 0.01, the offsets normal 0.001.

    Args:
        dim: channels of a region.
        size: its side.
        channels: of the two layers.
        num_outputs: classes with the background, as `classify` has them.
        num_boxes: classes that have offsets.
        dtype: activation dtype; results are float32.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: int,
        channels: int,
        num_outputs: int,
        num_boxes: int,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.num_boxes = num_boxes
        self.fc1 = nnx.Linear(size * size * dim, channels, kernel_init=_XAVIER, **stored)
        self.fc2 = nnx.Linear(channels, channels, kernel_init=_XAVIER, **stored)
        last = dict(param_dtype=param_dtype, rngs=rngs)
        self.classify = WideLinear(channels, num_outputs, std=0.01, **last)
        self.regress = WideLinear(channels, 4 * num_boxes, std=0.001, **last)

    def __call__(
        self, regions: Float[Array, "b r s s c"]
    ) -> tuple[Float[Array, "b r k"], Float[Array, "b r n 4"]]:
        """Returns (logits of the classes, offsets of every class), in float32."""
        x = regions.reshape(*regions.shape[:2], -1)
        x = jax.nn.relu(self.fc2(jax.nn.relu(self.fc1(x))))
        deltas = self.regress(x)
        return self.classify(x), deltas.reshape(*deltas.shape[:2], self.num_boxes, 4)

    def rows(self, regions: int) -> list[tuple]:
        """Returns the summary for so many regions."""
        rows = [
            (
                name,
                "linear",
                (layer.out_features,),
                regions * layer.in_features * layer.out_features,
            )
            for name, layer in (("fc1", self.fc1), ("fc2", self.fc2))
        ]
        rows.append(self.classify.row("classify", regions, ()))
        return [*rows, self.regress.row("regress", regions, ())]


class DoubleSize(nnx.Module):
    """A transposed convolution with 2x2 taps and stride 2: every position becomes four.

    Args:
        dim: input channels.
        dim_out: output channels.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. The kernel [2, 2, dim, dim_out] starts He-normal over the
            outgoing fan, the bias at zero.
    """

    def __init__(self, dim: int, dim_out: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.dim, self.dim_out, self.dtype = dim, dim_out, dtype
        self.kernel = nnx.Param(_HE(rngs.params(), (2, 2, dim, dim_out), param_dtype))
        self.bias = nnx.Param(jnp.zeros((dim_out,), param_dtype))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow d"]:
        """Maps [n, h, w, dim] to [n, 2 h, 2 w, dim_out]."""
        dtype = self.dtype or x.dtype
        kernel, bias = self.kernel[...].astype(dtype), self.bias[...].astype(dtype)
        h, w = x.shape[1:3]
        y = jnp.einsum("nhwc,ijcd->nhiwjd", x.astype(dtype), kernel)
        return y.reshape(-1, 2 * h, 2 * w, self.dim_out) + bias

    def macs(self, h: int, w: int) -> int:
        """Multiply-accumulates of one [h, w] input map."""
        return 4 * h * w * self.dim * self.dim_out


class MaskHead(nnx.Module):
    """logits = classify(relu(double(convs(region)))): a mask for every class, twice the region's
    side.

    Source: He et al. 2017, "Mask R-CNN". Kernels start He-normal over the outgoing fan.

    Args:
        dim: channels of a region.
        channels: of the convolutions.
        num_convs: number of 3x3 convolutions.
        num_outputs: masks.
        norm: after the convolutions, see `ConvAct`.
        dtype: activation dtype; results are float32.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: int,
        num_convs: int,
        num_outputs: int,
        norm: str,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.tower = Tower(dim, channels, num_convs, norm=norm, kernel_init=_HE, **stored)
        self.double = DoubleSize(self.tower.dim_out, channels, **stored)
        std = (2 / num_outputs) ** 0.5
        self.classify = WideLinear(
            channels, num_outputs, std=std, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, regions: Float[Array, "b r s s c"]) -> Float[Array, "b r _s _s k"]:
        """Returns the logits of every class, in float32."""
        batch, count, side, _, dim = regions.shape
        x = self.tower(regions.reshape(-1, side, side, dim))
        logits = self.classify(jax.nn.relu(self.double(x)))
        return logits.reshape(batch, count, *logits.shape[1:])

    def rows(self, regions: int, side: int) -> list[tuple]:
        """Returns the summary for so many regions with that side."""
        sizes = [(side, side)] * regions
        rows = [(f"tower/{name}", *rest) for name, *rest in self.tower.rows(sizes)]
        size = (2 * side, 2 * side)
        macs = regions * self.double.macs(side, side)
        rows.append(("double", "conv 2x2 transposed", (*size, self.double.dim_out), macs))
        return [*rows, self.classify.row("classify", regions * 4 * side * side, size)]
