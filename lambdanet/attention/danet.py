"""Position and channel attention of the Dual Attention Network (DANet)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import POINTWISE, Rule, prefixed
from lambdanet.layers import Captures, Linear, check_map, is_count
from lambdanet.ops.softmax_attention import softmax_attention
from lambdanet.ops.wide_einsum import wide_einsum

ENERGIES = ("max_minus", "plain")


@registry.register("position_attention")
class PositionAttention(Captures, nnx.Module):
    r"""y_i = x_i + gamma * sum_j softmax_j(q_i . k_j) v_j over all pairs of positions.

    A context block with its residual inside; gamma, one scalar, starts at zero, so that the block
    starts as the identity.

        q = x W_q + b_q,  k = x W_k + b_k  (dim // reduction channels),  v = x W_v + b_v  (dim
        channels)

    There is no 1 / sqrt(d). Logits and softmax are float32. The weights are N x N; `query_chunk`
    bounds them to query_chunk x N at a time, forward and backward (the backward pass computes them
    again), so that memory is linear in N.

    [b, *spatial, dim] -> the same shape, with one, two or three spatial axes. With the view
    attribute `capture`, a call sows `attention_map` [b, 1, *spatial, *spatial].

    Source: Fu et al. 2019, "Dual Attention Network for Scene Segmentation", section 3.2, and their
    code; the same function as the attention of SAGAN (Zhang et al. 2019).

    Args:
        dim: channels.
        reduction: q and k have dim // reduction channels.
        query_chunk: queries handled at a time; None handles all at once, 'auto' as many as are
            fast for the shape (`lambdanet.ops.attention_lowering`).
        dtype: activation dtype; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: a reduction that leaves no channel, or another query_chunk.
    """

    kind: ClassVar[str] = "context"

    def __init__(
        self,
        dim: int,
        *,
        reduction: int = 8,
        query_chunk: int | str | None = "auto",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 1 <= reduction <= dim:
            raise ValueError(
                f"position attention: reduction is {reduction} for {dim} channels; allowed: 1 <= "
                "reduction <= channels"
            )
        if query_chunk not in (None, "auto") and not is_count(query_chunk):
            raise ValueError(
                f"position attention: query_chunk is {query_chunk!r}; allowed: 'auto', None, 1 or "
                "more"
            )
        self.dim, self.depth, self.query_chunk, self.dtype = (
            dim,
            dim // reduction,
            query_chunk,
            dtype,
        )
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.query = Linear(dim, self.depth, **options)
        self.key = Linear(dim, self.depth, **options)
        self.value = Linear(dim, dim, **options)
        self.gamma = nnx.Param(jnp.zeros((1,), param_dtype))

    def __call__(
        self, x: Float[Array, "b *spatial c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *spatial c"]:
        """Maps [b, *spatial, dim] to the same shape; `rngs` is not read."""
        check_map("position attention", x, self.dim)
        x = x.astype(self.dtype or x.dtype)
        batch, spatial = x.shape[0], x.shape[1:-1]
        query, key, value = (
            project(x).astype(x.dtype).reshape(batch, math.prod(spatial), -1)
            for project in (self.query, self.key, self.value)
        )
        context, weights = softmax_attention(
            query, key, value, scale=1.0, query_chunk=self.query_chunk, return_weights=self.capture
        )
        if self.capture:
            self.sow(
                nnx.Intermediate, "attention_map", weights.reshape(batch, 1, *spatial, *spatial)
            )
        return (x + self.gamma[...] * context.reshape(x.shape)).astype(x.dtype)

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample: projections and both attention products."""
        n = math.prod(spatial)
        return n * self.dim * (2 * self.depth + self.dim) + n * n * (self.depth + self.dim)


@registry.register("channel_attention")
class ChannelAttention(Captures, nnx.Module):
    r"""y_c = x_c + gamma * sum_d a[c, d] x_d, the weights from the similarity of whole channels.

    A context block with its residual inside; gamma, one scalar, starts at zero, so that the block
    starts as the identity. It is its only parameter: there are no projections.

        E[c, d] = sum over positions of x_c x_d,  unscaled
        energy='max_minus':  a[c] = softmax(max_d E[c, d] - E[c]) = softmax(-E[c])
        energy='plain':      a[c] = softmax(E[c])

    'max_minus' looks like the usual guard against overflow but turns the sign: a channel takes most
    from the channels least like it, and least from itself, which mostly has the row's maximum. It
    is what the released code does and what its results were made with; 'plain' is what the paper
    writes. E sums over the whole map, so it is accumulated, and its softmax taken, in float32.

    [b, *spatial, dim] -> the same shape, with one, two or three spatial axes. With the view
    attribute `capture`, a call sows `channel_map` [b, dim, dim].

    Source: Fu et al. 2019, "Dual Attention Network for Scene Segmentation", section 3.3, and their
    code, which differ as said above.

    Args:
        dim: channels.
        energy: 'max_minus' (the code) or 'plain' (the paper).
        dtype: activation dtype; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: not read, gamma starts at zero; here because every block is built alike.

    Raises:
        ValueError: another energy.
    """

    kind: ClassVar[str] = "context"

    def __init__(
        self,
        dim: int,
        *,
        energy: str = "max_minus",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if energy not in ENERGIES:
            raise ValueError(
                f"channel attention: energy is {energy!r}; allowed: "
                f"{', '.join(map(repr, ENERGIES))}"
            )
        self.dim, self.energy, self.dtype = dim, energy, dtype
        self.gamma = nnx.Param(jnp.zeros((1,), param_dtype))

    def __call__(
        self, x: Float[Array, "b *spatial c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *spatial c"]:
        """Maps [b, *spatial, dim] to the same shape; `rngs` is not read."""
        check_map("channel attention", x, self.dim)
        x = x.astype(self.dtype or x.dtype)
        flat = x.reshape(x.shape[0], -1, self.dim)
        energy = wide_einsum("bnc,bnd->bcd", flat, flat)
        # softmax subtracts the largest logit itself, so max - E and -E are the same to it.
        weights = jax.nn.softmax(-energy if self.energy == "max_minus" else energy, axis=-1)
        if self.capture:
            self.sow(nnx.Intermediate, "channel_map", weights)
        context = jnp.einsum("bnd,bcd->bnc", flat, weights.astype(x.dtype))
        return (x + self.gamma[...] * context.reshape(x.shape)).astype(x.dtype)

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample: the channel products and their use."""
        return 2 * math.prod(spatial) * self.dim**2


TORCH_NAMES = (
    *prefixed(POINTWISE, r"query_conv\.", "query"),
    *prefixed(POINTWISE, r"key_conv\.", "key"),
    *prefixed(POINTWISE, r"value_conv\.", "value"),
    Rule(r"gamma", "gamma"),
    *prefixed(POINTWISE, r"query_project\.", "query"),  # mmsegmentation
    *prefixed(POINTWISE, r"key_project\.", "key"),
    *prefixed(POINTWISE, r"value_project\.", "value"),
    Rule(r"gamma\.scale", "gamma", lambda scale: scale.reshape(1)),
)
"""Names of DANet's PAM_Module and CAM_Module and of mmsegmentation's PAM and CAM."""
