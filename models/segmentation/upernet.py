"""UPerNet's head: pyramid pooling on the last map and a feature pyramid over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lambdanet.interop.names import POINTWISE, Rule, prefixed
from lambdanet.layers import (
    ConvNormAct,
    PointwiseNormAct,
    adaptive_avg_pool,
    resize_bilinear,
    resize_macs,
)

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


@registry.register("upernet")
class UPerNetHead(SegmentationHead):
    """logits = classify(fuse([P_1, up(P_2), ..., up(P_n)])), at the size of the first map.

        M_n = bottleneck([C_n, up(pool_s(C_n)) for every size s])
        M_i = lateral_i(C_i) + up(M_(i+1));   P_i = smooth_i(M_i),  P_n = M_n

    `pool_s` averages the map over s x s bins and has a 1x1; `lateral` is a 1x1, `bottleneck`,
    `smooth` and `fuse` are 3x3; all without bias, with batch norm and activation. `up` is bilinear.

    Source: Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding", as in
    mmsegmentation's UPerHead (and Hugging Face's UperNetHead), which the Swin line uses.

    Args:
        feature_info: channels and stride of the backbone's maps.
        num_classes: classes of the logits.
        channels: of all inner maps.
        pool_sizes: bins per axis of the pooled maps.
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
        channels: int = 512,
        pool_sizes: tuple[int, ...] = (1, 2, 3, 6),
        align_corners: bool = False,
        activation: Activation = "relu",
        dropout: float = 0.1,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dims = tuple(info["channels"] for info in feature_info)
        self.out_stride = feature_info[0]["stride"]
        self.pool_sizes, self.align_corners, self.dtype = pool_sizes, align_corners, dtype
        options = norm_options(activation, norm_momentum, dtype, param_dtype, rngs)
        last = self.dims[-1]
        self.pools = nnx.List(PointwiseNormAct(last, channels, **options) for _ in pool_sizes)
        wide = last + len(pool_sizes) * channels
        self.bottleneck = ConvNormAct(wide, channels, 3, **options)
        self.laterals = nnx.List(
            PointwiseNormAct(dim, channels, **options) for dim in self.dims[:-1]
        )
        self.smooth = nnx.List(ConvNormAct(channels, channels, 3, **options) for _ in self.laterals)
        self.fuse = ConvNormAct(len(self.dims) * channels, channels, 3, **options)
        self.classify = PixelClassifier(
            channels, num_classes, dropout=dropout, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(
        self, maps: Maps, *, rngs: nnx.Rngs | None = None, return_auxiliary: bool = False
    ) -> Any:
        """Maps the backbone's maps to logits [b, h, w, num_classes] of the first one's size, see
        `SegmentationHead`.
        """
        check_maps("upernet head", maps, dict(enumerate(self.dims)))
        maps = [x.astype(self.dtype or x.dtype) for x in maps]
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=False)]
        merged.append(self._pooled(maps[-1]))
        for finer in range(len(merged) - 2, -1, -1):
            merged[finer] = merged[finer] + self._to_size_of(merged[finer + 1], merged[finer])
        levels = [conv(x) for conv, x in zip(self.smooth, merged, strict=False)]
        levels.append(merged[-1])
        resized = [self._to_size_of(level, levels[0]) for level in levels]
        logits = self.classify(self.fuse(jnp.concatenate(resized, axis=-1)), rngs=rngs)
        return (logits, {}) if return_auxiliary else logits

    def _pooled(self, x: jax.Array) -> jax.Array:
        parts = [x]
        for size, layer in zip(self.pool_sizes, self.pools, strict=True):
            parts.append(self._to_size_of(layer(adaptive_avg_pool(x, (size, size))), x))
        return self.bottleneck(jnp.concatenate(parts, axis=-1))

    def _to_size_of(self, x: jax.Array, other: jax.Array) -> jax.Array:
        return resize_bilinear(x, other.shape[1:3], align_corners=self.align_corners)

    def rows(self, sizes: Sizes) -> list[Row]:
        """Returns the summary for maps of these sizes; resizing is counted with the layer before
        it.
        """
        width, last, first = self.fuse.dim_out, sizes[-1], sizes[0]
        rows = []
        for number, (side, layer) in enumerate(zip(self.pool_sizes, self.pools, strict=True)):
            name, kind, shape, macs = layer_row(f"pools/{number}", layer, (side, side))
            rows.append((name, kind, shape, macs + resize_macs((side, side), last, width)))
        name, kind, shape, macs = layer_row("bottleneck", self.bottleneck, last)
        # what is resized: the merged map to the finer one, the level to the first one
        below = sizes[-2] if len(sizes) > 1 else last
        macs += resize_macs(last, below, width) + resize_macs(last, first, width)
        rows.append((name, kind, shape, macs))
        for number, (lateral, smooth) in enumerate(zip(self.laterals, self.smooth, strict=True)):
            size = sizes[number]
            name, kind, shape, macs = layer_row(f"laterals/{number}", lateral, size)
            macs += resize_macs(size, sizes[number - 1], width) if number else 0
            rows.append((name, kind, shape, macs))
            name, kind, shape, macs = layer_row(f"smooth/{number}", smooth, size)
            rows.append((name, kind, shape, macs + resize_macs(size, first, width)))
        rows.append(layer_row("fuse", self.fuse, first))
        return [*rows, self.classify.row("classify", first)]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Names of mmsegmentation's UPerHead and of Hugging Face's UperNetHead."""
        table = (
            *conv_module(r"psp_modules\.(\d+)\.1", r"pools/\1", PointwiseNormAct),
            *conv_module(r"bottleneck", "bottleneck"),
            *conv_module(r"lateral_convs\.(\d+)", r"laterals/\1", PointwiseNormAct),
            *conv_module(r"fpn_convs\.(\d+)", r"smooth/\1"),
            *conv_module(r"fpn_bottleneck", "fuse"),
            *prefixed(POINTWISE, r"(?:conv_seg|classifier)\.", "classify"),
        )
        return {"mmsegmentation": table, "huggingface": table}
