"""Linear layer over the last axis."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float


class Linear(nnx.Linear):
    """y = x W + b over the last axis: `nnx.Linear`, on CPU with all other axes taken as one.

    The same numbers and gradients. The gradient of W sums over all other axes; where those are
    several, XLA's CPU backend computes one of the two factors a second time, into a transposed
    copy, and with one axis it reads what is there (docs/performance.md).
    """

    def __call__(
        self, inputs: Float[Array, "*b c"], out_sharding: Any = None
    ) -> Float[Array, "*b d"]:
        """Maps [..., in_features] to [..., out_features].

        Args:
            inputs: the input.
            out_sharding: of the result, as in `nnx.Linear`; the axes then stay as they are.
        """
        leading = inputs.shape[:-1]
        if len(leading) < 2 or out_sharding is not None or jax.default_backend() != "cpu":
            return super().__call__(inputs, out_sharding)
        rows = inputs.reshape(math.prod(leading), inputs.shape[-1])
        y = super().__call__(rows)
        return y.reshape(*leading, y.shape[-1])
