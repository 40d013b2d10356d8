"""A mean of frames' features, weighted at every position by how much each resembles one frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_EPSILON = 1e-10  # inside the root of a norm

Map = Float[Array, "b h w c"]


def frame_mean(
    read: Callable[[Any], tuple[Map, Float[Array, "b h w e"]]],
    frames: Any,
    reference: Float[Array, "b h w e"],
) -> tuple[Map, Float[Array, "t b h w"]]:
    """Returns sum_t w_t F_t, with w = softmax over t of cos(e_t, e) at every position.

    The frames are read one after the other, and the sums of exp(cos) F and of exp(cos) are all that
    is kept of them: a cosine is at most 1, so that no maximum has to be taken off. The backward
    pass reads them again. Memory is that of a few maps for any number of frames.

    Source: Flow-Guided Feature Aggregation (Zhu et al., 2017). The largest ratio of two weights is
    e^2: there is no temperature.

    Args:
        read: one frame -> its features and its embedding, placed as those of the reference.
        frames: a tree of arrays with an axis of frames in front.
        reference: the embedding e.

    Returns:
        The mean in the dtype of the features, summed in float32 or wider, and the weights.
    """
    reference = unit(reference)
    features = jax.eval_shape(lambda: read(jax.tree.map(lambda a: a[0], frames))[0])
    precise = jnp.promote_types(features.dtype, jnp.float32)

    def add(sums, frame):
        numerator, denominator = sums
        own, embedding = read(frame)
        share = jnp.exp(jnp.sum(unit(embedding) * reference, -1))
        numerator += share[..., None].astype(precise) * own.astype(precise)
        return (numerator, denominator + share), share

    start = jnp.zeros(features.shape, precise), jnp.zeros(reference.shape[:-1], reference.dtype)
    (numerator, denominator), shares = jax.lax.scan(jax.checkpoint(add), start, frames)
    mean = numerator / denominator[..., None].astype(precise)
    return mean.astype(features.dtype), shares / denominator


def unit(embedding: Float[Array, "*b e"]) -> Float[Array, "*b e"]:
    """Returns vectors of length 1, float32 or wider; a vector of zeros stays one."""
    wide = embedding.astype(jnp.promote_types(embedding.dtype, jnp.float32))
    return wide * jax.lax.rsqrt(jnp.sum(wide**2, -1, keepdims=True) + _EPSILON)
