"""1x1 convolution, batch norm and activation on any number of axes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lambdanet.layers.conv import activation_function
from lambdanet.layers.linear import Linear
from lambdanet.layers.norm import batch_norm


class PointwiseNormAct(nnx.Module):
    """activation(batch_norm(x W + b)) over the last axis.

    Args:
        dim: input channels.
        dim_out: output channels.
        bias: whether the product has a bias (the norm makes it redundant in training; some
            references have it).
        activation: a name in `lambdanet.layers.ACTIVATIONS`.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. Kernels start He-normal over the outgoing fan.

    Raises:
        ValueError: unknown activation.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        bias: bool = False,
        activation: str = "relu",
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        activation_function(activation)
        self.dim, self.dim_out, self.activation = dim, dim_out, activation
        self.linear = Linear(
            dim,
            dim_out,
            use_bias=bias,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = batch_norm(
            dim_out, momentum=norm_momentum, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "*b c"], *, mask: Bool[Array, "..."] | None = None
    ) -> Float[Array, "*b d"]:
        """Maps [..., dim] to [..., dim_out].

        Args:
            x: the input.
            mask: broadcasts to the input; batch statistics are taken where it is True. None takes
                all positions.
        """
        return activation_function(self.activation)(self.norm(self.linear(x), mask=mask))

    def macs(self, positions: int) -> int:
        """Multiply-accumulates of the product."""
        return positions * self.dim * self.dim_out
