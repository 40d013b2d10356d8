"""Overlapping windows along an axis, joined from slices."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def halo_windows(
    x: jax.Array, axis: int, count: int, step: int, length: int, before: int
) -> jax.Array:
    """Cuts an axis into `count` windows [count, length] that start at i * step - before; zeros
    outside.

    Windows are joined from whole steps, so that gathering them is a few slices and its transpose a
    few additions.
    """
    steps = -(-length // step)  # whole steps that a window touches
    total = (count + steps - 1) * step
    padding = [(0, 0)] * x.ndim
    padding[axis] = (before, total - before - x.shape[axis])
    x = jnp.pad(x, padding)
    x = x.reshape(*x.shape[:axis], count + steps - 1, step, *x.shape[axis + 1 :])
    parts = [jax.lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(steps)]
    return jax.lax.slice_in_dim(jnp.concatenate(parts, axis + 1), 0, length, axis=axis + 1)
