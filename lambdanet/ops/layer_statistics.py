"""Layer normalisation with gradients in few passes over the map."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def normalise_features(
    x: Float[Array, "*b c"], scale: Float[Array, " c"], bias: Float[Array, " c"], epsilon: float
) -> Float[Array, "*b c"]:
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, mean and (biased) variance being those
    of the last axis at each position.

    The same function and derivatives as `flax.nnx.LayerNorm` with `use_fast_variance=False`. With
    z the normalised values, the derivative of z is (dx - mean(dx) - z mean(z dx)) / sqrt(var +
    epsilon): two sums over the last axis, where automatic differentiation goes through mean and
    variance one after the other. Forward and reverse mode.

    Args:
        x: the map.
        scale: per channel.
        bias: per channel.
        epsilon: added to the variance.

    Returns:
        y in float32 or wider, as are the sums.
    """
    return _normalised(x, epsilon)[0] * scale + bias


def _normalised(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Returns (z, 1 / sqrt(var + epsilon))."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x - jnp.mean(x, -1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + epsilon)
    return centred * inverse, inverse


@normalise_features.defjvp
def _derivative(epsilon, primals, tangents):
    (x, scale, bias), (of_x, of_scale, of_bias) = primals, tangents
    z, inverse = _normalised(x, epsilon)
    of_x = of_x.astype(z.dtype)
    mean, product = (jnp.mean(t, -1, keepdims=True) for t in (of_x, z * of_x))
    of_z = inverse * (of_x - mean - z * product)
    return z * scale + bias, of_z * scale + z * of_scale + of_bias
