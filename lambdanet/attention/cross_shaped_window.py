"""Cross-shaped window attention of CSWin (Dong et al. 2022): stripes in both directions, with a
local position encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import CONV, LINEAR, prefixed
from lambdanet.layers import Captures, Linear, check_map, is_count, trunc_normal
from lambdanet.ops.depthwise import IMPLS, depthwise_conv
from lambdanet.ops.softmax_attention import dot_attention

Stripe = tuple[int | None, int | None]
"""Height and width of a stripe; None is the whole side of the map."""


@registry.register("cross_shaped_window")
class CrossShapedWindowAttention(Captures, nnx.Module):
    """Multi-head attention in vertical stripes for half of the heads, in horizontal stripes for the
    other half.

        q, k, v = x W_qkv                                             (columns [q | k | v], in each the heads one by one)
        y = concat over heads (softmax_j(q_i . k_j / sqrt(d)) v_j + conv(v)_i) W_o,   j in the stripe of i

    conv is the locally enhanced position encoding (LePE): a depthwise 3x3 convolution of the values
    with a bias, inside each stripe, whose borders it pads with zeros. A mixer: no residual, no norm
    around it. Logits and softmax are computed in float32. With `stripe_width=None`, one branch: all
    heads attend over the whole map.

    A side that the stripes do not divide is continued at both ends by zeros, the smaller half in
    front, and the output is cropped, as in the authors' code for dense tasks. Queries, keys and
    values are padded, so that padded keys are zero; they are not masked and have their share of the
    softmax. Deviation: a side no longer than a stripe is one stripe as it is, where that code pads
    it. The classification code takes square maps only, of sides that the stripes divide.

    With the view attribute `capture` a call sows `attention_map` [b, heads, H, W, H, W], zero
    between stripes; its weights sum to less than one where padded keys have a share. The position
    encoding is not part of it.

    Source: Dong et al. 2022, "CSWin Transformer: A General Vision Transformer Backbone with
    Cross-Shaped Windows" (arXiv 2107.00652), which has stripes of 1, 2, 7 and 7 in its four stages,
    the last one global.

    Args:
        dim: channels.
        num_heads: heads; divides `dim`; even, unless the layer is global.
        stripe_width: shorter side of a stripe; None for global attention.
        qkv_bias: bias of the joint projection.
        size: map size (H, W). If that is one square of side `stripe_width`, the layer is global, as
            in the authors' code; the function is then the same, but the position encoding has one
            kernel in place of two. None keeps two branches.
        impl: lowering of the depthwise convolution, see `lambdanet.ops.depthwise`.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. Kernels of projections start truncated normal 0.02 with biases
            zero; the convolution starts uniform within 1/3, as PyTorch's default.

    Raises:
        ValueError: heads that cannot be split, an impossible stripe or size, or an unknown impl.
    """  # noqa: E501

    kind: ClassVar[str] = "mixer"
    spatial_axes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        stripe_width: int | None = 7,
        qkv_bias: bool = True,
        size: Sequence[int] | None = None,
        impl: str = "auto",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not is_count(num_heads) or dim % num_heads:
            raise _error(f"num_heads is {num_heads}; allowed: divisors of dim={dim}")
        if stripe_width is not None and not is_count(stripe_width):
            raise _error(
                f"stripe_width is {stripe_width}; allowed: an integer of 1 or more, or None"
            )
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise _error(f"size is {size}; allowed: (height, width) of the map, or None")
        if impl not in IMPLS:
            raise _error(f"impl is {impl!r}; allowed: {', '.join(IMPLS)}")
        whole = stripe_width is None or (
            size is not None and tuple(size) == (stripe_width, stripe_width)
        )
        if num_heads % 2 and not whole:
            raise _error(
                f"num_heads is {num_heads}; allowed: even numbers, half for each direction, or "
                "stripe_width=None"
            )
        self.dim, self.num_heads, self.dtype, self.impl = dim, num_heads, dtype, impl
        self.stripes: tuple[Stripe, ...] = (
            ((None, None),) if whole else ((None, stripe_width), (stripe_width, None))
        )
        init = trunc_normal(0.02)
        options = dict(kernel_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias, **options)
        self.output = Linear(dim, dim, **options)
        width = dim // len(self.stripes)
        self.position_convs = nnx.List(
            StripeAttention(width, param_dtype=param_dtype, rngs=rngs) for _ in self.stripes
        )

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w c"]:
        """Maps [batch, H, W, dim] to the same shape; `rngs` is not read, the layer is
        deterministic.
        """
        check_map("cross-shaped window", x, self.dim, self.spatial_axes)
        x = x.astype(self.dtype or x.dtype)
        branches, size = len(self.stripes), x.shape[1:3]
        # Split, not indexed: as in `window`.
        qkv = jnp.split(self.qkv(x), 3 * branches, axis=-1)
        mixed, shown = [], []
        for branch, (stripe, conv) in enumerate(
            zip(self.stripes, self.position_convs, strict=True)
        ):
            heads = self.num_heads // branches
            y, weights = conv(
                *qkv[branch::branches],
                stripe=stripe,
                num_heads=heads,
                impl=self.impl,
                return_weights=self.capture,
            )
            mixed.append(y)
            if self.capture:
                shown.append(_full_map(weights, size, stripe))
        if self.capture:
            self.sow(nnx.Intermediate, "attention_map", jnp.concatenate(shown, 1))
        return self.output(jnp.concatenate(mixed, -1))

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample, padded positions and the taps of the convolution
        included.

        The published count. With impl='shift' those taps are products that do not run as a
        convolution.
        """
        width, mixing = self.dim // len(self.stripes), 0
        for stripe in self.stripes:
            (rows, columns), (height, length) = _cells(spatial, stripe)
            mixing += rows * columns * height * length * width * (2 * height * length + 9)
        return 4 * self.dim**2 * spatial[0] * spatial[1] + mixing


