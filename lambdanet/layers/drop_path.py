"""Stochastic depth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class DropPath(nnx.Module):
    """Drops the whole residual branch of a sample with probability `rate` (training view only).

    Kept samples are scaled by 1 / (1 - rate), so that the expectation is unchanged. Source: Huang
    et al. 2016, "Deep Networks with Stochastic Depth".

    Args:
        rate: drop probability in [0, 1).

    Raises:
        ValueError: rate outside [0, 1).
    """

    def __init__(self, rate: float):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate is {rate}; allowed: 0 <= rate < 1")
        self.rate, self.deterministic = rate, False

    def set_view(self, deterministic: bool | None = None):
        """Switches between training and evaluation.

        Args:
          deterministic: True disables dropping; None leaves it as it is.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps [batch, ...] to the same shape; `rngs.dropout` is read in the training view when
        rate > 0.
        """
        if self.deterministic or self.rate == 0.0:
            return x
        if rngs is None:
            raise ValueError(
                "drop path in the training view needs `rngs` with a 'dropout' stream at the call; "
                "got None"
            )
        keep = 1.0 - self.rate
        mask = jax.random.bernoulli(rngs.dropout(), keep, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(mask, x / keep, 0).astype(x.dtype)
