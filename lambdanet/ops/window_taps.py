"""Sums over the taps of a sliding window, written as slices: forward what each tap sees, backward
what saw each position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Pair = tuple[int, int]


def tap_views(
    x: Float[Array, "*b h w c"], sides: Pair, stride: Pair, *, fill: float = 0.0
) -> list[Float[Array, "*b oh ow c"]]:
    """Returns the map as each tap of an odd window sees it, row by row of the window.

    Args:
        x: the map.
        sides: of the window, which stands around every stride-th position.
        stride: step per axis.
        fill: what stands outside of the map.

    Returns:
        One map [*b, ceil(h / s), ceil(w / t), c] per tap.
    """
    padding = [(0, 0)] * (x.ndim - 3) + [(side // 2,) * 2 for side in sides] + [(0, 0)]
    padded = jnp.pad(x, padding, constant_values=fill)
    rows, columns = (
        (n - 1) // step * step + 1 for n, step in zip(x.shape[-3:-1], stride, strict=True)
    )
    return [
        padded[..., u : u + rows : stride[0], v : v + columns : stride[1], :]
        for u in range(sides[0])
        for v in range(sides[1])
    ]


def gather_back(
    maps: Sequence[Shaped[Array, "*b oh ow c"]],
    size: Pair,
    sides: Pair,
    stride: Pair,
    term: Callable[[int, Sequence[jax.Array]], jax.Array],
) -> Float[Array, "*b h w c"]:
    """The transpose of `tap_views`: for each position, the sum of term(tap, maps) over the windows
    that see it.

    Positions of equal remainder by the stride are seen by the same taps; the sums of each remainder
    are slices of the maps, and the remainders are then interleaved. Nothing is scattered.

    Args:
        maps: values per window.
        size: rows and columns of the result.
        sides: of the window.
        stride: step per axis.
        term: gets the number of a tap and the maps, moved so that each position holds the window
            whose tap it is (zeros where there is none).
    """
    taps = [_taps_by_remainder(*given) for given in zip(sides, stride, strict=True)]
    reach = [max(abs(move) for terms in axis for _, move in terms) for axis in taps]
    padding = [(0, 0)] * (maps[0].ndim - 3) + [(r, r) for r in reach] + [(0, 0)]
    padded, (rows, columns) = [jnp.pad(m, padding) for m in maps], maps[0].shape[-3:-1]

    def moved(down: int, right: int) -> list[jax.Array]:
        top, left = reach[0] + down, reach[1] + right
        return [m[..., top : top + rows, left : left + columns, :] for m in padded]

    def total(vertical: list[Pair], horizontal: list[Pair]) -> jax.Array:
        terms = [
            term(u * sides[1] + v, moved(down, right))
            for u, down in vertical
            for v, right in horizontal
        ]
        return sum(terms[1:], terms[0]) if terms else jnp.zeros_like(maps[0])

    lines = [_interleave([total(v, h) for h in taps[1]], -2) for v in taps[0]]
    return _interleave(lines, -3)[..., : size[0], : size[1], :]


def _taps_by_remainder(side: int, stride: int) -> list[list[Pair]]:
    """For each remainder r: (tap u, move m) such that tap u of window j + m sees position stride *
    j + r.
    """
    pad = side // 2
    return [
        [(u, (r + pad - u) // stride) for u in range(side) if (r + pad - u) % stride == 0]
        for r in range(stride)
    ]


def _interleave(parts: list[jax.Array], axis: int) -> jax.Array:
    """Joins maps so that their positions along an axis take turns."""
    if len(parts) == 1:
        return parts[0]
    axis += parts[0].ndim
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)
    return jnp.stack(parts, axis + 1).reshape(shape)
