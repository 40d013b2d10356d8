"""Local attention of HaloNet (Vaswani et al. 2021): blocks of queries that share a block of keys
with a halo.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import Rule
from lambdanet.layers import Captures, Linear, check_map, trunc_normal
from lambdanet.ops.halo_windows import halo_windows
from lambdanet.ops.relative_logits import relative_attention, relative_attention_macs


@registry.register("halo_attention")
class HaloAttention(Captures, nnx.Module):
    """Multi-head attention inside windows: a block of queries sees its own block and a halo of keys
    around it.

        logit = q . k / sqrt(d) + q . (height_embedding[j_y - i_y + w - 1] + width_embedding[j_x -
        i_x + w - 1]) y = concat over heads (softmax over the window's w x w keys of the logits,
        times v)

    with w = block_size + 2 halo_size, the query's place i in its block and the key's place j in the
    window. A mixer: no residual, no norm and no output projection, which is the 1x1 convolution
    that follows it in a bottleneck. Time and memory are linear in the number of positions. Logits
    and softmax are computed in float32.

    Outside the map, keys and values are zero, padded after the projection so that a bias does not
    leak; they are not masked: a padded key has content logit zero plus its relative logit and takes
    its share of the softmax, as in timm. A map that is not a multiple of the block is continued
    below and on the right by the same zeros, and the output is cropped; any size works, one smaller
    than a block, too, at the cost of a whole block.

    With the view attribute `capture` a call sows `attention_map` [b, heads, H', W', H, W], zero
    outside the windows; its weights sum to less than one where a window has padded keys.

    Source: Vaswani et al. 2021, "Scaling Local Self-Attention for Parameter Efficient Visual
    Backbones" (arXiv 2103.12731), which has no public code; this is timm's `HaloAttn`, which its
    author calls a work in progress. Relative embeddings are counted from the corner of the window,
    without the halo's offset; part of the table is never read. As in timm the queries of the
    relative logits are not scaled, unless `scale_relative`.

    Args:
        dim: channels of the input.
        num_heads: heads; divides `dim_out`.
        block_size: side of a block of queries.
        halo_size: width of the halo around it.
        key_depth: depth of queries and keys per head, d; None means dim_out / num_heads.
        dim_out: channels of the output; None means `dim`.
        stride: only every stride-th query of a row and of a column is computed, so that the output
            has ceil(size / stride) positions per axis; divides `block_size`. 1 keeps the map's
            size. In the relative embeddings i then counts strided queries and j still counts keys,
            as in timm.
        qkv_bias: biases in the projections.
        scale_relative: scale relative logits by 1 / sqrt(d), too.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: heads that do not divide the channels, or impossible sizes.
    """

    kind: ClassVar[str] = "mixer"
    spatial_axes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        block_size: int = 8,
        halo_size: int = 3,
        key_depth: int | None = None,
        dim_out: int | None = None,
        stride: int = 1,
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
        if block_size < 1 or halo_size < 0:
            raise _error(
                f"block_size is {block_size}, halo_size is {halo_size}; allowed: block_size >= 1, "
                "halo_size >= 0"
            )
        if stride < 1 or block_size % stride:
            raise _error(
                f"stride is {stride}; allowed: divisors of block_size={block_size}; else pool "
                "after the layer"
            )
        self.dim, self.dim_out, self.num_heads, self.dtype = dim, dim_out, num_heads, dtype
        self.key_depth = dim_out // num_heads if key_depth is None else key_depth
        self.block_size, self.halo_size, self.stride = block_size, halo_size, stride
        self.window_size = block_size + 2 * halo_size
        self.scale_relative = scale_relative

        def linear(features):
            init = trunc_normal(dim**-0.5)
            options = dict(
                use_bias=qkv_bias, kernel_init=init, dtype=dtype, param_dtype=param_dtype
            )
            return Linear(dim, features, **options, rngs=rngs)

        def table():
            init = trunc_normal(self.key_depth**-0.5)
            return nnx.Param(
                init(rngs.params(), (2 * self.window_size - 1, self.key_depth), param_dtype)
            )

        self.query = linear(num_heads * self.key_depth)
        # Keys and values stay in one projection: timm's channels are [k | v] head by head.
        self.key_value = linear(num_heads * self.key_depth + dim_out)
        self.height_embedding, self.width_embedding = table(), table()

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b oh ow o"]:
        """Maps [batch, H, W, dim] to [batch, ceil(H / stride), ceil(W / stride), dim_out]; `rngs`
        is not read.
        """
        check_map("halo attention", x, self.dim, self.spatial_axes)
        x = x.astype(self.dtype or x.dtype)
        batch, height, width = x.shape[:3]
        blocks = self._blocks(height, width)
        side = self.block_size // self.stride
        q = self.query(x[:, :: self.stride, :: self.stride])
        rows, columns = q.shape[1:3]
        q = q.reshape(batch, rows, columns, self.num_heads, self.key_depth)
        kv = self.key_value(x).reshape(batch, height, width, self.num_heads, -1)
        for axis, count in (
            (1, blocks[0]),
            (3, blocks[1]),
        ):  # axis 2 becomes 3 once the rows are cut
            q = halo_windows(q, axis, count, side, side, 0)
            kv = halo_windows(kv, axis, count, self.block_size, self.window_size, self.halo_size)
        q, kv = (rearrange(a, "b i y j x n d -> b i j y x n d") for a in (q, kv))
        k, v = kv[..., : self.key_depth], kv[..., self.key_depth :]
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
            shown = self._scatter(weights, blocks, (height, width))
            self.sow(nnx.Intermediate, "attention_map", shown[:, :, :rows, :columns])
        y = rearrange(y, "b i j y x n v -> b (i y) (j x) (n v)")
        return y[:, :rows, :columns]

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample: projections of the map, products of whole blocks,
        padded ones included.
        """
        queries = math.prod(-(-s // self.stride) for s in spatial)
        projections = queries * self.num_heads * self.key_depth
        projections += math.prod(spatial) * (self.num_heads * self.key_depth + self.dim_out)
        block, window = (self.block_size // self.stride,) * 2, (self.window_size,) * 2
        depths = self.key_depth, self.dim_out // self.num_heads
        per_block = relative_attention_macs(block, window, self.num_heads, *depths)
        return self.dim * projections + math.prod(self._blocks(*spatial)) * per_block

    def _blocks(self, *spatial: int) -> tuple[int, ...]:
        return tuple(-(-s // self.block_size) for s in spatial)

    def _scatter(
        self, weights: jax.Array, blocks: tuple[int, int], size: tuple[int, int]
    ) -> jax.Array:
        """[b, block row, block column, heads, y, x, Y, X] -> [b, heads, all y, all x, *size]; keys
        outside are dropped.
        """
        places = []  # [block, place in the window, key on the map], one where they are the same
        for count, length in zip(blocks, size, strict=True):
            key = (
                np.arange(count)[:, None] * self.block_size
                + np.arange(self.window_size)
                - self.halo_size
            )
            places.append((key[..., None] == np.arange(length)).astype(weights.dtype))
        shown = jnp.einsum("bijnyxuv,iuY,jvX->bniyjxYX", weights, *places)
        return rearrange(shown, "b n i y j x Y X -> b n (i y) (j x) Y X")


def _error(text: str) -> ValueError:
    return ValueError(f"halo attention: {text}")


TORCH_NAMES = (
    Rule(r"q\.weight", "query/kernel", "pointwise"),
    Rule(r"q\.bias", "query/bias"),
    Rule(r"kv\.weight", "key_value/kernel", "pointwise"),
    Rule(r"kv\.bias", "key_value/bias"),
    Rule(r"pos_embed\.height_rel", "height_embedding"),
    Rule(r"pos_embed\.width_rel", "width_embedding"),
)
"""Names of timm's `HaloAttn`."""
