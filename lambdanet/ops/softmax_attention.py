"""Softmax attention: the one place where logits become weights and weights mix values.

Blocks hand over queries, keys and values in one of two layouts, so that none of them moves heads
only to call this: positions before the last axis, [*b n d], everything in front of them (samples,
windows, cells) being separate problems; or, with `heads`, [*b n h d].

What these cannot express keeps a softmax of its own: one over several pieces (criss-cross), over
the places of a sliding window (`dense_windows`, `slide_mix`), over the grid of a relative table
(`relative_logits`), or of something that is no product of queries and keys (gc, double attention,
the keys of a lambda).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

# By `heads`: logits of all pairs, and values mixed by weights.
_PAIRS = {False: "...nd,...md->...nm", True: "...nhd,...mhd->...hnm"}
_MIXES = {False: "...nm,...mv->...nv", True: "...hnm,...mhv->...nhv"}


def softmax_attention(
    query: Float[Array, "*q d"],
    key: Float[Array, "*k d"],
    value: Float[Array, "*k v"],
    *,
    scale: float,
    bias: Float[Array, "*_ n m"] | None = None,
    mask: Bool[Array, "*_ n m"] | None = None,
    heads: bool = False,
    return_weights: bool = False,
) -> tuple[Float[Array, "*q v"], Float[Array, "*b n m"] | None]:
    """y[n] = sum_m softmax_m(scale q[n] . k[m] + bias[n, m]) v[m], separately for every leading
    index and head.

    Logits and softmax in float32 (or better, if the inputs are), the product with the values in the
    values' dtype.

    Args:
        query: queries, [*b n d] or [*b n h d].
        key: keys, [*b m d] or [*b m h d].
        value: values, likewise.
        scale: factor of the products.
        bias: added to the logits, [*b n m] or [*b h n m], to which it broadcasts.
        mask: broadcasts likewise; False shuts a pair out. A query that may see nothing gets the
            plain mean of all values, so that it stays finite.
        heads: whether the axis before the last one is heads.
        return_weights: also return the softmax.

    Returns:
        The outputs, and the weights in the dtype of the softmax or None.
    """
    logits = attention_logits(query, key, scale=scale, heads=heads)
    if bias is not None:
        logits = logits + bias.astype(logits.dtype)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    y, weights = mix_values(logits, value, heads=heads)
    return y, weights if return_weights else None


def dot_attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m g d"],
    v: Float[Array, "b m g v"],
    *,
    scale: float,
    return_weights: bool = False,
) -> tuple[Float[Array, "b n h v"], Float[Array, "b h n m"] | None]:
    """`softmax_attention` per head between two lists of tokens, whose keys may have fewer heads.

    The program is that of `jax.nn.dot_product_attention`, which does not give the weights and
    rounds the softmax of float64 inputs to float32.

    Args:
        q: queries.
        k: keys; a number of heads g that divides h, each shared by h / g heads of queries.
        v: values.
        scale: factor of the logits.
        return_weights: also return the softmax.

    Returns:
        The mixed values in the dtype of `v`, and the weights or None.
    """
    attend = partial(softmax_attention, scale=scale, heads=True, return_weights=return_weights)
    sharing = rearrange(q, "b n (g r) d -> b n g r d", g=k.shape[2])
    y, weights = jax.vmap(attend, in_axes=(3, None, None), out_axes=(3, 2))(sharing, k, v)
    y = rearrange(y, "b n g r v -> b n (g r) v")
    return y, None if weights is None else rearrange(weights, "b g r n m -> b (g r) n m")


def attention_logits(
    query: Float[Array, "*q d"], key: Float[Array, "*k d"], *, scale: float, heads: bool = False
) -> Float[Array, "*b n m"]:
    """Returns scale q . k of all pairs, in float32 or wider."""
    precise = jnp.promote_types(query.dtype, jnp.float32)
    # Said for bfloat16 so that the products of the gradient have bfloat16 operands, too.
    precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if query.dtype == jnp.bfloat16 else None
    return scale * jnp.einsum(
        _PAIRS[heads], query, key, precision=precision, preferred_element_type=precise
    )


def mix_values(
    logits: Float[Array, "*b n m"],
    value: Float[Array, "*k v"],
    *,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
    heads: bool = False,
) -> tuple[Float[Array, "*q v"], Float[Array, "*b n m"]]:
    """Returns the values mixed by the softmax of the logits, and the softmax before dropout."""
    weights = jax.nn.softmax(logits, axis=-1)
    kept = weights if dropout is None else dropout(weights)
    return jnp.einsum(_MIXES[heads], kept.astype(value.dtype), value), weights
