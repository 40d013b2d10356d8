"""Relative logits on a grid, q . (E_h[key row - query row] + E_w[key column - query column]), and
attention with them.

The sum of the two embeddings is never written out per pair of positions: a query's logits are one
number per key row plus one per key column, made from tables [rows, rows, d] and [columns, columns,
d].

Letters: y, x query row and column; Y, X key row and column; h heads; d query and key depth; v value
depth.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lambdanet.ops.relative_table import skew
from lambdanet.ops.wide_einsum import wide_einsum


def axis_embeddings(table: Float[Array, "t d"], queries: int, keys: int) -> Float[Array, "q k d"]:
    """Writes a table of relative embeddings out for one axis: out[i, j] = table[j - i + (t - 1) /
    2].

    Positions are counted from the first query and the first key. A table of 2 w - 1 taps serves a
    window of w keys with up to w queries; fewer queries leave its first taps unused.

    Raises:
        ValueError: an offset has no tap.
    """
    centre = (table.shape[0] - 1) // 2
    if table.shape[0] % 2 == 0 or max(queries, keys) > centre + 1:
        raise ValueError(
            f"relative logits: {table.shape[0]} taps do not cover {queries} queries and {keys} keys"
        )
    return skew(table[centre - queries + 1 : centre + keys], 0, queries, keys)


def relative_logits(
    q: Float[Array, "*b y x h d"],
    height: Float[Array, "t d"],
    width: Float[Array, "s d"],
    keys: tuple[int, int],
) -> tuple[Float[Array, "*b h y x Y"], Float[Array, "*b h y x X"]]:
    """Returns the two parts of the relative logits, in float32 or wider; the logit of a pair is
    their sum.

    Args:
        q: queries on a grid, y x positions.
        height: embeddings of row offsets, at least 2 max(y, Y) - 1 taps.
        width: embeddings of column offsets.
        keys: rows and columns of the keys' grid, Y and X.

    Returns:
        q . height[Y - y + centre] and q . width[X - x + centre], over which the other key axis
        broadcasts.
    """
    rows = axis_embeddings(height, q.shape[-4], keys[0]).astype(q.dtype)
    columns = axis_embeddings(width, q.shape[-3], keys[1]).astype(q.dtype)
    return (
        wide_einsum("...yxhd,yYd->...hyxY", q, rows),
        wide_einsum("...yxhd,xXd->...hyxX", q, columns),
    )


def relative_attention(
    q: Float[Array, "*b y x h d"],
    k: Float[Array, "*b Y X h d"],
    v: Float[Array, "*b Y X h v"],
    height: Float[Array, "t d"],
    width: Float[Array, "s d"],
    *,
    scale: float,
    relative_scale: float,
) -> tuple[Float[Array, "*b y x h v"], Float[Array, "*b h y x Y X"]]:
    """softmax over all keys of scale q . k + relative_scale (relative logits), times the values.

    Args:
        q: queries on a grid; every axis before it is a batch.
        k: keys on a grid of their own.
        v: values, one per key.
        height: embeddings of row offsets, see `relative_logits`.
        width: embeddings of column offsets.
        scale: factor of the content logits.
        relative_scale: factor of the relative logits.

    Returns:
        The mixed values in the dtype of `v`, and the weights in float32 or wider.
    """
    rows, columns = relative_logits(q, height, width, k.shape[-4:-2])
    content = wide_einsum("...yxhd,...YXhd->...hyxYX", q, k)
    logits = content * scale + (rows[..., None] + columns[..., None, :]) * relative_scale
    weights = jax.nn.softmax(logits, axis=(-2, -1))
    return jnp.einsum("...hyxYX,...YXhv->...yxhv", weights.astype(v.dtype), v), weights


def relative_attention_macs(
    queries: tuple[int, int], keys: tuple[int, int], heads: int, depth: int, value: int
) -> int:
    """Multiply-adds of `relative_attention` on one grid."""
    pairs = queries[0] * queries[1] * keys[0] * keys[1]
    relative = queries[0] * queries[1] * (keys[0] + keys[1]) * depth
    return heads * (pairs * (depth + value) + relative)
