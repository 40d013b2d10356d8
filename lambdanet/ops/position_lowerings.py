"""Lowerings of the position lambdas by direct sums: over all pairs, by chunks of query rows, by
tiles of queries, and as a convolution.

Called by `position_lambda`, which has checked the shapes and clipped the table; `spectral_lambda`
has the other lowering. Layouts and letters as in `position_lambda`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from lambdanet.ops import cost_model
from lambdanet.ops.halo_windows import halo_windows
from lambdanet.ops.relative_table import channels_first, merge_pairs, pairs_of_rest, skew, spread


def by_pairs(
    impl: str, q: jax.Array, v: jax.Array, dense: jax.Array, content: jax.Array | None = None
) -> jax.Array:
    """q [b, n, h, k], v [b, m, u, v], dense [n, k, u, m] -> [b, n, h, v], in lambda or attention
    order; in attention order with content lambdas [b, k, v]: values of k more context elements,
    whose logits are the query itself.
    """
    # Written out in its own (float32) dtype and cast here, so that under bfloat16 the gradients of
    # all pairs of one offset are added up in float32.
    dense = dense.astype(q.dtype)
    v = v.swapaxes(1, 2)
    if impl == "dense":
        lambdas = jnp.einsum("nkum,bumv->nkbv", dense, v)  # one product [n k, u m] x [u m, b v]
        return jnp.einsum("bnhk,nkbv->bnhv", q, lambdas)
    batch, n, h, k = q.shape
    # One product per query, then one per image. JAX's own gradients, so that every transformation
    # of it works; written by hand they are no faster.
    logits = q.swapaxes(0, 1).reshape(n, batch * h, k) @ dense.reshape(n, k, -1)
    logits = logits.reshape(n, batch, h, -1).swapaxes(0, 1).reshape(batch, n * h, -1)
    v = v.reshape(batch, -1, v.shape[-1])
    if content is not None:
        logits = jnp.concatenate([logits, q.reshape(batch, n * h, k)], -1)
        v = jnp.concatenate([v, content.astype(v.dtype)], 1)
    return (logits @ v).reshape(batch, n, h, -1)


def by_convolution(
    q: jax.Array, v: jax.Array, table: jax.Array, dilation: Sequence[int]
) -> jax.Array:
    """Lambda order; value depth in the batch, so that the kernel is the table, [*c, u, k]."""
    axes = v.ndim - 3
    spatial = "DHW"[3 - axes :]
    reach = [(c - 1) // 2 * d for c, d in zip(table.shape[:axes], dilation, strict=True)]
    x = jnp.moveaxis(v, -1, 1)  # b v *s u
    lambdas = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        table.astype(q.dtype),
        (1,) * axes,
        [(p, p) for p in reach],
        rhs_dilation=tuple(dilation),
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )
    lambdas = lambdas.reshape(*x.shape[:-1], -1)  # b v *s k
    return jnp.einsum("b...hk,bv...k->b...hv", q, lambdas)


def by_row_chunks(
    q: jax.Array, v: jax.Array, table: jax.Array, dilation: Sequence[int], rows: int
) -> jax.Array:
    """Attention order, chunk by chunk along the first axis; the last chunk is padded with zero
    queries.
    """
    batch, height, *rest = v.shape[:-2]
    rows = min(rows, height)
    chunks = -(-height // rows)
    reach = (table.shape[0] - 1) // 2 * dilation[0]
    span = rows + 2 * reach  # rows of keys that one chunk can see
    extra = chunks * rows - height
    starts = jnp.arange(chunks) * rows

    def pad_rows(a, before, after):
        return jnp.pad(a, [(0, 0), (before, after)] + [(0, 0)] * (a.ndim - 2))

    q = pad_rows(q, 0, extra)
    q = jnp.moveaxis(q.reshape(batch, chunks, rows, *q.shape[2:]), 1, 0)
    if span < height:  # a window of keys moves with the queries; all chunks share one table
        v = pad_rows(v, reach, reach + extra)
        dense = skew(spread(channels_first(table), 2, rows + reach, dilation[0]), 2, rows, span)
        dense = pairs_of_rest(dense, rest, dilation[1:])

        def window(start):
            return lax.dynamic_slice_in_dim(v, start, span, axis=1), dense

    else:  # every chunk sees all keys; a window of the table moves with the queries
        offsets = spread(channels_first(table), 2, height + extra, dilation[0])
        for i, (size, step) in enumerate(zip(rest, dilation[1:], strict=True)):
            offsets = skew(spread(offsets, 2 * i + 3, size, step), 2 * i + 3, size, size)

        def window(start):
            mine = lax.dynamic_slice_in_dim(
                offsets, height + extra - rows - start, rows + height - 1, axis=2
            )
            return v, merge_pairs(skew(mine, 2, rows, height))

    @jax.checkpoint
    def chunk(queries, start):
        keys, dense = window(start)
        return by_pairs("query_first", flat(queries), flat(keys), dense)

    y = lax.map(lambda args: chunk(*args), (q, starts))  # chunks, b, rows * rest, h, v
    y = jnp.moveaxis(y.reshape(chunks, batch, rows, *q.shape[3:-1], -1), 0, 1)
    return y.reshape(batch, chunks * rows, *y.shape[3:])[:, :height]


def by_halo_tiles(
    q: jax.Array, v: jax.Array, table: jax.Array, dilation: Sequence[int], device: cost_model.Device
) -> jax.Array:
    """Attention order, tile by tile of queries and the keys around that they see; all tiles share
    one table of pairs. So many tiles are worked on at once that their logits stay in the cache;
    the backward pass makes them again.
    """
    batch, shape, axes = v.shape[0], v.shape[1:-2], v.ndim - 3
    counts, sizes, dense = [], [], channels_first(table)
    for i, (size, taps, step) in enumerate(zip(shape, table.shape[:axes], dilation, strict=True)):
        reach = taps // 2 * step
        count, queries, keys = cost_model.halo_tile(size, reach)
        at = 2 * i + 2
        dense = skew(spread(dense, at, queries + reach, step), at, queries, keys)
        # The axis becomes one of a tile, and one of tiles in front of all others.
        at = 2 * i + 1
        q = jnp.moveaxis(halo_windows(q, at, count, queries, queries, 0), at, 0)
        v = jnp.moveaxis(halo_windows(v, at, count, queries, keys, reach), at, 0)
        counts.append(count)
        sizes.append(queries)
    dense, count = merge_pairs(dense), math.prod(counts)
    logits = cost_model.static_batch(batch) * q.shape[-2] * dense.size // q.shape[-1]
    together = cost_model.tiles_per_group(count, logits, device)
    groups = -(-count // together)

    def grouped(a, positions):
        a = a.reshape(count, batch, positions, *a.shape[-2:])
        a = jnp.pad(a, [(0, groups * together - count)] + [(0, 0)] * 4)
        # Batch first: merged in this order it stays shared among devices.
        a = a.reshape(groups, together, *a.shape[1:]).swapaxes(1, 2)
        return a.reshape(groups, batch * together, *a.shape[3:])

    @jax.checkpoint
    def group(queries, keys):
        return by_pairs("query_first", queries, keys, dense)

    parts = grouped(q, dense.shape[0]), grouped(v, dense.shape[-1])
    y = lax.map(lambda part: group(*part), parts)
    y = y.reshape(groups, batch, together, *y.shape[2:]).swapaxes(1, 2)
    y = y.reshape(groups * together, *y.shape[2:])[:count]
    y = y.reshape(*counts[::-1], batch, *sizes, *y.shape[3:])
    order = [axes, *(axis for i in range(axes) for axis in (axes - 1 - i, axes + 1 + i))]
    y = y.transpose(*order, 2 * axes + 1, 2 * axes + 2)
    whole = (n * size for n, size in zip(counts, sizes, strict=True))
    y = y.reshape(batch, *whole, *y.shape[-2:])
    return y[:, *(slice(size) for size in shape)]


def flat(a: jax.Array) -> jax.Array:
    """Merges the spatial axes: [b, *s, x, y] -> [b, n, x, y]."""
    return a.reshape(a.shape[0], -1, *a.shape[-2:])
