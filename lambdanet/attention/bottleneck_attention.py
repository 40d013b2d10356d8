"""Attention of Bottleneck Transformers (Srinivas et al. 2021): all pairs of a map, with 2-D
relative positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import Rule
from lambdanet.layers import Captures, Linear, check_map, trunc_normal
from lambdanet.ops.relative_logits import relative_attention, relative_attention_macs
from lambdanet.ops.relative_table import resize_table

_TABLES = ("height_embedding", "width_embedding")


@registry.register("bottleneck_attention")
class BottleneckAttention(Captures, nnx.Module):
    """Multi-head attention over a whole map, its logits q . k plus relative logits per row and
    column offset.

        logit[(y, x), (Y, X)] = q . k / sqrt(d) + q . (height_embedding[Y - y + H - 1] +
        width_embedding[X - x + W - 1]) y = concat over heads (softmax over (Y, X) of the logits,
        times v),  q, k, v = x W_q, x W_k, x W_v

    A mixer: no residual, no norm and no output projection, which is the 1x1 convolution that
    follows it in a bottleneck. The tables are tied to the map size. Time is quadratic in the
    number of positions, memory linear: on large maps all logits, the relative ones too, are made
    for some rows of queries at a time. Relative logits are made per axis, without an embedding per
    pair. Logits and softmax are computed in float32.

    With the view attribute `capture` a call sows `attention_map` [b, heads, H, W, H, W].

    Source: Srinivas et al. 2021, "Bottleneck Transformers for Visual Recognition" (arXiv
    2101.11605), as timm implements it (`BottleneckAttn`). There the queries of the relative logits
    are not scaled by 1 / sqrt(d), the default here; `scale_relative=True` scales both parts. A
    stride, which timm makes by a 2x2 average after the attention, is the host network's business.

    Args:
        dim: channels of the input.
        num_heads: heads; divides `dim_out`.
        key_depth: depth of queries and keys per head, d; None means dim_out / num_heads.
        dim_out: channels of the output; None means `dim`.
        size: map size (H, W).
        qkv_bias: biases in the projections.
        scale_relative: scale relative logits by 1 / sqrt(d), too.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: heads that do not divide the channels, or no size.
    """

    kind: ClassVar[str] = "mixer"
    spatial_axes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        key_depth: int | None = None,
        dim_out: int | None = None,
        size: tuple[int, int] | None = None,
        qkv_bias: bool = False,
        scale_relative: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dim_out = dim if dim_out is None else dim_out
        if num_heads < 1 or dim_out % num_heads:
            raise _error(f"num_heads is {num_heads}; allowed: divisors of dim_out={dim_out}")
        if key_depth is not None and key_depth < 1:
            raise _error(f"key_depth is {key_depth}; allowed: 1 or more, or None")
        if size is None or len(size) != 2 or min(size) < 1:
            raise _error(
                f"size is {size}; allowed: the map's (height, width), to which its embeddings are "
                "tied"
            )
        self.dim, self.dim_out, self.num_heads, self.dtype = dim, dim_out, num_heads, dtype
        self.key_depth = dim_out // num_heads if key_depth is None else key_depth
        self.size, self.scale_relative = tuple(size), scale_relative

        def linear(features):
            init = trunc_normal(dim**-0.5)
            options = dict(
                use_bias=qkv_bias, kernel_init=init, dtype=dtype, param_dtype=param_dtype
            )
            return Linear(dim, features, **options, rngs=rngs)

        def table(side):
            init = trunc_normal(self.key_depth**-0.5)
            return nnx.Param(init(rngs.params(), (2 * side - 1, self.key_depth), param_dtype))

        self.query, self.key = (
            linear(num_heads * self.key_depth),
            linear(num_heads * self.key_depth),
        )
        self.value = linear(dim_out)
        self.height_embedding, self.width_embedding = map(table, self.size)

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w o"]:
        """Maps [batch, H, W, dim] to [batch, H, W, dim_out]; `rngs` is not read.

        Raises:
            ValueError: a map of another size.
        """
        check_map("bottleneck attention", x, self.dim, self.spatial_axes)
        if x.shape[1:3] != self.size:
            raise _error(
                f"the map has size {x.shape[1:3]}, the embeddings are for size {self.size}; build "
                "the layer with "
                f"size={x.shape[1:3]} and convert its weights with resize_params"
            )
        x = x.astype(self.dtype or x.dtype)
        q, k, v = (
            linear(x).reshape(*x.shape[:3], self.num_heads, -1)
            for linear in (self.query, self.key, self.value)
        )
        scale = self.key_depth**-0.5
        scales = dict(scale=scale, relative_scale=scale if self.scale_relative else 1.0)
        y, weights = relative_attention(
            q,
            k,
            v,
            self.height_embedding[...],
            self.width_embedding[...],
            return_weights=self.capture,
            **scales,
        )
        if self.capture:
            self.sow(nnx.Intermediate, "attention_map", weights)
        return y.reshape(*x.shape[:3], self.dim_out)

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample: projections, both products over all pairs, relative
        logits per axis.
        """
        depths = self.key_depth, self.dim_out // self.num_heads
        projections = (
            spatial[0]
            * spatial[1]
            * self.dim
            * (2 * self.num_heads * self.key_depth + self.dim_out)
        )
        return projections + relative_attention_macs(spatial, spatial, self.num_heads, *depths)


def resize_params(
    params: Mapping[str, Any], old: Sequence[int], new: Sequence[int]
) -> dict[str, Any]:
    """Converts a layer's parameters to another map size.

    Per axis, a smaller map takes the centre of the table, which leaves the embedding of every
    offset as it is; a larger one interpolates linearly, see `relative_table.resize_table`.

    Args:
        params: the layer's parameters by name, as `nnx.to_pure_dict` gives them.
        old: map size (H, W) that they belong to.
        new: map size wanted.

    Returns:
        The same parameters with tables of 2 * new - 1 taps.

    Raises:
        ValueError: the tables are not for the old size.
    """
    sizes = zip(_TABLES, old, new, strict=True)
    resized = {
        name: resize_table(params[name][:, None], (before,), (after,))[:, 0]
        for name, before, after in sizes
    }
    return {**params, **resized}


def _error(text: str) -> ValueError:
    return ValueError(f"bottleneck attention: {text}")


TORCH_NAMES = (
    Rule(r"qkv\.weight", ("query/kernel", "key/kernel", "value/kernel"), "pointwise"),
    Rule(r"qkv\.bias", ("query/bias", "key/bias", "value/bias")),
    Rule(r"pos_embed\.height_rel", "height_embedding"),
    Rule(r"pos_embed\.width_rel", "width_embedding"),
)
"""Names of timm's `BottleneckAttn`: one fused projection with the channels [q | k | v], each head
by head.
"""
