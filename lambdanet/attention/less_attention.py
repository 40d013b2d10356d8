"""Less-attention (Zhang et al. 2024): most layers make their logits from those of the layer before,
not from queries and keys.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.attention.vanilla_attention import as_map, check_heads, check_tokens, linears
from lambdanet.interop.grids import Grid
from lambdanet.interop.names import LINEAR, prefixed
from lambdanet.layers import Captures
from lambdanet.ops.softmax_attention import mix_values

TRANSFORMS = ("full", "kron", "reuse")
RESIZE_POLICIES = ("refuse", "interpolate", "reuse")


@registry.register("less_attention")
class LessAttention(Captures, nnx.Module):
    """Attention whose logits are a linear map of the logits that the layer before it handed on.

        A' = (Psi (Theta A)^T)^T = W_psi A W_theta^T + (W_psi 1) b_theta^T + b_psi 1^T     per sample and head
        y  = concat over heads (softmax over keys (A') V) W_o,     V = x W_v

    A and A' are logits, before the softmax, [b, heads, queries, keys]; Theta mixes keys and Psi
    queries. A carried block: it takes (x, A) and returns (y, A'); no residual and no norm. Its
    first A comes from a `VanillaAttention`. Without queries and keys a layer has half the
    projections, but W_theta and W_psi are tied to the number of positions N, and the block is not
    equivariant to permutations of them. A and A' are float32 whatever `dtype` is.

    Cost of 'full': 2 heads N^3 multiply-adds and 2 N^2 weights; the paper counts O(N^2), which
    leaves out a factor N. Queries, keys and their product would take 2 N C^2 + N^2 C: at a head
    depth of 64 less-attention takes fewer if N^2 < 32 (N + 2 C), which holds for 7x7 maps and not
    for 14x14 ones. Cost of 'kron': 2 heads N^2 (h + w) and 2 (h^2 + w^2) weights. Either holds
    heads N^2 floats per sample from layer to layer, and keeps them for the gradient.

    With the view attribute `capture` a call sows `attention_map` [b, heads, H, W, H, W], without
    the class token.

    Source: Zhang et al. 2024, "You Only Need Less Attention at Each Stage in Vision Transformers"
    (arXiv 2406.00427), equation 5, which has no public code. The paper's: A is taken before the
    softmax, from the layer before; Theta and Psi are N x N; V is the layer's own (its section on
    cost names only the query, which contradicts the equation). Ours, where it is silent: weights
    shared by the heads and own to each layer, biases, the start at I + normal(0, 0.002^2) (with
    other starts A' has nothing left of A), 'kron', `center_rows`, the policies for other sizes,
    dropout on the softmax only. Transform 'reuse', W = I, is the baseline of LazyFormer (Ying et
    al. 2021). Weight decay should leave out Theta and Psi, as it would pull A' towards zero:
    regular expression r".*/(theta|psi)[^/]*/kernel".

    Args:
        dim: channels in and out, C.
        num_heads: heads, which A has too.
        size: (height, width) of the map that the weights are made for; not read by 'reuse'.
        transform: 'full', W_theta and W_psi of N x N | 'kron', each the Kronecker product of a
            factor for rows and one for columns | 'reuse', A' = A without weights.
        transform_bias: b_theta and b_psi, one number per position; None means True for 'full', else
            False.
        center_rows: subtract from A its mean over the keys first. The softmax that A came from does
            not see a constant per row; Theta and Psi do.
        resize: what a map of another size meets. 'refuse', the default of 'full': ValueError.
            'interpolate', that of 'kron': weights and biases resized bilinearly along rows and
            columns, then each row scaled so that its sum is the resized sum. 'reuse': A' = A at
            that size. None: the default; the only one with transform 'reuse'.
        class_token: x is a list of tokens, one class token before the map's positions. 'full' has N
            + 1 for N then; the other two leave the class token's logits to itself.
        dropout_rate: dropout on the softmax; the logits handed on have none.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: heads that do not divide the channels, an unknown choice, no size where one is
            needed.
    """  # noqa: E501

    kind: ClassVar[str] = "carried"

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        size: tuple[int, int] | None = None,
        transform: str = "full",
        transform_bias: bool | None = None,
        center_rows: bool = False,
        resize: str | None = None,
        class_token: bool = False,
        dropout_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads("less attention", dim, num_heads)
        if transform not in TRANSFORMS:
            raise _error(f"transform is {transform!r}; allowed: {', '.join(TRANSFORMS)}")
        tied = transform != "reuse"
        if tied and (size is None or len(size) != 2 or min(size) < 1):
            raise _error(
                f"size is {size}; allowed: (height, width) of the map, which transform "
                f"{transform!r} is tied to"
            )
        if resize is not None and (resize not in RESIZE_POLICIES or not tied):
            allowed = (
                f"None, {', '.join(RESIZE_POLICIES)}"
                if tied
                else "None with transform 'reuse', which has no weights"
            )
            raise _error(f"resize is {resize!r}; allowed: {allowed}")
        if transform_bias and not tied:
            raise _error("transform_bias is True; allowed: None or False with transform 'reuse'")
        self.dim, self.num_heads, self.head_dim, self.dtype = (
            dim,
            num_heads,
            dim // num_heads,
            dtype,
        )
        self.size, self.transform, self.center_rows = (
            (tuple(size) if tied else None),
            transform,
            center_rows,
        )
        self.resize = resize or ("refuse" if transform == "full" else "interpolate")
        self.class_token = class_token
        biased = transform == "full" if transform_bias is None else transform_bias

        def square(n, bias=None):
            return Square(n, bias, param_dtype=param_dtype, rngs=rngs)

        if tied:
            h, w = self.size
            tokens = h * w + class_token
            whole, bias = (tokens if transform == "full" else None), (tokens if biased else None)
            if whole or bias:
                self.theta, self.psi = square(whole, bias), square(whole, bias)
            if transform == "kron":
                self.theta_height, self.theta_width = square(h), square(w)
                self.psi_height, self.psi_width = square(h), square(w)
        self.biased = biased and tied
        linear = linears(dtype, param_dtype, rngs)
        self.value, self.output = linear(dim, dim), linear(dim, dim)
        self.dropout = nnx.Dropout(dropout_rate)

    def __call__(
        self,
        x: Float[Array, "b *n c"],
        logits: Float[Array, "b heads n n"],
        *,
        grid: tuple[int, int] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b *n c"], Float[Array, "b heads n n"]]:
        """Applies the layer.

        Args:
            x: map [b, h, w, dim], or its positions as a list [b, tokens, dim], the class token
                first if there is one.
            logits: of the layer before.
            grid: (height, width) behind a list.
            rngs: `dropout` stream; read in the training view when the rate is above 0.

        Returns:
            The mixed values in the shape of `x`, and this layer's logits, float32 or wider.

        Raises:
            ValueError: shapes that do not fit, another size under the policy 'refuse'.
        """
        grid = check_tokens("less attention", x, self.dim, grid, self.class_token)
        tokens = math.prod(grid) + self.class_token
        expected = (x.shape[0], self.num_heads, tokens, tokens)
        if logits.shape != expected:
            raise _error(
                f"the logits have shape {logits.shape}; expected {expected}, a square map per head"
            )
        logits = self.transform_logits(logits, grid)
        v = self.value(x.astype(self.dtype or x.dtype)).reshape(x.shape[0], tokens, self.dim)
        v = rearrange(v, "b n (h d) -> b n h d", h=self.num_heads)
        y, weights = mix_values(logits, v, dropout=partial(self.dropout, rngs=rngs), heads=True)
        if self.capture:
            self.sow(
                nnx.Intermediate, "attention_map", as_map(weights, grid, grid, self.class_token)
            )
        return self.output(y.reshape(x.shape)), logits

    def transform_logits(
        self, logits: Float[Array, "b heads n n"], grid: tuple[int, int]
    ) -> Float[Array, "b heads n n"]:
        """Maps the logits of the layer before to this layer's, for a map of size `grid`."""
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        other = grid != self.size
        if self.transform == "reuse" or (other and self.resize == "reuse"):
            return logits
        if self.center_rows:
            logits = logits - logits.mean(axis=-1, keepdims=True)
        if other and self.resize == "refuse":
            raise _error(
                f"the map is {grid[0]}x{grid[1]}, the weights are made for "
                f"{self.size[0]}x{self.size[1]}; allowed: that size, "
                "or another policy, resize='interpolate' (resized weights) or 'reuse' (no "
                "transform at other sizes)"
            )
        theta, psi = (self._bias(side, grid, logits.dtype) for side in ("theta", "psi"))
        if self.transform == "full":
            w_theta, w_psi = (self._kernel(side, grid, logits.dtype) for side in ("theta", "psi"))
            logits = jnp.einsum("bhmn,nj,mi->bhij", logits, w_theta, w_psi, optimize="optimal")
            return (
                logits + (w_psi.sum(axis=0)[:, None] * theta + psi[:, None])
                if self.biased
                else logits
            )
        logits = self._mix_keys(logits, "theta", grid) + theta
        return jnp.swapaxes(self._mix_keys(jnp.swapaxes(logits, -1, -2), "psi", grid) + psi, -1, -2)

    def table_grids(self) -> dict[str, Grid]:
        """Returns the map that the weights of the full transform and the biases are tied to."""
        parts = (["kernel"] if self.transform == "full" else []) + ["bias"] * self.biased
        grid = Grid("map", self.size, int(self.class_token)) if parts else None
        return {f"{side}/{part}": grid for side in ("theta", "psi") for part in parts}

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample, at the size that the weights are made for: the
        transform of the logits, 2 heads N^3 or 2 heads N^2 (h + w), both projections and the
        product with the values. One number is that of tokens."""
        grid = spatial if len(spatial) == 2 else self.size
        tokens = math.prod(spatial) + (self.class_token if len(spatial) == 2 else 0)
        if self.transform == "full":
            transform = 2 * self.num_heads * tokens**3
        elif self.transform == "kron":
            transform = 2 * self.num_heads * tokens * math.prod(grid) * sum(grid)
        else:
            transform = 0
        return transform + 2 * tokens * self.dim**2 + tokens**2 * self.dim

    def _kernel(self, side: str, grid: tuple[int, int], dtype: Any) -> jax.Array:
        kernel = getattr(self, side).kernel[...].astype(dtype)
        return (
            kernel
            if grid == self.size
            else resize_kernel(kernel, self.size, grid, self.class_token)
        )

    def _bias(self, side: str, grid: tuple[int, int], dtype: Any) -> jax.Array | float:
        if not self.biased:
            return 0.0
        bias = getattr(self, side).bias[...].astype(dtype)
        return (
            bias
            if grid == self.size
            else _resize_axis(bias, self.size, grid, self.class_token, axis=0)
        )

    def _mix_keys(self, logits: jax.Array, side: str, grid: tuple[int, int]) -> jax.Array:
        """Applies both Kronecker factors of one side to the last axis; a class token there stays as
        it is.
        """
        first, rest = logits[..., : int(self.class_token)], logits[..., int(self.class_token) :]
        rest = rest.reshape(*rest.shape[:-1], *grid)
        for axis, name, string in (
            (0, "height", "...uv,ux->...xv"),
            (1, "width", "...uv,vx->...ux"),
        ):
            factor = getattr(self, f"{side}_{name}").kernel[...].astype(logits.dtype)
            if grid[axis] != self.size[axis]:
                factor = resize_kernel(factor, self.size[axis : axis + 1], grid[axis : axis + 1])
            rest = jnp.einsum(string, rest, factor)
        rest = rest.reshape(*rest.shape[:-2], -1)
        return jnp.concatenate((first, rest), axis=-1) if self.class_token else rest


class Square(nnx.Module):
    """Weights of one transform of logits: kernel [n, n], inputs first, starting at I + normal(0,
    0.002^2); bias, at zero.

    Args:
        positions: n; None for no kernel.
        bias: positions of the bias; None for none.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self, positions: int | None, bias: int | None, *, param_dtype: Any, rngs: nnx.Rngs
    ):
        if positions is not None:
            noise = 0.002 * jax.random.normal(rngs.params(), (positions, positions), param_dtype)
            self.kernel = nnx.Param(jnp.eye(positions, dtype=param_dtype) + noise)
        if bias is not None:
            self.bias = nnx.Param(jnp.zeros((bias,), param_dtype))


def resize_kernel(
    kernel: Float[Array, "n n"],
    old: tuple[int, ...],
    new: tuple[int, ...],
    class_token: bool = False,
) -> Float[Array, "m m"]:
    """Resizes the weights of a transform of logits to another grid.

    The kernel is read as an array over (input position, output position), each on a grid of one or
    two axes, and resized linearly along all of them, averaging where it shrinks. Then every
    output's weights are scaled so that their sum is the resized sum: the identity stays close to it
    instead of growing with the map. Where weights cancel, so that their sum is below a thousandth
    of their absolute sum, the factor is that of the numbers of positions instead.

    Args:
        kernel: [inputs, outputs].
        old: axes of the grid it was made for.
        new: the grid wanted, of as many axes.
        class_token: a class token stands before the positions on both axes; its weight on itself
            stays, the others are resized in the same way.
    """
    kernel = _resize_axis(kernel, old, new, class_token, axis=1)
    first, patches = kernel[: int(class_token)], kernel[int(class_token) :]
    sums = patches.sum(axis=0)
    patches = _resize_axis(patches, old, new, False, axis=0)
    now = patches.sum(axis=0)
    safe = jnp.abs(now) > 1e-3 * jnp.abs(patches).sum(axis=0)
    factor = jnp.where(safe, sums / jnp.where(safe, now, 1.0), math.prod(old) / math.prod(new))
    return jnp.concatenate((first, patches * factor))


def _resize_axis(
    array: jax.Array, old: tuple[int, ...], new: tuple[int, ...], class_token: bool, axis: int
) -> jax.Array:
    """Resizes one axis, read as a grid, by linear interpolation; a class token before it stays."""
    array = jnp.moveaxis(array, axis, 0)
    first, patches = array[: int(class_token)], array[int(class_token) :]
    rest = patches.shape[1:]
    patches = jax.image.resize(patches.reshape(*old, *rest), (*new, *rest), "linear").reshape(
        -1, *rest
    )
    return jnp.moveaxis(jnp.concatenate((first, patches)), 0, axis)


def _error(text: str) -> ValueError:
    return ValueError(f"less attention: {text}")


TORCH_NAMES = (
    *prefixed(LINEAR, r"(theta|psi)\.", r"\1"),
    *prefixed(LINEAR, r"v\.", "value"),
    *prefixed(LINEAR, r"proj\.", "output"),
)
"""Names of one layer with the full transform as `torch.nn.Linear` layers would have them; there is
no public code.
"""
