"""The gradient of RoIAlign in the maps, written tile by tile; see `roi_align`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambdanet.ops.roi_places import Places, Spec, axis_weights

_TILE = 8  # pixels; and how many tiles of an image are added at a time: the fastest of 1 .. 64
_TILES = 16


def spread(
    cotangent: Float[Array, "b r ph pw c"], places: Places, spec: Spec
) -> tuple[Float[Array, "b _ _ c"], ...]:
    """Returns the gradient of each map.

    They lie below each other on one sheet for each image. Each step adds the part of the gradient
    of a box that falls on one tile of it, for `_TILES` tiles of every image.

    Args:
        cotangent: of the result, float32.
        places: of the boxes.
        spec: of the call.
    """
    batch, count, _, across, channels = cotangent.shape
    heights, widths = zip(*spec.shapes, strict=True)
    tops = np.cumsum([0, *heights])
    sheet = jnp.zeros((batch, tops[-1] + _TILE, max(widths) + _TILE, channels), jnp.float32)
    bins = jnp.asarray(spec.output_size)
    low = jnp.floor(jnp.minimum(places.start, places.start + places.step * bins))
    high = jnp.floor(jnp.maximum(places.start, places.start + places.step * bins)) + 1
    first, last = (jnp.clip(side, 0, places.size - 1).astype(jnp.int32) for side in (low, high))
    tiles = (last - first) // _TILE + 1
    ends = jnp.cumsum(tiles[..., 0] * tiles[..., 1], 1)
    top = jnp.asarray(tops[:-1], jnp.int32)[places.level]
    take = jax.vmap(lambda values, at: values.at[at].get(mode="promise_in_bounds"))
    window = jax.lax.ScatterDimensionNumbers((1, 2, 3), (), (0, 1))
    add = jax.vmap(
        lambda sheet, at, tile: jax.lax.scatter_add(
            sheet, at, tile, window, mode="promise_in_bounds"
        )
    )

    def step(state):
        number, sheet = state
        numbers = number + jnp.arange(_TILES)
        box = jnp.sum(ends[:, None] <= numbers[:, None], -1, dtype=jnp.int32)
        box = jnp.minimum(box, count - 1)
        there = numbers < ends[:, -1:]
        its = jax.tree.map(lambda values: take(values, box), places)
        grid, begins = take(tiles, box), take(first, box)
        within = numbers - (take(ends, box) - grid[..., 0] * grid[..., 1])
        within = jnp.where(there, within, 0)
        place = jnp.stack([within // grid[..., 1], within % grid[..., 1]], -1)
        corner = begins + place * _TILE
        rows, columns = (
            axis_weights(
                its, axis, size, corner[..., axis, None] + jnp.arange(_TILE), spec.sampling_ratio
            )
            for axis, size in enumerate(spec.output_size)
        )
        rows = jnp.where(there[..., None, None], rows, 0)
        part = jnp.einsum(
            "bkpy,bkpqc->bkyqc", rows, take(cotangent, box), precision=jax.lax.Precision.HIGHEST
        )
        tile = 0.0
        for q in range(across):  # one loop over all; as a product it would be many small ones
            tile += part[:, :, :, q, None] * columns[:, :, None, q, :, None]
        at = corner + jnp.stack([take(top, box), jnp.zeros_like(box)], -1)
        return number + _TILES, add(sheet, at, tile)

    most = jnp.max(ends[:, -1])
    _, sheet = jax.lax.while_loop(lambda state: state[0] < most, step, (jnp.int32(0), sheet))
    return tuple(
        sheet[:, top : top + height, :width].astype(dtype)
        for top, (height, width), dtype in zip(tops[:-1], spec.shapes, spec.dtypes, strict=True)
    )
