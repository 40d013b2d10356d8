"""Local attention: every query of a map attends to the k x k keys around it.

Per axis of length L, with kernel k = 2n + 1 and dilation D, query i sees k keys. Border policies:

    neighborhood  start + s for s = 0 .. k - 1, start = clamp(i - n, 0, L - k): the window slides
    inward, always k keys
    zero          i + s - n; keys and values outside are zero and keep their place in the softmax
    masked        i + s - n; keys outside are left out
    circular      (i + s - n) mod L: the map is repeated without end

A dilation applies the rule inside each residue class i mod D, to the places i // D; 'circular'
wraps the map and not the class: (i + (s - n) D) mod L. Under 'neighborhood' a class shorter than
the window is seen whole.

How it is computed: 'neighborhood' keys are the map; the others extend the keys by n D on either
side (with zeros, or periodically), after which every window is in the middle of its keys. Classes
of equal length, at most two per axis, are moved to the batch, so that both lowerings deal with
dense windows alone. Neither copies keys or values k^2 times.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from lambdanet.ops import dense_windows

BORDERS = ("neighborhood", "zero", "masked", "circular")
LOWERINGS = ("auto", "shift", "block")
_FEW = 9  # places of a window up to which 'shift' pays


def neighborhood_attention(
    query: Float[Array, "b h w n d"],
    key: Float[Array, "b h w n d"],
    value: Float[Array, "b h w n e"],
    table: Float[Array, "n p q"] | None = None,
    *,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    border: str = "neighborhood",
    scale: float,
    impl: str = "auto",
    return_weights: bool = False,
    return_totals: bool = False,
) -> tuple[Float[Array, "b h w n e"], Float[Array, "b h w n *places"] | None]:
    """softmax(scale q . k + bias) v per head over the window of each query; softmax in float32 or
    wider.

    Lowerings, equal up to rounding: 'block' cuts the map into small blocks and multiplies each with
    all keys that its queries see, masked: more products, but as matrix products. 'shift' loops over
    the window's places and multiplies shifted maps elementwise; its derivative takes long to
    compile for large windows. 'auto' is 'shift' for windows of at most 9 places whose shape does
    not change at the border, else 'block': the fastest on CPU (`python -m benchmarks micro --cases
    'local_*'`).

    Args:
        query: queries, heads before the last axis.
        key: keys.
        value: values.
        table: logit bias per head, [2 kh - 1, 2 kw - 1] offsets, read at (key - query) / dilation +
            k - 1; the offset counts as it is where a 'zero' or 'circular' window leaves the map,
            too. None means no bias.
        kernel_size: odd (height, width) of the window.
        dilation: pixels between neighbours, per axis.
        border: a policy, see the module's docstring.
        scale: factor of the logits' products.
        impl: a lowering.
        return_weights: also return the softmax; takes the lowering 'shift'.
        return_totals: also return log sum exp of each query's logits, with which two attentions can
            be joined to one; takes the lowering 'block'.

    Returns:
        The mixed values in the dtype of `value`, and the weights over the places of the window [s,
        t] (`key_positions` says which keys these are), or the totals, or None.

    Raises:
        ValueError: unknown names, or both weights and totals.
    """
    if return_weights and return_totals:
        raise ValueError("neighborhood attention: return_weights or return_totals, not both")
    for name, given, allowed in (("border", border, BORDERS), ("impl", impl, LOWERINGS)):
        if given not in allowed:
            raise ValueError(
                f"neighborhood attention: {name} is {given!r}; allowed: {', '.join(allowed)}"
            )
    size = query.shape[1:3]
    if border != "neighborhood":
        margins = [
            (0, 0),
            *((k // 2 * step,) * 2 for k, step in zip(kernel_size, dilation, strict=True)),
            (0, 0),
            (0, 0),
        ]
        key, value = (
            jnp.pad(a, margins, "wrap" if border == "circular" else "constant")
            for a in (key, value)
        )
    if impl == "auto":
        impl = "shift" if math.prod(kernel_size) <= _FEW and border != "neighborhood" else "block"
    lower = (
        dense_windows.by_shifts if return_weights or impl == "shift" else dense_windows.by_blocks
    )
    if return_totals:
        lower = functools.partial(dense_windows.by_blocks, return_totals=True)
    lines = []
    for rows in _residues(size[0], dilation[0]):
        line = []
        for columns in _residues(size[1], dilation[1]):
            axes = tuple(
                dense_windows.window_axis(g[2], k, border)
                for g, k in zip((rows, columns), kernel_size, strict=True)
            )
            parts = [_take(query, (rows, columns), dilation, (0, 0))]
            parts += [
                _take(a, (rows, columns), dilation, [x.keys - x.queries for x in axes])
                for a in (key, value)
            ]
            solved = lower(*parts, table, axes, scale=scale)
            line.append(tuple(_unbatch(a, rows, columns) for a in solved))
        lines.append([_join(arrays, 3, size[1]) for arrays in zip(*line, strict=True)])
    y, *others = (_join(arrays, 1, size[0]) for arrays in zip(*lines, strict=True))
    return y, others[0] if return_weights or return_totals else None


def key_positions(length: int, kernel: int, dilation: int, border: str) -> np.ndarray:
    """Returns which key stands at each place of each query's window, [length, kernel]; -1 where
    there is none.
    """
    at = np.arange(length)[:, None]
    if border != "neighborhood":
        keys = at + (np.arange(kernel) - kernel // 2) * dilation
        return (
            keys % length
            if border == "circular"
            else np.where((keys >= 0) & (keys < length), keys, -1)
        )
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
    """Spreads weights over all pairs of positions, zero outside the windows; for pictures and
    tests.
    """
    axes = zip(size, kernel_size, dilation, strict=True)
    places = [
        (key_positions(*axis, border)[..., None] == np.arange(axis[0])).astype(weights.dtype)
        for axis in axes
    ]
    return jnp.einsum("bhwnst,hsY,wtX->bnhwYX", weights, *places)


# --------------------------------------------------------------------------------------------------
# Residue classes of a dilation


def _residues(length: int, dilation: int) -> list[tuple[int, int, int]]:
    """Groups residue classes of equal length: (first residue, end, positions in a class)."""
    short, longer = divmod(length, dilation)
    groups = (0, longer, short + 1), (longer, dilation, short)
    return [group for group in groups if group[0] < group[1] and group[2]]


def _take(
    x: jax.Array,
    groups: Sequence[tuple[int, int, int]],
    dilation: Sequence[int],
    more: Sequence[int],
) -> jax.Array:
    """The classes of two groups as a batch: [b, H, W, n, d] -> [b * classes, h, w, n, d], `more`
    positions beyond the length.
    """
    for axis, (first, end, length), step, extra in zip((1, 3), groups, dilation, more, strict=True):
        wanted = (length + extra) * step  # of the axis, to be cut into steps
        x = jax.lax.slice_in_dim(x, 0, min(x.shape[axis], wanted), axis=axis)
        x = jnp.pad(x, [(0, wanted - x.shape[a] if a == axis else 0) for a in range(x.ndim)])
        x = x.reshape(*x.shape[:axis], length + extra, step, *x.shape[axis + 1 :])
        x = jax.lax.slice_in_dim(x, first, end, axis=axis + 1)
    return rearrange(x, "b h r w s n d -> (b r s) h w n d")


def _unbatch(x: jax.Array, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> jax.Array:
    """[b * classes, h, w, ...] -> [b, h, row classes, w, column classes, ...]."""
    r, s = (end - first for first, end, _ in (rows, columns))
    return rearrange(x, "(b r s) h w ... -> b h r w s ...", r=r, s=s)


def _join(parts: Sequence[jax.Array], axis: int, length: int) -> jax.Array:
    """Parts [..., positions, classes, ...] of an axis, longer one first -> [..., length, ...]."""
    longest = parts[0].shape[axis]
    parts = [
        jnp.pad(p, [(0, longest - p.shape[a] if a == axis else 0) for a in range(p.ndim)])
        for p in parts
    ]
    x = jnp.concatenate(parts, axis + 1) if len(parts) > 1 else parts[0]
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)
