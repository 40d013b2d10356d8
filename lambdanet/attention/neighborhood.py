"""Neighborhood attention (Hassani et al. 2023): every query attends to the k x k keys around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import LINEAR, Rule, prefixed
from lambdanet.layers import Captures, Linear, as_pair, check_map, is_count, trunc_normal
from lambdanet.ops import neighborhood as ops


@registry.register("neighborhood")
class NeighborhoodAttention(Captures, nnx.Module):
    """Multi-head attention of every position to its own k x k window, with a relative bias.

        q, k, v = x W_qkv                                          (columns [q | k | v], each head by head)
        y = concat over heads (softmax_j(s q . k_j + B[j - i + k - 1]) v_j) W_o,  j in the window of
        i

    A mixer: no residual, no norm around it. Time and memory are linear in the number of positions;
    any map size. Logits and softmax are computed in float32. Plain JAX, so that it also runs
    without a GPU.

    Windows at the border (`border`), per axis of length L with n = (k - 1) / 2:

    - 'neighborhood' (the papers): start(i) = clamp(i - n, 0, L - k). The window slides inward, a
      query near the border is off its centre, and every query sees exactly k keys; with k = L this
      is full attention.
    - 'zero': centred; keys and values outside are zero vectors that stay in the softmax (a logit of
      0 plus the bias), as in slide attention without learned shifts.
    - 'masked': centred; what is outside the map is left out.
    - 'circular': centred, on the map repeated without end; a key that a window reaches several
      times counts that often.

    With a dilation D the rule holds inside each residue class i mod D
    (lambdanet/ops/neighborhood.py).

    Where L < k D, 'neighborhood' has no such window: the input is padded with zeros on the right and
    below up to k D before the projection, and the output is cropped. Padded positions are keys like
    others, their projections the biases. It is what the reference's networks do on the small maps
    of their last stage, so that public weights give the same numbers. The other borders need none
    of this.

    With the view attribute `capture` a call sows `attention_map` [b, heads, H, W, H, W], zero
    outside the windows; its weights sum to less than one where keys outside the map have a share.

    Source: Hassani et al. 2023, "Neighborhood Attention Transformer" (arXiv 2204.07143), and
    Hassani and Shi 2022, "Dilated Neighborhood Attention Transformer" (arXiv 2209.15001). The
    relative bias is that of the published code and weights; the other borders are ours.

    Args:
        dim: channels.
        num_heads: heads; divides `dim`.
        kernel_size: side of the window, k, odd; or (height, width).
        dilation: pixels between neighbours, D; or (vertical, horizontal).
        border: windows at the border, as above.
        qkv_bias: bias of the joint projection.
        relative_bias: with the table B [heads, 2k - 1, 2k - 1]; centred windows read its middle k x
            k entries.
        scale: factor s of the products; None means (dim / num_heads)^-0.5.
        impl: lowering, 'shift', 'block', or 'auto' ('block'; a call that captures takes 'shift').
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: impossible options.
    """  # noqa: E501

    kind: ClassVar[str] = "mixer"
    spatial_axes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int] = 1,
        border: str = "neighborhood",
        qkv_bias: bool = True,
        relative_bias: bool = True,
        scale: float | None = None,
        impl: str = "auto",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not is_count(num_heads) or dim % num_heads:
            raise ValueError(
                f"neighborhood: num_heads is {num_heads}; allowed: divisors of dim={dim}"
            )
        self.kernel_size, self.dilation = as_pair(kernel_size), as_pair(dilation)
        if self.kernel_size is None or any(k < 1 or k % 2 == 0 for k in self.kernel_size):
            raise ValueError(
                f"neighborhood: kernel_size is {kernel_size}; allowed: an odd number, or a pair of "
                "them"
            )
        if self.dilation is None or any(d < 1 for d in self.dilation):
            raise ValueError(
                f"neighborhood: dilation is {dilation}; allowed: an integer >= 1, or a pair of them"
            )
        choices = (("border", border, ops.BORDERS), ("impl", impl, ops.LOWERINGS))
        for name, given, allowed in choices:
            if given not in allowed:
                raise ValueError(
                    f"neighborhood: {name} is {given!r}; allowed: {', '.join(allowed)}"
                )
        self.dim, self.num_heads, self.dtype = dim, num_heads, dtype
        self.border, self.impl = border, impl
        self.scale = (dim // num_heads) ** -0.5 if scale is None else scale
        init = trunc_normal(0.02)
        options = dict(kernel_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias, **options)
        self.output = Linear(dim, dim, **options)
        shape = (num_heads, *(2 * k - 1 for k in self.kernel_size))
        self.relative_bias = (
            nnx.Param(init(rngs.params(), shape, param_dtype)) if relative_bias else None
        )

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w c"]:
        """Maps [batch, H, W, dim] to the same shape; `rngs` is not read, the layer is
        deterministic.
        """
        check_map("neighborhood", x, self.dim, self.spatial_axes)
        x = x.astype(self.dtype or x.dtype)
        height, width = x.shape[1:3]
        x = self._pad(x)
        batch, *size = x.shape[:3]
        # Split, not indexed: as in `window`.
        qkv = jnp.split(self.qkv(x), 3, axis=-1)
        table = None if self.relative_bias is None else self.relative_bias[...]
        window = dict(kernel_size=self.kernel_size, dilation=self.dilation, border=self.border)
        y, weights = ops.neighborhood_attention(
            *(part.reshape(batch, *size, self.num_heads, -1) for part in qkv),
            table,
            **window,
            scale=self.scale,
            impl=self.impl,
            return_weights=self.capture,
        )
        if self.capture:
            shown = ops.full_map(weights, tuple(size), **window)
            self.sow(
                nnx.Intermediate, "attention_map", shown[:, :, :height, :width, :height, :width]
            )
        return self.output(y[:, :height, :width].reshape(batch, height, width, self.dim))

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample, as published: 4 H W C^2 + 2 k^2 H W C.

        That is every query with k^2 keys, whatever the border. The lowering 'block' multiplies
        masked pairs, too, and 'shift' multiplies outside of matrix products, so that a count of the
        program gives another number.
        """
        return math.prod(spatial) * self.dim * (4 * self.dim + 2 * math.prod(self.kernel_size))

    def _pad(self, x: Array) -> Array:
        """The map, with zeros below and on the right up to one window of the border's rule."""
        reach = [k * d for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        missing = [max(r - s, 0) for r, s in zip(reach, x.shape[1:3], strict=True)]
        if self.border != "neighborhood" or not any(missing):
            return x
        return jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))


TORCH_NAMES = (
    *prefixed(LINEAR, r"qkv\.", "qkv"),
    *prefixed(LINEAR, r"proj\.", "output"),
    Rule(r"rpb", "relative_bias"),
)
"""Names of the published `NeighborhoodAttention2D`."""
