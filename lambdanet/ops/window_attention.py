"""Softmax attention inside windows with a bias by relative position, and regions that do not see
each other: all pairs at once, or on large windows some rows of queries at a time, bias and mask
too.

Letters: n heads; y, x row and column of a query in its window; Y, X those of a key.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from lambdanet.ops.blocked_attention import attend_in_blocks, cut, equal_parts, join
from lambdanet.ops.relative_table import dense_embeddings, skew
from lambdanet.ops.softmax_attention import (
    attention_logits,
    chosen_chunk,
    scaled,
    softmax_attention,
)


def window_attention(
    query: Float[Array, "b g n i d"],
    key: Float[Array, "b g n i d"],
    value: Float[Array, "b g n i v"],
    table: Float[Array, "t n"],
    regions: Int[np.ndarray, "g i"] | None,
    *,
    window: tuple[int, int],
    scale: float,
    query_chunk: int | str | None = "auto",
    return_weights: bool = False,
) -> tuple[Float[Array, "b g n i v"], Float[Array, "b g n i j"] | None]:
    """y[i] = sum_j softmax_j(scale q[i] . k[j] + table[offset i - j]) v[j] over the keys of the
    query's window and region.

    Args:
        query: queries of every window, row by row.
        key: keys.
        value: values.
        table: (2 h - 1)(2 w - 1) biases per head, one per offset (query - key), row by row from
            (1 - h, 1 - w).
        regions: number of the region of every position; None is one for all.
        window: (h, w), i = h w.
        scale: factor of the products.
        query_chunk: as for `softmax_attention`; whole rows of a window are taken, one at least,
            whose biases and masks are made together with their logits.
        return_weights: also return the softmax, for which all logits are held.

    Returns:
        The outputs, and the weights in float32 or wider, or None.
    """
    if return_weights:
        query_chunk = None
    if query_chunk == "auto":
        query_chunk = chosen_chunk(query, key, value, heads=False, plain=False, turns=False)
    rows, columns = window
    if query_chunk is None or query_chunk >= rows * columns:
        # The mask is made from small constants and not kept as one: it has as many entries as the
        # logits of one head.
        seen = None if regions is None else _same(jnp.asarray(regions), jnp.asarray(regions))
        options = dict(scale=scale, bias=_all_pairs(table, window), mask=seen, query_chunk=None)
        return softmax_attention(query, key, value, **options, return_weights=return_weights)
    query, scale = scaled(query, scale)
    size = equal_parts(rows, max(1, query_chunk // columns))
    blocks = -(-rows // size)
    own = cut(query.reshape(*query.shape[:-2], rows, columns, -1), -3, size)
    first_tap = size * np.arange(blocks)[::-1]
    own_regions = None
    if regions is not None:
        regions = jnp.asarray(regions)
        own_regions = cut(regions.reshape(-1, rows, columns), -2, size)
    # Columns are written out for all pairs, of rows every offset; the last block may have rows that
    # are none, whose taps lie before the first.
    offsets = skew(jnp.moveaxis(_by_offset(table, window), -1, 0), 2, columns, columns)
    offsets = jnp.pad(offsets, ((0, 0), (blocks * size - rows, 0), (0, 0), (0, 0)))
    logits = [
        partial(_block_logits, scale=scale, sides=(size, rows), keys_first=keys_first)
        for keys_first in (False, True)
    ]
    masks = (jnp.asarray(first_tap), own_regions), regions
    y = attend_in_blocks(*logits, own, (key, offsets), *masks, value)
    return join(y, -2, rows * columns), None


def _by_offset(table: jax.Array, window: tuple[int, int]) -> jax.Array:
    """[2 h - 1, 2 w - 1, n], offsets counted from the query to the key."""
    return table.reshape(2 * window[0] - 1, 2 * window[1] - 1, -1)[::-1, ::-1]


def _all_pairs(table: jax.Array, window: tuple[int, int]) -> jax.Array:
    """[n, i, j]."""
    by_offset = _by_offset(table, window)[:, :, :, None]
    return dense_embeddings(by_offset, window)[:, :, 0].transpose(2, 0, 1)


def _same(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Whether regions are the same, [g, 1, i, j]: of windows, for all heads."""
    return queries[:, None, :, None] == keys[:, None, None, :]


def _block_logits(own, shared, masks, *, scale: float, sides, keys_first: bool) -> jax.Array:
    key, offsets = shared
    (first_tap, own_regions), regions = masks
    size, rows = sides
    query = own.reshape(*own.shape[:-3], -1, own.shape[-1])
    logits = attention_logits(*((key, query) if keys_first else (query, key)), scale=scale)
    taps = jax.lax.dynamic_slice_in_dim(offsets, first_tap, size + rows - 1, axis=1)
    bias = skew(taps.astype(logits.dtype), 1, size, rows)
    order = "(Y X) (y x)" if keys_first else "(y x) (Y X)"
    logits = logits + rearrange(bias, f"n y Y x X -> n {order}")
    if regions is not None:
        lists = own_regions.reshape(len(regions), -1), regions
        seen = _same(*(reversed(lists) if keys_first else lists))
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
    return logits
