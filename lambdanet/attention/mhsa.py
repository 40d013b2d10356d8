"""Multi-head attention (Vaswani et al. 2017), the dense baseline."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import LINEAR, Rule, prefixed
from lambdanet.layers import Captures, Linear, check_map
from lambdanet.ops.softmax_attention import dot_attention


@registry.register("mhsa")
class MultiHeadSelfAttention(Captures, nnx.Module):
    """softmax(q k^T / sqrt(d)) v per head over all pairs of positions, then an output projection;
    no positions inside.

        q = x W_q,  k = context W_k,  v = context W_v,  y = concat over heads (softmax_m(q . k /
        sqrt(d)) v) W_o

    A mixer: no residual, no norm. Maps of one to three spatial axes are read as a list of
    positions. Time is quadratic in the number of positions, memory linear: on large maps the
    logits are made for a block of queries at a time. Logits and softmax are computed in float32.

    With the view attribute `capture` a call sows `attention_map` [b, heads, *query positions,
    *context positions], whose weights sum to one over the context.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2. Biases are those of
    `torch.nn.MultiheadAttention`; the paper writes none.

    Args:
        dim: channels of the input, of the output and of `context`.
        num_heads: heads, h.
        head_dim: depth of queries, keys and values per head, d; None means dim / num_heads.
        qkv_bias: biases in the three input projections.
        output_projection: with W_o; without it the output has num_heads * head_dim channels.
        output_bias: bias of W_o.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: heads that do not divide the channels.
    """

    kind: ClassVar[str] = "mixer"

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        output_projection: bool = True,
        output_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_heads < 1 or (head_dim is None and dim % num_heads):
            raise ValueError(
                f"mhsa: num_heads is {num_heads}; allowed: divisors of dim={dim}, or set head_dim"
            )
        if head_dim is not None and head_dim < 1:
            raise ValueError(f"mhsa: head_dim is {head_dim}; allowed: 1 or more, or None")
        self.dim, self.num_heads, self.dtype = dim, num_heads, dtype
        self.head_dim = dim // num_heads if head_dim is None else head_dim
        inner = num_heads * self.head_dim

        def linear(features_in, features, bias):
            init = nnx.initializers.xavier_uniform()
            options = dict(use_bias=bias, kernel_init=init, dtype=dtype, param_dtype=param_dtype)
            return Linear(features_in, features, **options, rngs=rngs)

        self.query, self.key, self.value = (linear(dim, inner, qkv_bias) for _ in range(3))
        self.output = linear(inner, dim, output_bias) if output_projection else None

    def __call__(
        self,
        x: Float[Array, "b *s c"],
        *,
        context: Float[Array, "b *m c"] | None = None,
        value_context: Float[Array, "b *m c"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b *s o"]:
        """Applies the layer.

        Args:
            x: [batch, *spatial, dim], one to three spatial axes.
            context: where keys and values come from, of any size; None means `x`.
            value_context: where values come from if not from `context`; as many positions.
            rngs: not read, the layer is deterministic; here because every block is called alike.

        Returns:
            [batch, *spatial, dim] in the layer's dtype.

        Raises:
            ValueError: shapes that do not fit.
        """
        check_map("mhsa", x, self.dim)
        keys = x if context is None else context
        values = keys if value_context is None else value_context
        for name, given in (("context", keys), ("value_context", values)):
            if (
                given.shape[0] != x.shape[0]
                or given.shape[-1] != self.dim
                or given.shape[:-1] != keys.shape[:-1]
            ):
                beside = f" beside the context's {keys.shape}" if name == "value_context" else ""
                raise ValueError(
                    f"mhsa: {name} has shape {given.shape}{beside}; expected [{x.shape[0]}, "
                    f"positions, {self.dim}]"
                )
        batch, spatial, seen = x.shape[0], x.shape[1:-1], keys.shape[1:-1]

        def heads(linear, tokens):
            tokens = tokens.astype(self.dtype or tokens.dtype)
            return linear(tokens).reshape(batch, -1, self.num_heads, self.head_dim)

        q, k, v = heads(self.query, x), heads(self.key, keys), heads(self.value, values)
        y, weights = dot_attention(q, k, v, scale=self.head_dim**-0.5, return_weights=self.capture)
        if self.capture:
            self.sow(
                nnx.Intermediate,
                "attention_map",
                weights.reshape(batch, self.num_heads, *spatial, *seen),
            )
        y = y.reshape(batch, *spatial, -1)
        return y if self.output is None else self.output(y)

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample: the projections and both products over all pairs;
        softmax not counted.
        """
        n, inner = math.prod(spatial), self.num_heads * self.head_dim
        projections = 3 if self.output is None else 4
        return n * inner * (projections * self.dim + 2 * n)


TORCH_NAMES = (
    Rule(r"in_proj_weight", ("query/kernel", "key/kernel", "value/kernel"), "linear"),
    Rule(r"in_proj_bias", ("query/bias", "key/bias", "value/bias")),
    *prefixed(LINEAR, r"out_proj\.", "output"),
)
"""Names of `torch.nn.MultiheadAttention`, whose input projection has the rows [q | k | v]."""
