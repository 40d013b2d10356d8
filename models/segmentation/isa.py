"""ISANet's head: interlaced sparse self-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lambdanet.attention.interlaced import InterlacedSparseAttention
from lambdanet.interop.names import BATCH_NORM, POINTWISE, Rule, prefixed
from lambdanet.layers import ConvNormAct, PointwiseNormAct

from ..backbone import Row
from .parts import (
    Activation,
    FeatureInfo,
    Maps,
    PixelClassifier,
    SegmentationHead,
    Sizes,
    conv_module,
    layer_row,
    norm_options,
)
from .registration import registry


@registry.register("isa")
class ISAHead(SegmentationHead):
    """logits = classify(attention(reduce(x))).

    `reduce` is a 3x3 convolution without bias, batch norm and activation; the attention is
    `InterlacedSparseAttention`, which ends with the concatenation of its input and its context, a
    1x1, batch norm and ReLU.

    Source: Huang et al. 2019, "Interlaced Sparse Self-Attention for Semantic Segmentation", in
    openseg.pytorch (block_dropout=0.05, dropout=0) and mmsegmentation (value_bias=True and the
    defaults). mmsegmentation concatenates in the other order, which its name table takes into
    account.

    Args:
        feature_info: channels and stride of the backbone's maps.
        num_classes: classes of the logits.
        stage: which map it reads, from 1; None is the last.
        channels: that the attention works on; None means a quarter of the map's.
        group_size: cell size (height, width).
        key_dim: channels of queries and keys; None means channels // 2.
        value_bias: a bias in the projections to values.
        mask_padding: whether padded positions are left out of softmaxes and batch statistics.
        block_dropout: rate at which whole channels of the attention's output are dropped.
        activation: of `reduce`, a name of `lambdanet.layers.ACTIVATIONS`.
        dropout: rate at which whole channels are dropped in front of the classifier.
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
        stage: int | None = None,
        channels: int | None = None,
        group_size: tuple[int, int] = (8, 8),
        key_dim: int | None = None,
        value_bias: bool = False,
        mask_padding: bool = False,
        block_dropout: float = 0.0,
        activation: Activation = "relu",
        dropout: float = 0.1,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels = self._choose_map(feature_info, stage, channels, dtype)
        options = norm_options(activation, norm_momentum, dtype, param_dtype, rngs)
        self.reduce = ConvNormAct(self.dim, channels, 3, **options)
        self.attention = InterlacedSparseAttention(
            channels,
            group_size=group_size,
            key_dim=key_dim,
            value_bias=value_bias,
            mask_padding=mask_padding,
            dropout=block_dropout,
            norm_momentum=norm_momentum,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.classify = PixelClassifier(
            channels, num_classes, dropout=dropout, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(
        self, maps: Maps, *, rngs: nnx.Rngs | None = None, return_auxiliary: bool = False
    ) -> Any:
        """Maps the backbone's maps to logits [b, h, w, num_classes], see `SegmentationHead`."""
        x = self._chosen_map("isa", maps)
        logits = self.classify(self.attention(self.reduce(x), rngs=rngs), rngs=rngs)
        return (logits, {}) if return_auxiliary else logits

    def rows(self, sizes: Sizes) -> list[Row]:
        """Returns the summary for maps of these sizes."""
        h, w = size = sizes[self.index]
        shape, name = (h, w, self.classify.in_features), type(self.attention).__name__
        return [
            layer_row("reduce", self.reduce, size),
            ("attention", name, shape, self.attention.macs(h, w)),
            self.classify.row("classify", size),
        ]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Names of mmsegmentation's ISAHead."""
        unit = (
            *conv_module(r"query_project\.(\d)", r"query/\1", PointwiseNormAct),
            *conv_module(r"key_project\.(\d)", r"key/\1", PointwiseNormAct),
            *prefixed(POINTWISE, r"value_project\.", "value"),
            *conv_module(r"output_project", "out", PointwiseNormAct),
        )
        openmm = (
            *conv_module(r"in_conv", "reduce"),
            *prefixed(unit, r"global_relation\.", "attention/blocks/0/long_range"),
            *prefixed(unit, r"local_relation\.", "attention/blocks/0/short_range"),
            Rule(r"out_conv\.conv\.weight", "attention/fuse/linear/kernel", _input_first),
            *prefixed(BATCH_NORM, r"out_conv\.bn\.", "attention/fuse/norm"),
            *prefixed(POINTWISE, r"conv_seg\.", "classify"),
        )
        return {"mmsegmentation": openmm}


def _input_first(array: np.ndarray) -> np.ndarray:
    """[out, context | input, 1, 1] -> [input | context, out]."""
    kernel = array.reshape(array.shape[:2]).T
    return np.roll(kernel, kernel.shape[0] // 2, axis=0)
