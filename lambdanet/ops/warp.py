"""Warping of feature maps along a flow: bilinear samples, zero outside the map.

The value is a gather of four neighbours. Its transpose is a scatter of pixels, for which XLA's CPU
backend takes many times as long; here it is a sort of the positions and, again, gathers: what
falls on the same cell stands together then, and is added up in pairs, pairs of pairs, and so on,
as often as the fullest cell asks for. That has the same result each time on every device.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ORDERS = ("xy", "yx")
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (down, right) of the upper left neighbour


def warp(
    features: Float[Array, "b h w c"], flow: Float[Array, "b y x 2"], *, order: str = "xy"
) -> Float[Array, "b y x c"]:
    """Returns out(y, x) = features(y + dy, x + dx), bilinear.

    Coordinates are those of pixels, the corners' centres at the corners (`grid_sample` with
    align_corners=True and zeros). Each of the four neighbours that lies outside the map counts 0:
    samples half outside fade. Where the flow is not finite the result is 0.

    The flow goes from the map that is made to the one that is given: backward warping. Its
    gradient is the slope of the cell to the lower right where a sample meets a pixel exactly, as in
    PyTorch, and zero outside of the map. Sources: Deep Feature Flow (Zhu et al., 2017), whose code
    has the channels (dx, dy); 'yx' is the order of NumPy's and SciPy's coordinates.

    Args:
        features: the maps to read, of any precision.
        flow: displacements in cells of the map; a part of the map may be asked for.
        order: of the flow's channels, 'xy' = (dx, dy) or 'yx' = (dy, dx).

    Returns:
        The samples, in the dtype of `features`; sums are float32 or wider.

    Raises:
        ValueError: an unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f"warp: order is {order!r}; allowed: {', '.join(ORDERS)}")
    flow = flow if order == "yx" else flow[..., ::-1]
    precise = jnp.promote_types(flow.dtype, jnp.float32)
    rows, columns = (jnp.arange(size, dtype=precise) for size in flow.shape[1:3])
    grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
    places = (flow.astype(precise) + grid).reshape(flow.shape[0], -1, 2)
    return _sample(features, places).reshape(*flow.shape[:3], -1)


@jax.custom_vjp
def _sample(
    features: Float[Array, "b h w c"], places: Float[Array, "b p 2"]
) -> Float[Array, "b p c"]:
    corner, share, _ = _locate(places, features.shape[1:3])
    neighbours = _neighbours(features, corner)
    total = sum(
        weight[..., None] * found
        for weight, found in zip(_weights(share), neighbours, strict=True)
    )
    return total.astype(features.dtype)


def _forward(features, places):
    return _sample(features, places), (features, places)


def _backward(saved, cotangent):
    features, places = saved
    corner, share, within = _locate(places, features.shape[1:3])
    cotangent = cotangent.astype(share.dtype)
    gradient = _spread(cotangent, corner, _weights(share), features.shape[1:3])
    # How much each neighbour counts in the loss: the slopes are differences of these.
    counts = [jnp.sum(found * cotangent, -1) for found in _neighbours(features, corner)]
    down, right = share[..., 0], share[..., 1]
    slope = jnp.stack(
        [
            (1 - right) * (counts[2] - counts[0]) + right * (counts[3] - counts[1]),
            (1 - down) * (counts[1] - counts[0]) + down * (counts[3] - counts[2]),
        ],
        -1,
    )
    slope = jnp.where(within[..., None], slope, 0)
    return gradient.astype(features.dtype), slope.astype(places.dtype)


_sample.defvjp(_forward, _backward)


def _locate(
    places: Float[Array, "b p 2"], size: tuple[int, int]
) -> tuple[Int[Array, "b p 2"], Float[Array, "b p 2"], Bool[Array, "b p"]]:
    """Returns the upper left neighbour of each place, from -1, its distance from it, and whether
    any neighbour is on the map.
    """
    ends = jnp.asarray(size, places.dtype)
    within = jnp.all((places >= -1) & (places < ends), -1)  # False for NaN
    places = jnp.where(within[..., None], places, -1)
    corner = jnp.floor(places)
    return corner.astype(jnp.int32), places - corner, within


def _weights(share: Float[Array, "b p 2"]) -> list[Float[Array, "b p"]]:
    down, right = share[..., 0], share[..., 1]
    return [
        (down if i else 1 - down) * (right if j else 1 - right) for i, j in _CORNERS
    ]


def _neighbours(
    features: Float[Array, "b h w c"], corner: Int[Array, "b p 2"]
) -> list[Float[Array, "b p c"]]:
    """Returns the four neighbours of each place, float32 or wider, zero outside the map."""
    batch, height, width, channels = features.shape
    pixels = features.reshape(batch, height * width, channels)
    limits = jnp.asarray((height - 1, width - 1))
    found = []
    for offset in _CORNERS:
        at = corner + jnp.asarray(offset)
        there = jnp.all((at >= 0) & (at <= limits), -1)
        at = jnp.clip(at, 0, limits)
        pixel = _rows(pixels, at[..., 0] * width + at[..., 1])
        pixel = pixel.astype(jnp.promote_types(pixel.dtype, jnp.float32))
        found.append(jnp.where(there[..., None], pixel, 0))
    return found


def _spread(
    cotangent: Float[Array, "b p c"],
    corner: Int[Array, "b p 2"],
    weights: list[Float[Array, "b p"]],
    size: tuple[int, int],
) -> Float[Array, "b h w c"]:
    """Returns what each pixel of the map receives: the transpose of a sum of weighted neighbours.

    Cells are numbered by their upper left pixel, those that begin outside of the map included.
    """
    height, width = size
    batch, count, channels = cotangent.shape
    cell = (corner[..., 0] + 1) * (width + 1) + corner[..., 1] + 1
    order = jnp.argsort(cell, axis=1, stable=True)
    cells, cotangent = _rows(cell, order), _rows(cotangent, order)
    parts = jnp.stack([_rows(weight, order) for weight in weights], 2)
    parts = parts[..., None] * cotangent[:, :, None]
    number = (height + 1) * (width + 1)
    begins = jax.vmap(lambda cells: jnp.searchsorted(cells, jnp.arange(number + 1)))(cells)
    fullest = jnp.max(jnp.diff(begins, axis=1))

    def step(state):
        """Adds the sum of the `length` places after those that are added up already."""
        length, parts = state
        later = jnp.minimum(jnp.arange(count) + length, count - 1)
        same = (jnp.arange(count) + length < count) & (cells[:, later] == cells)
        return 2 * length, parts + jnp.where(same[..., None, None], parts[:, later], 0)

    _, parts = jax.lax.while_loop(lambda state: state[0] < fullest, step, (jnp.int32(1), parts))
    any_there = (begins[:, 1:] > begins[:, :-1])[..., None, None]
    sums = jnp.where(any_there, _rows(parts, jnp.minimum(begins[:, :-1], count - 1)), 0)
    sums = sums.reshape(batch, height + 1, width + 1, 4, channels)
    total = 0.0
    for number, (i, j) in enumerate(_CORNERS):  # a pixel is corner (i, j) of the cell above, left
        total += sums[:, 1 - i : height + 1 - i, 1 - j : width + 1 - j, number]
    return total


def _rows(values: Array, at: Int[Array, "b p"]) -> Array:
    return jax.vmap(lambda values, at: values.at[at].get(mode="promise_in_bounds"))(values, at)
