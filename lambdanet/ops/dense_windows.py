"""Local attention on dense windows, one residue class of a dilation at a time: the lowerings of
`neighborhood`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from lambdanet.ops.halo_windows import halo_windows
from lambdanet.ops.relative_table import skew
from lambdanet.ops.wide_einsum import wide_einsum

BLOCK = (4, 8)
"""Queries per block and axis; half the window where that is more. Smaller blocks copy more keys,
larger ones multiply more masked pairs. Chosen by time on CPU, forward and backward, for windows of
3 x 3 and 7 x 7."""


@dataclasses.dataclass(frozen=True)
class WindowAxis:
    """Which keys the queries of an axis see: `taps` from `start` on, of which those that are not
    `inside` are left out.

    Attributes:
        queries, keys: positions.
        kernel: k, of the table.
        taps: places of the window; fewer than k where there are fewer keys.
        start: [queries], rising by 0 or 1.
        ahead: keys before the one at the first query's position.
        inside: [keys].
    """

    queries: int
    keys: int
    kernel: int
    taps: int
    start: np.ndarray
    ahead: int
    inside: np.ndarray

    def index(self) -> np.ndarray:
        """Place in the table of every query's keys, [queries, taps]."""
        relative = self.start - self.ahead - np.arange(self.queries)
        return relative[:, None] + np.arange(self.taps) + self.kernel - 1


def window_axis(length: int, kernel: int, border: str) -> WindowAxis:
    """Returns the windows of an axis without dilation, over keys that were extended unless the
    border is 'neighborhood'.
    """
    half = kernel // 2
    if border == "neighborhood":
        taps = min(kernel, length)
        start = np.clip(np.arange(length) - half, 0, length - taps)
        return WindowAxis(length, length, kernel, taps, start, 0, np.ones(length, bool))
    keys = np.arange(length + 2 * half)
    inside = (keys >= half) & (keys < length + half) | (border != "masked")
    return WindowAxis(length, len(keys), kernel, kernel, np.arange(length), half, inside)


