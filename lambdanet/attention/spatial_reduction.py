"""Spatial-reduction attention of PVT (Wang et al. 2021), and the linear form of PVTv2: keys from a
coarser map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import CONV, LAYER_NORM, LINEAR, prefixed
from lambdanet.layers import (
    Captures,
    LayerNorm,
    Linear,
    adaptive_avg_pool,
    check_map,
    is_count,
    trunc_normal,
)
from lambdanet.ops.gelu import gelu
from lambdanet.ops.softmax_attention import dot_attention
from lambdanet.ops.wide_einsum import wide_einsum

CONV_INITS = ("fan_in", "fan_out")
POOLED = 7
"""Side of the map that the linear form takes its keys from."""


@registry.register("spatial_reduction")
class SpatialReductionAttention(Captures, nnx.Module):
    """Multi-head attention of every position to the positions of a map that is `sr_ratio` times
    smaller per axis.

        q = x W_q,   k, v = reduce(x) W_kv                                      (columns [k | v], each head by head)
        y = concat over heads (softmax_j(q_i . k_j / sqrt(d)) v_j) W_o

        reduce(x) = norm(conv(x)), r x r with stride r;            x for sr_ratio=1
        reduce(x) = GELU(norm(conv(pool(x)))), 1x1, on the averages over a 7x7 grid, with
        linear=True

    A mixer: no residual, no norm around it. Time is N N / r^2, in the linear form 49 N; memory is
    linear in N, large maps being handled a block of queries at a time.
    Logits and softmax are computed in float32.

    Maps of any size: the convolution leaves out last rows and columns that fill no window, as the
    reference does; these positions are queries and no keys. A side shorter than r is continued by
    zeros to one window (the reference has then no key at all). The bins of the pooling are
    PyTorch's: from floor(i L / 7) to ceil((i + 1) L / 7), which overlap where 7 does not divide L
    and repeat positions where L < 7.

    With sr_ratio=1 and not linear this is plain multi-head attention and takes lists of tokens [b,
    n, dim], too, as PVT's last stage does with its class token.

    With the view attribute `capture` a call sows `attention_map` [b, heads, *query positions,
    *reduced positions], whose weights sum to one.

    Source: Wang et al. 2021, "Pyramid Vision Transformer" (arXiv 2102.12122), with ratios 8, 4, 2,
    1 in its four stages; Wang et al. 2022, "PVT v2: Improved Baselines with Pyramid Vision
    Transformer" (arXiv 2106.13797) for the linear form.

    Args:
        dim: channels.
        num_heads: heads; divides `dim`.
        sr_ratio: r, side of a window that becomes one key. None means 2, the ratio of PVT's third
            and deepest stage, and is the only choice with `linear`.
        linear: pool to 7x7 in place of the r x r convolution.
        qkv_bias: biases of the projections of queries, keys and values.
        conv_init: 'fan_in' (PVT: kernel and bias uniform within 1 / sqrt(fan_in), PyTorch's
            default) | 'fan_out' (PVTv2: normal with variance 2 / fan_out, bias zero).
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. Kernels of projections start truncated normal 0.02, their
            biases zero.

    Raises:
        ValueError: heads that do not divide the channels, a ratio below 1 or beside `linear`, or an
            unknown conv_init.
    """  # noqa: E501

    kind: ClassVar[str] = "mixer"

    @staticmethod
    def spatial_axes(options: Mapping[str, Any]) -> tuple[int, ...]:
        """Numbers of spatial axes of the input, by the options."""
        return (1, 2) if options["sr_ratio"] == 1 and not options["linear"] else (2,)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        sr_ratio: int | None = None,
        linear: bool = False,
        qkv_bias: bool = True,
        conv_init: str = "fan_in",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not is_count(num_heads) or dim % num_heads:
            raise _error(f"num_heads is {num_heads}; allowed: divisors of dim={dim}")
        if sr_ratio is not None and (not is_count(sr_ratio) or linear):
            raise _error(
                f"sr_ratio is {sr_ratio} with linear={linear}; allowed: an integer of 1 or more, "
                "with linear=True only None"
            )
        if conv_init not in CONV_INITS:
            raise _error(f"conv_init is {conv_init!r}; allowed: {', '.join(CONV_INITS)}")
        self.dim, self.num_heads, self.dtype = dim, num_heads, dtype
        self.linear, self.sr_ratio = linear, 1 if linear else 2 if sr_ratio is None else sr_ratio
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        init = trunc_normal(0.02)
        self.query = Linear(dim, dim, use_bias=qkv_bias, kernel_init=init, **stored)
        self.key_value = Linear(dim, 2 * dim, use_bias=qkv_bias, kernel_init=init, **stored)
        self.output = Linear(dim, dim, kernel_init=init, **stored)
        reduced = linear or self.sr_ratio > 1
        window, inits = (
            (self.sr_ratio, self.sr_ratio),
            _conv_inits(conv_init, self.sr_ratio**2 * dim),
        )
        self.reduction = (
            nnx.Conv(dim, dim, window, strides=window, **inits, **stored) if reduced else None
        )
        self.norm = LayerNorm(dim, epsilon=1e-5, **stored) if reduced else None

    def __call__(
        self, x: Float[Array, "b *s c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *s c"]:
        """Maps [batch, H, W, dim] to the same shape, without a reduction also [batch, n, dim];
        `rngs` is not read.
        """
        check_map("spatial reduction", x, self.dim, (1, 2) if self.reduction is None else (2,))
        x = x.astype(self.dtype or x.dtype)
        reduced = self._reduce(x)
        batch, spatial, seen = x.shape[0], x.shape[1:-1], reduced.shape[1:-1]
        q = self.query(x).reshape(batch, -1, self.num_heads, self.dim // self.num_heads)
        # Split, not indexed: as in `window`.
        k, v = (
            part.reshape(batch, -1, *q.shape[2:])
            for part in jnp.split(self.key_value(reduced), 2, axis=-1)
        )
        y, weights = dot_attention(q, k, v, scale=q.shape[-1] ** -0.5, return_weights=self.capture)
        if self.capture:
            self.sow(
                nnx.Intermediate,
                "attention_map",
                weights.reshape(batch, self.num_heads, *spatial, *seen),
            )
        return self.output(y.reshape(x.shape))

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample: projections, the convolution, both products; pooling
        not counted.
        """
        positions, seen = math.prod(spatial), math.prod(self._reduced(spatial))
        reduction = 0 if self.reduction is None else self.sr_ratio**2 * self.dim
        return self.dim * (
            2 * self.dim * positions + seen * (2 * self.dim + reduction + 2 * positions)
        )

    def _reduced(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the map that keys come from."""
        return (
            (POOLED, POOLED) if self.linear else tuple(max(n // self.sr_ratio, 1) for n in spatial)
        )

    def _reduce(self, x: jax.Array) -> jax.Array:
        if self.reduction is None:
            return x
        rows, columns = self._reduced(x.shape[1:3])
        if self.linear:
            x = adaptive_avg_pool(x, (rows, columns))
        # Windows do not overlap, so the convolution is one matrix product of the regrouped map,
        # forward and backward; with one axis of windows and one of what is in them, so that XLA
        # turns neither map nor kernel.
        r = self.sr_ratio
        missing = [max(r - n, 0) for n in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))[
            :, : rows * r, : columns * r
        ]
        windows = rearrange(x, "b (h r) (w s) c -> (b h w) (r s c)", r=r, s=r)
        kernel, bias = (
            self.reduction.kernel[...].astype(x.dtype),
            self.reduction.bias[...].astype(x.dtype),
        )
        y = wide_einsum("nk,kd->nd", windows, kernel.reshape(-1, self.dim))
        y = y.reshape(x.shape[0], rows, columns, self.dim)
        y = self.norm((y + bias).astype(x.dtype))
        return gelu(y) if self.linear else y


def _conv_inits(kind: str, fan: int) -> dict[str, nnx.Initializer]:
    """Initialisers of kernel and bias; input and output fan are the same."""
    if kind == "fan_out":
        return dict(kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"))

    def uniform(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -(fan**-0.5), fan**-0.5)

    return dict(kernel_init=uniform, bias_init=uniform)


def _error(text: str) -> ValueError:
    return ValueError(f"spatial reduction: {text}")


TORCH_NAMES = (
    *prefixed(LINEAR, r"q\.", "query"),
    *prefixed(LINEAR, r"kv\.", "key_value"),
    *prefixed(LINEAR, r"proj\.", "output"),
    *prefixed(CONV, r"sr\.", "reduction"),
    *prefixed(LAYER_NORM, r"norm\.", "norm"),
)
"""Names of `Attention` in the authors' code of PVT and PVTv2, and in timm's `pvt_v2`."""
