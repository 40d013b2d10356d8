"""Maximum over sliding windows as slices, with a backward pass that scatters nothing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lambdanet.ops.window_taps import gather_back, tap_views


def max_of_slices(
    x: Float[Array, "b h w c"], window: int | tuple[int, int], stride: int | tuple[int, int]
) -> Float[Array, "b oh ow c"]:
    """Takes the largest value of each window around every stride-th position; outside of the map is
    minus infinity.

    The first entry of a window, row by row, that equals the maximum gets the gradient, as in
    PyTorch and in XLA's own gradient of `reduce_window`; where the maximum is NaN none does.

    Args:
        x: the map.
        window: odd side, or one per axis.
        stride: step between windows, or one per axis.

    Returns:
        Map [b, ceil(h / stride), ceil(w / stride), c].
    """
    sides = (window, window) if isinstance(window, int) else window
    return _max(x, sides, (stride, stride) if isinstance(stride, int) else stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max(x, sides, stride):
    return functools.reduce(jnp.maximum, tap_views(x, sides, stride, fill=-jnp.inf))


def _forward(x, sides, stride):
    views = tap_views(x, sides, stride, fill=-jnp.inf)
    y = functools.reduce(jnp.maximum, views)
    place = jnp.zeros(y.shape, jnp.uint8 if len(views) <= 256 else jnp.int32)
    rows, columns = (
        (step * jnp.arange(n))[:, None] + jnp.arange(side) - side // 2
        for n, side, step in zip(y.shape[1:3], sides, stride, strict=True)
    )
    inside = [(at >= 0) & (at < n) for at, n in zip((rows, columns), x.shape[1:3], strict=True)]
    for tap in reversed(range(len(views))):
        # A window of nothing but minus infinity must find its entry inside of the map.
        real = inside[0][:, None, tap // sides[1]] & inside[1][:, tap % sides[1]]
        place = jnp.where(
            (views[tap] == y) & real[:, :, None], jnp.asarray(tap, place.dtype), place
        )
    return y, (place, jnp.zeros((0, *x.shape[1:3], 0)))


def _backward(sides, stride, saved, cotangent):
    place, like = saved
    return (
        gather_back(
            [cotangent, place],
            like.shape[1:3],
            sides,
            stride,
            lambda tap, moved: jnp.where(moved[1] == tap, moved[0], 0),
        ),
    )


_max.defvjp(_forward, _backward)
