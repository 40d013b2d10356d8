"""Softmax attention: the one place where logits become weights and weights mix values.

Four lowerings: `dense` holds the logits of all pairs, `blocked` those of a block of queries at a
time (`blocked_attention`), `turns` those of a few heads, windows or samples at a time, and if one
of these has too many, of a block of its queries; `cudnn` is the fused kernel of that library.
`attention_lowering` chooses by shape and backend.

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

from lambdanet import batch_split
from lambdanet.ops.attention_lowering import Pairs, Turns, choose_chunk, kernels
from lambdanet.ops.blocked_attention import (
    BlockLogits,
    attend_in_blocks,
    cut,
    equal_parts,
    join,
    unaliased_parts,
)
from lambdanet.ops.cost_model import static_batch

# By `heads`: logits of all pairs, and values mixed by weights.
_PAIRS = {False: "...nd,...md->...nm", True: "...nhd,...mhd->...hnm"}
_MIXES = {False: "...nm,...mv->...nv", True: "...hnm,...mhv->...nhv"}
_SIDE_BY_SIDE = 8  # turns of several blocks that stand in one turn of the outer loop


def softmax_attention(
    query: Float[Array, "*q d"],
    key: Float[Array, "*k d"],
    value: Float[Array, "*k v"],
    *,
    scale: float,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    heads: bool = False,
    query_chunk: int | str | Turns | None = "auto",
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
        query_chunk: queries whose logits are held at a time, at most; 'auto' leaves it to
            `attention_lowering`, None is all.
        return_weights: also return the softmax, for which all logits are held.

    Returns:
        The outputs, and the weights in the dtype of the softmax or None.
    """
    if return_weights:
        query_chunk = None
    if query_chunk == "auto":
        plain = bias is None and mask is None
        query_chunk = chosen_chunk(query, key, value, heads=heads, plain=plain, turns=plain)
    if query_chunk == "cudnn":
        return _library(query, key, value, scale=scale, heads=heads), None
    if isinstance(query_chunk, Turns):
        part = dict(scale=scale, heads=heads, turns=query_chunk)
        return _in_turns(query, key, value, **part), None
    if query_chunk is not None and query_chunk < query.shape[-3 if heads else -2]:
        part = dict(scale=scale, bias=bias, mask=mask, heads=heads, size=query_chunk)
        return _in_blocks(query, key, value, **part), None
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
    query_chunk: int | str | Turns | None = "auto",
    return_weights: bool = False,
) -> tuple[Float[Array, "b n h v"], Float[Array, "b h n m"] | None]:
    """`softmax_attention` per head between two lists of tokens, whose keys may have fewer heads.

    The function is that of `jax.nn.dot_product_attention`, which does not give the weights and
    rounds the softmax of float64 inputs to float32.

    Args:
        q: queries.
        k: keys; a number of heads g that divides h, each shared by h / g heads of queries.
        v: values.
        scale: factor of the logits.
        query_chunk: as for `softmax_attention`, the queries of all heads that share their keys
            being counted.
        return_weights: also return the softmax.

    Returns:
        The mixed values in the dtype of `v`, and the weights or None.
    """
    groups = k.shape[2]
    # Heads that share their keys are further queries to them.
    sharing = rearrange(q, "b n (g r) d -> b (r n) g d", g=groups)
    options = dict(scale=scale, heads=True, query_chunk=query_chunk)
    y, weights = softmax_attention(sharing, k, v, **options, return_weights=return_weights)
    y = rearrange(y, "b (r n) g v -> b n (g r) v", n=q.shape[1])
    if weights is not None:
        weights = rearrange(weights, "b g (r n) m -> b (g r) n m", n=q.shape[1])
    return y, weights


def chosen_chunk(
    query: Float[Array, "*q d"],
    key: Float[Array, "*k d"],
    value: Float[Array, "*k v"],
    *,
    heads: bool,
    plain: bool,
    turns: bool,
) -> int | str | Turns | None:
    """What `attention_lowering` chooses for these arrays; `plain`: neither bias nor mask; `turns`:
    problems may be computed one after the other.
    """
    positions = -3 if heads else -2
    lead = query.shape[:positions] + (query.shape[-2:-1] if heads else ())
    # One after the other where they lie on one device, and are counted.
    turns = turns and batch_split.devices() == 1 and all(isinstance(n, int) for n in lead)
    pairs = Pairs(
        problems=static_batch(*query.shape[:positions]) * (query.shape[-2] if heads else 1),
        queries=query.shape[positions],
        keys=key.shape[positions],
        depth=query.shape[-1],
        value_depth=value.shape[-1],
        dtype=value.dtype.name,
        plain=plain,
        turns=turns,
    )
    return choose_chunk(pairs, kernels())


def attention_logits(
    query: Float[Array, "*q d"], key: Float[Array, "*k d"], *, scale: float, heads: bool = False
) -> Float[Array, "*b n m"]:
    """Returns scale q . k of all pairs, in float32 or wider."""
    precise = jnp.promote_types(query.dtype, jnp.float32)
    if query.shape[-1] == 1 and query.dtype == jnp.bfloat16:
        # No sum to take; and as a product of matrices it makes XLA's CPU backend of jaxlib 0.10 end
        # the process (ynn_emitter.cc: "reshape vs. bitcast").
        query, key = (a.astype(precise) for a in (query, key))
        if heads:
            query, key = (jnp.swapaxes(a, -3, -2) for a in (query, key))
        return scale * (query * jnp.swapaxes(key, -2, -1))
    # Said for bfloat16 so that the products of the gradient have bfloat16 operands, too.
    precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if query.dtype == jnp.bfloat16 else None
    query, scale = scaled(query, scale)
    return scale * jnp.einsum(
        _PAIRS[heads], query, key, precision=precision, preferred_element_type=precise
    )


