"""A segmenter of videos: its whole network on key frames, a propagation on the frames between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lambdanet.layers import InitKeys, resize_bilinear

from ..backbone import summary_row
from ..registration import registry as model_registry
from ..segmentation.parts import CLASSIFIER_STD
from ..segmentation.segmenter import Segmenter, Spec
from .frames import Frame
from .propagation_options import describe_parts, option_problems, propagation_builder


@model_registry.register("video_segmenter")
class VideoSegmenter(Segmenter):
    """A segmenter, and what carries the map that its head reads from a key frame to other frames.

        key = key_frame(image)                 the whole backbone
        features = propagate(key, image)       what the propagation needs, and the head
        logits = decode(features, size)

    As a `Segmenter` it works frame by frame, without the propagation, and may be trained so before.
    The parts of the backbone that a propagation does not need are not in the compiled program of
    `propagate`: XLA leaves out what nothing reads. In the training view that needs batch norms with
    frozen statistics.

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
        info = self.feature_info
        if low_stage > len(info):
            raise ValueError(f"low_stage is {low_stage}; allowed: 1 to {len(info)}")
        self.low_index = low_stage - 1
        own, low = info[self.head.index], info[self.low_index]
        build, wanted = propagation_builder(propagation)
        given = dict(
            channels=own["channels"],
            stride=own["stride"],
            in_channels=in_channels,
            low_channels=low["channels"],
            low_stride=low["stride"],
            dtype=jnp.dtype(dtype),
            param_dtype=jnp.dtype(param_dtype),
            rngs=InitKeys(rngs.params()),
        )
        self.propagation = build(**{name: given[name] for name in wanted})

    def key_frame(self, image: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None) -> Frame:
        """Returns what `propagate` reads of a key frame; `rngs` as in `outputs`."""
        needs = (*self.propagation.key_needs, "features")
        return self.propagation.prepare(self._frame(image, needs, rngs))

    def next_key(
        self, key: Frame, image: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Frame:
        """Returns the key frame after another one, with what that hands on."""
        return self.propagation.renew(key, self.key_frame(image, rngs=rngs))

    def propagate(
        self, key: Frame, image: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b _y _x d"]:
        """Returns the features of a frame; the head reads them in `decode`.

        Args:
            key: of `key_frame`; for a propagation from many frames those with an axis of frames in
                front (`jax.tree.map(lambda *a: jnp.stack(a), *frames)`).
            image: the current frame.
            rngs: as in `outputs`.
        """
        return self.propagation(key, self._frame(image, self.propagation.needs, rngs))

    def decode(
        self, features: Float[Array, "b _y _x d"], size: Sequence[int]
    ) -> Float[Array, "b h w k"]:
        """Returns the head's float32 logits of features, for pictures of (height, width) `size`."""
        logits = self.head(self._maps(features))
        return resize_bilinear(logits, tuple(size), align_corners=self.align_corners)

    def clip_outputs(
        self,
        frames: Float[Array, "b t h w c"],
        same: Bool[Array, " b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Float[Array, "b _h _w _k"]]:
        """Returns what training has losses of, as `outputs`, of the last frame of each clip, from
        the frames before it.

        Args:
            frames: normalised; (key, current), or several frames before the current one for a
                propagation from many.
            same: clips whose key frame is the current one: their features stay as they are, without
                flow or scale. None for none; not for a propagation from many.
            rngs: `dropout` stream; read in the training view.

        Raises:
            ValueError: more or fewer frames than the propagation reads, or `same` for one from
                many.
        """
        moved, many = self.propagation, self.propagation.many
        batch, count = frames.shape[:2]
        if count < 2 or (count > 2 and not many):
            raise ValueError(
                f"{type(moved).__name__} on clips of {count} frames; allowed: "
                f"{'2 or more' if many else 'pairs (key, current)'}"
            )
        if many and same is not None:
            raise ValueError(f"{type(moved).__name__} reads many frames; same= is for pairs")
        before = jnp.moveaxis(frames[:, :-1], 1, 0)
        key = self._frame(before.reshape(-1, *frames.shape[2:]), moved.key_needs, rngs)
        if many:
            key = jax.tree.map(lambda a: a.reshape(count - 1, batch, *a.shape[1:]), key)
        features = moved(key, self._frame(frames[:, -1], moved.needs, rngs))
        if same is not None and key.features is not None:
            features = jnp.where(same[:, None, None, None], key.features, features)
        logits, extra = self.head(self._maps(features), rngs=rngs, return_auxiliary=True)
        return {"logits": logits, **extra}

    def _frame(self, image: jax.Array, needs: Sequence[str], rngs: nnx.Rngs | None) -> Frame:
        """What is needed of frames [b, h, w, c]."""
        low = features = None
        if "low" in needs or "features" in needs:
            maps = self.features(image, rngs=rngs)
            low = maps[self.low_index] if "low" in needs else None
            features = maps[self.head.index] if "features" in needs else None
        return Frame(image if "image" in needs else None, low, features)

    def _maps(self, features: jax.Array) -> list[jax.Array]:
        """The maps that the head is given; it reads the last one."""
        return [features] * (self.head.index + 1)

    def summary_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """See `Segmenter`; a key frame's network, and after it a propagation's work on one frame
        without the backbone's.
        """
        sizes = self.feature_sizes(h, w)
        rows = self.propagation.rows((h, w), sizes[self.low_index], sizes[self.head.index])
        own = [summary_row(f"propagation/{name}", *rest) for name, *rest in rows]
        return super().summary_rows(h, w) + own
