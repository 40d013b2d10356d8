"""CBAM: a gate per channel, then a gate per position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import BATCH_NORM, CONV, LINEAR, prefixed
from lambdanet.layers import Captures, ConvNormAct, Linear, check_map, max_over


def _root_of_squares(x: jax.Array) -> jax.Array:
    squares = jnp.sum(x * x, axis=1)
    nonzero = squares > 0  # the root has no finite slope at zero
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squares, 1)), 0)


POOLS = {
    "avg": lambda x: jnp.mean(x, axis=1),
    "max": lambda x: max_over(x, axis=1),
    "lp": _root_of_squares,
    "lse": lambda x: jax.nn.logsumexp(x, axis=1),
}
"""Poolings of the channel gate, [b, positions, c] -> [b, c]."""


@registry.register("cbam")
class ConvolutionalBlockAttention(Captures, nnx.Module):
    r"""y = x' * Ms(x') with x' = x * Mc(x): two gates; there is no residual and no projection.

        Mc = sigmoid(sum over pools of W2 relu(W1 pool(x) + b1) + b2)         per channel; one MLP for all pools
        Ms = sigmoid(batch_norm(conv7x7([max_c(x'), mean_c(x')])))            per position

    A context block that in a ResNet stands where squeeze-excite does, after the last norm of the
    residual branch, before the addition. It is not the identity at the start: the scale of its
    batch norm starts at zero, so Ms = 1/2, and Mc is near 1/2. Its running statistics decay by 0.99,
    whatever the host network's. Pools, MLP, convolution and gates are in float32.

    Shapes: [b, h, w, dim] to the same; with `spatial=False` any one to three spatial axes. With the
    view attribute `capture`, a call sows `gate`, the factor on x: Mc * Ms [b, h, w, dim], or Mc [b,
    *ones, dim].

    Source: Woo et al. 2018, "CBAM: Convolutional Block Attention Module", equations 2-3, and its
    released code. The code, not the paper, has the batch norm, with slow statistics, and the order
    [max, mean], which matters for its weights only; timm has it the other way round.

    Args:
        dim: channels.
        reduction: the hidden layer has dim // reduction channels, r.
        pools: one or more of 'avg', 'max', 'lp' (root of the sum of squares) and 'lse' (logarithm
            of the sum of exponentials).
        spatial: with the gate per position.
        kernel_size: odd side of the spatial gate's convolution.
        dtype: dtype of the output; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. The MLP starts as PyTorch's, U(-1/sqrt(fan_in),
            1/sqrt(fan_in)), without biases; the convolution He-normal.

    Raises:
        ValueError: an option outside its allowed values, or a reduction that leaves no hidden
            channel.
    """  # noqa: E501

    kind: ClassVar[str] = "context"

    @staticmethod
    def spatial_axes(options: Mapping[str, Any]) -> tuple[int, ...]:
        """Numbers of spatial axes of the input, by the options."""
        return (2,) if options["spatial"] else (1, 2, 3)

    def __init__(
        self,
        dim: int,
        *,
        reduction: int = 16,
        pools: Sequence[str] = ("avg", "max"),
        spatial: bool = True,
        kernel_size: int = 7,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 1 <= reduction <= dim:
            raise ValueError(
                f"cbam: reduction is {reduction} for {dim} channels; allowed: 1 <= reduction <= "
                "channels"
            )
        if (
            isinstance(pools, str)
            or not pools
            or len(set(pools)) < len(pools)
            or not set(pools) <= set(POOLS)
        ):
            raise ValueError(
                f"cbam: pools is {pools!r}; allowed: a tuple of one or more of "
                f"{', '.join(map(repr, POOLS))}"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"cbam: kernel_size is {kernel_size}; allowed: odd sides")
        self.dim, self.hidden, self.pools, self.dtype = dim, dim // reduction, tuple(pools), dtype
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        options = dict(param_dtype=param_dtype, rngs=rngs)
        self.reduce = Linear(dim, self.hidden, kernel_init=uniform, **options)
        self.expand = Linear(self.hidden, dim, kernel_init=uniform, **options)
        gate = dict(activation="none", zero_init=True, norm_momentum=0.99)
        self.spatial = ConvNormAct(2, 1, kernel_size, **gate, **options) if spatial else None

    def __call__(
        self, x: Float[Array, "b *s c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *s c"]:
        """Maps [b, *spatial, dim] to the same shape; `rngs` is not read."""
        check_map("cbam", x, self.dim, (1, 2, 3) if self.spatial is None else (2,))
        x = x.astype(self.dtype or x.dtype)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        flat = x.astype(wide).reshape(x.shape[0], -1, self.dim)
        pooled = jnp.stack([POOLS[name](flat) for name in self.pools], axis=1)
        logits = self.expand(jax.nn.relu(self.reduce(pooled))).sum(axis=1)
        gate = jax.nn.sigmoid(logits).reshape(x.shape[0], *(1,) * (x.ndim - 2), self.dim)
        x = x * gate.astype(x.dtype)
        if self.spatial is not None:
            seen = jnp.stack(
                [max_over(x, axis=-1).astype(wide), jnp.mean(x, axis=-1, dtype=wide)], axis=-1
            )
            per_position = jax.nn.sigmoid(self.spatial(seen))
            x = x * per_position.astype(x.dtype)
            gate = gate * per_position
        if self.capture:
            self.sow(nnx.Intermediate, "gate", gate)
        return x

    def macs(self, *spatial: int) -> int:
        """Returns the multiply-adds of the MLP, once per pool, and of the convolution for one
        sample.
        """
        mlp = 2 * len(self.pools) * self.dim * self.hidden
        return mlp + (0 if self.spatial is None else self.spatial.macs(*spatial))


TORCH_NAMES = (
    *prefixed(LINEAR, r"ChannelGate\.mlp\.1\.", "reduce"),
    *prefixed(LINEAR, r"ChannelGate\.mlp\.3\.", "expand"),
    *prefixed(CONV, r"SpatialGate\.spatial\.conv\.", "spatial/conv"),
    *prefixed(BATCH_NORM, r"SpatialGate\.spatial\.bn\.", "spatial/norm"),
)
"""Names of the authors' `CBAM`."""