class StripeAttention(nnx.Module):
    """Attention inside stripes with a depthwise 3x3 convolution of the values on top, whose kernel
    this module holds.

    Args:
        dim: channels.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(self, dim: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        def uniform(shape):
            return nnx.Param(jax.random.uniform(rngs.params(), shape, param_dtype, -1 / 3, 1 / 3))

        self.kernel, self.bias = uniform((3, 3, 1, dim)), uniform((dim,))

    def __call__(
        self,
        q: Float[Array, "b h w c"],
        k: Float[Array, "b h w c"],
        v: Float[Array, "b h w c"],
        *,
        stripe: Stripe,
        num_heads: int,
        impl: str = "auto",
        return_weights: bool = False,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b g n i j"] | None]:
        """Mixes the values of a map.

        Args:
            q: queries, not scaled.
            k: keys.
            v: values.
            stripe: size of a stripe.
            num_heads: heads; divides the channels.
            impl: lowering of the convolution.
            return_weights: also return the softmax of every stripe.

        Returns:
            The mixed values, and the weights [b, stripes, heads, positions, positions] or None.
        """
        (rows, columns), cell = _cells(v.shape[1:3], stripe)
        padding = ((0, 0), *_padding(v.shape[1:3], stripe), (0, 0))
        (top, _), (left, _), (height, width) = *padding[1:3], v.shape[1:3]
        q, k, v = (
            rearrange(jnp.pad(a, padding), "b (r h) (s w) c -> (b r s) h w c", r=rows, s=columns)
            for a in (q, k, v)
        )
        tokens = (rearrange(a, "i h w (n d) -> i (h w) n d", n=num_heads) for a in (q, k, v))
        scale = (v.shape[-1] // num_heads) ** -0.5
        y, weights = dot_attention(*tokens, scale=scale, return_weights=return_weights)
        kernel, bias = self.kernel[...].astype(v.dtype), self.bias[...].astype(v.dtype)
        y = rearrange(y, "i (h w) n d -> i h w (n d)", h=cell[0])
        y = y + depthwise_conv(v, kernel, bias, impl=impl)
        y = rearrange(y, "(b r s) h w c -> b (r h) (s w) c", r=rows, s=columns)
        y = y[:, top : top + height, left : left + width]
        if weights is not None:
            weights = rearrange(weights, "(b g) n i j -> b g n i j", g=rows * columns)
        return y, weights


def _cells(size: Sequence[int], stripe: Stripe) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many stripes there are per axis, and their size on a map of this size."""
    cell = tuple(n if side is None else min(side, n) for n, side in zip(size, stripe, strict=True))
    return tuple(-(-n // side) for n, side in zip(size, cell, strict=True)), cell


def _padding(size: Sequence[int], stripe: Stripe) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros before and after each axis."""
    extra = [count * side - n for n, count, side in zip(size, *_cells(size, stripe), strict=True)]
    return tuple((e // 2, e - e // 2) for e in extra)


def _full_map(weights: jax.Array, size: Sequence[int], stripe: Stripe) -> jax.Array:
    """[b, stripes, heads, i, j] -> [b, heads, *size, *size], zero between stripes."""
    (rows, columns), (height, width) = _cells(size, stripe)
    weights = rearrange(
        weights,
        "b (r s) n (y x) (Y X) -> b r s n y x Y X",
        **dict(r=rows, s=columns, y=height, x=width, Y=height),
    )
    one = (jnp.eye(count, dtype=weights.dtype) for count in (rows, columns))
    full = jnp.einsum("brsnyxYX,rR,sS->bnrysxRYSX", weights, *one)
    full = rearrange(full, "b n r y s x R Y S X -> b n (r y) (s x) (R Y) (S X)")
    inside = [
        slice(before, before + n)
        for n, (before, _) in zip(size, _padding(size, stripe), strict=True)
    ]
    return full[:, :, *inside, *inside]


def _error(text: str) -> ValueError:
    return ValueError(f"cross-shaped window: {text}")


TORCH_NAMES = (
    *prefixed(LINEAR, r"qkv\.", "qkv"),
    *prefixed(LINEAR, r"proj\.", "output"),
    *prefixed(CONV, r"attns\.(\d+)\.get_v\.", r"position_convs/\1"),
)
"""Names of the attention in the authors' `CSWinBlock`."""
