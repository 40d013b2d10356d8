"""Embeddings of hierarchical vision Transformers: of a map in a coarser one, and of positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.layers import Conv2d, LayerNorm, Linear, resize_bilinear, trunc_normal
from lambdanet.registry import signature, suggest

from ..backbone import Row

EmbedSpec = str | Mapping[str, Any]

CONV_INITS = ("fan_in", "fan_out")
"""How convolutions start. 'fan_in': kernel and bias uniform within 1 / sqrt(fan_in), PyTorch's
default. 'fan_out': normal with variance 2 / fan_out, bias zero. Both fans are those of one
group."""


def linear(
    dim: int, dim_out: int, *, bias: bool = True, dtype: Any, param_dtype: Any, rngs: nnx.Rngs
) -> Linear:
    """Builds a linear layer that starts as all of these networks have it: kernel truncated normal
    0.02, bias zero.
    """
    init = trunc_normal(0.02)
    return Linear(
        dim,
        dim_out,
        use_bias=bias,
        kernel_init=init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def output_norms(widths: tuple[int, ...], epsilon: float, **options: Any) -> nnx.List:
    """Builds the norms on a network's output maps, one per entry of `widths`.

    Args:
        widths: channels of the maps; () for no norms.
        epsilon: of the norms.
        **options: dtype, param_dtype and rngs, as in `LayerNorm`.
    """
    return nnx.List([LayerNorm(width, epsilon=epsilon, **options) for width in widths])


def convolution(
    dim: int,
    dim_out: int,
    kernel_size: int,
    *,
    stride: int,
    padding: int,
    bias: bool = True,
    conv_init: str,
    dtype: Any,
    param_dtype: Any,
    rngs: nnx.Rngs,
) -> Conv2d:
    """Builds a square convolution, `padding` zeros on every side; an incomplete last window is left
    out.
    """
    fan_in = kernel_size**2 * dim
    kernel_init, bias_init = conv_inits(conv_init, fan_in, kernel_size**2 * dim_out)
    return Conv2d(
        dim,
        dim_out,
        (kernel_size, kernel_size),
        stride=(stride, stride),
        padding=(padding, padding),
        bias=bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def conv_inits(kind: str, fan_in: int, fan_out: int) -> tuple[nnx.Initializer, nnx.Initializer]:
    """Returns the initialisers of kernel and bias, see `CONV_INITS`; fans of one group."""
    if kind == "fan_out":
        return nnx.initializers.normal(math.sqrt(2.0 / fan_out)), nnx.initializers.zeros_init()
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init, init


class ConvEmbed(nnx.Module):
    """norm(conv(x)): a map in tokens of a coarser grid.

    Without padding and with `stride` equal to `kernel_size` these are the patches of ViT; else they
    overlap.

    Args:
        dim: input channels.
        dim_out: output channels.
        kernel_size: side of the kernel.
        stride: step; None means `kernel_size`.
        padding: zeros on every side.
        remainder: what becomes of rows and columns that fill no window: 'drop' | 'pad' (zeros at
            the bottom and the right fill it up).
        bias: whether the convolution has one.
        conv_init: one of `CONV_INITS`.
        epsilon: of the norm.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        kernel_size: int,
        stride: int | None = None,
        padding: int = 0,
        remainder: str = "drop",
        bias: bool = True,
        conv_init: str = "fan_in",
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if remainder not in ("drop", "pad"):
            raise ValueError(f"embed: remainder is {remainder!r}; allowed: drop, pad")
        stride = kernel_size if stride is None else stride
        for name, value, least in (
            ("kernel_size", kernel_size, 1),
            ("stride", stride, 1),
            ("padding", padding, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"embed: {name} is {value!r}; allowed: an integer of {least} or more"
                )
        self.dim, self.dim_out, self.kernel_size, self.padding = dim, dim_out, kernel_size, padding
        self.stride, self.remainder = stride, remainder
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        window = dict(stride=self.stride, padding=padding, bias=bias, conv_init=conv_init)
        self.conv = convolution(dim, dim_out, kernel_size, **window, **stored)
        self.norm = LayerNorm(dim_out, epsilon=epsilon, **stored)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow d"]:
        """Maps [b, h, w, dim] to [b, *out_size(h, w), dim_out].

        Raises:
            ValueError: a map smaller than one window.
        """
        if min(self.out_size(*x.shape[1:3])) < 1:
            side = self.kernel_size - 2 * self.padding
            raise ValueError(
                f"embed: the map is {x.shape[1]}x{x.shape[2]}; a window needs {side}x{side} or more"
            )
        extra = [self._filled(n) - n for n in x.shape[1:3]]
        if any(extra):
            x = jnp.pad(x, ((0, 0), (0, extra[0]), (0, extra[1]), (0, 0)))
        return self.norm(self.conv(x))

    def out_size(self, h: int, w: int) -> tuple[int, int]:
        """Returns the size of the output map."""
        return tuple(
            (self._filled(n) + 2 * self.padding - self.kernel_size) // self.stride + 1
            for n in (h, w)
        )

    def rows(self, h: int, w: int) -> list[Row]:
        """Returns the summary for one [h, w] map; the last line has the output shape."""
        shape = (*self.out_size(h, w), self.dim_out)
        kernel = f"conv {self.kernel_size}x{self.kernel_size}/{self.stride}"
        macs = shape[0] * shape[1] * self.kernel_size**2 * self.dim * self.dim_out
        return [("conv", kernel, shape, macs), ("norm", "layer_norm", shape, 0)]

    def _filled(self, size: int) -> int:
        """Returns the length of an axis after `remainder='pad'`."""
        if self.remainder == "drop":
            return size
        steps = -(-max(size + 2 * self.padding - self.kernel_size, 0) // self.stride)
        return steps * self.stride + self.kernel_size - 2 * self.padding


class DoubleConvEmbed(nnx.Module):
    """norm(conv2(conv1(x))), both 3x3 with one zero on every side, the first to half the channels;
    no activation between.

    Source: Hassani et al. 2023, "Neighborhood Attention Transformer", the tokenizer.

    Args:
        dim: input channels.
        dim_out: output channels.
        stride: step of each convolution.
        conv_init: one of `CONV_INITS`.
        epsilon: of the norm.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        stride: int = 2,
        conv_init: str = "fan_in",
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not isinstance(stride, int) or stride < 1:
            raise ValueError(f"embed: stride is {stride!r}; allowed: an integer of 1 or more")
        self.widths, self.step, self.stride = (dim, dim_out // 2, dim_out), stride, stride**2
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        window = dict(stride=stride, padding=1, conv_init=conv_init)
        self.conv1 = convolution(dim, dim_out // 2, 3, **window, **stored)
        self.conv2 = convolution(dim_out // 2, dim_out, 3, **window, **stored)
        self.norm = LayerNorm(dim_out, epsilon=epsilon, **stored)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow d"]:
        """Maps [b, h, w, dim] to [b, *out_size(h, w), dim_out]."""
        return self.norm(self.conv2(self.conv1(x)))

    def out_size(self, h: int, w: int) -> tuple[int, int]:
        """Returns the size of the output map."""
        return -(-h // self.stride), -(-w // self.stride)

    def rows(self, h: int, w: int) -> list[Row]:
        """Returns the summary for one [h, w] map; the last line has the output shape."""
        rows = []
        for number, (dim, dim_out) in enumerate(
            zip(self.widths, self.widths[1:], strict=False), start=1
        ):
            h, w = -(-h // self.step), -(-w // self.step)
            rows.append(
                (
                    f"conv{number}",
                    f"conv 3x3/{self.step}",
                    (h, w, dim_out),
                    h * w * 9 * dim * dim_out,
                )
            )
        return [*rows, ("norm", "layer_norm", rows[-1][2], 0)]


class PatchMerging(nnx.Module):
    """Halves a map: the four tokens of each 2x2 cell side by side, a norm over them, a linear layer
    without bias.

    The four stand in the order of Swin's code: (even row, even column), (odd, even), (even, odd),
    (odd, odd). Odd maps get a row or column of zeros at the end. Source: Liu et al. 2021, "Swin
    Transformer".

    Args:
        dim: input channels.
        dim_out: output channels.
        epsilon: of the norm.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dim, self.dim_out, self.stride = dim, dim_out, 2
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm = LayerNorm(4 * dim, epsilon=epsilon, **stored)
        self.reduction = linear(4 * dim, dim_out, bias=False, **stored)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow d"]:
        """Maps [b, h, w, dim] to [b, ceil(h / 2), ceil(w / 2), dim_out]."""
        batch, h, w, dim = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        oh, ow = self.out_size(h, w)
        cells = x.reshape(batch, oh, 2, ow, 2, dim).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(cells.reshape(batch, oh, ow, 4 * dim)))

    def out_size(self, h: int, w: int) -> tuple[int, int]:
        """Returns the size of the output map."""
        return -(-h // 2), -(-w // 2)

    def rows(self, h: int, w: int) -> list[Row]:
        """Returns the summary for one [h, w] map; the last line has the output shape."""
        oh, ow = self.out_size(h, w)
        macs = oh * ow * 4 * self.dim * self.dim_out
        return [
            ("norm", "layer_norm", (oh, ow, 4 * self.dim), 0),
            ("reduction", "linear", (oh, ow, self.dim_out), macs),
        ]


EMBEDS: dict[str, type[nnx.Module]] = {
    "conv": ConvEmbed,
    "double_conv": DoubleConvEmbed,
    "patch_merging": PatchMerging,
}
"""Embeddings by name."""

_FROM_HOST = ("dim", "dim_out", "conv_init", "epsilon", "dtype", "param_dtype", "rngs")


def create_embed(
    spec: EmbedSpec, dim: int, dim_out: int, *, conv_init: str, **options: Any
) -> nnx.Module:
    """Builds an embedding from its name, or a mapping with `name` and its own options; `conv_init`
    reaches convolutions.
    """
    own = {"name": spec} if isinstance(spec, str) else dict(spec)
    factory = EMBEDS[own.pop("name")]
    if "conv_init" in signature(factory).parameters:
        options["conv_init"] = conv_init
    return factory(dim, dim_out, **own, **options)


def embed_problems(label: str, spec: Any) -> list[str]:
    """Returns what is wrong with the spec of an embedding, one text per problem."""
    own = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(own, Mapping) or own.get("name") not in EMBEDS:
        name = own.get("name") if isinstance(own, Mapping) else own
        return [
            f"{label} is {spec!r}; allowed: {', '.join(EMBEDS)}, or a mapping with such a name and "
            "options."
            f"{suggest(name, tuple(EMBEDS))}"
        ]
    declared = {
        k: v for k, v in signature(EMBEDS[own["name"]]).parameters.items() if k not in _FROM_HOST
    }
    unknown = [key for key in own if key != "name" and key not in declared]
    missing = [
        key
        for key, parameter in declared.items()
        if parameter.default is parameter.empty and key not in own
    ]
    known = f" Options: {', '.join(declared) or 'none'}"
    return [
        *(
            f"{label} '{own['name']}' has no option {key!r}.{suggest(key, tuple(declared))}{known}"
            for key in unknown
        ),
        *(f"{label} '{own['name']}' needs the option {key!r}.{known}" for key in missing),
    ]


def resize_positions(
    table: Float[Array, "n c"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Array, "h w c"]:
    """Returns position embeddings for a map of any size: as they are on their own grid, else
    resized bilinearly.

    Args:
        table: one row per position of `grid`, row by row.
        grid: height and width that the table was made for.
        size: height and width of the map.
    """
    cells = table.reshape(*grid, table.shape[-1])
    return cells if grid == size else resize_bilinear(cells[None], size)[0]
