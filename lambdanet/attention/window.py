"""Window attention of Swin (Liu et al. 2021), with and without the shift."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.grids import Grid
from lambdanet.interop.names import LINEAR, Rule, prefixed
from lambdanet.layers import Captures, Linear, as_pair, check_map, is_count, trunc_normal
from lambdanet.ops.window_attention import window_attention

PADDINGS = ("pad_roll", "roll_pad")


@registry.register("window")
class WindowAttention(Captures, nnx.Module):
    """Multi-head attention inside the windows of a grid, whose relative bias is added to the logits
    (W-MSA, SW-MSA).

        q, k, v = x W_qkv                                        (columns [q | k | v], each head by head)
        y = concat over heads (softmax_j(s q_i . k_j + B[i - j + w - 1]) v_j) W_o,   j in the window of i

    A mixer: no residual, no norm around it. Time and memory are linear in the number of positions.
    Logits and softmax are computed in float32.

    With a shift the windows lie `shift_size` further to the lower right. The map is rolled by so
    much, and a window that then holds positions of opposite borders is divided into regions that do
    not see each other. On an axis that one window covers there is no shift (`fit`).

    A map that the windows do not divide is continued below and on the right by zeros, and the
    output is cropped. They are padded before the projection, so that padded keys are its biases,
    and have their share of the softmax like others; `mask_padding` leaves them out. Where the
    padding goes (`padding`):

    - 'pad_roll': behind the last row and column, then the map is rolled. Every window is one of the
      shifted grid, and the regions part what is not adjacent. As the authors' code for dense tasks.
    - 'roll_pad': behind the rolled map. The last rows and first rows of the map then meet in one
      window, and the regions are cut at the border of the padded map, which is elsewhere. As timm;
      the same on maps that the windows divide.

    With `size`, a window longer than an axis of that map is cut to it when the layer is built, each
    axis by itself, as in timm; the table B has (2 h - 1)(2 w - 1) entries per head for that window.
    On square maps with square windows this is the rule of the authors' code. It does not tie the
    layer to the size: at a call, any map is divided into these windows. `resize_table` converts B
    to other windows. `fit=False` is the rule for dense tasks of the authors' code, mmsegmentation
    and transformers' backbone: windows are not cut, and they shift on every axis.

    With the view attribute `capture` a call sows `attention_map` [b, heads, H, W, H, W], zero
    between windows; its weights sum to less than one where padded keys have a share.

    Source: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted
    Windows" (arXiv 2103.14030). The published code adds -100 to logits between regions; here they
    are left out altogether.

    Args:
        dim: channels.
        num_heads: heads; divides `dim`.
        window_size: side of a window, or (height, width).
        shift_size: rows and columns that the grid of windows is shifted by, below the window's; a
            number, a pair, or 'half': half a window, rounded down. On an axis where `size` cuts the
            window, at most half of what is left.
        qkv_bias: bias of the joint projection.
        scale: factor s of the products; None means (dim / num_heads)^-0.5.
        padding: 'pad_roll' | 'roll_pad', as above.
        mask_padding: leave padded keys out of the softmax.
        fit: on an axis that is no longer than a window, do not shift, and cut the window to `size`.
        size: map size (H, W) that windows are cut to; None leaves them.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. Table and kernels start truncated normal 0.02, biases zero.

    Raises:
        ValueError: heads that do not divide the channels, an impossible window, shift or size, or
            an unknown padding.
    """  # noqa: E501

    kind: ClassVar[str] = "mixer"
    spatial_axes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        window_size: int | Sequence[int] = 7,
        shift_size: int | Sequence[int] | str = 0,
        qkv_bias: bool = True,
        scale: float | None = None,
        padding: str = "pad_roll",
        mask_padding: bool = False,
        fit: bool = True,
        size: Sequence[int] | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not is_count(num_heads) or dim % num_heads:
            raise _error(f"num_heads is {num_heads}; allowed: divisors of dim={dim}")
        window = as_pair(window_size)
        if window is None or min(window) < 1:
            raise _error(
                f"window_size is {window_size!r}; allowed: an integer >= 1, or a pair of them"
            )
        shift = tuple(w // 2 for w in window) if shift_size == "half" else as_pair(shift_size)
        if shift is None or not all(0 <= s < w for s, w in zip(shift, window, strict=True)):
            raise _error(
                f"shift_size is {shift_size!r}; allowed: 'half', or integers from 0 to below "
                f"window_size={window}"
            )
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise _error(f"size is {size}; allowed: (height, width) of the map, or None")
        if padding not in PADDINGS:
            raise _error(f"padding is {padding!r}; allowed: {', '.join(PADDINGS)}")
        for axis, side in enumerate(size or () if fit else ()):
            if side < window[axis]:
                window = _replace(window, axis, side)
                shift = _replace(shift, axis, min(shift[axis], side // 2))
        self.dim, self.num_heads, self.dtype = dim, num_heads, dtype
        self.window_size, self.shift_size = window, shift
        self.padding, self.mask_padding, self.fit = padding, mask_padding, fit
        self.scale = (dim // num_heads) ** -0.5 if scale is None else scale
        init = trunc_normal(0.02)
        options = dict(kernel_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias, **options)
        self.output = Linear(dim, dim, **options)
        taps = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_bias = nnx.Param(init(rngs.params(), (taps, num_heads), param_dtype))

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w c"]:
        """Maps [batch, H, W, dim] to the same shape; `rngs` is not read, the layer is
        deterministic.
        """
        check_map("window", x, self.dim, self.spatial_axes)
        x = x.astype(self.dtype or x.dtype)
        size = x.shape[1:3]
        shift = tuple(
            0 if self.fit and n <= w else s
            for n, w, s in zip(size, self.window_size, self.shift_size, strict=True)
        )
        grid = self._grid(size)
        cut = dict(r=grid[0], s=grid[1], n=self.num_heads)
        # Split, whose gradient joins three arrays: that of taking apart a joint axis adds three of
        # the size of all.
        q, k, v = (
            rearrange(part, "b (r h) (s w) (n d) -> b (r s) n (h w) d", **cut)
            for part in jnp.split(self.qkv(self._arrange(x, shift)), 3, axis=-1)
        )
        regions = None
        padded = any(n % w for n, w in zip(size, self.window_size, strict=True))
        if any(shift) or (padded and self.mask_padding):
            regions = _regions(size, self.window_size, shift, self.padding, self.mask_padding)
        y, weights = window_attention(
            q,
            k,
            v,
            self.relative_bias[...],
            regions,
            window=self.window_size,
            scale=self.scale,
            return_weights=self.capture,
        )
        if self.capture:
            self.sow(nnx.Intermediate, "attention_map", self._full_map(weights, size, shift))
        y = rearrange(y, "b (r s) n (h w) d -> b (r h) (s w) (n d)", h=self.window_size[0], **cut)
        return self.output(self._restore(y, size, shift, (1, 2)))

    def table_grids(self) -> dict[str, Grid]:
        """Returns the window that the table is for."""
        return {"relative_bias": Grid("window", self.window_size)}

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample: projections and both products in every window, padded
        positions included.
        """
        rows, columns = self._padded(spatial)
        padded, window = rows * columns, self.window_size[0] * self.window_size[1]
        return self.dim * (
            3 * self.dim * padded + 2 * padded * window + self.dim * spatial[0] * spatial[1]
        )

    def _grid(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(-(-n // w) for n, w in zip(size, self.window_size, strict=True))

    def _padded(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(g * w for g, w in zip(self._grid(size), self.window_size, strict=True))

    def _arrange(self, x: jax.Array, shift: tuple[int, int]) -> jax.Array:
        """Pads and rolls a map."""
        size = x.shape[1:3]
        padding = (
            (0, 0),
            *((0, p - n) for p, n in zip(self._padded(size), size, strict=True)),
            (0, 0),
        )

        def roll(a):
            return jnp.roll(a, [-s for s in shift], (1, 2)) if any(shift) else a

        return (
            roll(jnp.pad(x, padding)) if self.padding == "pad_roll" else jnp.pad(roll(x), padding)
        )

    def _restore(
        self, x: jax.Array, size: Sequence[int], shift: tuple[int, int], axes: tuple[int, int]
    ) -> jax.Array:
        """Undoes `_arrange` on a pair of axes."""
        rolled = any(shift)
        if rolled and self.padding == "pad_roll":
            x = jnp.roll(x, shift, axes)
        for axis, length in zip(axes, size, strict=True):
            x = jax.lax.slice_in_dim(x, 0, length, axis=axis)
        return jnp.roll(x, shift, axes) if rolled and self.padding == "roll_pad" else x

    def _full_map(
        self, weights: jax.Array, size: Sequence[int], shift: tuple[int, int]
    ) -> jax.Array:
        """[b, windows, heads, i, j] -> [b, heads, *size, *size], zero between windows."""
        (rows, columns), (height, width) = self._grid(size), self.window_size
        weights = rearrange(
            weights,
            "b (r s) n (y x) (Y X) -> b r s n y x Y X",
            **dict(r=rows, y=height, x=width, Y=height),
        )
        one = functools.partial(jnp.eye, dtype=weights.dtype)
        full = jnp.einsum("brsnyxYX,rR,sS->bnrysxRYSX", weights, one(rows), one(columns))
        full = rearrange(full, "b n r y s x R Y S X -> b n (r y) (s x) (R Y) (S X)")
        return self._restore(self._restore(full, size, shift, (2, 3)), size, shift, (4, 5))


registry.register("shifted_window", WindowAttention, shift_size="half")


def region_mask(
    size: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    *,
    padding: str = "pad_roll",
    mask_padding: bool = False,
) -> Bool[np.ndarray, "g i j"]:
    """Returns which keys a query of each window sees: those of its own region.

    Args:
        size: map size (H, W).
        window: window size (h, w).
        shift: rows and columns that the map is rolled by.
        padding: 'pad_roll' | 'roll_pad'.
        mask_padding: whether padded positions are a region of their own.

    Returns:
        [windows, h w, h w], windows and positions row by row.
    """
    regions = _regions(*map(tuple, (size, window, shift)), padding, mask_padding)
    return regions[:, :, None] == regions[:, None, :]


@functools.lru_cache(maxsize=64)
def _regions(
    size: tuple, window: tuple, shift: tuple, padding: str, mask_padding: bool
) -> np.ndarray:
    """Number of the region of every position, [windows, positions of a window]."""
    numbers = []
    for length, side, moved in zip(size, window, shift, strict=True):
        padded = -(-length // side) * side
        place = np.arange(padded)
        own = (place >= padded - moved).astype(np.int32)  # came round the border
        if mask_padding:
            source = (place + moved) % padded if padding == "pad_roll" else place
            own = np.where(source >= length, 2, own)
        numbers.append(own.reshape(-1, side))
    rows, columns = numbers
    regions = 3 * rows[:, None, :, None] + columns[None, :, None, :]
    return regions.reshape(len(rows) * len(columns), window[0] * window[1])


def resize_table(
    table: Float[np.ndarray, "t n"], old_window: Sequence[int], new_window: Sequence[int]
) -> Float[np.ndarray, "s n"]:
    """Converts a table of relative biases to another window, bicubically per head on the grid of
    offsets.

    Equals `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`: the cubic
    convolution kernel with coefficient -0.75, no smoothing when the grid shrinks, borders repeated.
    An axis that keeps its length is left alone.

    Args:
        table: (2 h - 1)(2 w - 1) rows.
        old_window: (h, w) that it is for.
        new_window: window wanted.

    Returns:
        The table for `new_window`, in the dtype of `table`; computed in float64.

    Raises:
        ValueError: the table is not for the old window.
    """
    grid, wanted = ([2 * side - 1 for side in window] for window in (old_window, new_window))
    table = np.asarray(table)
    if len(grid) != 2 or table.ndim != 2 or len(table) != grid[0] * grid[1]:
        raise _error(
            f"a table of shape {table.shape} is not for windows of {tuple(old_window)}: these have "
            f"{grid} offsets"
        )
    values = np.float64(table).reshape(*grid, -1)
    values = np.einsum("yY,xX,YXn->yxn", *map(_bicubic, grid, wanted), values)
    return values.reshape(-1, table.shape[1]).astype(table.dtype)


def _bicubic(old: int, new: int, coefficient: float = -0.75) -> np.ndarray:
    """The matrix [new, old] of an interpolation along one axis."""
    if old == new:
        return np.eye(old)
    at = (np.arange(new) + 0.5) * old / new - 0.5
    below = np.floor(at).astype(int)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        x = np.abs(at - below - tap)
        near = ((coefficient + 2) * x - (coefficient + 3)) * x * x + 1
        far = coefficient * (((x - 5) * x + 8) * x - 4)
        np.add.at(
            matrix, (np.arange(new), np.clip(below + tap, 0, old - 1)), np.where(x <= 1, near, far)
        )
    return matrix


def _replace(pair: tuple, index: int, value: int) -> tuple:
    return tuple(value if i == index else old for i, old in enumerate(pair))


def _error(text: str) -> ValueError:
    return ValueError(f"window: {text}")


TORCH_NAMES = (
    *prefixed(LINEAR, r"qkv\.", "qkv"),
    *prefixed(LINEAR, r"proj\.", "output"),
    Rule(r"relative_position_bias_table", "relative_bias"),
    Rule(r"relative_position_index", None),
)
"""Names of `WindowAttention` in the authors' code and in timm."""

MMSEG_TORCH_NAMES = prefixed(TORCH_NAMES, r"w_msa\.", "")
"""The same in mmsegmentation and mmdetection."""

TRANSFORMERS_TORCH_NAMES = (
    *(
        replace(rule, pattern=rf"(?:self\.{name}|{name[0]}_proj)\.{rule.pattern}", piece=(index, 3))
        for index, name in enumerate(("query", "key", "value"))
        for rule in prefixed(LINEAR, "", "qkv")
    ),
    *prefixed(LINEAR, r"(?:output\.dense|o_proj)\.", "output"),
    Rule(r"(?:self|relative_position_bias)\.relative_position_bias_table", "relative_bias"),
    Rule(r"(?:self|relative_position_bias)\.relative_position_index", None),
)
"""The same in transformers: as its files have them, or its modules from version 5 on."""
