"""Learned scale of a residual branch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerScale(nnx.Module):
    """y = gamma x, one factor per channel of the last axis.

    Source: Touvron et al. 2021, "Going deeper with Image Transformers".

    Args:
        dim: channels.
        init: value that all factors start with.
        param_dtype: dtype of the stored factors.
    """

    def __init__(self, dim: int, init: float, *, param_dtype: Any = jnp.float32):
        self.gamma = nnx.Param(jnp.full((dim,), init, param_dtype))

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Maps [..., dim] to the same shape and dtype."""
        return x * jax.lax.convert_element_type(self.gamma[...], x.dtype)
