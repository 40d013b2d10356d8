"""Softmax attention between two lists of tokens, with the weights when they are asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dot_attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m g d"],
    v: Float[Array, "b m g d"],
    *,
    scale: float,
    return_weights: bool = False,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n m"] | None]:
    """softmax_m(scale q . k) v per head; logits and softmax in float32 or wider.

    Without weights this is `jax.nn.dot_product_attention`, whose default lowering holds the logits
    [b, h, n, m] in memory. It rounds the softmax of float64 inputs to float32, so these take the
    path of our own, as does `return_weights`.

    Args:
        q: queries.
        k: keys; a number of heads g that divides h, each shared by h / g heads of queries.
        v: values.
        scale: factor of the logits.
        return_weights: also return the softmax.

    Returns:
        The mixed values in the dtype of `v`, and the weights or None.
    """
    if not return_weights and q.dtype != jnp.float64:
        return jax.nn.dot_product_attention(q, k, v, scale=scale), None
    (batch, n, heads, depth), (m, groups) = q.shape, k.shape[1:3]
    grouped = q.reshape(batch, n, groups, heads // groups, depth)
    accumulate = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bngrd,bmgd->bgrnm", grouped, k, preferred_element_type=accumulate)
    weights = jax.nn.softmax(logits * scale, axis=-1)
    y = jnp.einsum("bgrnm,bmgd->bngrd", weights.astype(v.dtype), v)
    return y.reshape(q.shape), weights.reshape(batch, heads, n, m)
