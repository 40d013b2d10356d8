"""Squeeze-and-excitation: a gate per channel, computed from the channel means."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import POINTWISE, prefixed
from lambdanet.layers import Captures, Linear, check_map


@registry.register("se")
class SqueezeExcite(Captures, nnx.Module):
    """y = x * sigmoid(W2 relu(W1 mean(x))), the mean over all positions.

    A context block with its gate inside: the output is `x` scaled per channel; there is no
    residual. Mean, both matrices and the gate are computed in float32. Where it stands is the host
    network's business: the paper's 'standard' place in a ResNet is after the last norm of the
    residual branch, before the addition; it also tries 'pre' (before the branch), 'post' (after the
    addition) and 'identity' (on the shortcut).

    Shapes: [b, *spatial, dim] with one to three spatial axes to the same. With the view attribute
    `capture`, a call sows `gate` [b, *ones, dim].

    Source: Hu et al. 2018, "Squeeze-and-Excitation Networks", equations 2-4. Their released
    networks have biases, the ablations of the journal version do not: `bias=False`. ResNet-RS uses
    ratio 4, the paper 16.

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
            raise ValueError(
                f"squeeze-excite ratio is {ratio} for {dim} channels; allowed: 1 <= ratio <= "
                "channels"
            )
        self.dim, self.hidden, self.dtype = dim, dim // ratio, dtype
        options = dict(
            use_bias=bias, kernel_init=nnx.initializers.he_normal(), param_dtype=param_dtype
        )
        self.reduce = Linear(dim, self.hidden, **options, rngs=rngs)
        self.expand = Linear(self.hidden, dim, **options, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b *s c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *s c"]:
        """Maps [b, *spatial, dim] to the same shape; `rngs` is not read."""
        check_map("se", x, self.dim)
        x = x.astype(self.dtype or x.dtype)
        spatial = tuple(range(1, x.ndim - 1))
        mean = jnp.mean(
            x, axis=spatial, keepdims=True, dtype=jnp.promote_types(x.dtype, jnp.float32)
        )
        gate = jax.nn.sigmoid(self.expand(jax.nn.relu(self.reduce(mean))))
        if self.capture:
            self.sow(nnx.Intermediate, "gate", gate)
        return x * gate.astype(x.dtype)

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of the two matrices; the gate's product is not counted."""
        return 2 * self.dim * self.hidden


TORCH_NAMES = (
    *prefixed(POINTWISE, r"fc1\.", "reduce"),  # timm
    *prefixed(POINTWISE, r"fc2\.", "expand"),
    *prefixed(POINTWISE, r"fc\.0\.", "reduce"),  # moskomule/senet.pytorch
    *prefixed(POINTWISE, r"fc\.2\.", "expand"),
)
