"""What the heads have in common: their base, the classifier of positions, the choice of a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from flax import nnx
from jaxtyping import Array, Float

from lambdanet.interop.names import BATCH_NORM, CONV, POINTWISE, Rule, abn_scale, prefixed
from lambdanet.layers import ACTIVATIONS, ConvNormAct, PointwiseNormAct
from lambdanet.ops.wide_einsum import wide_einsum

from ..backbone import Row

Activation = Literal[tuple(ACTIVATIONS)]
Maps = Sequence[Float[Array, "b _h _w _c"]]
Sizes = Sequence[tuple[int, int]]
FeatureInfo = Sequence[Mapping[str, int]]


class SegmentationHead(nnx.Module):
    """Base of the heads: maps of a backbone -> logits of every position.

    A head is a class with the constructor (feature_info, num_classes, *, its options, dtype,
    param_dtype, rngs) that is registered in `models.segmentation.registry`; of these it must set

        head(maps, *, rngs=None, return_auxiliary=False)   float32 logits [b, h, w, num_classes]; in
            the other case (logits, {name: map}), the maps being further logits, or 'embedding'
        head.out_stride         pixels of the image per position of the logits
        head.rows(sizes)        lines of the summary for maps of these sizes

    Options `align_corners` and `map_sizes` (of all maps at `image_size`) are handed in where a head
    declares them. `option_problems(options) -> list[str]` says what is wrong with values beyond
    their types, without building.

    Attributes:
        classifier: paths of the layers that depend on the classes.
    """

    classifier: ClassVar[tuple[str, ...]] = ("classify",)

    @staticmethod
    def option_problems(options: Mapping[str, Any]) -> list[str]:
        """Returns what is wrong with options of the right types, one text per problem."""
        return []

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Name tables by framework, see `models.segmentation.names`; empty where there is none."""
        return {}

    def _choose_map(
        self, feature_info: FeatureInfo, stage: int | None, channels: int | None, dtype: Any
    ) -> int:
        """Sets `index`, `dim`, `out_stride` and `dtype` of a head that reads one map.

        Args:
            feature_info: channels and stride of the backbone's maps.
            stage: which map, from 1; None is the last.
            channels: inside the head; None means a quarter of the map's.
            dtype: of activations; None keeps the input's.

        Returns:
            The channels inside the head.

        Raises:
            ValueError: there is no such stage.
        """
        depth = len(feature_info)
        if stage is not None and not 1 <= stage <= depth:
            raise ValueError(f"stage is {stage}; allowed: None (the last), 1 to {depth}")
        self.index, self.dtype = (stage or depth) - 1, dtype
        chosen = feature_info[self.index]
        self.dim, self.out_stride = chosen["channels"], chosen["stride"]
        return max(self.dim // 4, 1) if channels is None else channels

    def _chosen_map(self, head: str, maps: Maps) -> Float[Array, "b h w c"]:
        """Returns the one map that the head reads, in its dtype; `head` is its name in errors."""
        check_maps(f"{head} head", maps, {self.index: self.dim})
        return maps[self.index].astype(self.dtype or maps[self.index].dtype)

    def macs(self, sizes: Sizes) -> int:
        """Multiply-accumulates of one sample with maps of these sizes."""
        return sum(row[-1] for row in self.rows(sizes))


CLASSIFIER_STD = 0.01
"""Standard deviation that classifiers start with, mmsegmentation's."""


class PixelClassifier(nnx.Linear):
    """Dropout of whole channels and a linear layer at every position; float32 logits.

    The product is summed in float32 from operands of the activations' dtype. The kernel starts
    normal 0.01, the bias at zero, as in mmsegmentation.

    Args:
        dim: input channels.
        num_classes: outputs.
        dropout: rate at which whole channels are dropped in training.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self, dim: int, num_classes: int, *, dropout: float, param_dtype: Any, rngs: nnx.Rngs
    ):
        init = nnx.initializers.normal(CLASSIFIER_STD)
        super().__init__(dim, num_classes, kernel_init=init, param_dtype=param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w k"]:
        """Maps [b, h, w, dim] to logits; `rngs.dropout` is read in training if dropout > 0."""
        x = self.dropout(x, rngs=rngs)
        logits = wide_einsum("bhwc,ck->bhwk", x, self.kernel[...].astype(x.dtype))
        return logits + self.bias[...].astype(logits.dtype)

    def row(self, name: str, size: tuple[int, int]) -> Row:
        """Returns the line of the summary for a map of that size."""
        h, w = size
        macs = h * w * self.in_features * self.out_features
        return name, "linear", (h, w, self.out_features), macs


def layer_row(name: str, layer: nnx.Module, size: tuple[int, int]) -> Row:
    """Returns the line of a `ConvNormAct` without stride or of a `PointwiseNormAct`."""
    h, w = size
    if isinstance(layer, PointwiseNormAct):
        return name, "linear", (h, w, layer.dim_out), layer.macs(h * w)
    side = layer.kernel_size
    return name, f"conv {side}x{side}", (h, w, layer.dim_out), layer.macs(h, w)


def check_maps(head: str, maps: Maps, dims: Mapping[int, int]) -> None:
    """Raises ValueError unless the maps that a head reads have the channels it was built for.

    Args:
        head: name for the message.
        maps: of the backbone.
        dims: index of a map -> its channels.
    """
    wrong = [
        f"map {index + 1} has the shape {maps[index].shape}, expected [batch, h, w, {dim}]"
        for index, dim in dims.items()
        if index < len(maps) and (maps[index].ndim != 4 or maps[index].shape[-1] != dim)
    ]
    if max(dims) >= len(maps):
        wrong.append(f"there are {len(maps)} maps, it reads number {max(dims) + 1}")
    if wrong:
        raise ValueError(f"{head}: {'; '.join(wrong)}")


def conv_module(torch: str, path: str, kind: type = ConvNormAct) -> tuple[Rule, ...]:
    """Returns the names of mmcv's ConvModule and of the same in Hugging Face's UPerNet.

    Args:
        torch: pattern of the module, without the dot at its end.
        path: ours.
        kind: `ConvNormAct`, or `PointwiseNormAct` for a 1x1.
    """
    table, layer = (POINTWISE, "linear") if kind is PointwiseNormAct else (CONV, "conv")
    return (
        *prefixed(table, rf"{torch}\.conv\.", f"{path}/{layer}"),
        *prefixed(BATCH_NORM, rf"{torch}\.(?:bn|batch_norm)\.", f"{path}/norm"),
    )


def sequential(torch: str, path: str, *, first: int = 0, inplace: bool = False) -> tuple[Rule, ...]:
    """Returns the names of a convolution and its norm in a Sequential.

    Args:
        torch: pattern of the Sequential with its dot, "" for the names inside it.
        path: ours, of a `ConvNormAct`.
        first: position of the convolution.
        inplace: the norm is InPlace-ABN's, whose scale is |weight| + 1e-5.
    """
    norm = (Rule(r"weight", "scale", abn_scale), *BATCH_NORM[1:]) if inplace else BATCH_NORM
    return (
        *prefixed(CONV, rf"{torch}{first}\.", f"{path}/conv"),
        *prefixed(norm, rf"{torch}{first + 1}\.", f"{path}/norm"),
    )


def norm_options(
    activation: str, norm_momentum: float, dtype: Any, param_dtype: Any, rngs: nnx.Rngs
) -> dict[str, Any]:
    """Returns the options of `ConvNormAct` and `PointwiseNormAct` that a head gives to all its
    layers.
    """
    return dict(
        activation=activation,
        norm_momentum=norm_momentum,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
