"""Any registered attention block as a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lambdanet.attention import create_attention, criss_cross, kind, list_attention, nonlocal_block
from lambdanet.attention import registry as attention_registry
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
)
from .registration import registry


@registry.register("context")
class ContextHead(SegmentationHead):
    """h = reduce(x);  h = block(h);  h = mix(h);  logits = classify(bottleneck([x, h])).

    `reduce`, `mix` and `bottleneck` are 3x3 convolutions without bias, batch norm and activation.
    The block is any registered context block or mixer (`lambdanet.attention.list_attention()`);
    blocks of the first kind have their residuals and gates inside, those of the second have the
    concatenation beside them. A context block may have another number of channels at its end.

    Source: the form is that of CCNet's RCCAModule (Huang et al. 2019) with any block in the place
    of its attention. 'nonlocal' is mmsegmentation's NLHead: Wang et al. 2018's block with a batch
    norm that starts at zero, N(0, 0.01) projections, and `mix`.

    Args:
        feature_info: channels and stride of the backbone's maps.
        num_classes: classes of the logits.
        block: a registered name of an attention block, or a mapping with `name` and its options.
        stage: which map it reads, from 1; None is the last.
        channels: that the block works on; None means a quarter of the map's.
        dim_out: channels in front of the classifier; None means `channels`.
        mix: whether there is the 3x3 after the block.
        activation: after each norm, a name of `lambdanet.layers.ACTIVATIONS`.
        dropout: rate at which whole channels are dropped in front of the classifier.
        norm_momentum: decay of the running statistics, the block's included.
        map_sizes: of the backbone's maps at `image_size`, for blocks that are tied to one.
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
        block: str | Mapping[str, Any],
        stage: int | None = None,
        channels: int | None = None,
        dim_out: int | None = None,
        mix: bool = False,
        activation: Activation = "relu",
        dropout: float = 0.1,
        norm_momentum: float = 0.9,
        map_sizes: tuple[tuple[int, int], ...] | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels = self._choose_map(feature_info, stage, channels, dtype)
        dim_out = channels if dim_out is None else dim_out
        options = norm_options(activation, norm_momentum, dtype, param_dtype, rngs)
        self.reduce = ConvNormAct(self.dim, channels, 3, **options)
        self.attention = create_attention(
            block,
            channels,
            size=None if map_sizes is None else map_sizes[self.index],
            dtype=dtype,
            param_dtype=param_dtype,
            norm_momentum=norm_momentum,
            rngs=rngs,
        )
        self.mix = ConvNormAct(channels, channels, 3, **options) if mix else None
        self.bottleneck = ConvNormAct(self.dim + channels, dim_out, 3, **options)
        self.classify = PixelClassifier(
            dim_out, num_classes, dropout=dropout, param_dtype=param_dtype, rngs=rngs
        )

    @staticmethod
    def option_problems(options: Mapping[str, Any]) -> list[str]:
        """Returns what is wrong with the spec of the block."""
        return block_problems(options["block"]) if "block" in options else []

    def __call__(
        self, maps: Maps, *, rngs: nnx.Rngs | None = None, return_auxiliary: bool = False
    ) -> Any:
        """Maps the backbone's maps to logits [b, h, w, num_classes], see `SegmentationHead`."""
        x = self._chosen_map("context", maps)
        h = self.context(x, rngs=rngs)
        logits = self.classify(self._fuse(x, h), rngs=rngs)
        return (logits, {}) if return_auxiliary else logits

    def context(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Returns what the block makes of the reduced map."""
        return self.attention(self.reduce(x), rngs=rngs)

    def _fuse(self, x: jax.Array, h: jax.Array) -> jax.Array:
        h = h if self.mix is None else self.mix(h)
        return self.bottleneck(jnp.concatenate([x, h.astype(x.dtype)], axis=-1))

    def rows(self, sizes: Sizes) -> list[Row]:
        """Returns the summary for maps of these sizes."""
        h, w = size = sizes[self.index]
        rows = [layer_row("reduce", self.reduce, size)]
        shape, name = (h, w, self.reduce.dim_out), type(self.attention).__name__
        rows.append(("attention", name, shape, self.attention.macs(h, w)))
        if self.mix is not None:
            rows.append(layer_row("mix", self.mix, size))
        rows.append(layer_row("bottleneck", self.bottleneck, size))
        return [*rows, self.classify.row("classify", size)]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Names of mmsegmentation's NLHead and CCHead, which are this with `mix`."""
        if self.mix is None:
            return {}
        blocks = (
            *prefixed(nonlocal_block.TORCH_NAMES, r"nl_block\.", "attention"),
            *prefixed(criss_cross.TORCH_NAMES, r"cca\.", "attention"),
        )
        return {
            "mmsegmentation": (
                *conv_module(r"convs\.0", "reduce"),
                *blocks,
                *conv_module(r"convs\.1", "mix"),
                *conv_module(r"conv_cat", "bottleneck"),
                *prefixed(POINTWISE, r"conv_seg\.", "classify"),
            )
        }


def block_problems(spec: Any) -> list[str]:
    """Returns what is wrong with the spec of an attention block that may be of any kind that maps a
    map to a map, one text per problem.
    """
    if not isinstance(spec, (str, Mapping)) or (isinstance(spec, Mapping) and "name" not in spec):
        return [f"block is {spec!r}; allowed: a name, or a mapping with 'name' and options"]
    name = spec if isinstance(spec, str) else spec["name"]
    own = {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "name"}
    try:
        of_kind = kind(name)
    except ValueError as error:
        return [f"block: {error}"]
    if of_kind == "carried":
        allowed = ", ".join(name for name in list_attention() if kind(name) != "carried")
        return [
            f"block '{name}' hands state from layer to layer, as the models lavit_* do; allowed: "
            f"{allowed}"
        ]
    changes = [
        f"block has {option}={own[option]!r}; allowed: none, the head needs the map back as it is"
        for option in ("dim_out", "stride")
        if option in own
    ]
    found = attention_registry.option_problems(name, own).values()
    return [*changes, *(f"block: {problem}" for problem in found)]


registry.register(
    "nonlocal",
    ContextHead,
    block=dict(name="nonlocal_mmcv", norm="batch", out_bias=False, zero_init="norm"),
    mix=True,
)
