"""The plain head: convolutions on one map of the backbone, and a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from lambdanet.interop.names import POINTWISE, Rule, prefixed
from lambdanet.layers import ConvNormAct

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
    sequential,
)
from .registration import registry


@registry.register("fcn")
class FCNHead(SegmentationHead):
    """logits = classify(convs(x)), or classify(fuse([x, convs(x)])) with `concat_input`.

    Every convolution has batch norm and activation. Also the auxiliary head of most networks: on
    the map before the last, 256 channels.

    Sources: Long et al. 2015, "Fully Convolutional Networks for Semantic Segmentation"; torchvision
    (one convolution to a quarter of the channels: the defaults); mmsegmentation (channels=512,
    num_convs=2, concat_input=True; its auxiliary head is channels=256). The auxiliary heads of the
    CCNet and OCNet code have channels=512, bias=True, activation='leaky_relu_0.01'. torchvision
    drops single values in front of the classifier, here as elsewhere whole channels are dropped.

    Args:
        feature_info: channels and stride of the backbone's maps.
        num_classes: classes of the logits.
        stage: which map it reads, from 1; None is the last.
        channels: of the convolutions; None means a quarter of the map's.
        num_convs: number of convolutions.
        kernel_size: odd side of their kernels.
        concat_input: a further convolution on the concatenation of the map and the result.
        bias: biases in the convolutions.
        activation: after each norm, a name of `lambdanet.layers.ACTIVATIONS`.
        dropout: rate at which whole channels are dropped in front of the classifier.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: a stage that the backbone does not have, or an even kernel.
    """

    def __init__(
        self,
        feature_info: FeatureInfo,
        num_classes: int,
        *,
        stage: int | None = None,
        channels: int | None = None,
        num_convs: int = 1,
        kernel_size: int = 3,
        concat_input: bool = False,
        bias: bool = False,
        activation: Activation = "relu",
        dropout: float = 0.1,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels = self._choose_map(feature_info, stage, channels, dtype)
        options = norm_options(activation, norm_momentum, dtype, param_dtype, rngs)
        self.convs = nnx.List(
            ConvNormAct(width, channels, kernel_size, bias=bias, **options)
            for width in (self.dim, *[channels] * (num_convs - 1))
        )
        self.fuse = (
            ConvNormAct(self.dim + channels, channels, kernel_size, bias=bias, **options)
            if concat_input
            else None
        )
        self.classify = PixelClassifier(
            channels, num_classes, dropout=dropout, param_dtype=param_dtype, rngs=rngs
        )

    @staticmethod
    def option_problems(options: Mapping[str, Any]) -> list[str]:
        """Refuses even kernels."""
        side = options.get("kernel_size", 3)
        return [] if side % 2 else [f"kernel_size is {side}; allowed: odd sides"]

    def __call__(
        self, maps: Maps, *, rngs: nnx.Rngs | None = None, return_auxiliary: bool = False
    ) -> Any:
        """Maps the backbone's maps to logits [b, h, w, num_classes], see `SegmentationHead`."""
        x = y = self._chosen_map("fcn", maps)
        for conv in self.convs:
            y = conv(y)
        if self.fuse is not None:
            y = self.fuse(jnp.concatenate([x, y], axis=-1))
        logits = self.classify(y, rngs=rngs)
        return (logits, {}) if return_auxiliary else logits

    def rows(self, sizes: Sizes) -> list[Row]:
        """Returns the summary for maps of these sizes."""
        size = sizes[self.index]
        rows = [layer_row(f"convs/{n}", conv, size) for n, conv in enumerate(self.convs)]
        if self.fuse is not None:
            rows.append(layer_row("fuse", self.fuse, size))
        return [*rows, self.classify.row("classify", size)]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Names of mmsegmentation's and Hugging Face's FCNHead, of torchvision's, and of the
        auxiliary heads of CCNet, OCNet and DANet.
        """
        openmm = (
            *conv_module(r"convs\.(\d+)", r"convs/\1"),
            *conv_module(r"conv_cat", "fuse"),
            *prefixed(POINTWISE, r"(?:conv_seg|classifier)\.", "classify"),
        )
        return {
            "mmsegmentation": openmm,
            "transformers": openmm,
            "torchvision": _one_conv(4),
            "ccnet": _one_conv(3, inplace=True),
            "ocnet": _one_conv(3, inplace=True),
            "danet": prefixed(_one_conv(4), r"conv5\.", ""),
        }


def _one_conv(classifier: int, *, inplace: bool = False) -> tuple[Rule, ...]:
    """A Sequential of a convolution, a norm, dropout, and the classifier at that position."""
    return (
        *sequential("", "convs/0", inplace=inplace),
        *prefixed(POINTWISE, rf"{classifier}\.", "classify"),
    )
