"""Semantic FPN: the levels of a feature pyramid, brought to the size of the first one and added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lambdanet.interop.names import POINTWISE, Rule, prefixed
from lambdanet.layers import ConvNormAct, FeaturePyramid, fpn, resize_bilinear, resize_macs

from ..backbone import Row
from .parts import (
    Activation,
    FeatureInfo,
    Maps,
    PixelClassifier,
    SegmentationHead,
    Sizes,
    check_maps,
    conv_module,
    layer_row,
    norm_options,
)
from .registration import registry


@registry.register("semantic_fpn")
class SemanticFPNHead(SegmentationHead):
    """logits = classify(sum_i scale_i(P_i)), at the size of the first map; P from a
    `FeaturePyramid`.

    `scale_i` is, for a level whose stride is 2^n times that of the first, n times a 3x3 convolution
    (without bias, with batch norm and activation) and bilinear resizing to twice the size; for the
    first level the convolution alone. What is then not of the first level's size is resized to it,
    so that odd sizes work.

    Source: Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", as in mmsegmentation's FPN
    and FPNHead, which the PVT line uses; the paper has group norms, those have batch norms.

    Args:
        feature_info: channels and stride of the backbone's maps.
        num_classes: classes of the logits.
        neck_channels: of the pyramid's levels; None for no pyramid: the backbone's maps themselves.
        channels: of the scaled levels.
        align_corners: how maps are resized, see `resize_bilinear`.
        activation: after each norm, a name of `lambdanet.layers.ACTIVATIONS`.
        dropout: rate at which whole channels are dropped in front of the classifier.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        feature_info: FeatureInfo,
        num_classes: int,
        *,
        neck_channels: int | None = 256,
        channels: int = 128,
        align_corners: bool = False,
        activation: Activation = "relu",
        dropout: float = 0.1,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dims = tuple(info["channels"] for info in feature_info)
        strides = [info["stride"] for info in feature_info]
        self.out_stride, self.align_corners, self.dtype = strides[0], align_corners, dtype
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = norm_options(activation, norm_momentum, dtype, param_dtype, rngs)
        self.neck = (
            None if neck_channels is None else FeaturePyramid(self.dims, neck_channels, **stored)
        )
        widths = self.dims if neck_channels is None else [neck_channels] * len(self.dims)
        counts = [max(1, round(math.log2(stride / strides[0]))) for stride in strides]
        self.doubled = tuple(stride != strides[0] for stride in strides)
        self.scales = nnx.List(
            nnx.List(
                ConvNormAct(dim, channels, 3, **options)
                for dim in (width, *[channels] * (count - 1))
            )
            for width, count in zip(widths, counts, strict=True)
        )
        self.classify = PixelClassifier(
            channels, num_classes, dropout=dropout, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(
        self, maps: Maps, *, rngs: nnx.Rngs | None = None, return_auxiliary: bool = False
    ) -> Any:
        """Maps the backbone's maps to logits [b, h, w, num_classes] of the first one's size, see
        `SegmentationHead`.
        """
        check_maps("semantic_fpn head", maps, dict(enumerate(self.dims)))
        maps = [x.astype(self.dtype or x.dtype) for x in maps]
        total = None
        for level, convs, doubled in zip(self.levels(maps), self.scales, self.doubled, strict=True):
            for conv in convs:
                level = conv(level)
                if doubled:
                    level = self._resize(level, tuple(2 * side for side in level.shape[1:3]))
            total = level if total is None else total + self._resize(level, total.shape[1:3])
        logits = self.classify(total, rngs=rngs)
        return (logits, {}) if return_auxiliary else logits

    def levels(self, maps: Maps) -> list[jax.Array]:
        """Returns the levels of the pyramid, without one the maps."""
        return list(maps) if self.neck is None else self.neck(maps)

    def _resize(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        return resize_bilinear(x, size, align_corners=self.align_corners)

    def rows(self, sizes: Sizes) -> list[Row]:
        """Returns the summary for maps of these sizes; resizing is counted with the layer before
        it.
        """
        rows = [] if self.neck is None else [(f"neck/{n}", *r) for n, *r in self.neck.rows(sizes)]
        for number, (size, convs) in enumerate(zip(sizes, self.scales, strict=True)):
            for index, conv in enumerate(convs):
                row = layer_row(f"scales/{number}/{index}", conv, size)
                macs = row[-1]
                if self.doubled[number]:
                    size, before = tuple(2 * side for side in size), size
                    macs += resize_macs(before, size, conv.dim_out)
                if index == len(convs) - 1:
                    macs += resize_macs(size, sizes[0], conv.dim_out)
                rows.append((*row[:-1], macs))
        return [*rows, self.classify.row("classify", sizes[0])]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Names of mmsegmentation's FPNHead, where a Sequential alternates convolutions and
        resizing, and of its FPN with the prefix of the whole network, `neck.`.
        """
        depth = max(len(convs) for convs in self.scales)
        scales = [
            rule
            for index in range(depth)
            for rule in conv_module(rf"scale_heads\.(\d+)\.{2 * index}", rf"scales/\1/{index}")
        ]
        return {
            "mmsegmentation": (
                *prefixed(fpn.torch_names(len(self.dims)), r"neck\.", "neck"),
                *scales,
                *prefixed(POINTWISE, r"conv_seg\.", "classify"),
            )
        }