def scaled(query: Float[Array, "*q d"], scale: float) -> tuple[Float[Array, "*q d"], float]:
    """Multiplies the scale to the queries, which are fewer numbers than the logits, and returns
    what is left of it for those: all, where the queries are narrow and rounding would show.
    """
    if query.dtype == jnp.promote_types(query.dtype, jnp.float32):
        return query * scale, 1.0
    return query, scale


def mix_values(
    logits: Float[Array, "*b n m"],
    value: Float[Array, "*k v"],
    *,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
    heads: bool = False,
) -> tuple[Float[Array, "*q v"], Float[Array, "*b n m"]]:
    """Returns the values mixed by the softmax of the logits, and the softmax before dropout.

    Sums of exponentials are divided by after the values are mixed, which has fewer numbers than the
    weights and lets XLA's CPU backend share the work better; but narrower values, whose range such
    sums could leave, are mixed by weights.
    """
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    exponentials = jnp.exp(logits - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    weights = exponentials / total
    narrow = jnp.promote_types(value.dtype, logits.dtype) != value.dtype
    kept = weights if narrow else exponentials
    kept = kept if dropout is None else dropout(kept)
    y = jnp.einsum(_MIXES[heads], kept.astype(value.dtype), value)
    return y if narrow else y / (jnp.swapaxes(total, -3, -2) if heads else total), weights


def _in_turns(
    query: jax.Array, key: jax.Array, value: jax.Array, *, scale: float, heads: bool, turns: Turns
) -> jax.Array:
    """The lowering `turns`, which has neither bias nor mask."""
    if heads:
        query, key, value = (jnp.swapaxes(a, -3, -2) for a in (query, key, value))
    query, scale = scaled(query, scale)
    size = unaliased_parts(query.shape[-2], turns.queries)
    together = (turns.problems,) if turns.problems > 1 else ()
    parts = [a.reshape(-1, *together, *a.shape[-2:]) for a in (query, key, value)]

    def attend(_, part):
        query, key, value = part
        blocks = (cut(query, -2, size), None), (key, None), None, None, value
        return None, attend_in_blocks(*_logits_of_blocks(scale), *blocks)

    # Turns of several blocks are loops, which XLA runs two at a time if they stand side by side.
    unroll = _SIDE_BY_SIDE if size < query.shape[-2] else 1
    y = jax.lax.scan(attend, None, tuple(parts), unroll=unroll)[1]
    y = jax.vmap(lambda blocks: join(blocks, -2, query.shape[-2]))(y)
    y = y.reshape(*query.shape[:-1], -1)
    return jnp.swapaxes(y, -3, -2) if heads else y


def _in_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float,
    bias: jax.Array | None,
    mask: jax.Array | None,
    heads: bool,
    size: int,
) -> jax.Array:
    """The lowering `blocked`, `size` queries at a time."""
    if heads:
        query, key, value = (jnp.swapaxes(a, -3, -2) for a in (query, key, value))
    query, scale = scaled(query, scale)
    positions = query.shape[-2]
    size = equal_parts(positions, size)

    def own_and_shared(pairs):
        """What every query has rows of its own of, and what all have in common."""
        if pairs is None or pairs.ndim < 2 or pairs.shape[-2] == 1:
            return None, pairs
        return cut(pairs, -2, size), None

    (own_bias, shared_bias), masks = own_and_shared(bias), own_and_shared(mask)
    own, shared = (cut(query, -2, size), own_bias), (key, shared_bias)
    y = attend_in_blocks(*_logits_of_blocks(scale), own, shared, *masks, value)
    y = join(y, -2, positions)
    return jnp.swapaxes(y, -3, -2) if heads else y


def _logits_of_blocks(scale: float) -> tuple[BlockLogits, BlockLogits]:
    """What gives the logits of a block, and what gives them with keys first."""
    return tuple(partial(_block_logits, scale=scale, keys_first=first) for first in (False, True))


def _block_logits(own, shared, masks, *, scale: float, keys_first: bool) -> jax.Array:
    (query, own_bias), (key, shared_bias) = own, shared

    def turned(pairs):
        return jnp.swapaxes(jnp.atleast_2d(pairs), -2, -1) if keys_first else pairs

    logits = attention_logits(*((key, query) if keys_first else (query, key)), scale=scale)
    for bias in (own_bias, shared_bias):
        if bias is not None:
            logits = logits + turned(bias.astype(logits.dtype))
    for mask in masks:
        if mask is not None:
            logits = jnp.where(turned(mask), logits, jnp.finfo(logits.dtype).min)
    return logits


def _library(
    query: jax.Array, key: jax.Array, value: jax.Array, *, scale: float, heads: bool
) -> jax.Array:
    """The lowering `cudnn`."""
    shape = (*query.shape[:-1], value.shape[-1])
    lists = [a if heads else a[..., None, :] for a in (query, key, value)]
    lists = [a.reshape(-1, *a.shape[-3:]) for a in lists]
    y = jax.nn.dot_product_attention(*lists, scale=scale, implementation="cudnn")
    return y.reshape(shape)
