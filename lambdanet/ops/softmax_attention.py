"""Softmax attention over the next-to-last axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def softmax_attention(
    query: Float[Array, "*b n d"],
    key: Float[Array, "*b m d"],
    value: Float[Array, "*b m v"],
    *,
    scale: float,
    mask: Bool[Array, "*b n m"] | None = None,
) -> tuple[Float[Array, "*b n v"], Float[Array, "*b n m"]]:
    """y[n] = sum_m softmax_m(scale * q[n] . k[m]) v[m], separately for every leading index.

    Logits and softmax in float32 (or better, if the inputs are), the product with the values in the
    values' dtype.

    Args:
        query: queries.
        key: keys.
        value: values.
        scale: factor of the logits.
        mask: broadcasts to the logits; False shuts a pair out. A query that may see nothing gets
            the plain mean of all values, so that it stays finite.

    Returns:
        The outputs and the weights, the latter in the dtype of the softmax.
    """
    precise = jnp.promote_types(query.dtype, jnp.float32)
    logits = scale * jnp.einsum("...nd,...md->...nm", query, key, preferred_element_type=precise)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(precise).min)
    weights = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("...nm,...mv->...nv", weights.astype(value.dtype), value), weights
