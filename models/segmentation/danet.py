"""DANet's head: attention over positions and over channels side by side, three outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx

from lambdanet.attention import danet
from lambdanet.attention.danet import ENERGIES, ChannelAttention, PositionAttention
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

BRANCHES = ("position", "channel")


@registry.register("danet")
class DANetHead(SegmentationHead):
    """p = mix_p(PAM(reduce_p(x)));  c = mix_c(CAM(reduce_c(x)));  logits = classify(p + c).

    `reduce` and `mix` are 3x3 convolutions without bias, batch norm and activation. Each branch has
    a classifier of its own, whose logits training adds a loss of each to; at evaluation only the
    fused ones are computed.

    Source: Fu et al. 2019, "Dual Attention Network for Scene Segmentation", and its code; the
    released losses have weight 1 each. mmsegmentation's DAHead is the same with pam_channels =
    channels // reduction, and an auxiliary `fcn` head besides.

    Args:
        feature_info: channels and stride of the backbone's maps.
        num_classes: classes of the logits.
        stage: which map it reads, from 1; None is the last.
        channels: of the branches; None means a quarter of the map's.
        reduction: queries and keys of the position attention have channels // reduction channels.
        energy: of the channel attention: 'max_minus' (the code) or 'plain' (the paper).
        query_chunk: queries of the position attention handled at a time; None handles all at once,
            'auto' as many as are fast for the shape.
        activation: after each norm, a name of `lambdanet.layers.ACTIVATIONS`.
        dropout: rate at which whole channels are dropped in front of the classifiers.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: a stage that the backbone does not have, or what the attentions refuse.
    """

    classifier: ClassVar[tuple[str, ...]] = (
        "classify",
        *(f"classify_{branch}" for branch in BRANCHES),
    )

    def __init__(
        self,
        feature_info: FeatureInfo,
        num_classes: int,
        *,
        stage: int | None = None,
        channels: int | None = None,
        reduction: int = 8,
        energy: Literal[ENERGIES] = "max_minus",
        query_chunk: int | str | None = "auto",
        activation: Activation = "relu",
        dropout: float = 0.1,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels = self._choose_map(feature_info, stage, channels, dtype)
        options = norm_options(activation, norm_momentum, dtype, param_dtype, rngs)
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        attentions = (
            PositionAttention(channels, reduction=reduction, query_chunk=query_chunk, **stored),
            ChannelAttention(channels, energy=energy, **stored),
        )
        for branch, attention in zip(BRANCHES, attentions, strict=True):
            setattr(self, f"reduce_{branch}", ConvNormAct(self.dim, channels, 3, **options))
            setattr(self, f"attention_{branch}", attention)
            setattr(self, f"mix_{branch}", ConvNormAct(channels, channels, 3, **options))
        last = dict(dropout=dropout, param_dtype=param_dtype, rngs=rngs)
        for name in self.classifier:
            setattr(self, name, PixelClassifier(channels, num_classes, **last))

    def __call__(
        self, maps: Maps, *, rngs: nnx.Rngs | None = None, return_auxiliary: bool = False
    ) -> Any:
        """Maps the backbone's maps to the fused logits [b, h, w, num_classes]; with
        `return_auxiliary` also to those of the branches, {'position', 'channel'}.
        """
        x = self._chosen_map("danet", maps)
        parts = {}
        for branch in BRANCHES:
            reduce, attention, mix = (
                getattr(self, f"{layer}_{branch}") for layer in ("reduce", "attention", "mix")
            )
            parts[branch] = mix(attention(reduce(x)))
        logits = self.classify(sum(parts.values()), rngs=rngs)
        if not return_auxiliary:
            return logits
        extra = {
            branch: getattr(self, f"classify_{branch}")(part, rngs=rngs)
            for branch, part in parts.items()
        }
        return logits, extra

    def rows(self, sizes: Sizes) -> list[Row]:
        """Returns the summary for maps of these sizes; the branches' classifiers are counted with
        no multiply-adds, as evaluation leaves them out.
        """
        h, w = size = sizes[self.index]
        rows = []
        for branch in BRANCHES:
            attention = getattr(self, f"attention_{branch}")
            shape, name = (h, w, attention.dim), f"attention_{branch}"
            rows.append(layer_row(f"reduce_{branch}", getattr(self, f"reduce_{branch}"), size))
            rows.append((name, type(attention).__name__, shape, attention.macs(h, w)))
            rows.append(layer_row(f"mix_{branch}", getattr(self, f"mix_{branch}"), size))
            last = getattr(self, f"classify_{branch}").row(f"classify_{branch}", size)
            rows.append((*last[:-1], 0))
        return [*rows, self.classify.row("classify", size)]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Names of DANet's DANetHead and of mmsegmentation's DAHead."""
        short = {"position": ("pam", "5a", "sa", "51", 6), "channel": ("cam", "5c", "sc", "52", 7)}
        openmm = [*prefixed(POINTWISE, r"conv_seg\.", "classify")]
        official = [*prefixed(POINTWISE, r"conv8\.1\.", "classify")]
        for branch, (openmm_name, first, attention, second, last) in short.items():
            openmm += conv_module(rf"{openmm_name}_in_conv", f"reduce_{branch}")
            openmm += prefixed(danet.TORCH_NAMES, rf"{openmm_name}\.", f"attention_{branch}")
            openmm += conv_module(rf"{openmm_name}_out_conv", f"mix_{branch}")
            openmm += prefixed(POINTWISE, rf"{openmm_name}_conv_seg\.", f"classify_{branch}")
            official += sequential(rf"conv{first}\.", f"reduce_{branch}")
            official += prefixed(danet.TORCH_NAMES, rf"{attention}\.", f"attention_{branch}")
            official += sequential(rf"conv{second}\.", f"mix_{branch}")
            official += prefixed(POINTWISE, rf"conv{last}\.1\.", f"classify_{branch}")
        return {"mmsegmentation": tuple(openmm), "danet": tuple(official)}
