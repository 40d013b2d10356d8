"""Warping of feature maps along a flow: bilinear samples, zero outside the map."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

ORDERS = ("xy", "yx")


def warp(
    features: Float[Array, "b h w c"], flow: Float[Array, "b y x 2"], *, order: str = "xy"
) -> Float[Array, "b y x c"]:
    """Returns out(y, x) = features(y + dy, x + dx), bilinear.

    Coordinates are those of pixels, corners on corners (PyTorch's `grid_sample` with
    align_corners=True and zeros). Each of the four neighbours that lies outside the map counts 0:
    samples half outside fade. Where the flow is not finite the result is 0.

    The flow goes from the map that is made to the one that is given: backward warping. Where a
    sample meets a pixel exactly, its gradient is the slope towards the lower right, as in PyTorch;
    outside the map it is zero.

    The four neighbours are one window of a gather, for all channels at once, so that the gradient
    of the features is a scatter of as many windows as there are samples; windows of single pixels
    or channels are slower on CPU.

    Sources: Spatial Transformer Networks (Jaderberg et al., 2015); Deep Feature Flow (Zhu et al.,
    2017), whose code has the channels (dx, dy). 'yx' is the order of NumPy and SciPy.

    Args:
        features: the maps to read, of any precision.
        flow: displacements in cells of the map. It may be of another size than the map.
        order: of the flow's channels, 'xy' = (dx, dy) or 'yx' = (dy, dx).

    Returns:
        The samples, in the dtype of `features`; sums are float32 or wider.

    Raises:
        ValueError: an unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f"warp: order is {order!r}; allowed: {', '.join(ORDERS)}")
    precise = jnp.promote_types(flow.dtype, jnp.float32)
    flow = (flow if order == "yx" else flow[..., ::-1]).astype(precise)
    rows, columns = (jnp.arange(size, dtype=precise) for size in flow.shape[1:3])
    places = flow + jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
    return jax.vmap(_sample)(features, places)


@jax.checkpoint  # the windows are four maps, and quickly gathered again
def _sample(
    features: Float[Array, "h w c"], places: Float[Array, "y x 2"]
) -> Float[Array, "y x c"]:
    """Samples of one map."""
    height, width, channels = features.shape
    ends = jnp.asarray((height, width), places.dtype)
    within = jnp.all((places >= -1) & (places < ends), -1, keepdims=True)  # False for NaN
    places = jnp.where(within, places, -1)
    corner = jnp.floor(places)
    down, right = jnp.moveaxis(places - corner, -1, 0)[..., None, None]
    # A border of zeros: every window of a place within lies on the wider map.
    wide = jnp.pad(features, ((1, 1), (1, 1), (0, 0)))
    numbers = lax.GatherDimensionNumbers((2, 3, 4), (), (0, 1))
    windows = lax.gather(
        wide, (corner + 1).astype(jnp.int32), numbers, (2, 2, channels), mode="promise_in_bounds"
    ).astype(jnp.promote_types(features.dtype, jnp.float32))
    upper, lower = windows[..., 0, :, :], windows[..., 1, :, :]
    lines = upper + down * (lower - upper)
    left, right_pixel = lines[..., :1, :], lines[..., 1:, :]
    sample = left + right * (right_pixel - left)
    return jnp.where(within, sample[..., 0, :], 0).astype(features.dtype)
