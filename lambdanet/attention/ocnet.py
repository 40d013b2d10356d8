"""Object context (OCNet): self-attention over the map, over a pyramid of cells, and beside dilated
convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.ocnet_unit import ObjectContextUnit
from lambdanet.attention.registration import registry
from lambdanet.interop.names import BATCH_NORM, CONV, POINTWISE, Rule, prefixed
from lambdanet.layers import ConvNormAct, PointwiseNormAct, check_map


@registry.register("object_context")
class ObjectContext(nnx.Module):
    """Base-OC: y = act(BN([sum_s unit_s(x), x] W + b)), the unit self-attention over all positions.

        unit(x) = softmax(q k^T / sqrt(key_dim)) v W_o + b_o,   q = k = act(BN(x W_k + b_k)),   v = x W_v + b_v

    A context block without residual or gate: the input enters through the concatenation. W_o and
    b_o start at zero, so the context is zero at first and queries, keys and values get no gradient
    in the first step.

    A unit of size s > 1 works on the map max-pooled by s (rows and columns that fill no window are
    left out; a map shorter than the window is one window), and its context is resized bilinearly to
    the map, corners on corners. There are (N / s^2)^2 weights, on large maps made for a block of
    queries at a time, so that memory is linear in N.

    With the view attribute `capture`, every unit sows `attention_map` [b, 1, *s, *pooled s], the
    weight with which the value of a pooled position enters the context of a position, the resizing
    included.

    Source: Yuan and Wang 2018, "OCNet: Object Context Network for Scene Parsing", and its release,
    which uses leaky ReLU (0.01) in in-place norms: `activation='leaky_relu_0.01'` for its weights
    (a checkpoint of the in-place norms stores a scale w that means |w| + 1e-5). openseg.pytorch has
    ReLU, separate queries and keys, two layers each: `share_qk=False, num_qk_convs=2`. There C =
    512, key_dim = value_dim = 256, sizes (1,), dropout 0.05.

    Args:
        dim: channels.
        sizes: pooling of each unit; the contexts are added.
        key_dim: channels of queries and keys; None means dim // 2, the paper's proportion.
        value_dim: channels of values; None means dim // 2.
        dim_out: channels of the output; None means `dim`.
        share_qk: queries are the keys, instead of projections of their own.
        num_qk_convs: layers of the projections of queries and keys.
        activation: a name in `lambdanet.layers.ACTIVATIONS`.
        dropout: rate of channel dropout on the output in training. 0 by default: as a context block
            inside a network it must not need a random stream.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: an option outside its allowed values.
    """  # noqa: E501

    kind: ClassVar[str] = "context"
    spatial_axes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        dim: int,
        *,
        sizes: tuple[int, ...] = (1,),
        key_dim: int | None = None,
        value_dim: int | None = None,
        dim_out: int | None = None,
        share_qk: bool = True,
        num_qk_convs: int = 1,
        activation: str = "relu",
        dropout: float = 0.0,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes, half = _sizes("object_context", "sizes", sizes), max(dim // 2, 1)
        key_dim, value_dim = (
            half if key_dim is None else key_dim,
            half if value_dim is None else value_dim,
        )
        dim_out = dim if dim_out is None else dim_out
        _check(
            "object_context",
            dropout,
            key_dim=key_dim,
            value_dim=value_dim,
            dim_out=dim_out,
            num_qk_convs=num_qk_convs,
        )
        options = dict(
            activation=activation,
            norm_momentum=norm_momentum,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        attends = dict(share_qk=share_qk, num_qk_convs=num_qk_convs, **options)
        self.dim, self.dtype = dim, dtype
        self.units = nnx.List(
            ObjectContextUnit(dim, key_dim, value_dim, dim, pool=pool, **attends) for pool in sizes
        )
        self.fuse = PointwiseNormAct(2 * dim, dim_out, bias=True, **options)
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))

    def context(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The sum of the units' outputs, before it meets the input."""
        return sum(unit(x) for unit in self.units)

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w d"]:
        """Maps [b, h, w, dim] to [b, h, w, dim_out]; `rngs.dropout` is read in training when
        dropout > 0.
        """
        check_map("object_context", x, self.dim, self.spatial_axes)
        x = x.astype(self.dtype or x.dtype)
        return self.dropout(self.fuse(jnp.concatenate([self.context(x), x], axis=-1)), rngs=rngs)

    def macs(self, h: int, w: int) -> int:
        """Multiply-accumulates for one [h, w] map: projections, attention and resizing."""
        return sum(unit.macs(h, w) for unit in self.units) + self.fuse.macs(h * w)


