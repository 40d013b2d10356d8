"""Features carried from frame to frame by attention to a neighbourhood, in place of a flow."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from lambdanet.ops.neighborhood import neighborhood_attention

_NEVER = -1e9  # a logit; less far than the masks' so that their sum is finite

Square = Float[Array, "k k"]


def carry(
    query: Float[Array, "b h w d"],
    key: Float[Array, "b h w d"],
    value: Float[Array, "b h w c"],
    bias: Square,
    ring_bias: Float[Array, "r r"] | None = None,
    *,
    ring_step: int = 2,
) -> Float[Array, "b h w c"]:
    """Returns sum over offsets o of a_o(p) value(p + o), with a = softmax over o of query(p) key(p
    + o) / sqrt(d) + bias_o.

    The offsets are those of a square window of k x k cells and, with a ring, those of a window of r
    x r positions `ring_step` cells apart that lie outside of the square; one softmax runs over
    both. Keys outside the map are left out. Local attention on the two windows computes it; the
    ring's part and the square's are joined by the totals of their softmaxes.

    Args:
        query: embedding of the frame that is made.
        key: embedding of the frame that is read.
        value: features of the frame that is read.
        bias: [k, k], k odd, by (row, column) of the offset, from the upper left.
        ring_bias: [r, r], r odd, likewise; entries inside the square do not count. None for no
            ring.
        ring_step: cells between offsets of the ring.

    Returns:
        The features, in the dtype of `value`.

    Raises:
        ValueError: a ring within the square.
    """
    near = bias.shape[0] // 2
    windows = [(bias, 1)]
    if ring_bias is not None:
        far = ring_bias.shape[0] // 2
        if far * ring_step <= near:
            raise ValueError(
                f"a ring of radius {far * ring_step} lies within the square of radius {near}"
            )
        inside = jnp.abs(jnp.arange(-far, far + 1)) * ring_step <= near
        windows.append((jnp.where(inside[:, None] & inside, _NEVER, ring_bias), ring_step))
    parts = [_window(query, key, value, *window) for window in windows]
    if len(parts) == 1:
        return parts[0][0]
    (close, first), (distant, second) = parts
    total = jnp.logaddexp(first, second)
    wide = close.astype(total.dtype) * jnp.exp(first - total)
    wide += distant.astype(total.dtype) * jnp.exp(second - total)
    return wide.astype(value.dtype)


def _window(query, key, value, bias, step):
    """Mixed values, and the logarithm of the denominator [b, h, w, 1]."""
    side = bias.shape[0]
    table = jnp.pad(bias.astype(jnp.float32), side // 2)[None]
    y, totals = neighborhood_attention(
        query[..., None, :],
        key[..., None, :],
        value[..., None, :],
        table,
        kernel_size=(side, side),
        dilation=(step, step),
        border="masked",
        scale=query.shape[-1] ** -0.5,
        return_totals=True,
    )
    return y[..., 0, :], totals
