"""What the heads have in common: convolutions that all levels share, and the order of their
outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.layers import Conv2d
from lambdanet.ops.wide_einsum import wide_einsum

from ..backbone import Row

HEAD_NORMS = ("none", "group")
"""Norms after the convolutions of heads."""

GROUPS = 32
"""Of the group norms, or as many as divide the channels."""

Sizes = Sequence[tuple[int, int]]


class ConvAct(nnx.Module):
    """relu(norm(conv(x))), a 3x3 convolution with bias; the norm may be left out.

    Args:
        dim: input channels.
        dim_out: output channels.
        norm: 'none' | 'group'.
        kernel_init: how the kernel starts; the bias starts at zero.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        norm: str = "none",
        kernel_init: nnx.Initializer,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.dim, self.dim_out = dim, dim_out
        self.conv = Conv2d(dim, dim_out, (3, 3), padding=(1, 1), kernel_init=kernel_init, **stored)
        groups = max(n for n in range(1, GROUPS + 1) if dim_out % n == 0)
        self.norm = nnx.GroupNorm(dim_out, num_groups=groups, **stored) if norm == "group" else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Maps [b, h, w, dim] to [b, h, w, dim_out]."""
        x = self.conv(x)
        return jax.nn.relu(x if self.norm is None else self.norm(x))

    def rows(self, sizes: Sizes) -> list[Row]:
        """Returns the summary: the layers, run on maps of these sizes, the first of them shown."""
        shape = (*sizes[0], self.dim_out)
        macs = sum(9 * h * w * self.dim * self.dim_out for h, w in sizes)
        norm = [] if self.norm is None else [("norm", "group_norm", shape, 0)]
        return [("conv", "conv 3x3", shape, macs), *norm]


class Tower(nnx.Module):
    """Convolutions in a row, the same for every level of a pyramid.

    Args:
        dim: channels of the input.
        channels: of the convolutions.
        count: number of convolutions.
        norm: as in `ConvAct`.
        kernel_init: as in `ConvAct`.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        count: int,
        *,
        norm: str,
        kernel_init: nnx.Initializer,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        options = dict(
            norm=norm, kernel_init=kernel_init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.convs = nnx.List(
            ConvAct(dim if number == 0 else channels, channels, **options)
            for number in range(count)
        )
        self.dim_out = channels if count else dim

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Maps [b, h, w, dim] to [b, h, w, dim_out]."""
        for conv in self.convs:
            x = conv(x)
        return x

    def rows(self, sizes: Sizes) -> list[Row]:
        """Returns the summary, as `ConvAct.rows`."""
        return [
            (f"convs/{number}/{name}", *rest)
            for number, conv in enumerate(self.convs)
            for name, *rest in conv.rows(sizes)
        ]


class WideLinear(nnx.Linear):
    """A linear layer over the last axis whose products are summed in float32 from operands of the
    activations' dtype: the last layer of a head.

    Args:
        dim: input channels.
        dim_out: outputs.
        std: standard deviation that the kernel starts with; the bias starts at zero.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(self, dim: int, dim_out: int, *, std: float, param_dtype: Any, rngs: nnx.Rngs):
        init = nnx.initializers.normal(std)
        super().__init__(dim, dim_out, kernel_init=init, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        """Maps [..., dim] to float32 [..., dim_out]."""
        y = wide_einsum("...c,cd->...d", x, self.kernel[...].astype(x.dtype))
        return y + self.bias[...].astype(y.dtype)

    def row(self, name: str, positions: int, shape: tuple[int, ...]) -> Row:
        """Returns the line of the summary of so many products."""
        macs = positions * self.in_features * self.out_features
        return name, "linear", (*shape, self.out_features), macs


def flat_levels(maps: Sequence[jax.Array], values: int) -> list[jax.Array]:
    """Returns maps [b, h, w, a * values] as [b, h * w * a, values] each: in the order of the
    anchors.
    """
    return [x.reshape(x.shape[0], -1, values) for x in maps]


def positions(sizes: Sizes) -> int:
    """Returns the number of positions of all maps."""
    return sum(h * w for h, w in sizes)
