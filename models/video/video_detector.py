"""A detector of videos: its whole network on key frames, a propagation on the frames between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lambdanet.interop.names import Rule, prefixed
from lambdanet.layers import InitKeys

from ..detection.anchoring import Targets
from ..detection.detector import Losses, Spec
from ..detection.inputs import check_pictures, check_targets
from ..detection.parts import Sizes
from ..registration import registry as model_registry
from .carrying import Carrying
from .propagation_options import (
    check_one_map,
    describe_detector,
    detector_builder,
    detector_problems,
)

DETECTOR = {"name": "retinanet", "first_stage": 4}
"""Reads the last map of a ResNet alone."""


@model_registry.register("video_detector")
class VideoDetector(Carrying):
    """A detector, and what carries the map that its pyramid is made of from a key frame to other
    frames.

        key = key_frame(image)                 the whole backbone
        features = propagate(key, image)       what the propagation needs, see `Carrying`
        found = detections(features, image_shapes, size)     pyramid and heads

    All levels of the pyramid come from the last map of the backbone, as in the single-scale
    detector of Zhu et al. 2017, "Deep Feature Flow for Video Recognition".

    By `losses`, `detect` and `__call__` it works frame by frame, without the propagation, as the
    detector does, and may be trained so before.

    Args:
        detector: a name of models/detection, or a mapping with `name` and the detector's options.
            It gets all options below but `low_stage` unless it sets them.
        propagation: a name of `models.video.registry.names()`, or a mapping with `name` and the
            propagation's options; 'none' is frame by frame, 'copy' the key frame's features.
        low_stage: which of the backbone's maps is the early one that some propagations read, from
            1.
        num_classes: classes.
        in_channels: channels of the image.
        image_size: (height, width) of the canvas in training.
        remat: of the backbone.
        dtype: of activations.
        param_dtype: of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: parts that do not fit each other. `models.create_model` checks the options
            before.
    """

    PARTS = ("detector", "propagation")
    backbone_path = "detector/backbone"
    option_problems = staticmethod(detector_problems)
    describe_parts = staticmethod(describe_detector)

    def __init__(
        self,
        *,
        detector: Spec = DETECTOR,
        propagation: Spec = "deep_feature_flow",
        low_stage: int = 1,
        num_classes: int = 80,
        in_channels: int = 3,
        image_size: tuple[int, int] = (800, 1344),
        remat: str = "none",
        dtype: str = "float32",
        param_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        given = dict(
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
        )
        self.num_classes = num_classes
        self.detector = made = detector_builder(detector, given)(rngs=rngs)
        depth = len(made.feature_info)
        check_one_map(depth - made.num_maps + 1, depth)
        self.build_propagation(
            propagation,
            map_index=depth - 1,
            low_stage=low_stage,
            in_channels=in_channels,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=InitKeys(rngs.params()),
        )

    # ----------------------------------------------------------------------------------------------
    # Video
    # ----------------------------------------------------------------------------------------------

    def detections(
        self,
        features: Float[Array, "b _y _x d"],
        image_shapes: Int[Array, "b 2"],
        size: Sequence[int],
    ) -> dict[str, jax.Array]:
        """Returns what `detect` does, of features.

        Args:
            features: of `propagate`, or those of a key frame.
            image_shapes: height and width of each picture in its canvas.
            size: (height, width) of the canvas.
        """
        levels = self.detector.pyramid(self._maps(features))
        return self.detector.level_detections(levels, tuple(size), image_shapes)

    def clip_losses(
        self,
        frames: Float[Array, "b t h w c"],
        image_shapes: Int[Array, "b 2"],
        targets: Targets,
        same: Bool[Array, " b"] | None = None,
        *,
        rngs: nnx.Rngs,
    ) -> Losses:
        """Returns the detector's losses of the last frame of each clip, from the frames before it.

        Args:
            frames: see `clip_features`; each at the top left of its canvas.
            image_shapes: height and width that all frames of a clip have in their canvas.
            targets: of the last frames, see `Targets`.
            same: see `clip_features`.
            rngs: `dropout` stream; detectors may draw samples from it.

        Raises:
            ValueError: as `clip_features`; pictures or targets of other shapes.
        """
        check_pictures(frames[:, -1], image_shapes, self.detector.in_channels)
        targets = check_targets(targets, len(frames), masks=self.has_masks)
        key = rngs.dropout()
        levels = self.detector.pyramid(self._maps(self.clip_features(frames, same, rngs=rngs)))
        return self.detector.level_losses(levels, frames.shape[2:4], image_shapes, targets, key)

    # ----------------------------------------------------------------------------------------------
    # Frame by frame
    # ----------------------------------------------------------------------------------------------

    def losses(
        self,
        images: Float[Array, "b h w c"],
        image_shapes: Int[Array, "b 2"],
        targets: Targets,
        *,
        rngs: nnx.Rngs,
    ) -> Losses:
        """Returns the detector's losses of pictures."""
        return self.detector.losses(images, image_shapes, targets, rngs=rngs)

    def detect(
        self,
        images: Float[Array, "b h w c"],
        image_shapes: Int[Array, "b 2"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, jax.Array]:
        """Returns what the detector finds in pictures."""
        return self.detector.detect(images, image_shapes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, jax.Array]:
        """Returns what `detect` finds in pictures that fill their canvas."""
        return self.detector(x, rngs=rngs)

    def features(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _h _w _d"]]:
        """Returns the backbone's maps, largest first; see `feature_info`."""
        return self.detector.features(x, rngs=rngs)

    # ----------------------------------------------------------------------------------------------
    # What it is
    # ----------------------------------------------------------------------------------------------

    @property
    def has_masks(self) -> bool:
        """Whether `detect` gives masks."""
        return self.detector.has_masks

    @property
    def classifier(self) -> tuple[str, ...]:
        """Paths of the layers that depend on the classes."""
        return tuple(f"detector/{path}" for path in self.detector.classifier)

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """Channels and total stride of every map that `features` returns."""
        return self.detector.feature_info

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """The detector's name tables.

        Raises:
            ValueError: as the detector's.
        """
        return {
            name: prefixed(table, "", "detector")
            for name, table in self.detector.torch_names.items()
        }

    @property
    def backbone_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Name tables for files that hold the backbone alone, as the detector has them."""
        return {
            name: prefixed(table, "", "detector")
            for name, table in self.detector.backbone_names.items()
        }

    def feature_sizes(self, h: int, w: int) -> Sizes:
        """Returns the (height, width) of every map of the backbone for an [h, w] image."""
        return self.detector.feature_sizes(h, w)

    def summary_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """Returns one dict per layer, as the detector; after a key frame's network a propagation's
        work on one frame without the backbone's.
        """
        own = self.detector.summary_rows(h, w)
        rows = [{**row, "path": f"detector/{row['path']}"} for row in own]
        return rows + self.propagation_rows(h, w)

    def macs(self, h: int, w: int) -> int:
        """Returns the multiply-accumulates of one [h, w] key frame and one propagation."""
        return sum(row["macs"] for row in self.summary_rows(h, w))
