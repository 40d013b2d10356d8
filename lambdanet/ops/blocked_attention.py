"""Softmax attention a block of queries at a time: memory grows with the positions, not with their
pairs, forward and backward.

The logits of a block are made, used and forgotten. The gradient is written out: it makes them again
from what the forward pass keeps of every query, its output, its largest logit and the sum of its
exponentials. These two are kept apart, since the logarithm of the sum is lost beside a large
logit: a query that may see nothing has the logit -3.4e38 everywhere.

Sources: Rabe and Staats 2021, "Self-attention Does Not Need O(n^2) Memory"; Dao et al. 2022,
"FlashAttention". Blocks of keys with running maximum and sum, as there, gained nothing on CPU
(docs/performance.md).

The gradient has its arrays of pairs with keys first: of its five products only one is then of a
transposed array, in place of two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from lambdanet.ops.wide_einsum import wide_einsum

# Nested tuples and dicts of arrays or None.
Tree = Any
BlockLogits = Callable[[Tree, Tree, Tree], Float[Array, "*l q m"]]

ALIASING = 64
"""Where the rows of an array are a multiple of so many numbers apart, the parts of a column that a
transposed product reads fall on the same few places of the cache."""


def equal_parts(length: int, most: int) -> int:
    """Returns how long the parts are if a length is cut into as few as `most` allows, all alike."""
    return -(-length // -(-length // most))


def unaliased_parts(length: int, most: int) -> int:
    """Returns how long parts are, as `equal_parts`, but no multiple of `ALIASING`: that takes one
    part more, or where one is enough, one that is longer than the whole.
    """
    parts = -(-length // most)
    while (size := -(-length // parts)) % ALIASING == 0:
        if parts == 1:
            return size + ALIASING // 4
        parts += 1
    return size


def cut(x: Shaped[Array, "..."], axis: int, size: int) -> Shaped[Array, "..."]:
    """Cuts an axis into blocks, which become the first axis; the last block is filled with zeros.

    Args:
        x: an array.
        axis: counted from the end, negative.
        size: positions per block.
    """
    axis += x.ndim
    blocks = -(-x.shape[axis] // size)
    padding = [(0, blocks * size - x.shape[axis]) if a == axis else (0, 0) for a in range(x.ndim)]
    x = jnp.pad(x, padding)
    x = x.reshape(*x.shape[:axis], blocks, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def join(x: Shaped[Array, "..."], axis: int, length: int) -> Shaped[Array, "..."]:
    """Undoes `cut`: the first axis joins the one that is `axis` without it."""
    axis += x.ndim - 1
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return lax.slice_in_dim(x, 0, length, axis=axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_in_blocks(
    logits_of: BlockLogits,
    keys_first: BlockLogits,
    own: Tree,
    shared: Tree,
    own_mask: Tree,
    shared_mask: Tree,
    value: Float[Array, "*l m v"],
) -> Float[Array, "i *l q v"]:
    """y = softmax over m of logits_of(own, shared, masks), times the values, block by block.

    Args:
        logits_of: (own arrays of a block, shared arrays, (own mask, shared mask)) -> its logits
            [*l q m] in float32 or wider, differentiable by the first two.
        keys_first: the same with the last two axes exchanged, for the gradient.
        own: arrays with an axis of blocks in front.
        shared: arrays of which every block gets the whole.
        own_mask: arrays without a gradient, likewise; or None.
        shared_mask: likewise.
        value: values.

    Returns:
        The mixed values of every block, in the dtype of `value`.
    """
    return _forward(logits_of, keys_first, own, shared, own_mask, shared_mask, value)[0]


def _forward(logits_of, keys_first, own, shared, own_mask, shared_mask, value):
    def attend(_, block):
        own, mask = block
        logits = logits_of(own, shared, (mask, shared_mask))
        largest = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = weights.sum(axis=-1, keepdims=True)
        y = wide_einsum("...qm,...mv->...qv", weights.astype(value.dtype), value)
        return None, ((y / total).astype(value.dtype), largest, total)

    _, (y, largest, total) = lax.scan(attend, None, (own, own_mask))
    return y, (own, shared, own_mask, shared_mask, value, y, largest, total)


def _backward(logits_of, keys_first, saved, of_y):
    own, shared, own_mask, shared_mask, value, *kept = saved

    def attend(sums, block):
        own, mask, of_y, (y, largest, total) = block
        logits, pull = jax.vjp(lambda *a: keys_first(*a, (mask, shared_mask)), own, shared)
        weights = jnp.exp(logits - jnp.swapaxes(largest, -2, -1))
        # The weights are these by `total`, by which the gradient, of fewer numbers, is divided.
        scaled = of_y.astype(logits.dtype) / total
        along = jnp.sum(scaled * y.astype(logits.dtype), axis=-1, keepdims=True)
        scaled = scaled.astype(value.dtype)
        of_value = wide_einsum("...mq,...qv->...mv", weights.astype(value.dtype), scaled)
        of_weights = wide_einsum("...mv,...qv->...mq", value, scaled)
        of_own, of_shared = pull(weights * (of_weights - jnp.swapaxes(along, -2, -1)))
        return jax.tree.map(jnp.add, sums, (of_shared, of_value)), of_own

    def zeros(x):
        return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))

    start = jax.tree.map(zeros, (shared, value))
    sums, of_own = lax.scan(attend, start, (own, own_mask, of_y, tuple(kept)))
    of_shared, of_value = jax.tree.map(lambda s, x: s.astype(x.dtype), sums, (shared, value))
    return of_own, of_shared, None, None, of_value


attend_in_blocks.defvjp(_forward, _backward)
