"""Maximum over sliding windows as slices, with a backward pass that scatters nothing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lambdanet.ops.window_taps import gather_back, tap_views


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_of_slices(
    x: Float[Array, "b h w c"], window: int, stride: int
) -> Float[Array, "b oh ow c"]:
    """Takes the largest value of each window around every stride-th position; outside of the map is
    minus infinity.

    The first entry of a window, row by row, that equals the maximum gets the gradient, as in
    PyTorch and in XLA's own gradient of `reduce_window`; where the maximum is NaN none does.

    Args:
        x: the map.
        window: odd side.
        stride: step between windows.

    Returns:
        Map [b, ceil(h / stride), ceil(w / stride), c].
    """
    return functools.reduce(
        jnp.maximum, tap_views(x, (window, window), (stride, stride), fill=-jnp.inf)
    )


def _forward(x, window, stride):
    views = tap_views(x, (window, window), (stride, stride), fill=-jnp.inf)
    y = functools.reduce(jnp.maximum, views)
    place = jnp.zeros(y.shape, jnp.uint8 if window < 16 else jnp.int32)
    rows, columns = (
        (stride * jnp.arange(n))[:, None] + jnp.arange(window) - window // 2 for n in y.shape[1:3]
    )
    inside = [(at >= 0) & (at < n) for at, n in zip((rows, columns), x.shape[1:3], strict=True)]
    for tap in reversed(range(len(views))):
        # A window of nothing but minus infinity must find its entry inside of the map.
        real = inside[0][:, None, tap // window] & inside[1][:, tap % window]
        place = jnp.where(
            (views[tap] == y) & real[:, :, None], jnp.asarray(tap, place.dtype), place
        )
    return y, (place, jnp.zeros((0, *x.shape[1:3], 0)))


def _backward(window, stride, saved, cotangent):
    place, like = saved
    return (
        gather_back(
            [cotangent, place],
            like.shape[1:3],
            (window, window),
            (stride, stride),
            lambda tap, moved: jnp.where(moved[1] == tap, moved[0], 0),
        ),
    )


max_of_slices.defvjp(_forward, _backward)
