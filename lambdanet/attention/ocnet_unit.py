"""The self-attention unit of the object context modules."""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from lambdanet.layers import (
    Captures,
    Linear,
    PointwiseNormAct,
    max_pool_cells,
    resize_bilinear,
    resize_macs,
)
from lambdanet.ops.cell_attention import cell_attention, cell_runs, full_map


class ObjectContextUnit(Captures, nnx.Module):
    """softmax(q k^T / sqrt(key_dim)) v W_o + b_o on the pooled map, inside cells, resized to the
    map; W_o and b_o start at 0.

    Args:
        dim: channels of the input.
        key_dim: channels of queries and keys.
        value_dim: channels of values.
        dim_out: channels of the output.
        pool: side of the windows whose maxima are attended to.
        cells: cells per axis.
        share_qk: queries are the keys.
        num_qk_convs: layers of the projections of queries and keys.
        options: of `PointwiseNormAct`.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        value_dim: int,
        dim_out: int,
        *,
        pool: int = 1,
        cells: int = 1,
        share_qk: bool,
        num_qk_convs: int,
        activation: str,
        norm_momentum: float,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.key_dim, self.pool, self.cells = key_dim, pool, cells
        linear = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        norm = dict(bias=True, activation=activation, norm_momentum=norm_momentum, **linear)
        widths = (dim, *[key_dim] * (num_qk_convs - 1))
        self.key = nnx.List(PointwiseNormAct(width, key_dim, **norm) for width in widths)
        self.query = (
            None
            if share_qk
            else nnx.List(PointwiseNormAct(width, key_dim, **norm) for width in widths)
        )
        self.value = Linear(dim, value_dim, **linear)
        self.out = Linear(value_dim, dim_out, kernel_init=nnx.initializers.zeros_init(), **linear)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Maps [b, h, w, dim] to [b, h, w, dim_out]."""
        batch, *size, _ = x.shape
        x = max_pool_cells(x, [min(self.pool, side) for side in x.shape[1:3]])
        (h, w), key = x.shape[1:3], x
        for layer in self.key:
            key = layer(key)
        query = key
        if self.query is not None:
            query = x
            for layer in self.query:
                query = layer(query)
        context, weights = cell_attention(
            query,
            key,
            self.value(x),
            cells=self.cells,
            scale=self.key_dim**-0.5,
            return_weights=self.capture,
        )
        if self.capture:  # resizing is linear, so it applies to the queries' axes of the map
            full = full_map(weights, (h, w), self.cells).reshape(batch, h, w, -1)
            full = resize_bilinear(full, tuple(size), align_corners=True)
            self.sow(nnx.Intermediate, "attention_map", full.reshape(batch, 1, *size, h, w))
        return resize_bilinear(self.out(context), tuple(size), align_corners=True)

    def macs(self, h: int, w: int) -> int:
        """Multiply-accumulates for one [h, w] map: projections, attention and resizing."""
        ph, pw = (max(side // self.pool, 1) for side in (h, w))
        value, out = (layer.in_features * layer.out_features for layer in (self.value, self.out))
        layers = (*self.key, *(self.query or ()))
        # A cell attends to itself: squared cell sizes, which factor into rows and columns.
        pairs = 1
        for side in (ph, pw):
            pairs *= sum(count * length**2 for _, count, length in cell_runs(side, self.cells))
        projections = sum(layer.macs(ph * pw) for layer in layers) + ph * pw * (value + out)
        products = pairs * (self.key_dim + self.value.out_features)
        return projections + products + resize_macs((ph, pw), (h, w), self.out.out_features)
