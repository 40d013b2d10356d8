"""Stem and residual block of the ResNet family; in every block a 3x3 convolution may give way to an
attention layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.layers import ACTIVATIONS, ConvNormAct, DropPath, avg_pool, batch_norm, max_pool

from ..backbone import Row
from ..extent import block_macs, create_block, run_block

EXPANSION = {"bottleneck": 4, "basic": 1}
"""Output channels of a block as a multiple of its width."""

POOL_WINDOWS = {"avg3": 3, "avg2": 2}
"""Poolings after the attention layer of a strided block: side of the window."""

STEMS = {
    "resnet": (((7, 2, 8),), True),
    "resnet_rs": (((3, 2, 4), (3, 1, 4), (3, 1, 8), (3, 2, 8)), False),
    "tiered": (((3, 2, 3), (3, 1, 4), (3, 1, 8)), True),
    "cifar": (((3, 1, 8),), False),
    "strided": (((3, 2, 8),), False),
    "deep": (((3, 2, 8), (3, 1, 8), (3, 1, 16)), True),
    "deep_narrow": (((3, 2, 4), (3, 1, 4), (3, 1, 8)), True),
}
"""Stems: convolutions as (kernel size, stride, channels in eighths of the stem's width); max-pool
3x3/2 after them.
"""


def strided_size(size: int, stride: int) -> int:
    """Returns ceil(size / stride), the positions that a strided convolution or pooling leaves along
    one axis.
    """
    return -(-size // stride)


def strided_sizes(size: Iterable[int], stride: int) -> tuple[int, ...]:
    """Returns a size (h, w), or (t, h, w), after a stride on height and width."""
    *time, h, w = size
    return (*time, strided_size(h, stride), strided_size(w, stride))


def stem_stride(kind: str) -> int:
    """Returns the total stride of a stem."""
    convs, pool = STEMS[kind]
    stride = 2 if pool else 1
    for _, conv_stride, _ in convs:
        stride *= conv_stride
    return stride


class Stem(nnx.Module):
    """The layers before the first stage.

    'resnet' is a 7x7/2 convolution and a max-pool; 'resnet_rs' three 3x3 convolutions and a fourth,
    strided one in place of the pool (ResNet-D, ResNet-RS); 'tiered' three 3x3 convolutions of
    growing width and a max-pool (timm); 'deep' and 'deep_narrow' three 3x3 convolutions and a
    max-pool, of width, width and twice the width (64, 64, 128: the segmentation networks of CCNet,
    OCNet and DANet) or of half, half and the whole width (32, 32, 64: He et al. 2019, "Bag of
    Tricks for Image Classification", ResNet-C; mmsegmentation's ResNetV1c); 'cifar' one 3x3
    convolution without stride, 'strided' one with stride 2. Every convolution has batch norm and
    activation.

    Args:
        kind: a key of `STEMS`.
        in_channels: channels of the image.
        width: of the first stage's blocks; output channels, but for 'deep', which has twice as
            many.
        frames: (frames under the first kernel, its step over time) of a stem of clips, whose
            max-pool is the host's; None for images.
        activation: see `ConvNormAct`.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Attributes:
        dim_out: output channels.
    """

    def __init__(
        self,
        kind: str,
        in_channels: int,
        width: int,
        *,
        frames: tuple[int, int] | None = None,
        activation: str,
        norm_momentum: float,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        convs, pool = STEMS[kind]
        self.pool = pool and frames is None
        self.names = tuple(f"conv{i + 1}" for i in range(len(convs)))
        options = dict(
            activation=activation, norm_momentum=norm_momentum, dtype=dtype, param_dtype=param_dtype
        )
        channels = in_channels
        over_time = {} if frames is None else dict(frames=frames[0], frame_stride=frames[1])
        for name, (kernel_size, stride, eighths) in zip(self.names, convs, strict=True):
            channels_out = max(width * eighths // 8, 1)
            setattr(
                self,
                name,
                ConvNormAct(
                    channels,
                    channels_out,
                    kernel_size,
                    stride=stride,
                    **over_time,
                    **options,
                    rngs=rngs,
                ),
            )
            channels, over_time = channels_out, over_time and dict(frames=1)
        self.dim_out = channels

    def __call__(self, x: Float[Array, "b *t h w c"]) -> Float[Array, "b *ot oh ow d"]:
        """Maps [b, h, w, in_channels] to [b, ceil(h / s), ceil(w / s), dim_out] with s =
        `stem_stride(kind)`; of clips without the pooling.
        """
        for name in self.names:
            x = getattr(self, name)(x)
        return max_pool(x, 3, 2) if self.pool else x

    def rows(self, *size: int) -> list[Row]:
        """Returns the summary of one image (h, w) or clip (t, h, w); the last line has the stem's
        output shape.
        """
        rows = []
        for name in self.names:
            rows.append(_conv_row(name, getattr(self, name), size))
            *size, channels = rows[-1][2]
        if self.pool:
            rows.append(("max_pool", "max_pool 3x3/2", (*strided_sizes(size, 2), channels), 0))
        return rows


class ResidualBlock(nnx.Module):
    """y = post(activation(identity(shortcut(x)) + drop_path(standard(branch(pre(x)))))), the branch
    being one of

        bottleneck       1x1 -> 3x3/stride -> 1x1
          with attention 1x1 -> attention -> pool/stride -> norm, act -> 1x1
        basic            3x3/stride -> 3x3
          with attention 3x3/stride -> attention -> norm

    where each convolution has batch norm and, but for the last, activation. Attention in a strided
    bottleneck works at the resolution of the block's input. The shortcut is the identity where
    shapes allow it, else 1x1 convolution and batch norm. `pre`, `standard`, `identity` and `post`
    are the context blocks of that placement, one after the other; without any, nothing. They carry
    their own residuals and gates; drop path drops those of `pre` and `standard` with the branch.

    The same on clips [b, t, h, w, c], of which it strides and pools frames, not time: `frames` says
    how far the first two convolutions reach over time, and mixers and context blocks see a clip
    within their `extent`, see `models.extent`.

    Sources: He et al. 2016; the stride stands in the 3x3 convolution as in PyTorch and ResNet-D. Hu
    et al. 2018, "Squeeze-and-Excitation Networks", for the four placements; where the paper leaves
    it open, `identity` is after the projection. Bello 2021, "LambdaNetworks", for the place of the
    attention layer and of the pooling; the paper does not say whether norm and activation stay
    after it.

    Args:
        kind: 'bottleneck' | 'basic'.
        dim: input channels.
        width: channels inside the block; the output has EXPANSION[kind] times as many.
        stride: 1 or 2.
        dilations: positions between the taps of the 3x3 convolutions: of the first and of the
            second in a basic block; of the one in a bottleneck, the first entry. Mixers have none.
        attention: spec of the mixer that replaces the 3x3 (of a basic block: the second one), or
            None.
        size: map size (height, width) at the block's input, of clips (time, height, width), for
            mixers that are tied to it.
        frames: of a clip under the kernels of the first and of the second convolution; None for
            images.
        shortcut: 'conv' (stride in the 1x1 convolution) | 'avg' (2x2 average pooling before it).
        pool: a key of `POOL_WINDOWS`.
        post_norm_act: norm and activation after the mixer of a bottleneck.
        zero_init_last: start the scale of the branch's last norm at zero.
        context: (placement, attention spec) of every context block in here, in their order.
        drop_path_rate: probability of dropping the branch.
        activation: see `ConvNormAct`.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        kind: str,
        dim: int,
        width: int,
        *,
        stride: int,
        dilations: tuple[int, int] = (1, 1),
        attention: str | Mapping[str, Any] | None,
        size: tuple[int, ...],
        frames: tuple[int, int] | None = None,
        shortcut: str,
        pool: str,
        post_norm_act: bool,
        zero_init_last: bool,
        context: Iterable[tuple[str, Mapping[str, Any]]],
        drop_path_rate: float,
        activation: str,
        norm_momentum: float,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        bottleneck = kind == "bottleneck"
        self.dim_out, self.stride, self.activation = width * EXPANSION[kind], stride, activation
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = dict(norm_momentum=norm_momentum, **stored)
        # What each convolution has over time: the first, the second, and all others.
        first_frames, second_frames, alone = (
            {} if frames is None else dict(frames=count) for count in (*(frames or (0, 0)), 1)
        )

        # A basic block strides in its first convolution, so that its mixer sees the small map; a
        # bottleneck strides at the mixer.
        self.mixer_stride = stride if bottleneck else 1
        first = (
            dict(kernel_size=1)
            if bottleneck
            else dict(kernel_size=3, stride=stride, dilation=dilations[0])
        )
        self.conv1 = ConvNormAct(
            dim, width, activation=activation, **first, **first_frames, **options
        )
        self.mixer_activation = activation if bottleneck and post_norm_act else "none"
        self.pool_window = POOL_WINDOWS[pool]
        conv = mixer = norm = conv3 = self.extent = None
        if attention is None:
            last = (
                dict(activation=activation)
                if bottleneck
                else dict(activation="none", zero_init=zero_init_last)
            )
            dilation = dilations[0 if bottleneck else 1]
            conv = ConvNormAct(
                width,
                width,
                3,
                stride=self.mixer_stride,
                dilation=dilation,
                **last,
                **second_frames,
                **options,
            )
        else:
            mixer, self.extent = create_block(
                attention, width, size=mixer_size(kind, size, stride), **options
            )
            if post_norm_act or not bottleneck:
                zero_init = zero_init_last and not bottleneck
                norm = batch_norm(width, zero_init=zero_init, momentum=norm_momentum, **stored)
        if bottleneck:
            last = dict(activation="none", zero_init=zero_init_last)
            conv3 = ConvNormAct(width, self.dim_out, **last, **alone, **options)
        self.conv2, self.attention, self.norm_attention, self.conv3 = conv, mixer, norm, conv3

        inserted: dict[str, list[nnx.Module]] = {}
        extents: dict[str, tuple[str | None, ...]] = {}
        size_out = strided_sizes(size, stride)
        for placement, spec in context:
            channels, at = (dim, size) if placement == "pre" else (self.dim_out, size_out)
            block, extent = create_block(spec, channels, size=at, **options)
            inserted.setdefault(placement, []).append(block)
            extents[placement] = (*extents.get(placement, ()), extent)
        self.context = nnx.Dict({placement: nnx.List(made) for placement, made in inserted.items()})
        self.context_extents = tuple(extents.items())

        self.drop_path = DropPath(drop_path_rate)
        self.pool_shortcut = shortcut == "avg" and stride > 1
        projection = None
        if stride > 1 or dim != self.dim_out:
            conv_stride = 1 if self.pool_shortcut else stride
            projection = ConvNormAct(
                dim, self.dim_out, 1, stride=conv_stride, activation="none", **alone, **options
            )
        self.shortcut = projection

    def __call__(
        self,
        x: Float[Array, "b *t h w c"],
        *,
        embeddings: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b *t oh ow d"]:
        """Maps [b, h, w, dim] to [b, ceil(h / stride), ceil(w / stride), dim_out].

        Args:
            x: input map, or clips.
            embeddings: the stage's shared position embeddings, for a mixer built with
                `shared_embeddings`.
            rngs: `dropout` stream, read in the training view when something is dropped.
        """
        y = self.conv1(self._insert("pre", x, rngs))
        if self.attention is None:
            y = self.conv2(y)
        else:
            shared = {} if embeddings is None else {"embeddings": embeddings}
            y = run_block(self.extent, self.attention, y, **shared, rngs=rngs)
            if self.mixer_stride > 1:
                y = avg_pool(y, self.pool_window, self.mixer_stride)
            if self.norm_attention is not None:
                y = ACTIVATIONS[self.mixer_activation](self.norm_attention(y))
        if self.conv3 is not None:
            y = self.conv3(y)
        y = self.drop_path(self._insert("standard", y, rngs), rngs=rngs)
        if self.shortcut is not None:
            x = self.shortcut(avg_pool(x, 2, self.stride) if self.pool_shortcut else x)
        y = ACTIVATIONS[self.activation](self._insert("identity", x, rngs) + y)
        return self._insert("post", y, rngs)

    def _insert(self, placement: str, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Applies the context blocks of one placement."""
        for extent, block in self._placed(placement):
            x = run_block(extent, block, x, rngs=rngs)
        return x

    def _placed(self, placement: str) -> list[tuple[str | None, nnx.Module]]:
        """The context blocks of one placement, each with its extent."""
        extents = dict(self.context_extents).get(placement, ())
        return list(zip(extents, self.context.get(placement, ()), strict=True))

    def rows(self, *size: int) -> list[Row]:
        """Returns the summary for one input (h, w) or (t, h, w); the last has the output shape."""
        size_out = strided_sizes(size, self.stride)

        def inserted(placement: str, size: tuple[int, ...], channels: int) -> list[Row]:
            return [
                (
                    f"context/{placement}/{i}",
                    type(block).__name__,
                    (*size, channels),
                    block_macs(extent, block, size),
                )
                for i, (extent, block) in enumerate(self._placed(placement))
            ]

        rows = inserted("pre", size, self.conv1.dim)
        rows.append(_conv_row("conv1", self.conv1, size))
        *middle, width = rows[-1][2]
        if self.attention is None:
            rows.append(_conv_row("conv2", self.conv2, middle))
        else:
            macs = block_macs(self.extent, self.attention, tuple(middle))
            rows.append(("attention", type(self.attention).__name__, (*middle, width), macs))
        if self.norm_attention is not None:
            rows.append(("norm_attention", "BatchNorm", (*size_out, width), 0))
        if self.conv3 is not None:
            rows.append(_conv_row("conv3", self.conv3, size_out))
        rows += inserted("standard", size_out, self.dim_out)
        if self.shortcut is not None:
            pooled = size_out if self.pool_shortcut else size
            rows.append(_conv_row("shortcut", self.shortcut, pooled))
        return (
            rows
            + inserted("identity", size_out, self.dim_out)
            + inserted("post", size_out, self.dim_out)
        )


def mixer_size(kind: str, size: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """Returns the map size that the mixer of a block sees, given the size at the block's input."""
    return size if kind == "bottleneck" else strided_sizes(size, stride)


def _conv_row(name: str, conv: ConvNormAct, size: Sequence[int]) -> Row:
    sides = (conv.kernel_size, conv.kernel_size)
    text = "x".join(map(str, sides if conv.frames is None else (conv.frames, *sides)))
    kernel = f"conv {text}" + (f"/{conv.stride}" if conv.stride > 1 else "")
    if conv.dilation > 1:
        kernel += f" dilation {conv.dilation}"
    return name, kernel, (*conv.size_out(*size), conv.dim_out), conv.macs(*size)
