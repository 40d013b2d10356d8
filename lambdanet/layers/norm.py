"""Batch normalisation with the conventions of this project."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx


def batch_norm(
    features: int,
    *,
    momentum: float = 0.9,
    zero_init: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.BatchNorm:
    """Builds a batch norm over the last axis with epsilon 1e-5 and float32 statistics.

    Under a mesh it sees the global batch without an axis name. Running variance is the biased one; torch
    stores the unbiased one.

    Args:
        features: channels of the last axis.
        momentum: decay of the running statistics (0.9 here is torch's 0.1).
        zero_init: start the scale at zero, so that a residual block starts as the identity.
        dtype: activation dtype.
        param_dtype: dtype of scale and bias.
        rngs: initialisation source.
    """
    scale_init = nnx.initializers.zeros_init() if zero_init else nnx.initializers.ones_init()
    return nnx.BatchNorm(
        features,
        momentum=momentum,
        epsilon=1e-5,
        scale_init=scale_init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
