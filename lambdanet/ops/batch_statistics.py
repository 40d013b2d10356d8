"""Batch normalisation with statistics of the batch, in as few passes over the map as it takes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Statistics = tuple[Float[Array, " c"], Float[Array, " c"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise_batch(
    x: Float[Array, "*b c"], scale: Float[Array, " c"], bias: Float[Array, " c"], epsilon: float
) -> tuple[Float[Array, "*b c"], Statistics]:
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, mean and (biased) variance being those
    of each channel of `x`.

    The same function and gradients as `flax.nnx.BatchNorm` in training, with fewer passes and
    nothing saved but `x`: per channel y is a line in x, and the gradient of x is a line in x and in
    the gradient of y.

    Args:
        x: the map.
        scale: per channel.
        bias: per channel.
        epsilon: added to the variance.

    Returns:
        (y in float32 or wider, (mean, var)). Sums are in float32 or wider; var = max(0, E[x^2] -
        E[x]^2).
    """
    return _forward(x, scale, bias, epsilon)[0]


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))


def _forward(x, scale, bias, epsilon):
    rows = _rows(x)
    mean, square = jnp.mean(rows, 0), jnp.mean(rows * rows, 0)
    var = jnp.maximum(0.0, square - mean * mean)
    inverse = lax.rsqrt(var + epsilon)
    slope = inverse * scale
    y = rows * slope + (bias - mean * slope)
    return (y.reshape(x.shape), (mean, var)), (x, scale, bias, mean, var, inverse)


def _backward(epsilon, saved, cotangents):
    x, scale, bias, mean, var, inverse = saved
    of_y, (of_mean, of_var) = cotangents
    rows, of_rows = _rows(x), _rows(of_y)
    count = rows.shape[0]
    total, product = jnp.sum(of_rows, 0), jnp.sum(of_rows * rows, 0)
    of_scale = (product - mean * total) * inverse
    slope = scale * inverse
    # Where rounding would have made the variance negative it is cut at zero and does not depend on
    # x.
    through_var = jnp.where(var > 0, 2 * of_var / count - slope * inverse * of_scale / count, 0.0)
    offset = (of_mean - slope * total) / count - through_var * mean
    of_x = slope * of_rows + through_var * rows + offset
    return (
        of_x.reshape(x.shape).astype(x.dtype),
        of_scale.astype(scale.dtype),
        total.astype(bias.dtype),
    )


normalise_batch.defvjp(_forward, _backward)
