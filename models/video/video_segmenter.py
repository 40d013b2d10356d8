"""A segmenter of videos: its whole network on key frames, a propagation on the frames between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float

from lambdanet.layers import InitKeys, resize_bilinear

from ..registration import registry as model_registry
from ..segmentation.parts import CLASSIFIER_STD
from ..segmentation.segmenter import Segmenter, Spec
from .carrying import Carrying
from .propagation_options import describe_parts, option_problems


@model_registry.register("video_segmenter")
class VideoSegmenter(Carrying, Segmenter):
    """A segmenter, and what carries the map that its head reads from a key frame to other frames.

        key = key_frame(image)                 the whole backbone
        features = propagate(key, image)       what the propagation needs, see `Carrying`
        logits = decode(features, size)        the head

    As a `Segmenter` it works frame by frame, without the propagation, and may be trained so before.

    Args:
        backbone: see `Segmenter`.
        head: see `Segmenter`; a head that reads one map.
        propagation: a name of `models.video.registry.names()`, or a mapping with `name` and the
            propagation's options; 'none' is frame by frame, 'copy' the key frame's features.
        low_stage: which of the backbone's maps is the early one that some propagations read, from
            1.
        align_corners: see `Segmenter`.
        classifier_std: see `Segmenter`.
        num_classes: outputs.
        in_channels: channels of the image.
        image_size: (height, width) of the images in training.
        remat: of the backbone.
        dtype: of activations.
        param_dtype: of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: parts that do not fit each other. `models.create_model` checks the options
            before.
    """

    PARTS = ("backbone", "head", "propagation")
    option_problems = staticmethod(option_problems)
    describe_parts = staticmethod(describe_parts)

    def __init__(
        self,
        *,
        backbone: Spec = "resnet50",
        head: Spec = "fcn",
        propagation: Spec = "deep_feature_flow",
        low_stage: int = 1,
        align_corners: bool = False,
        classifier_std: float = CLASSIFIER_STD,
        num_classes: int = 150,
        in_channels: int = 3,
        image_size: tuple[int, int] = (512, 512),
        remat: str = "none",
        dtype: str = "float32",
        param_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        super().__init__(
            backbone=backbone,
            head=head,
            auxiliary=None,
            align_corners=align_corners,
            classifier_std=classifier_std,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.build_propagation(
            propagation,
            map_index=self.head.index,
            low_stage=low_stage,
            in_channels=in_channels,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=InitKeys(rngs.params()),
        )

    def decode(
        self, features: Float[Array, "b _y _x d"], size: Sequence[int] | None = None
    ) -> Float[Array, "b h w k"]:
        """Returns the head's float32 logits of features, for pictures of (height, width) `size`;
        None is as the head gives them.
        """
        logits = self.head(self._maps(features))
        if size is None:
            return logits
        return resize_bilinear(logits, tuple(size), align_corners=self.align_corners)

    def clip_outputs(
        self,
        frames: Float[Array, "b t h w c"],
        same: Bool[Array, " b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Float[Array, "b _h _w _k"]]:
        """Returns what training has losses of, as `outputs`, of the last frame of each clip, from
        the frames before it; arguments and errors of `clip_features`.
        """
        features = self.clip_features(frames, same, rngs=rngs)
        logits, extra = self.head(self._maps(features), rngs=rngs, return_auxiliary=True)
        return {"logits": logits, **extra}

    def summary_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """See `Segmenter`; a key frame's network, and after it a propagation's work on one frame
        without the backbone's.
        """
        return super().summary_rows(h, w) + self.propagation_rows(h, w)
