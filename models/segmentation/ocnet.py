"""OCNet's head: object context over the map, over a pyramid of cells, or beside dilated
convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from lambdanet.attention import create_attention, ocnet
from lambdanet.interop.names import POINTWISE, Rule, abn_scale, prefixed
from lambdanet.layers import ConvNormAct

from ..backbone import Row
from .parts import (
    Activation,
    FeatureInfo,
    Maps,
    PixelClassifier,
    SegmentationHead,
    Sizes,
    layer_row,
    norm_options,
    sequential,
)
from .registration import registry

VARIANTS = {
    "base": ("object_context", 0.05, (1,)),
    "pyramid": ("pyramid_object_context", 0.05, (1, 2, 3, 6)),
    "asp": ("asp_object_context", 0.1, (12, 24, 36)),
}
"""Variant -> (block, channel dropout on its output, its sizes or dilations)."""


@registry.register("ocnet")
class OCNetHead(SegmentationHead):
    """logits = classify(context(reduce(x))).

    `reduce` is a 3x3 convolution with bias, batch norm and activation; `context` one of the blocks
    of `lambdanet.attention.ocnet`, which end with a 1x1, batch norm, activation and the dropout. At
    first the attention's output projection is zero, so that queries, keys and values get no
    gradient in the first step.

    Source: Yuan and Wang 2018, "OCNet: Object Context Network for Scene Parsing", and its code,
    whose norms are InPlace-ABN: activation 'leaky_relu_0.01', and |weight| + 1e-5 in place of the
    norm's weight, which the name table 'ocnet' brings in. openseg.pytorch has
    activation='relu', share_qk=False, num_qk_convs=2.

    Args:
        feature_info: channels and stride of the backbone's maps.
        num_classes: classes of the logits.
        variant: 'base' (attention over the map) | 'pyramid' (inside the cells of grids) | 'asp'
            (beside dilated convolutions).
        stage: which map it reads, from 1; None is the last.
        channels: of the reduced map; None means a quarter of the map's.
        dim_out: channels in front of the classifier; None means `channels`.
        key_dim: channels of queries and keys; None as the block has it.
        value_dim: channels of values; None as the block has it.
        sizes: poolings (base), cells per axis (pyramid) or dilations (asp); None means the paper's:
            (1,), (1, 2, 3, 6) or (12, 24, 36).
        share_qk: queries are the keys.
        num_qk_convs: layers of the projections of queries and keys.
        activation: after each norm, a name of `lambdanet.layers.ACTIVATIONS`.
        block_dropout: rate at which whole channels of the block's output are dropped; None means
            the paper's, 0.05 (base, pyramid) or 0.1.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: a stage that the backbone does not have, or what the block refuses.
    """

    def __init__(
        self,
        feature_info: FeatureInfo,
        num_classes: int,
        *,
        variant: Literal[tuple(VARIANTS)] = "base",
        stage: int | None = None,
        channels: int | None = None,
        dim_out: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        sizes: tuple[int, ...] | None = None,
        share_qk: bool = True,
        num_qk_convs: int = 1,
        activation: Activation = "leaky_relu_0.01",
        block_dropout: float | None = None,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels = self._choose_map(feature_info, stage, channels, dtype)
        dim_out = channels if dim_out is None else dim_out
        self.share_qk = share_qk
        options = norm_options(activation, norm_momentum, dtype, param_dtype, rngs)
        self.reduce = ConvNormAct(self.dim, channels, 3, bias=True, **options)
        name, dropout, published = VARIANTS[variant]
        spec = {
            "name": name,
            "dilations" if variant == "asp" else "sizes": published if sizes is None else sizes,
            "key_dim": key_dim,
            "value_dim": value_dim,
            "dim_out": dim_out,
            "share_qk": share_qk,
            "num_qk_convs": num_qk_convs,
            "activation": activation,
            "dropout": dropout if block_dropout is None else block_dropout,
        }
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.context = create_attention(spec, channels, norm_momentum=norm_momentum, **stored)
        self.classify = PixelClassifier(
            dim_out, num_classes, dropout=0.0, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(
        self, maps: Maps, *, rngs: nnx.Rngs | None = None, return_auxiliary: bool = False
    ) -> Any:
        """Maps the backbone's maps to logits [b, h, w, num_classes], see `SegmentationHead`."""
        x = self._chosen_map("ocnet", maps)
        logits = self.classify(self.context(self.reduce(x), rngs=rngs), rngs=rngs)
        return (logits, {}) if return_auxiliary else logits

    def rows(self, sizes: Sizes) -> list[Row]:
        """Returns the summary for maps of these sizes."""
        h, w = size = sizes[self.index]
        shape, name = (h, w, self.classify.in_features), type(self.context).__name__
        return [
            layer_row("reduce", self.reduce, size),
            ("context", name, shape, self.context.macs(h, w)),
            self.classify.row("classify", size),
        ]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Names of the OCNet code, where reduction and block are one Sequential, `context`."""
        own = ocnet.TORCH_NAMES if self.share_qk else ocnet.TORCH_NAMES_SEPARATE
        block = tuple(
            Rule(rule.pattern, rule.target, abn_scale)
            if isinstance(rule.target, str) and rule.target.endswith("norm/scale")
            else rule
            for rule in own
        )
        return {
            "ocnet": (
                *sequential(r"context\.", "reduce", inplace=True),
                *prefixed(block, r"context\.2\.", "context"),
                *prefixed(POINTWISE, r"cls\.", "classify"),
            )
        }
