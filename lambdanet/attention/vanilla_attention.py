"""Self-attention that hands on its logits, and what it shares with less-attention: projections,
checks, maps.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.layers import Captures, LayerNorm, Linear, check_floating, trunc_normal
from lambdanet.ops.softmax_attention import attention_logits, dot_attention, mix_values


class VanillaAttention(Captures, nnx.Module):
    """Multi-head self-attention that also hands on its logits: where the logits of less-attention
    come from.

        A = Q K^T / sqrt(d) + addition,     y = concat over heads (softmax over keys (A) V) W_o

    Parameters are those of the spatial-reduction mixer, which this is for sr_ratio > 1: keys and
    values from norm(conv_{r x r, stride r}(x)), of the map without the rows and columns that fill
    no window. Logits that are handed on are float32 and held in memory, [b, heads, tokens, keys];
    that rules out fused lowerings and blocks of queries, which would make them twice. Where nobody
    reads them (`hands_on`), `dot_attention` is free to choose. No residual and no norm.

    Source: Zhang et al. 2024 (see `LessAttention`), equations 1 to 4 and, for the addition, 7; the
    paper adds in the first layer of a stage only. Dropout on the softmax only is ours.

    Args:
        dim: channels in and out.
        num_heads: heads.
        sr_ratio: side of the cells that share one key, r; 1 for none.
        class_token: x is a list of tokens, one class token before the map's positions; with
            sr_ratio 1 only.
        dropout_rate: dropout on the softmax; the logits handed on have none.
        hands_on: whether the logits are returned.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: heads that do not divide the channels, or a class token beside reduced keys.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        sr_ratio: int = 1,
        class_token: bool = False,
        dropout_rate: float = 0.0,
        hands_on: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads("vanilla attention", dim, num_heads)
        if sr_ratio < 1 or (class_token and sr_ratio > 1):
            raise ValueError(
                f"vanilla attention: sr_ratio is {sr_ratio}; allowed: 1 or more, and 1 with a "
                "class token"
            )
        self.dim, self.num_heads, self.head_dim, self.dtype = (
            dim,
            num_heads,
            dim // num_heads,
            dtype,
        )
        self.sr_ratio, self.class_token, self.hands_on = sr_ratio, class_token, hands_on
        linear = linears(dtype, param_dtype, rngs)
        self.query, self.key_value = linear(dim, dim), linear(dim, 2 * dim)
        self.output = linear(dim, dim)
        if sr_ratio > 1:
            stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            window, init = (sr_ratio, sr_ratio), trunc_normal(0.02)
            self.reduction = nnx.Conv(
                dim, dim, window, strides=sr_ratio, padding="VALID", kernel_init=init, **stored
            )
            self.norm = LayerNorm(dim, epsilon=1e-5, **stored)
        self.dropout = nnx.Dropout(dropout_rate)

    def __call__(
        self,
        x: Float[Array, "b *n c"],
        addition: Float[Array, "b heads n m"] | None = None,
        *,
        grid: tuple[int, int] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b *n c"], Float[Array, "b heads n m"] | None]:
        """Applies the layer.

        Args:
            x: map [b, h, w, dim], or its positions as a list [b, tokens, dim], the class token
                first if there is one.
            addition: added to the logits; None for nothing.
            grid: (height, width) behind a list.
            rngs: `dropout` stream; read in the training view when the rate is above 0.

        Returns:
            The mixed values in the shape of `x`, and the logits, float32 or wider; None for them
            without `hands_on`.

        Raises:
            ValueError: shapes that do not fit, a map smaller than one cell.
        """
        grid = check_tokens("vanilla attention", x, self.dim, grid, self.class_token)
        keys = self.key_grid(*grid)
        tokens = x.astype(self.dtype or x.dtype).reshape(x.shape[0], -1, self.dim)
        context = tokens
        if self.sr_ratio > 1:
            context = self.norm(
                self.reduction(tokens.reshape(x.shape[0], *grid, self.dim))
            ).reshape(x.shape[0], -1, self.dim)
        q = rearrange(self.query(tokens), "b n (h d) -> b n h d", h=self.num_heads)
        k, v = (  # split, not indexed: as in `window`
            rearrange(part, "b m (h d) -> b m h d", h=self.num_heads)
            for part in jnp.split(self.key_value(context), 2, axis=-1)
        )
        scale = self.head_dim**-0.5
        if not self.hands_on and addition is None and not self.dropout.rate and not self.capture:
            return self.output(dot_attention(q, k, v, scale=scale)[0].reshape(x.shape)), None
        logits = attention_logits(q, k, scale=scale, heads=True)
        if addition is not None:
            if addition.shape != logits.shape:
                raise ValueError(
                    f"vanilla attention: the addition has shape {addition.shape}; the logits have "
                    f"{logits.shape}"
                )
            logits = logits + addition.astype(logits.dtype)
        y, weights = mix_values(logits, v, dropout=partial(self.dropout, rngs=rngs), heads=True)
        if self.capture:
            self.sow(
                nnx.Intermediate, "attention_map", as_map(weights, grid, keys, self.class_token)
            )
        return self.output(y.reshape(x.shape)), logits if self.hands_on else None

    def key_grid(self, h: int, w: int) -> tuple[int, int]:
        """Returns the size of the map of keys for an [h, w] map."""
        if min(h, w) < self.sr_ratio:
            raise ValueError(
                f"vanilla attention: the map is {h}x{w}; sr_ratio={self.sr_ratio} needs one cell "
                "at least"
            )
        return h // self.sr_ratio, w // self.sr_ratio

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample: projections, reduction and both products. One number
        is that of tokens.
        """
        tokens = math.prod(spatial) + (self.class_token if len(spatial) == 2 else 0)
        if self.sr_ratio == 1:
            return 4 * tokens * self.dim**2 + 2 * tokens**2 * self.dim
        keys = math.prod(self.key_grid(*spatial))
        reduction = keys * (self.sr_ratio * self.dim) ** 2
        return (
            2 * tokens * self.dim**2
            + 2 * keys * self.dim**2
            + reduction
            + 2 * tokens * keys * self.dim
        )


def check_heads(block: str, dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"{block}: num_heads is {num_heads}; allowed: divisors of dim={dim}")


def check_tokens(
    block: str, x: jax.Array, dim: int, grid: tuple[int, int] | None, class_token: bool
) -> tuple[int, int]:
    """Returns the (height, width) of the tokens; raises ValueError if `x` is neither a map nor a
    list of that many.
    """
    if x.ndim == 4 and grid is None and not class_token:
        grid = x.shape[1:3]
    tokens = None if grid is None else math.prod(grid) + class_token
    if (
        tokens is None
        or 0 in x.shape
        or x.shape[-1] != dim
        or math.prod(x.shape[1:-1]) != tokens
        or x.ndim not in (3, 4)
    ):
        listed = (
            f"[batch, {'tokens' if tokens is None else tokens}, {dim}] with grid=(height, width)"
        )
        allowed = listed if class_token else f"[batch, height, width, {dim}], or {listed}"
        raise ValueError(
            f"{block}: the input has shape {x.shape}, grid is {grid}; expected {allowed}"
        )
    check_floating(block, x)
    return tuple(grid)


def linears(dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> partial:
    """Returns the constructor of projections, (features in, features out) -> layer with bias."""
    options = dict(kernel_init=trunc_normal(0.02), dtype=dtype, param_dtype=param_dtype)
    return partial(Linear, **options, rngs=rngs)


def as_map(
    weights: jax.Array, queries: tuple[int, int], keys: tuple[int, int], class_token: bool
) -> jax.Array:
    first = int(class_token)
    return weights[:, :, first:, first:].reshape(*weights.shape[:2], *queries, *keys)
