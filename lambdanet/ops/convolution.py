"""Two-dimensional convolution of channels-last maps, written as what XLA's backend runs well."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lambdanet.ops.depthwise import depthwise_conv
from lambdanet.ops.dilated_convolution import dilated_convolution, seen_share
from lambdanet.ops.window_product import apart, derived_by_products, window_count, window_product
from lambdanet.ops.winograd import tile_count, winograd_convolution

IMPLS = ("auto", "conv", "product", "mixed", "winograd", "regions", "blocks", "shift")
Pair = tuple[int, int]

_BLOCK, _MOST_BLOCKS = 32, 8  # channels per block of 'blocks', at least; blocks, at most
_WIDE, _WORK = 64, 2**15  # channels, tiles times channels from which on 'auto' takes 'winograd'
_SEEN = 0.6  # share of taps on the map up to which 'auto' takes 'regions'
_FEW = 32  # numbers per window up to which 'auto' takes 'product' where windows overlap
# For 'mixed': numbers of all windows, at most; of the kernel, at least, with and without a stride.
_COPIED, _STRIDED, _KERNEL = 2**20, 2**13, 2**19


def convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l i d"],
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[Sequence[int]] = ((0, 0), (0, 0)),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    impl: str = "auto",
) -> Float[Array, "b oh ow d"]:
    """y[i, j, d] = sum over taps (u, v) and channels c of kernel[u, v, c, d] x[s i + e u - p, s j +
    e v - p, c]; zeros outside.

    Lowerings, equal up to rounding in values and gradients:
        'conv': XLA's convolution. On CPU it should be Eigen's: see
            `lambdanet.training.start_up.use_eigen_convolutions`.
        'product': one matrix product with a row per window; not for groups or dilation. Where
            windows share no input (1x1, or stride equal to the side, without padding) the rows are
            the map itself: on CPU the gradient of a 1x1 kernel is several times as fast. Else they
            are copies, which pays for the first convolution of a network, of few numbers.
        'mixed': 'conv' with the derivatives of 'product'; not for groups or dilation. On CPU 1.3
            to 1.7 times as fast in training where windows are few, with a stride or a large kernel.
        'winograd': 3x3, stride 1, as much padding as dilation; less than half of the products of
            matrices, see `lambdanet.ops.winograd`. On CPU up to twice as fast in training where
            there are many channels and positions. Not for forward-mode differentiation (`jax.jvp`),
            nor for empty or symbolic shapes.
        'regions': dilated kernels, stride 1, padding that keeps the size; no products with what is
            beyond the map, see `lambdanet.ops.dilated_convolution`. On CPU several times as fast in
            training where few taps are on the map. Not for `jax.jvp`, nor for empty or symbolic
            shapes.
        'blocks': grouped kernels only; neighbouring groups are joined to blocks with zeros off
            their diagonal, and every block is an ordinary convolution. On CPU the convolution of
            one group at a time makes no use of the machine.
        'shift': depthwise kernels only, see `lambdanet.ops.depthwise`.
        'auto': 'conv', but on CPU 'shift' for depthwise and 'blocks' for other grouped kernels,
            'product' where windows share nothing or hold few numbers, 'winograd' from 64
            channels on, with 512 tiles of 64 channels, 256 of 128 and so on, 'regions' where at
            most 0.6 of all taps are on the map, 'mixed' where all windows together hold at most
            2^20 numbers and the kernel at least 2^19, or 2^13 with a stride. For `jax.jvp` of what
            has 'shift', 'winograd' or 'regions' take impl='conv'.

    Args:
        x: the map.
        kernel: rounded to the dtype of `x`; i = c / groups; output channel d belongs to group
            d // (d's number / groups), as in `lax` and PyTorch.
        stride: step per axis, s.
        padding: zeros before and after, per axis, p.
        dilation: positions between taps per axis, e.
        groups: divides input and output channels.
        impl: the lowering.

    Returns:
        The map in the dtype of `x`.

    Raises:
        ValueError: unknown impl, one that the operation does not allow, channels that do not fit
            the kernel, numbers that are not floating, or options that are no pairs.
    """
    if impl not in IMPLS:
        raise ValueError(f"convolution: impl is {impl!r}; allowed: {', '.join(IMPLS)}")
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    padding = _pairs(padding)
    if not all(jnp.issubdtype(array.dtype, jnp.floating) for array in (x, kernel)):
        raise ValueError(
            f"convolution: the map is {x.dtype}, the kernel {kernel.dtype}; allowed: floating "
            "dtypes; convert with .astype(jnp.float32)"
        )
    kernel = kernel.astype(x.dtype)
    channels = x.shape[-1]
    if channels != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"convolution: {channels} channels in {groups} groups do not fit a kernel of shape "
            f"{kernel.shape}"
        )
    allowed = _allowed(x.shape, kernel.shape, stride, padding, dilation, groups)
    if impl == "auto":
        on_cpu = jax.default_backend() == "cpu"
        shapes = x.shape, kernel.shape
        impl = _fastest(allowed, *shapes, stride, padding, dilation) if on_cpu else "conv"
    if impl not in allowed:
        raise ValueError(
            f"convolution: impl {impl!r} does not allow kernel {kernel.shape}, stride {stride}, "
            f"padding {padding}, dilation {dilation}, groups {groups}; allowed: "
            f"{', '.join(allowed)}"
        )
    if impl == "shift":
        return depthwise_conv(x, kernel, stride=stride, impl="shift")
    if impl == "product":
        return window_product(x, kernel, stride, padding)
    if impl == "mixed":
        return derived_by_products(x, kernel, stride, padding)
    if impl == "winograd":
        return winograd_convolution(x, kernel, dilation[0])
    if impl == "regions":
        return dilated_convolution(x, kernel, dilation)
    if impl == "conv":
        return _conv(x, kernel, stride, padding, dilation, groups)
    per_block = _groups_per_block(channels, groups)
    blocks = groups // per_block
    wide = _block_diagonal(kernel, blocks, per_block)
    parts = zip(jnp.split(x, blocks, -1), jnp.split(wide, blocks, -1), strict=True)
    return jnp.concatenate(
        [_conv(part, part_kernel, stride, padding, dilation, 1) for part, part_kernel in parts], -1
    )


def _pair(name: str, value: Sequence[int], least: int) -> Pair:
    """Returns an option per axis as a tuple, whatever sequence it came as."""
    try:
        first, second = map(operator.index, value)
    except (TypeError, ValueError):
        first = second = least - 1
    if min(first, second) < least:
        raise ValueError(
            f"convolution: {name} is {value!r}; allowed: two integers from {least}, (rows, columns)"
        )
    return first, second


def _pairs(padding: Sequence[Sequence[int]]) -> tuple[Pair, Pair]:
    try:
        rows, columns = padding
    except (TypeError, ValueError):
        raise ValueError(
            f"convolution: padding is {padding!r}; allowed: ((top, bottom), (left, right))"
        ) from None
    return _pair("padding of the rows", rows, 0), _pair("padding of the columns", columns, 0)


def _allowed(x, kernel, stride, padding, dilation, groups) -> tuple[str, ...]:
    """Lowerings that an operation of these shapes allows."""
    sides = kernel[:2]
    same = all(
        side % 2 and pad == (side // 2,) * 2 for side, pad in zip(sides, padding, strict=True)
    )
    if groups == 1:
        tiled = sides == (3, 3) and stride == (1, 1) and dilation[0] == dilation[1]
        tiled = tiled and padding == ((dilation[0],) * 2,) * 2
        # Exported with symbolic shapes, nobody knows how many tiles or regions there will be.
        known = all(isinstance(n, int) and n > 0 for n in (*x, *kernel, *dilation))
        beyond = known and min(window_count(x[1:3], sides, stride, padding)) <= 0
        rows = dilation == (1, 1) and not beyond
        around = tuple((side // 2 * step,) * 2 for side, step in zip(sides, dilation, strict=True))
        spread = stride == (1, 1) != dilation and padding == around and all(s % 2 for s in sides)
        return (
            *(("product",) if rows else ()),
            *(("mixed",) if rows and known else ()),
            *(("winograd",) if tiled and known else ()),
            *(("regions",) if spread and known else ()),
            "conv",
        )
    depthwise = groups == x[3] == kernel[3] and same and dilation == (1, 1)
    return ("conv", "blocks", "shift") if depthwise else ("conv", "blocks")


def _fastest(
    allowed: tuple[str, ...], x, kernel, stride: Pair, padding: tuple[Pair, Pair], dilation: Pair
) -> str:
    """The lowering for CPU."""
    sides, length = kernel[:2], math.prod(kernel[:3])
    if "product" in allowed and (apart(sides, stride, padding) or length <= _FEW):
        return "product"
    chosen, least = allowed[-1], 1.0
    if "mixed" in allowed and math.prod(kernel) >= (_KERNEL if stride == (1, 1) else _STRIDED):
        windows = x[0] * math.prod(window_count(x[1:3], sides, stride, padding))
        if windows * length <= _COPIED:
            chosen = "mixed"
    if "winograd" in allowed and min(kernel[2:]) >= _WIDE:
        # A tile costs 16 products per pair of channels, a position 9: with a third saved at least.
        tiles = tile_count(x, dilation[0])
        share = 16 * tiles / (9 * math.prod(x[:3]))
        if tiles * min(kernel[2:]) >= _WORK and share <= 2 / 3:
            chosen, least = "winograd", share
    if "regions" in allowed and seen_share(x[1:3], kernel[:2], dilation) <= min(_SEEN, least):
        chosen = "regions"
    return chosen


def _conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    groups: int,
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _groups_per_block(channels: int, groups: int) -> int:
    """The smallest divisor of the groups that makes the blocks wide enough and few enough."""
    width = max(_BLOCK, -(-channels // _MOST_BLOCKS))
    return next(
        n
        for n in range(1, groups + 1)
        if groups % n == 0 and n * (channels // groups) >= min(width, channels)
    )


def _block_diagonal(kernel: jax.Array, blocks: int, per_block: int) -> jax.Array:
    """Kernel [k, l, i, d] of all groups to [k, l, per_block * i, d]: in a block each group has its
    own input channels.
    """
    rows, columns, channels, _ = kernel.shape
    parts = kernel.reshape(rows, columns, 1, channels, blocks, per_block, -1)
    own = jnp.eye(per_block, dtype=kernel.dtype)[:, None, None, :, None]
    return (parts * own).reshape(rows, columns, per_block * channels, -1)
