"""Relative logits on a grid, q . (E_h[key row - query row] + E_w[key column - query column]), and
attention with them.

The sum of the two embeddings is never written out per pair of positions: a query's relative logits
are one number per key row plus one per key column, made from tables [rows, rows, d] and [columns,
columns, d]; on large maps for some rows of queries at a time, or one head after the other.

Letters: y, x query row and column; Y, X key row and column; h heads; d query and key depth; v value
depth.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lambdanet.ops.attention_lowering import Turns
from lambdanet.ops.blocked_attention import attend_in_blocks, cut, equal_parts, join
from lambdanet.ops.relative_table import skew
from lambdanet.ops.softmax_attention import chosen_chunk, mix_values
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


def relative_attention(
    q: Float[Array, "*b y x h d"],
    k: Float[Array, "*b Y X h d"],
    v: Float[Array, "*b Y X h v"],
    height: Float[Array, "t d"],
    width: Float[Array, "s d"],
    *,
    scale: float,
    relative_scale: float,
    query_chunk: int | str | Turns | None = "auto",
    return_weights: bool = False,
) -> tuple[Float[Array, "*b y x h v"], Float[Array, "*b h y x Y X"] | None]:
    """softmax over all keys of scale q . k + relative_scale (relative logits), times the values.

    Args:
        q: queries on a grid; every axis before it is a batch.
        k: keys on a grid of their own.
        v: values, one per key.
        height: embeddings of row offsets, at least 2 max(y, Y) - 1 taps.
        width: embeddings of column offsets.
        scale: factor of the content logits.
        relative_scale: factor of the relative logits.
        query_chunk: as for `softmax_attention`; whole rows of queries are taken, one at least,
            whose logits are made together, relative ones too; turns are of heads.
        return_weights: also return the softmax, for which all logits are held.

    Returns:
        The mixed values in the dtype of `v`, and the weights in float32 or wider, or None.
    """
    *batch, rows, columns, heads, depth = q.shape
    grid = k.shape[-4:-2]
    q, k, v = (jnp.moveaxis(a, -2, -4) for a in (q, k, v))
    k, v = (a.reshape(*a.shape[:-3], -1, a.shape[-1]) for a in (k, v))
    if return_weights:
        query_chunk = None
    if query_chunk == "auto":
        flat = q.reshape(*batch, heads, rows * columns, depth)
        query_chunk = chosen_chunk(flat, k, v, heads=False, plain=False, turns=True)
    above = axis_embeddings(height, rows, grid[0]).astype(q.dtype)
    beside = axis_embeddings(width, columns, grid[1]).astype(q.dtype)
    scales = dict(scale=scale, relative_scale=relative_scale)
    logits_of, keys_first = partial(_logits, **scales), partial(_logits_keys_first, **scales)

    def in_blocks(q, k, v, queries):
        size = equal_parts(rows, max(1, queries // columns))
        own = cut(q, -3, size), cut(above, -3, size)
        y = attend_in_blocks(logits_of, keys_first, own, (k, beside), None, None, v)
        return join(y, -2, rows * columns)

    weights = None
    if isinstance(query_chunk, Turns):
        together = (query_chunk.problems,) if query_chunk.problems > 1 else ()
        parts = (
            q.reshape(-1, *together, *q.shape[-3:]),
            *(a.reshape(-1, *together, *a.shape[-2:]) for a in (k, v)),
        )
        y = jax.lax.map(lambda part: in_blocks(*part, query_chunk.queries), parts)
    elif query_chunk is None or query_chunk >= rows * columns:
        y, weights = mix_values(logits_of((q, above), (k, beside), None), v)
    else:
        y = in_blocks(q, k, v, query_chunk)
    y = jnp.moveaxis(y.reshape(*batch, heads, rows, columns, -1), -4, -2)
    if not return_weights:
        return y, None
    return y, weights.reshape(*batch, heads, rows, columns, *grid)


def _logits(own, shared, masks, *, scale: float, relative_scale: float) -> jax.Array:
    """Logits of a list of queries and one of keys, both row by row; there are no masks.

    The three are added with the queries as one axis: where the compiler has to find row and column
    of every number, it does not use the processor's vectors.
    """
    (q, above), (k, beside) = own, shared
    content = wide_einsum("...qd,...md->...qm", _flat(q), k) * scale
    rows = _flat(wide_einsum("...yxd,yYd->...yxY", q, above)) * relative_scale
    columns = _flat(wide_einsum("...yxd,xXd->...yxX", q, beside)) * relative_scale
    relative = rows[..., None] + columns[..., None, :]
    return (content.reshape(relative.shape) + relative).reshape(content.shape)


def _logits_keys_first(own, shared, masks, *, scale: float, relative_scale: float) -> jax.Array:
    """`_logits` with the last two axes exchanged."""
    (q, above), (k, beside) = own, shared
    content = wide_einsum("...md,...qd->...mq", k, _flat(q)) * scale
    rows = wide_einsum("...yxd,yYd->...Yyx", q, above) * relative_scale
    columns = wide_einsum("...yxd,xXd->...Xyx", q, beside) * relative_scale
    rows, columns = (a.reshape(*a.shape[:-2], -1) for a in (rows, columns))
    relative = rows[..., None, :] + columns[..., None, :, :]
    return (content.reshape(relative.shape) + relative).reshape(content.shape)


def _flat(a: jax.Array) -> jax.Array:
    """Joins rows and columns of queries: [.., y, x, d] -> [.., q, d]."""
    return a.reshape(*a.shape[:-3], -1, a.shape[-1])


def relative_attention_macs(
    queries: tuple[int, int], keys: tuple[int, int], heads: int, depth: int, value: int
) -> int:
    """Multiply-adds of `relative_attention` on one grid."""
    pairs = queries[0] * queries[1] * keys[0] * keys[1]
    relative = queries[0] * queries[1] * (keys[0] + keys[1]) * depth
    return heads * (pairs * (depth + value) + relative)