@registry.register("pyramid_object_context")
class PyramidObjectContext(nnx.Module):
    """Pyramid-OC: y = act(BN([lift(x), unit_1(x), ..., unit_n(x)] W + b)), unit i attending inside
    the cells of a grid.

    For size s the map is cut into s x s cells of floor(H / s) x floor(W / s) positions, the last
    row and column of cells taking what is left; positions attend inside their cell only, with the
    unit of `ObjectContext`, one per size and shared by its cells. `lift` is a 1x1 to n dim
    channels, norm, activation, so that input and contexts are equally wide in the concatenation. A
    context block without residual or gate; the units' outputs start at zero.

    An axis shorter than s is cut into single rows or columns, so that the pyramid works on every
    map; the release has no such case. There are N^2 sum_s s^-2 weights, on large maps made for a
    block of queries at a time.

    With the view attribute `capture`, every unit sows `attention_map` [b, 1, *s, *s], zero between
    cells.

    Source: Yuan and Wang 2018, "OCNet: Object Context Network for Scene Parsing", and its release:
    sizes (1, 2, 3, 6), key_dim dim / 2, value_dim dim, behind a 3x3 from 2048 to dim = 512.
    Activation as for `ObjectContext`.

    Args:
        dim: channels.
        sizes: cells per axis of each unit.
        key_dim: channels of queries and keys; None means dim // 2.
        value_dim: channels of values; None means `dim`.
        dim_out: channels of the output; None means `dim`.
        share_qk: queries are the keys, instead of projections of their own.
        num_qk_convs: layers of the projections of queries and keys.
        activation: a name in `lambdanet.layers.ACTIVATIONS`.
        dropout: rate of channel dropout on the output in training; 0.05 in the paper's segmentation
            head.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: an option outside its allowed values.
    """

    kind: ClassVar[str] = "context"
    spatial_axes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        dim: int,
        *,
        sizes: tuple[int, ...] = (1, 2, 3, 6),
        key_dim: int | None = None,
        value_dim: int | None = None,
        dim_out: int | None = None,
        share_qk: bool = True,
        num_qk_convs: int = 1,
        activation: str = "relu",
        dropout: float = 0.0,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        name, sizes = "pyramid_object_context", _sizes("pyramid_object_context", "sizes", sizes)
        key_dim, value_dim = (
            max(dim // 2, 1) if key_dim is None else key_dim,
            dim if value_dim is None else value_dim,
        )
        dim_out = dim if dim_out is None else dim_out
        _check(
            name,
            dropout,
            key_dim=key_dim,
            value_dim=value_dim,
            dim_out=dim_out,
            num_qk_convs=num_qk_convs,
        )
        options = dict(
            activation=activation,
            norm_momentum=norm_momentum,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        attends = dict(share_qk=share_qk, num_qk_convs=num_qk_convs, **options)
        self.dim, self.dtype = dim, dtype
        self.units = nnx.List(
            ObjectContextUnit(dim, key_dim, value_dim, dim, cells=cells, **attends)
            for cells in sizes
        )
        self.lift = PointwiseNormAct(dim, len(sizes) * dim, bias=True, **options)
        self.fuse = PointwiseNormAct(2 * len(sizes) * dim, dim_out, bias=True, **options)
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w d"]:
        """Maps [b, h, w, dim] to [b, h, w, dim_out]; `rngs.dropout` is read in training when
        dropout > 0.
        """
        check_map("pyramid_object_context", x, self.dim, self.spatial_axes)
        x = x.astype(self.dtype or x.dtype)
        parts = [self.lift(x), *(unit(x) for unit in self.units)]
        return self.dropout(self.fuse(jnp.concatenate(parts, axis=-1)), rngs=rngs)

    def macs(self, h: int, w: int) -> int:
        """Multiply-accumulates for one [h, w] map: projections and attention."""
        return (
            sum(unit.macs(h, w) for unit in self.units)
            + self.lift.macs(h * w)
            + self.fuse.macs(h * w)
        )


@registry.register("asp_object_context")
class AspObjectContext(nnx.Module):
    """ASP-OC: y = act(BN([context, 1x1, 3x3 at each dilation] W)), every branch `width` channels,
    norm and activation.

    The context branch is a 3x3, the unit of `ObjectContext` on the map max-pooled by 2, and a 1x1;
    the other branches are those of atrous spatial pyramid pooling. A context block without residual
    or gate. The output projection of the attention starts at zero, so the context branch is
    constant over the map at first.

    With the view attribute `capture`, the unit sows `attention_map` [b, 1, *s, *pooled s].

    Source: Yuan and Wang 2018, "OCNet: Object Context Network for Scene Parsing", and its release:
    dim 512, width 256, dilations (12, 24, 36) at stride 8, key_dim width / 2, value_dim width,
    behind a 3x3 from 2048. The context keeps the map's size at odd sizes, too. The activation is
    the release's, unlike that of `ObjectContext`: behind a ReLU the context branch would never
    start, since batch norm turns the constant into zero, where a ReLU has no gradient.

    Args:
        dim: channels.
        width: channels of every branch; None means dim // 2.
        dilations: dilations of the 3x3 convolutions.
        key_dim: channels of queries and keys; None means width // 2.
        value_dim: channels of values; None means `width`.
        dim_out: channels of the output; None means `dim`.
        share_qk: queries are the keys, instead of projections of their own.
        num_qk_convs: layers of the projections of queries and keys.
        activation: a name in `lambdanet.layers.ACTIVATIONS`.
        dropout: rate of channel dropout on the output in training; 0.1 in the paper's segmentation
            head.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: an option outside its allowed values.
    """

    kind: ClassVar[str] = "context"
    spatial_axes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        dim: int,
        *,
        width: int | None = None,
        dilations: tuple[int, ...] = (12, 24, 36),
        key_dim: int | None = None,
        value_dim: int | None = None,
        dim_out: int | None = None,
        share_qk: bool = True,
        num_qk_convs: int = 1,
        activation: str = "leaky_relu_0.01",
        dropout: float = 0.0,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        name, dilations = "asp_object_context", _sizes("asp_object_context", "dilations", dilations)
        width = max(dim // 2, 1) if width is None else width
        key_dim, value_dim = (
            max(width // 2, 1) if key_dim is None else key_dim,
            width if value_dim is None else value_dim,
        )
        dim_out = dim if dim_out is None else dim_out
        widths = dict(width=width, key_dim=key_dim, value_dim=value_dim, dim_out=dim_out)
        _check(name, dropout, num_qk_convs=num_qk_convs, **widths)
        options = dict(
            activation=activation,
            norm_momentum=norm_momentum,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        attends = dict(share_qk=share_qk, num_qk_convs=num_qk_convs, **options)
        self.dim, self.dtype = dim, dtype
        self.context_in = ConvNormAct(dim, width, 3, bias=True, **options)
        self.unit = ObjectContextUnit(width, key_dim, value_dim, width, pool=2, **attends)
        self.context_out = PointwiseNormAct(width, width, bias=True, **options)
        self.point = PointwiseNormAct(dim, width, **options)
        self.dilated = nnx.List(
            ConvNormAct(dim, width, 3, dilation=dilation, **options) for dilation in dilations
        )
        self.fuse = PointwiseNormAct((2 + len(dilations)) * width, dim_out, **options)
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w d"]:
        """Maps [b, h, w, dim] to [b, h, w, dim_out]; `rngs.dropout` is read in training when
        dropout > 0.
        """
        check_map("asp_object_context", x, self.dim, self.spatial_axes)
        x = x.astype(self.dtype or x.dtype)
        context = self.context_out(self.unit(self.context_in(x)))
        branches = [context, self.point(x), *(branch(x) for branch in self.dilated)]
        return self.dropout(self.fuse(jnp.concatenate(branches, axis=-1)), rngs=rngs)

    def macs(self, h: int, w: int) -> int:
        """Multiply-accumulates for one [h, w] map: projections, convolutions (taps on padding
        included), attention, resizing.
        """
        points = sum(layer.macs(h * w) for layer in (self.context_out, self.point, self.fuse))
        return (
            points
            + self.unit.macs(h, w)
            + sum(layer.macs(h, w) for layer in (self.context_in, *self.dilated))
        )


def _sizes(block: str, name: str, values: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(values) if isinstance(values, Sequence) else ()
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"{block}: {name} is {values!r}; allowed: a tuple of numbers from 1")
    return sizes


def _check(block: str, dropout: float, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{block}: {name} is {count}; allowed: 1 or more")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{block}: dropout is {dropout}; allowed: 0 <= dropout < 1")


def _norm_act(torch: str, path: str, index: int = 0) -> tuple[Rule, ...]:
    """A 1x1 at an index of a Sequential, and after it an in-place norm or a Sequential of norm and
    ReLU.
    """
    return (
        *prefixed(POINTWISE, rf"{torch}\.{index}\.", f"{path}/linear"),
        *prefixed(BATCH_NORM, rf"{torch}\.{index + 1}\.(?:0\.)?", f"{path}/norm"),
    )


def _conv_norm_act(torch: str, path: str) -> tuple[Rule, ...]:
    return (
        *prefixed(CONV, rf"{torch}\.0\.", f"{path}/conv"),
        *prefixed(BATCH_NORM, rf"{torch}\.1\.", f"{path}/norm"),
    )


def _names(query: tuple[Rule, ...]) -> tuple[Rule, ...]:
    unit = (
        *query,
        *_norm_act("f_key", "key/0"),
        *_norm_act("f_key", "key/1", 2),
        *prefixed(POINTWISE, r"f_value\.", "value"),
        *prefixed(POINTWISE, r"W\.", "out"),
    )
    return (
        *prefixed(unit, r"stages\.(\d+)\.", r"units/\1"),
        *_norm_act("up_dr", "lift"),
        *_norm_act("conv_bn_dropout", "fuse"),
        # ASP-OC
        *_conv_norm_act("context", "context_in"),
        *prefixed(unit, r"context\.2\.stages\.0\.", "unit"),
        *_norm_act(r"context\.2\.conv_bn_dropout", "context_out"),
        *_norm_act("conv2", "point"),
        *_conv_norm_act("conv3", "dilated/0"),
        *_conv_norm_act("conv4", "dilated/1"),
        *_conv_norm_act("conv5", "dilated/2"),
    )


TORCH_NAMES = _names((Rule(r"f_query\..*", None),))
"""Names of OCNet.pytorch, whose state lists the shared projection twice, as `f_key` and as
`f_query`.
"""

TORCH_NAMES_SEPARATE = _names(
    (*_norm_act("f_query", "query/0"), *_norm_act("f_query", "query/1", 2))
)
"""Names of openseg.pytorch, whose queries have projections of their own (`share_qk=False`)."""