def by_shifts(
    query, key, value, table, axes: tuple[WindowAxis, WindowAxis], *, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Mixed values, and weights [b, h, w, n, kh, kw] with zeros for missing taps."""
    precise = jnp.promote_types(query.dtype, jnp.float32)
    rows, columns = axes
    query = query.astype(precise)

    def shifted(x):
        x = x.astype(precise)
        for s in range(rows.taps):
            line = _shift(x, 1, rows, s)
            yield from (_shift(line, 2, columns, t) for t in range(columns.taps))

    logits = jnp.stack([scale * jnp.sum(query * k, -1) for k in shifted(key)], -1)
    logits = logits.reshape(*logits.shape[:-1], rows.taps, columns.taps)
    if table is not None:
        places = [
            np.eye(2 * a.kernel - 1)[a.index()] for a in axes
        ]  # one nonzero product: exact at the highest precision
        places = [jnp.asarray(p, precise) for p in places]
        logits += jnp.einsum(
            "npq,hsp,wtq->hwnst", table.astype(precise), *places, precision="highest"
        )
    sees = [a.inside[a.start[:, None] + np.arange(a.taps)] for a in axes]
    if not all(a.all() for a in sees):
        mask = sees[0][:, None, None, :, None] & sees[1][:, None, None, :]
        logits = jnp.where(mask, logits, jnp.finfo(precise).min)
    weights = jax.nn.softmax(logits, axis=(-2, -1))
    flat = weights.reshape(*weights.shape[:-2], -1)
    y = sum(flat[..., i, None] * v for i, v in enumerate(shifted(value)))
    missing = [(0, 0)] * 4 + [(0, a.kernel - a.taps) for a in axes]
    return y.astype(value.dtype), jnp.pad(weights, missing)


def _shift(x: jax.Array, axis: int, geometry: WindowAxis, place: int) -> jax.Array:
    """For every query the key at one place of its window: x[start + place], as a slice with
    repeated ends.
    """
    steps = geometry.start[-1] - geometry.start[0] + 1
    x = jax.lax.slice_in_dim(x, place, place + int(steps), axis=axis)
    before = int(np.sum(geometry.start == geometry.start[0])) - 1
    after = geometry.queries - before - int(steps)
    return (
        jnp.pad(x, [(before, after) if a == axis else (0, 0) for a in range(x.ndim)], "edge")
        if before or after
        else x
    )


def by_blocks(
    query,
    key,
    value,
    table,
    axes: tuple[WindowAxis, WindowAxis],
    *,
    scale: float,
    return_totals: bool = False,
) -> tuple[jax.Array, ...]:
    """Mixed values by blocks of queries, each against the dense window of all keys that they see,
    and perhaps the logarithms of the softmax's denominators [b, h, w, n].

    The logits have their keys before their queries: sums over the keys then run over whole rows of
    queries, for which XLA's CPU backend has vector code, while a sum within a row is one scalar
    addition after the other.
    """
    height, width = query.shape[1:3]
    plans = [_Plan.of(axis, least) for axis, least in zip(axes, BLOCK, strict=True)]
    for axis, plan in zip((1, 3), plans, strict=True):
        query = halo_windows(query, axis, plan.count, plan.side, plan.side, 0)
        key, value = (
            halo_windows(a, axis, plan.count, plan.side, plan.window, plan.before)
            for a in (key, value)
        )
    query, key, value = (
        rearrange(a, "b r y s x n d -> b r s n (y x) d") for a in (query, key, value)
    )
    logits = wide_einsum("...qd,...kd->...kq", query, key)
    window, side = plans[1].window, plans[1].side
    logits = scale * rearrange(logits, "b r s n (Y X) (y x) -> b r s n Y X y x", X=window, x=side)
    if table is not None:
        bias = table.astype(logits.dtype)
        for axis, (plan, geometry) in enumerate(zip(plans, axes, strict=True)):
            bias = _by_pair(bias, 1 + 2 * axis, plan, geometry)
        logits += rearrange(bias, "n y Y x X -> n Y X y x")
    logits = _masked(logits, *(p.mask for p in plans), biased=table is not None)
    weights = jax.nn.softmax(logits, axis=-2).astype(value.dtype)
    y = jnp.einsum("...kq,...kd->...qd", weights, value)
    y = rearrange(y, "b r s n (y x) d -> b (r y) (s x) n d", x=side)
    if not return_totals:
        return (y[:, :height, :width],)
    totals = jax.nn.logsumexp(logits, axis=-2)
    totals = rearrange(totals, "b r s n (y x) -> b (r y) (s x) n", x=side)
    return y[:, :height, :width], totals[:, :height, :width]


def _masked(logits: jax.Array, rows: np.ndarray, columns: np.ndarray, *, biased: bool) -> jax.Array:
    """Leaves pairs out, and merges axes: logits [b, rows, columns, n, keys y x, queries y x] ->
    [.., n, keys, queries].

    The masks are [blocks, keys, queries] of each axis. Either way XLA's CPU backend makes one loop
    of masking and softmax; for choices by one axis after the other, or after a bias, it would write
    the logits out in between.
    """
    least = jnp.finfo(logits.dtype).min / 2
    pairs = (*logits.shape[:4], logits.shape[4] * logits.shape[5], -1)
    if len(rows) == len(columns) == 1 and not biased:
        joint = rows[0][:, None, :, None] & columns[0][:, None, :]
        return jnp.where(joint.reshape(pairs[4:]), logits.reshape(pairs), least)
    rows, columns = (np.where(mask, 0, least).astype(logits.dtype) for mask in (rows, columns))
    return (
        logits + rows[:, None, None, :, None, :, None] + columns[:, None, None, :, None, :]
    ).reshape(pairs)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How an axis is cut: `count` blocks of `side` queries; block m sees `window` keys from m *
    side - before on.

    The same distance between a block and its window everywhere keeps the bias of a pair independent
    of the block.
    """

    count: int
    side: int
    before: int
    window: int
    # [count or, where all blocks have the same, 1; window, side]: which of them a query attends to
    mask: np.ndarray

    @classmethod
    def of(cls, axis: WindowAxis, least: int) -> _Plan:
        longest = max(least, (axis.kernel + 1) // 2)
        side = -(-axis.queries // -(-axis.queries // longest))  # even blocks
        count = -(-axis.queries // side)
        first = np.arange(count) * side
        last = np.minimum(first + side, axis.queries) - 1
        before = int((first - axis.start[first]).max())
        window = int((axis.start[last] + axis.taps - first).max()) + before
        beyond = np.arange(count * side - axis.queries) + 1  # queries that only fill the last block
        start = np.concatenate([axis.start, axis.start[-1] + beyond]).reshape(count, 1, side)
        key = first[:, None, None] + np.arange(window)[:, None] - before
        mask = (
            (key >= start) & (key < start + axis.taps) & axis.inside[np.clip(key, 0, axis.keys - 1)]
        )
        return cls(count, side, before, window, mask[:1] if (mask == mask[:1]).all() else mask)


def _by_pair(table: jax.Array, axis: int, plan: _Plan, geometry: WindowAxis) -> jax.Array:
    """Writes the table's axis out as [query of a block, key of its window]; zero at offsets outside
    the table.
    """
    lowest = (
        -(plan.side - 1) - plan.before - geometry.ahead
    )  # key - query of the last query and the first key
    low = -lowest - (geometry.kernel - 1)
    high = plan.side + plan.window - 1 - low - table.shape[axis]
    config = [(low, high, 0) if a == axis else (0, 0, 0) for a in range(table.ndim)]
    return skew(
        jax.lax.pad(table, jnp.zeros((), table.dtype), config), axis, plan.side, plan.window
    )
