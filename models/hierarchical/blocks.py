"""Blocks of hierarchical vision Transformers: MLP and residual block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.layers import DropPath, LayerNorm, LayerScale
from lambdanet.ops.depthwise import depthwise_conv
from lambdanet.ops.gelu import gelu

from ..backbone import Row
from .embeddings import conv_inits, linear

MLP_KINDS = ("plain", "depthwise", "depthwise_linear")


class Mlp(nnx.Module):
    """fc2(gelu(fc1(x))) at every position; GELU is the exact one.

    'depthwise' has a depthwise 3x3 convolution with bias before the activation, 'depthwise_linear'
    also a ReLU before that. Source of these: Wang et al. 2022, "PVT v2".

    Args:
        dim: channels in and out.
        hidden: channels between.
        kind: 'plain' | 'depthwise' | 'depthwise_linear'.
        conv_init: one of `CONV_INITS`.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        kind: str = "plain",
        conv_init: str = "fan_in",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if kind not in MLP_KINDS:
            raise ValueError(f"mlp: kind is {kind!r}; allowed: {', '.join(MLP_KINDS)}")
        self.dim, self.hidden, self.rectify = dim, hidden, kind == "depthwise_linear"
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.fc1 = linear(dim, hidden, **stored)
        self.depthwise = (
            None if kind == "plain" else DepthwiseConv(hidden, conv_init=conv_init, **stored)
        )
        self.fc2 = linear(hidden, dim, **stored)

    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        """Maps [b, ..., dim] to the same shape; with a convolution [b, h, w, dim]."""
        x = self.fc1(x)
        if self.depthwise is not None:
            x = self.depthwise(jax.nn.relu(x) if self.rectify else x)
        return self.fc2(gelu(x))

    def macs(self, positions: int) -> int:
        """Multiply-accumulates for a sample of so many positions, taps on padding included."""
        taps = 0 if self.depthwise is None else 9
        return positions * self.hidden * (2 * self.dim + taps)


class DepthwiseConv(nnx.Module):
    """A 3x3 convolution of each channel with itself, one zero on every side.

    Args:
        dim: channels.
        conv_init: one of `CONV_INITS`.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(self, dim: int, *, conv_init: str, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        kernel_init, bias_init = conv_inits(conv_init, 9, 9)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (3, 3, 1, dim), param_dtype))
        self.bias = nnx.Param(bias_init(rngs.params(), (dim,), param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps [b, h, w, dim] to the same shape."""
        return depthwise_conv(x.astype(self.dtype or x.dtype), self.kernel[...], self.bias[...])


class TransformerBlock(nnx.Module):
    """x = x + drop_path(layer_scale1(attention(norm1(x)))); x = x +
    drop_path(layer_scale2(mlp(norm2(x)))); then the context.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", for the pre-norm block;
    Touvron et al. 2021, "Going deeper with Image Transformers", for layer scale.

    Args:
        dim: channels.
        attention: the mixer, already built. `__call__` hands it the normed map; a host whose
            attention takes or returns more calls `attention` itself and goes on with `finish`.
        hidden: channels inside the MLP.
        mlp: kind of the MLP, see `Mlp`.
        layer_scale: value that the factors of both branches start with; None for no factors.
        context: context blocks, already built, that stand after the block in this order; they carry
            their own residuals.
        drop_path_rate: probability of dropping each of the two branches.
        conv_init: one of `CONV_INITS`.
        epsilon: of both norms.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        attention: nnx.Module,
        *,
        hidden: int,
        mlp: str = "plain",
        layer_scale: float | None = None,
        context: Iterable[nnx.Module] = (),
        drop_path_rate: float = 0.0,
        conv_init: str = "fan_in",
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        def scale():
            return (
                None
                if layer_scale is None
                else LayerScale(dim, layer_scale, param_dtype=param_dtype)
            )

        self.dim = dim
        self.norm1, self.attention, self.layer_scale1 = (
            LayerNorm(dim, epsilon=epsilon, **stored),
            attention,
            scale(),
        )
        self.norm2 = LayerNorm(dim, epsilon=epsilon, **stored)
        self.mlp = Mlp(dim, hidden, kind=mlp, conv_init=conv_init, **stored)
        self.layer_scale2 = scale()
        self.drop_path = DropPath(drop_path_rate)
        self.context = nnx.List(context)

    def __call__(
        self, x: Float[Array, "b *s c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *s c"]:
        """Maps [b, ..., dim] to the same shape; `rngs.dropout` is read in the training view when
        something is dropped.
        """
        return self.finish(x, self.attention(self.norm1(x), rngs=rngs), rngs=rngs)

    def finish(
        self,
        x: Float[Array, "b *s c"],
        mixed: Float[Array, "b *s c"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b *s c"]:
        """Adds what the attention made of `norm1(x)`, then the MLP's branch; then the context
        blocks.
        """
        x = x + self._branch(mixed, self.layer_scale1, rngs)
        x = x + self._branch(self.mlp(self.norm2(x)), self.layer_scale2, rngs)
        for block in self.context:
            x = block(x, rngs=rngs)
        return x

    def _branch(self, y: jax.Array, scale: LayerScale | None, rngs: nnx.Rngs | None) -> jax.Array:
        return self.drop_path(y if scale is None else scale(y), rngs=rngs)

    def rows(self, h: int, w: int, *, tokens: int = 0) -> list[Row]:
        """Returns the summary for one [h, w] map, read as a list when `tokens` more are put before
        it.
        """
        shape = (h * w + tokens, self.dim) if tokens else (h, w, self.dim)
        rows = [
            ("norm1", "layer_norm", shape, 0),
            ("attention", type(self.attention).__name__, shape, self.attention.macs(*shape[:-1])),
            ("norm2", "layer_norm", shape, 0),
            ("mlp", "mlp", shape, self.mlp.macs(h * w + tokens)),
        ]
        if self.layer_scale1 is not None:
            rows.insert(2, ("layer_scale1", "layer_scale", shape, 0))
            rows.append(("layer_scale2", "layer_scale", shape, 0))
        made = enumerate(self.context)
        return rows + [
            (f"context/{i}", type(block).__name__, shape, block.macs(*shape[:-1]))
            for i, block in made
        ]
