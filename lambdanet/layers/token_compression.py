"""Mixtures of tokens, as Linformer compresses keys and values with."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.ops.wide_einsum import wide_einsum

PROJECTIONS = ("linear", "convolution", "fixed")


class TokenCompression(nnx.Module):
    """Maps at most n tokens to k slots, the matrix E of the Linformer paper; all heads alike, or
    each with its own.

    'linear' and 'fixed': slot_j = sum_i kernel[i, j] token_i (+ bias_j), of which m < n tokens use
    the first m rows. 'convolution': windows of ceil(n / k) tokens, without overlap, that also mix
    the features of a token; m tokens fill the first ceil(m / window) slots, zeros behind the last
    token.

    Args:
        length: n.
        slots: k; a convolution may have fewer, ceil(n / window).
        features: features of a token, mixed by a convolution only.
        projection: 'linear', 'convolution', or 'fixed': drawn once from N(0, 1 / k), stored with
            the running statistics and never trained.
        heads: heads with a kernel of their own, or None: one kernel for all.
        bias: bias, one per slot (of a convolution: one per feature).
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: an impossible number of slots, an unknown projection, or a convolution without
            `features`.
    """

    def __init__(
        self,
        length: int,
        slots: int,
        *,
        features: int | None = None,
        projection: str = "linear",
        heads: int | None = None,
        bias: bool = False,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if projection not in PROJECTIONS:
            raise _error(
                f"projection is {projection!r}; allowed: {', '.join(map(repr, PROJECTIONS))}"
            )
        if not 1 <= slots <= length:
            raise _error(f"slots is {slots}; allowed: 1 to the number of tokens, {length}")
        own, own_axes = ((), ()) if heads is None else ((heads,), (0,))
        self.length, self.heads, self.projection = length, heads, projection
        self.slots, self.window, self.features = slots, None, None
        if projection == "convolution":
            if features is None:
                raise _error(
                    "projection is 'convolution', which mixes features; TokenCompression needs "
                    "their number, features="
                )
            self.window, self.features = -(-length // slots), features
            self.slots = used_slots(length, slots, projection, length)
        shape, bias_shape, stored_as = (*own, length, slots), (*own, slots), nnx.Param
        if projection == "convolution":
            shape, bias_shape = (*own, self.window, features, features), (*own, features)
            init = nnx.initializers.lecun_normal(batch_axis=own_axes)
        elif projection == "linear":  # the authors' xavier-uniform with gain 1 / sqrt 2
            init = nnx.initializers.variance_scaling(0.5, "fan_avg", "uniform", batch_axis=own_axes)
        else:
            init, stored_as = nnx.initializers.normal(slots**-0.5), nnx.BatchStat
        kernel = stored_as(init(rngs.params(), shape, param_dtype))
        # Two names, because of the two only the first is tied to n by its shape.
        self.kernel, self.window_kernel = (
            (None, kernel) if projection == "convolution" else (kernel, None)
        )
        self.bias = nnx.Param(jnp.zeros(bias_shape, param_dtype)) if bias else None

    def __call__(self, tokens: Float[Array, "b m h d"]) -> Float[Array, "b k h d"]:
        """Compresses the tokens of every head; sums in float32, the result in the dtype of
        `tokens`.
        """
        m = tokens.shape[1]
        own = "" if self.heads is None else "h"
        if self.projection == "convolution":
            slots = used_slots(self.length, self.slots, self.projection, m)
            padded = jnp.pad(tokens, ((0, 0), (0, slots * self.window - m), (0, 0), (0, 0)))
            windows = padded.reshape(tokens.shape[0], slots, self.window, *tokens.shape[2:])
            equation, operands = f"bkwhd,{own}wde->bkhe", (windows, self.window_kernel[...])
        else:
            equation, operands = f"bmhd,{own}mk->bkhd", (tokens, self.kernel[...][..., :m, :])
        out = wide_einsum(equation, *(a.astype(tokens.dtype) for a in operands))
        if self.bias is not None:
            bias = (
                self.bias[...] if self.heads else self.bias[...][None]
            )  # [h or 1, k], of a convolution [h or 1, d]
            out = out + (bias if self.projection == "convolution" else bias.T[..., None])
        return out.astype(tokens.dtype)


def default_slots(length: int) -> int:
    """Returns the default k for n tokens, min(128, ceil(n / 4))."""
    return min(128, -(-length // 4))


def used_slots(length: int, slots: int, projection: str, tokens: int) -> int:
    """Returns how many slots a number of tokens fills: all, or for a convolution one per window of
    ceil(n / k) tokens.
    """
    return -(-tokens // -(-length // slots)) if projection == "convolution" else slots


def _error(text: str) -> ValueError:
    return ValueError(f"token compression: {text}")
