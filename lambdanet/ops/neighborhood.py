"""Local attention: every query of a map attends to the k x k keys around it.

Per axis of length L, with kernel k = 2n + 1 and dilation D, query i sees k keys. Border policies:

    neighborhood  start + s for s = 0 .. k - 1, start = clamp(i - n, 0, L - k): the window slides inward, always k keys
    zero          i + s - n; keys and values outside are zero and keep their place in the softmax
    masked        i + s - n; keys outside are left out
    circular      (i + s - n) mod L: the map is repeated without end

A dilation applies the rule inside each residue class i mod D, to the places i // D; 'circular' wraps the map and not the
class: (i + (s - n) D) mod L. Under 'neighborhood' a class shorter than the window is seen whole.

How it is computed: 'neighborhood' keys are the map; the others extend the keys by n D on either side (with zeros, or
periodically), after which every window is in the middle of its keys. Classes of equal length, at most two per axis, are
moved to the batch, so that both lowerings deal with dense windows alone. Neither copies keys or values k^2 times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambdanet.ops.halo_windows import halo_windows
from lambdanet.ops.relative_table import skew

BORDERS = ("neighborhood", "zero", "masked", "circular")
LOWERINGS = ("auto", "shift", "block")
BLOCK = (4, 8)
"""Queries per block and axis; half the window where that is more. Smaller blocks copy more keys, larger ones multiply more
masked pairs. Chosen by time on CPU, forward and backward, for windows of 3 x 3 and 7 x 7."""


def neighborhood_attention(
    query: Float[Array, "b h w n d"],
    key: Float[Array, "b h w n d"],
    value: Float[Array, "b h w n d"],
    table: Float[Array, "n p q"] | None = None,
    *,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    border: str = "neighborhood",
    scale: float,
    impl: str = "auto",
    return_weights: bool = False,
) -> tuple[Float[Array, "b h w n d"], Float[Array, "b h w n s t"] | None]:
    """softmax(scale q . k + bias) v per head over the window of each query; softmax in float32 or wider.

    Lowerings, equal up to rounding: 'block' cuts the map into small blocks and multiplies each with all keys that its queries
    see, masked: more products, but as matrix products. 'shift' loops over the window's places and multiplies shifted maps
    elementwise; its derivative takes long to compile. 'auto' is 'block', whatever the window: on CPU it is faster in both
    directions for 3 x 3 already (`python -m benchmarks micro --cases 'local_*'`).

    Args:
        query: queries, heads before the last axis.
        key: keys.
        value: values.
        table: logit bias per head, [2 kh - 1, 2 kw - 1] offsets, read at (key - query) / dilation + k - 1; the offset counts as
            it is where a 'zero' or 'circular' window leaves the map, too. None means no bias.
        kernel_size: odd (height, width) of the window.
        dilation: pixels between neighbours, per axis.
        border: a policy, see the module's docstring.
        scale: factor of the logits' products.
        impl: a lowering.
        return_weights: also return the softmax; takes the lowering 'shift'.

    Returns:
        The mixed values in the dtype of `value`, and the weights over the places of the window (`key_positions` says which keys
        these are) or None.

    Raises:
        ValueError: unknown names.
    """
    for name, given, allowed in (("border", border, BORDERS), ("impl", impl, LOWERINGS)):
        if given not in allowed:
            raise ValueError(f"neighborhood attention: {name} is {given!r}; allowed: {', '.join(allowed)}")
    size = query.shape[1:3]
    if border != "neighborhood":
        margins = [(0, 0), *((k // 2 * step,) * 2 for k, step in zip(kernel_size, dilation, strict=True)), (0, 0), (0, 0)]
        key, value = (jnp.pad(a, margins, "wrap" if border == "circular" else "constant") for a in (key, value))
    lower = _shifts if return_weights or impl == "shift" else _blocks
    lines = []
    for rows in _residues(size[0], dilation[0]):
        line = []
        for columns in _residues(size[1], dilation[1]):
            axes = tuple(_axis(g[2], k, border) for g, k in zip((rows, columns), kernel_size, strict=True))
            parts = [_take(query, (rows, columns), dilation, (0, 0))]
            parts += [_take(a, (rows, columns), dilation, [x.keys - x.queries for x in axes]) for a in (key, value)]
            solved = lower(*parts, table, axes, scale=scale)
            line.append(tuple(_unbatch(a, rows, columns) for a in solved))
        lines.append([_join(arrays, 3, size[1]) for arrays in zip(*line, strict=True)])
    y, *weights = (_join(arrays, 1, size[0]) for arrays in zip(*lines, strict=True))
    return y, weights[0] if return_weights else None


def key_positions(length: int, kernel: int, dilation: int, border: str) -> np.ndarray:
    """Returns which key stands at each place of each query's window, [length, kernel]; -1 where there is none."""
    at = np.arange(length)[:, None]
    if border != "neighborhood":
        keys = at + (np.arange(kernel) - kernel // 2) * dilation
        return keys % length if border == "circular" else np.where((keys >= 0) & (keys < length), keys, -1)
    place, residue = at // dilation, at % dilation
    members = -(-(length - residue) // dilation)  # of the query's class
    places = np.clip(place - kernel // 2, 0, np.maximum(members - kernel, 0)) + np.arange(kernel)
    return np.where(places < members, places * dilation + residue, -1)


def full_map(
    weights: Float[Array, "b h w n s t"],
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    border: str,
) -> Float[Array, "b n h w h w"]:
    """Spreads weights over all pairs of positions, zero outside the windows; for pictures and tests."""
    axes = zip(size, kernel_size, dilation, strict=True)
    places = [(key_positions(*axis, border)[..., None] == np.arange(axis[0])).astype(weights.dtype) for axis in axes]
    return jnp.einsum("bhwnst,hsY,wtX->bnhwYX", weights, *places)


# ----------------------------------------------------------------------------------------------------------------------
# Residue classes of a dilation


def _residues(length: int, dilation: int) -> list[tuple[int, int, int]]:
    """Groups residue classes of equal length: (first residue, end, positions in a class)."""
    short, longer = divmod(length, dilation)
    groups = (0, longer, short + 1), (longer, dilation, short)
    return [group for group in groups if group[0] < group[1] and group[2]]


def _take(x: jax.Array, groups: Sequence[tuple[int, int, int]], dilation: Sequence[int], more: Sequence[int]) -> jax.Array:
    """The classes of two groups as a batch: [b, H, W, n, d] -> [b * classes, h, w, n, d], `more` positions beyond the length."""
    for axis, (first, end, length), step, extra in zip((1, 3), groups, dilation, more, strict=True):
        wanted = (length + extra) * step  # of the axis, to be cut into steps
        x = jax.lax.slice_in_dim(x, 0, min(x.shape[axis], wanted), axis=axis)
        x = jnp.pad(x, [(0, wanted - x.shape[a] if a == axis else 0) for a in range(x.ndim)])
        x = x.reshape(*x.shape[:axis], length + extra, step, *x.shape[axis + 1 :])
        x = jax.lax.slice_in_dim(x, first, end, axis=axis + 1)
    batch, h, rows, w, columns, *rest = x.shape
    return x.transpose(0, 2, 4, 1, 3, 5, 6).reshape(batch * rows * columns, h, w, *rest)


def _unbatch(x: jax.Array, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> jax.Array:
    """[b * classes, h, w, ...] -> [b, h, row classes, w, column classes, ...]."""
    classes = [end - first for first, end, _ in (rows, columns)]
    x = x.reshape(-1, *classes, *x.shape[1:])
    return x.transpose(0, 3, 1, 4, 2, *range(5, x.ndim))


def _join(parts: Sequence[jax.Array], axis: int, length: int) -> jax.Array:
    """Parts [..., positions, classes, ...] of an axis, the longer one first -> [..., length, ...]."""
    longest = parts[0].shape[axis]
    parts = [jnp.pad(p, [(0, longest - p.shape[a] if a == axis else 0) for a in range(p.ndim)]) for p in parts]
    x = jnp.concatenate(parts, axis + 1) if len(parts) > 1 else parts[0]
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


# ----------------------------------------------------------------------------------------------------------------------
# One class: dense windows


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Which keys the queries of an axis see: `taps` from `start` on, of which those that are not `inside` are left out.

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


def _axis(length: int, kernel: int, border: str) -> _Axis:
    half = kernel // 2
    if border == "neighborhood":
        taps = min(kernel, length)
        start = np.clip(np.arange(length) - half, 0, length - taps)
        return _Axis(length, length, kernel, taps, start, 0, np.ones(length, bool))
    keys = np.arange(length + 2 * half)
    inside = (keys >= half) & (keys < length + half) | (border != "masked")
    return _Axis(length, len(keys), kernel, kernel, np.arange(length), half, inside)


def _shifts(query, key, value, table, axes: tuple[_Axis, _Axis], *, scale: float) -> tuple[jax.Array, jax.Array]:
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
        places = [np.eye(2 * a.kernel - 1)[a.index()] for a in axes]  # one nonzero product: exact at the highest precision
        places = [jnp.asarray(p, precise) for p in places]
        logits += jnp.einsum("npq,hsp,wtq->hwnst", table.astype(precise), *places, precision="highest")
    sees = [a.inside[a.start[:, None] + np.arange(a.taps)] for a in axes]
    if not all(a.all() for a in sees):
        mask = sees[0][:, None, None, :, None] & sees[1][:, None, None, :]
        logits = jnp.where(mask, logits, jnp.finfo(precise).min)
    weights = jax.nn.softmax(logits, axis=(-2, -1))
    flat = weights.reshape(*weights.shape[:-2], -1)
    y = sum(flat[..., i, None] * v for i, v in enumerate(shifted(value)))
    missing = [(0, 0)] * 4 + [(0, a.kernel - a.taps) for a in axes]
    return y.astype(value.dtype), jnp.pad(weights, missing)


def _shift(x: jax.Array, axis: int, geometry: _Axis, place: int) -> jax.Array:
    """For every query the key at one place of its window: x[start + place], as a slice with repeated ends."""
    steps = geometry.start[-1] - geometry.start[0] + 1
    x = jax.lax.slice_in_dim(x, place, place + int(steps), axis=axis)
    before = int(np.sum(geometry.start == geometry.start[0])) - 1
    after = geometry.queries - before - int(steps)
    return jnp.pad(x, [(before, after) if a == axis else (0, 0) for a in range(x.ndim)], "edge") if before or after else x


def _blocks(query, key, value, table, axes: tuple[_Axis, _Axis], *, scale: float) -> tuple[jax.Array]:
    """Mixed values by blocks of queries, each against the dense window of all keys that they see.

    The logits have their keys before their queries: sums over the keys then run over whole rows of queries, for which XLA's
    CPU backend has vector code, while a sum within a row is one scalar addition after the other.
    """
    precise = jnp.promote_types(query.dtype, jnp.float32)
    batch, height, width, heads, depth = query.shape
    plans = [_Plan.of(axis, least) for axis, least in zip(axes, BLOCK, strict=True)]
    for axis, plan in zip((1, 3), plans, strict=True):
        query = halo_windows(query, axis, plan.count, plan.side, plan.side, 0)
        key, value = (halo_windows(a, axis, plan.count, plan.side, plan.window, plan.before) for a in (key, value))
    query, key, value = (a.transpose(0, 1, 3, 5, 2, 4, 6) for a in (query, key, value))  # [b, rows, columns, n, y, x, d]
    blocks = query.shape[:4]
    query, key, value = (a.reshape(*blocks, -1, depth) for a in (query, key, value))
    pairs = (*(p.window for p in plans), *(p.side for p in plans))
    logits = scale * jnp.einsum("...qd,...kd->...kq", query, key, preferred_element_type=precise).reshape(*blocks, *pairs)
    if table is not None:
        bias = table.astype(precise)
        for axis, (plan, geometry) in enumerate(zip(plans, axes, strict=True)):
            bias = _by_pair(bias, 1 + 2 * axis, plan, geometry)
        logits += bias.transpose(0, 2, 4, 1, 3)
    rows, columns = (p.mask for p in plans)  # applied one by one: together they would be a constant as large as the logits
    logits = jnp.where(rows[:, None, None, :, None, :, None], logits, jnp.finfo(precise).min)
    logits = jnp.where(columns[:, None, None, :, None, :], logits, jnp.finfo(precise).min)
    weights = jax.nn.softmax(logits.reshape(*blocks, key.shape[-2], -1), axis=-2).astype(value.dtype)
    y = jnp.einsum("...kq,...kd->...qd", weights, value)
    y = y.reshape(*blocks, *(p.side for p in plans), depth).transpose(0, 1, 4, 2, 5, 3, 6)
    y = y.reshape(batch, *(p.count * p.side for p in plans), heads, depth)
    return (y[:, :height, :width],)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How an axis is cut: `count` blocks of `side` queries; block m sees `window` keys from m * side - before on.

    The same distance between a block and its window everywhere keeps the bias of a pair independent of the block.
    """

    count: int
    side: int
    before: int
    window: int
    mask: np.ndarray  # [count, window, side]: which of them a query attends to

    @classmethod
    def of(cls, axis: _Axis, least: int) -> _Plan:
        longest = max(least, (axis.kernel + 1) // 2)
        side = -(-axis.queries // -(-axis.queries // longest))  # even blocks
        count = -(-axis.queries // side)
        first = np.arange(count) * side
        last = np.minimum(first + side, axis.queries) - 1
        before = int((first - axis.start[first]).max())
        window = int((axis.start[last] + axis.taps - first).max()) + before
        start = axis.start[np.minimum(first[:, None] + np.arange(side), axis.queries - 1)][:, None]
        key = first[:, None, None] + np.arange(window)[:, None] - before
        mask = (key >= start) & (key < start + axis.taps) & axis.inside[np.clip(key, 0, axis.keys - 1)]
        return cls(count, side, before, window, mask)


def _by_pair(table: jax.Array, axis: int, plan: _Plan, geometry: _Axis) -> jax.Array:
    """Writes the table's axis out as [query of a block, key of its window]; zero at offsets outside the table."""
    lowest = -(plan.side - 1) - plan.before - geometry.ahead  # key - query of the last query and the first key
    low = -lowest - (geometry.kernel - 1)
    high = plan.side + plan.window - 1 - low - table.shape[axis]
    config = [(low, high, 0) if a == axis else (0, 0, 0) for a in range(table.ndim)]
    return skew(jax.lax.pad(table, jnp.zeros((), table.dtype), config), axis, plan.side, plan.window)
