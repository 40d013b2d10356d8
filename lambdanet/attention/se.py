"""Squeeze-and-excitation: a gate per channel, computed from the channel means."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import attention
from lambdanet.interop.names import POINTWISE, prefixed


@attention.register("se")
class SqueezeExcite(nnx.Module):
    """y = x * sigmoid(W2 relu(W1 mean(x))), the mean over all positions.

    A context block with its gate inside: the output is `x` scaled per channel; there is no residual. In a
    ResNet it stands after the last norm of the residual branch, before the addition. Mean, both matrices and
    the gate are computed in float32.

    Source: Hu et al. 2018, "Squeeze-and-Excitation Networks", equations 2-4. Their released networks have
    biases, the ablations of the journal version do not: `bias=False`. ResNet-RS uses ratio 4, the paper 16.

    Args:
        dim: channels.
        ratio: reduction; the hidden layer has dim // ratio channels.
        bias: whether both matrices have biases.
        dtype: dtype of the output; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: ratio leaves no hidden channel.
    """

    kind: ClassVar[str] = "context"

    def __init__(
        self,
        dim: int,
        *,
        ratio: int = 4,
        bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 1 <= ratio <= dim:
            raise ValueError(f"squeeze-excite ratio is {ratio} for {dim} channels; allowed: 1 <= ratio <= channels")
        self.dim, self.hidden, self.dtype = dim, dim // ratio, dtype
        options = dict(use_bias=bias, kernel_init=nnx.initializers.he_normal(), dtype=jnp.float32, param_dtype=param_dtype)
        self.reduce = nnx.Linear(dim, self.hidden, **options, rngs=rngs)
        self.expand = nnx.Linear(self.hidden, dim, **options, rngs=rngs)

    def __call__(self, x: Float[Array, "b *spatial c"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "b *spatial c"]:
        """Maps [b, *spatial, dim] (one, two or three spatial axes) to the same shape; `rngs` is not read."""
        spatial = tuple(range(1, x.ndim - 1))
        mean = jnp.mean(x, axis=spatial, keepdims=True, dtype=jnp.float32)
        gate = jax.nn.sigmoid(self.expand(jax.nn.relu(self.reduce(mean))))
        dtype = self.dtype or x.dtype
        return x.astype(dtype) * gate.astype(dtype)

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of the two matrices; the gate's product with the map is not counted."""
        return 2 * self.dim * self.hidden


TORCH_NAMES = (
    *prefixed(POINTWISE, r"fc1\.", "reduce"),  # timm
    *prefixed(POINTWISE, r"fc2\.", "expand"),
    *prefixed(POINTWISE, r"fc\.0\.", "reduce"),  # moskomule/senet.pytorch
    *prefixed(POINTWISE, r"fc\.2\.", "expand"),
)
