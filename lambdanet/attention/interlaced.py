"""Interlaced sparse self-attention (ISA, ISANet): global attention as two sparse ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import BATCH_NORM, POINTWISE, prefixed
from lambdanet.layers import Captures, Linear, PointwiseNormAct, check_map
from lambdanet.ops.softmax_attention import softmax_attention


@registry.register("interlaced")
class InterlacedSparseAttention(nnx.Module):
    """y = ReLU(BN([x, short(long(x))] W)): attention over far positions, then over near ones;
    together over all.

    A context block without residual, gate or zero initialisation: the input enters through the
    concatenation, and the output is a rectified map of its own. The map is cut into Q = (ceil(H /
    p_h), ceil(W / p_w)) cells of P = (p_h, p_w) positions. `long` attends among the positions that
    have the same place in their cells (Q_h Q_w of them), `short` among the positions of a cell (p_h
    p_w); after both, every output depends on every input. Each is a unit of its own weights

        unit(x) = ReLU(BN(softmax(q k^T / sqrt(key_dim)) v W)),  q and k = [1x1, BN, ReLU] twice,  v
        = 1x1, without biases

    so the weights take N (Q_h Q_w + p_h p_w) numbers instead of N^2; they are fewest with p_h p_w
    near sqrt(N).

    A map that is not divisible is padded with zeros, the smaller half in front, and the result is
    cropped. As published, padded positions take part in both softmaxes and in batch statistics
    (behind a batch norm their keys are not zero); `mask_padding=True` leaves them out of both, so
    that the result depends on the map alone. That matters on maps with much padding, such as a map
    smaller than a cell.

    Several group sizes work side by side on the same input; their results are then concatenated
    with `x` lifted to as many channels by a 1x1, BN, ReLU.

    With the view attribute `capture`, every pair sows `attention_map` [b, 2, *s, *s]: the long and
    the short weights in the full map, zero between positions of different groups. Rows sum to less
    than one where padded positions, which are not shown, have weight.

    Source: Huang et al. 2019, "Interlaced Sparse Self-Attention for Semantic Segmentation", with
    norms, activations and concatenation of the openseg.pytorch release. There C = 512, key_dim 256,
    value_dim 512, P = (8, 8), and dropout 0.05 in the segmentation head.

    Args:
        dim: channels.
        group_size: cell size P = (p_h, p_w), or a tuple of several such pairs.
        key_dim: channels of queries and keys; None means dim // 2, the paper's proportion.
        value_dim: channels of values; None means `dim`.
        dim_out: channels of the output; None means `dim`.
        mask_padding: whether padded positions are left out of softmaxes and batch statistics.
        value_bias: a bias in the projections to values, as mmsegmentation has it.
        dropout: rate of channel dropout on the output in training. 0 by default: as a context block
            inside a network it must not need a random stream.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: group_size is not a pair of positive numbers or several such pairs; a width
            below 1; dropout outside [0, 1).
    """

    kind: ClassVar[str] = "context"
    spatial_axes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        dim: int,
        *,
        group_size: tuple[int, int] | tuple[tuple[int, int], ...] = (8, 8),
        key_dim: int | None = None,
        value_dim: int | None = None,
        dim_out: int | None = None,
        mask_padding: bool = False,
        value_bias: bool = False,
        dropout: float = 0.0,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        pairs = _pairs(group_size)
        key_dim = max(dim // 2, 1) if key_dim is None else key_dim
        value_dim = dim if value_dim is None else value_dim
        dim_out = dim if dim_out is None else dim_out
        for name, width in dict(key_dim=key_dim, value_dim=value_dim, dim_out=dim_out).items():
            if width < 1:
                raise ValueError(f"interlaced: {name} is {width}; allowed: 1 or more")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"interlaced: dropout is {dropout}; allowed: 0 <= dropout < 1")
        self.dim, self.dim_out, self.dtype = dim, dim_out, dtype
        norms = dict(norm_momentum=norm_momentum, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        attends = dict(mask_padding=mask_padding, value_bias=value_bias, **norms)
        self.blocks = nnx.List(
            InterlacedPair(dim, pair, key_dim, value_dim, dim_out, **attends) for pair in pairs
        )
        many = len(pairs) > 1
        self.lift = PointwiseNormAct(dim, len(pairs) * dim_out, **norms) if many else None
        self.fuse = PointwiseNormAct(
            2 * len(pairs) * dim_out if many else dim + dim_out, dim_out, **norms
        )
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w d"]:
        """Maps [b, h, w, dim] to [b, h, w, dim_out]; `rngs.dropout` is read in training when
        dropout > 0.
        """
        check_map("interlaced", x, self.dim, self.spatial_axes)
        x = x.astype(self.dtype or x.dtype)
        parts = [x if self.lift is None else self.lift(x), *(block(x) for block in self.blocks)]
        return self.dropout(self.fuse(jnp.concatenate(parts, axis=-1)), rngs=rngs)

    def macs(self, h: int, w: int) -> int:
        """Multiply-accumulates for one [h, w] map, padded positions included."""
        total = sum(block.macs(h, w) for block in self.blocks) + self.fuse.macs(h * w)
        return total if self.lift is None else total + self.lift.macs(h * w)


class InterlacedPair(Captures, nnx.Module):
    """short(long(x)) for one group size, padded and cropped as `InterlacedSparseAttention`
    describes.

    Args:
        dim: channels of the input.
        group_size: cell size.
        key_dim: channels of queries and keys.
        value_dim: channels of values.
        dim_out: channels of the output.
        mask_padding: whether padded positions are left out.
        value_bias: a bias in the projections to values.
        options: of `PointwiseNormAct`.
    """

    def __init__(
        self,
        dim: int,
        group_size: tuple[int, int],
        key_dim: int,
        value_dim: int,
        dim_out: int,
        *,
        mask_padding: bool,
        value_bias: bool,
        norm_momentum: float,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.group_size, self.mask_padding = group_size, mask_padding
        options = dict(
            value_bias=value_bias,
            norm_momentum=norm_momentum,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.long_range = InterlacedUnit(dim, key_dim, value_dim, dim_out, **options)
        self.short_range = InterlacedUnit(dim_out, key_dim, value_dim, dim_out, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Maps [b, h, w, dim] to [b, h, w, dim_out]."""
        (h, w), (ph, pw) = x.shape[1:3], self.group_size
        qh, qw = -(-h // ph), -(-w // pw)
        top, left = (qh * ph - h) // 2, (qw * pw - w) // 2
        padding = ((top, qh * ph - h - top), (left, qw * pw - w - left))
        far = near = None
        if self.mask_padding and any(map(any, padding)):
            inside = np.pad(np.ones((h, w), bool), padding)
            far = rearrange(inside, "(qh ph) (qw pw) -> ph pw (qh qw)", ph=ph, pw=pw)
            near = rearrange(inside, "(qh ph) (qw pw) -> qh qw (ph pw)", ph=ph, pw=pw)
        # The channels are moved three times in all; everything between is done in the order the
        # groups need.
        y = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        y = rearrange(y, "b (qh ph) (qw pw) c -> b ph pw (qh qw) c", ph=ph, pw=pw)
        y, long_weights = self.long_range(y, far, return_weights=self.capture)
        y = rearrange(y, "b ph pw (qh qw) c -> b qh qw (ph pw) c", qh=qh, qw=qw)
        y, short_weights = self.short_range(y, near, return_weights=self.capture)
        y = rearrange(y, "b qh qw (ph pw) c -> b (qh ph) (qw pw) c", ph=ph, pw=pw)
        if self.capture:
            short_weights = rearrange(
                short_weights, "b x y (i j) (I J) -> b x y i j I J", i=ph, j=pw, I=ph
            )
            short_map = jnp.einsum(
                "bxyijIJ,xX,yY->bxiyjXIYJ", short_weights, jnp.eye(qh), jnp.eye(qw)
            )
            long_weights = rearrange(
                long_weights, "b i j (x y) (X Y) -> b i j x y X Y", x=qh, y=qw, X=qh
            )
            long_map = jnp.einsum(
                "bijxyXY,iI,jJ->bxiyjXIYJ", long_weights, jnp.eye(ph), jnp.eye(pw)
            )
            maps = rearrange(
                jnp.stack([long_map, short_map], 1),
                "b two x i y j X I Y J -> b two (x i) (y j) (X I) (Y J)",
            )
            rows, columns = slice(top, top + h), slice(left, left + w)
            self.sow(nnx.Intermediate, "attention_map", maps[:, :, rows, columns, rows, columns])
        return y[:, top : top + h, left : left + w]

    def macs(self, h: int, w: int) -> int:
        """Multiply-accumulates for one [h, w] map, padded positions included."""
        (ph, pw), (qh, qw) = (
            self.group_size,
            (-(-h // self.group_size[0]), -(-w // self.group_size[1])),
        )
        positions = qh * ph * qw * pw
        return self.long_range.macs(positions, qh * qw) + self.short_range.macs(positions, ph * pw)


class InterlacedUnit(nnx.Module):
    """ReLU(BN(softmax(q k^T / sqrt(key_dim)) v W)) inside every group.

    Args:
        dim: channels of the input.
        key_dim: channels of queries and keys.
        value_dim: channels of values.
        dim_out: channels of the output.
        value_bias: a bias in the projection to values.
        options: of `PointwiseNormAct`.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        value_dim: int,
        dim_out: int,
        *,
        value_bias: bool,
        norm_momentum: float,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        norms = dict(norm_momentum=norm_momentum, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.key_dim = key_dim
        self.query = nnx.List(PointwiseNormAct(width, key_dim, **norms) for width in (dim, key_dim))
        self.key = nnx.List(PointwiseNormAct(width, key_dim, **norms) for width in (dim, key_dim))
        self.value = Linear(
            dim, value_dim, use_bias=value_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.out = PointwiseNormAct(value_dim, dim_out, **norms)

    def __call__(
        self,
        x: Float[Array, "*b n c"],
        inside: Bool[np.ndarray, "..."] | None = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Float[Array, "*b n d"], Float[Array, "*b n n"] | None]:
        """Attends along the next-to-last axis.

        Args:
            x: the groups.
            inside: broadcasts to the groups; positions where it is False are left out of softmax
                and batch statistics.
            return_weights: also return the softmax.

        Returns:
            The outputs, and the weights or None.
        """
        mask = None if inside is None else jnp.asarray(inside[..., None])
        query, key = x, x
        for of_query, of_key in zip(self.query, self.key, strict=True):
            query, key = of_query(query, mask=mask), of_key(key, mask=mask)
        seen = None if inside is None else jnp.asarray(inside[..., None, :])
        y, weights = softmax_attention(
            query,
            key,
            self.value(x),
            scale=self.key_dim**-0.5,
            mask=seen,
            return_weights=return_weights,
        )
        return self.out(y, mask=mask), weights

    def macs(self, positions: int, group: int) -> int:
        """Multiply-accumulates for a number of positions in groups of a size."""
        projections = sum(layer.macs(positions) for layer in (*self.query, *self.key, self.out))
        value = self.value.in_features * self.value.out_features
        return projections + positions * (value + group * (self.key_dim + self.value.out_features))


def _pairs(group_size: Sequence) -> tuple[tuple[int, int], ...]:
    """The option as a tuple of pairs; raises ValueError for anything else."""
    single = isinstance(group_size, Sequence) and all(isinstance(side, int) for side in group_size)
    pairs = [group_size] if single else group_size
    try:
        pairs = tuple((int(height), int(width)) for height, width in pairs)
    except (TypeError, ValueError):
        pairs = ()
    if not pairs or min(map(min, pairs)) < 1:
        allowed = "a pair (height, width) of numbers from 1, or a tuple of such pairs"
        raise ValueError(f"interlaced: group_size is {group_size!r}; allowed: {allowed}")
    return pairs


_UNIT = (
    *(
        rule
        for torch, path in (("f_query", "query"), ("f_key", "key"))
        for number in (0, 1)
        for rule in (
            *prefixed(POINTWISE, rf"{torch}\.{2 * number}\.", f"{path}/{number}/linear"),
            *prefixed(BATCH_NORM, rf"{torch}\.{2 * number + 1}\.0\.", f"{path}/{number}/norm"),
        )
    ),
    *prefixed(POINTWISE, r"f_value\.", "value"),
    *prefixed(POINTWISE, r"W\.0\.", "out/linear"),
    *prefixed(BATCH_NORM, r"W\.1\.0\.", "out/norm"),
)
TORCH_NAMES = (
    *prefixed(_UNIT, r"stages\.(\d+)\.(long|short)_range_sa\.", r"blocks/\1/\2_range"),
    *prefixed(POINTWISE, r"up_conv\.0\.", "lift/linear"),
    *prefixed(BATCH_NORM, r"up_conv\.1\.0\.", "lift/norm"),
    *prefixed(POINTWISE, r"conv_bn\.0\.", "fuse/linear"),
    *prefixed(BATCH_NORM, r"conv_bn\.1\.0\.", "fuse/norm"),
)
"""Names of openseg.pytorch's `ISA_Module`."""
