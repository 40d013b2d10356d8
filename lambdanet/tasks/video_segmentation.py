"""A class for every pixel of every frame of a video, with features that are carried from key frames
to the frames between, or gathered from neighbouring frames.

Training sees a key frame and a later one, or several frames around one (`propagation.others`), and
has the losses of segmentation of that frame alone. Evaluation takes consecutive frames and counts
the pixels of all of them. Losses, classes and canvas are those of the section `segmentation`.

Models have `clip_outputs(frames, same, rngs=...)`, which gives what `outputs` does of segmentation,
and what `carried_features` reads. As such a model segments single pictures, too, so does
`predictions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.data import augment, cutting, decode, geometry, key_frames, label_maps, sources
from lambdanet.data.record import CorruptRecordError, DataInfo, Record
from lambdanet.ops.images import normalise
from lambdanet.ops.upsampled_pixels import IGNORED
from lambdanet.tasks import carried_features, segmentation, segmentation_losses
from lambdanet.tasks.segmentation import METRICS, Batch, Terms, confusions
from lambdanet.tasks.segmentation_classes import class_names

__all__ = ["METRICS", "SECTIONS", "confusions"]

SECTIONS = ("segmentation", "propagation")


def read(builder: Any) -> DataInfo:
    """Uses the feature 'frames', or the only sequence of images, and the label maps of its frames.

    Raises:
        ValueError: none or several candidates; lists all features.
    """
    frames = sources.find_frames(builder)
    masks, names = label_maps.find_mask_sequence(builder, frames)
    return DataInfo({"frames": frames, "segmentation_mask": masks}, names)


def model_options(info: DataInfo, config: Any) -> dict[str, Any]:
    """Returns the number of classes, as in segmentation."""
    return segmentation.model_options(info, config)


def check_data(info: DataInfo, config: Any) -> None:
    """Raises ValueError as in segmentation."""
    segmentation.check_data(info, config)


def check_model(model: Any, config: Any) -> None:
    """Raises ValueError for a model without `clip_outputs`, and for one that reads pairs where
    training gives many frames, or the other way round.
    """
    name = config.model.name
    if not hasattr(model, "clip_outputs"):
        parts = "the same backbone and head" if hasattr(model, "outputs") else "a backbone"
        raise ValueError(
            f"{name!r} carries nothing from frame to frame; for the task 'video_segmentation' take "
            f"model.name='video_segmenter' with {parts} and a model.propagation"
        )
    carried_features.check_others(model, config)


# --------------------------------------------------------------------------------------------------
# Examples
# --------------------------------------------------------------------------------------------------


def example(
    record: Record, info: DataInfo, config: Any, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """Returns the frames of one record and what is true of them; 255 = ignored.

    With `rng`: frames uint8 [n, h, w, c], the key frame or `propagation.others` frames, image uint8
    [h, w, c], the current frame, its label_map uint8 [h, w], and same, whether the key frame is the
    current one. Without: image is the last of `propagation.eval_frames` consecutive ones, frames
    are those before it, and label_map [eval_frames, h, w] is of all; where the sequence is shorter,
    its last frame is repeated, without labels.

    Args:
        record: with the fields frames (files' bytes, or pixels) and segmentation_mask (likewise, of
            index pictures), as many.
        info: of `read`.
        config: reads the sections data, segmentation, propagation and, where the data names no
            classes, model.
        rng: draws the frames, and crop, flip and colours that all of them have; None gives whole
            frames, fitted into the canvas of evaluation.

    Raises:
        CorruptRecordError: not as many label maps as frames, and as in segmentation.
        ValueError: no frames, several sizes, or a frame cannot be decoded.
    """
    frames, masks = record.fields["frames"], record.fields["segmentation_mask"]
    if len(frames) != len(masks):
        raise CorruptRecordError(f"{record.name}: {len(frames)} frames, {len(masks)} label maps")

    def labels_of(number: int, size: tuple[int, int]) -> np.ndarray:
        return label_maps.read_label_map(
            masks[number],
            len(class_names(info, config)) or config.model.num_classes,
            reduce_zero_label=config.segmentation.reduce_zero_label,
            name=f"{record.name}, frame {number}",
            size=size,
        )

    if rng is None:
        return _evaluated(frames, labels_of, config)
    return _trained(frames, labels_of, config, rng)


LabelsOf = Callable[[int, tuple[int, int]], np.ndarray]
"""(number of a frame, its width and height) -> its label map."""


def _trained(
    frames: cutting.Frames, labels_of: LabelsOf, config: Any, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    data, own = config.data, config.propagation
    numbers, place = key_frames.draw(len(frames), own, rng), {}

    def draw(size: tuple[int, int]) -> geometry.Geometry:
        place["labels"] = labels = labels_of(int(numbers[-1]), size)
        place["drawn"] = geometry.draw(size, data, rng, labels)
        return place["drawn"]

    images = cutting.cut(frames, numbers, draw, data)
    seed = int(rng.integers(2**63))  # the same colours for every frame
    clip = [augment.recolour(image, data, np.random.default_rng(seed)) for image in images]
    clip = [geometry.paint_padding(image, place["drawn"]) for image in clip]
    return {
        "frames": np.stack(clip[:-1]),
        "image": clip[-1],
        "label_map": geometry.warp_labels(place["labels"], place["drawn"]).astype(np.uint8),
        "same": np.bool_(not own.others and numbers[0] == numbers[1]),
    }


def _evaluated(frames: cutting.Frames, labels_of: LabelsOf, config: Any) -> dict[str, np.ndarray]:
    canvas, place = segmentation.evaluation_data(config), {}
    numbers, counted = key_frames.middle(len(frames), config.propagation.eval_frames)

    def fit(size: tuple[int, int]) -> geometry.Geometry:
        place["size"], place["drawn"] = size, geometry.fitted(size, canvas)
        return place["drawn"]

    images = cutting.cut(frames, numbers, fit, canvas)
    clip = np.stack([decode.to_array(image) for image in images])
    label_map = np.full(clip.shape[:3], IGNORED, np.uint8)
    for at, number in enumerate(numbers[:counted]):
        labels = labels_of(int(number), place["size"])
        label_map[at] = geometry.warp_labels(labels, place["drawn"])
    return {"frames": clip[:-1], "image": clip[-1], "label_map": label_map}


def blank(config: Any) -> dict[str, np.ndarray]:
    """Returns black frames without labels, of the size of evaluation."""
    one, count = segmentation.blank(config), config.propagation.eval_frames
    return {
        "frames": np.repeat(one["image"][None], count - 1, 0),
        "image": one["image"],
        "label_map": np.repeat(one["label_map"][None], count, 0),
    }


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def mix(batch: Batch, key: jax.Array, config: Any) -> Batch:
    """Returns the batch."""
    return batch


def _clip(batch: Batch) -> jax.Array:
    """All frames, uint8 [b, t, h, w, c], the current one last."""
    return jnp.concatenate([batch["frames"], batch["image"][:, None]], 1)


def loss(
    model: nnx.Module, batch: Batch, config: Any, rngs: nnx.Rngs
) -> tuple[Float[Array, ""], Terms]:
    """The losses of what the model gives for the current frames; see `segmentation_losses.losses`.

    Args:
        model: training view with `clip_outputs`; see the module's docstring.
        batch: frames uint8 [b, n, h, w, c], image uint8 [b, h, w, c], label_map [b, h, w], same
            bool [b].
        config: reads data.mean, data.std, propagation.others and the section `segmentation`.
        rngs: stream `dropout`.

    Raises:
        ValueError: as in segmentation.
    """
    clip = normalise(_clip(batch), config.data.mean, config.data.std)
    same = None if config.propagation.others else batch["same"]
    labels, align = batch["label_map"].astype(jnp.int32), model.align_corners
    maps = model.clip_outputs(clip, same, rngs=rngs)
    return segmentation_losses.losses(maps, labels, config, align_corners=align)


# --------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------


def score(model: nnx.Module, batch: Batch, config: Any) -> tuple[Batch, Batch]:
    """Counts the pixels of all frames of the clips with mask 1 by true and predicted class; see
    `carried_features.over_frames` for the features that are read.

    Args:
        model: evaluation view.
        batch: frames uint8 [b, t - 1, h, w, c], image uint8 [b, h, w, c], label_map [b, t, h, w],
            mask float32 [b].
        config: reads data.mean, data.std, propagation.interval and propagation.reach.

    Returns:
        (sums, rows) as in segmentation; what they say of an image is said of a clip, and the
        prediction is that of `shown_frame`.
    """
    counted = batch["mask"][:, None, None, None] > 0
    labels = jnp.where(counted, batch["label_map"], IGNORED).astype(jnp.int32)

    def count(features: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        return segmentation.pixel_counts(model.decode(features, labels.shape[1:]), labels)

    given = jnp.moveaxis(labels, 1, 0)
    counts, losses, small = carried_features.over_frames(model, _clip(batch), given, config, count)
    shown = small[shown_frame(labels), jnp.arange(len(labels))]
    return segmentation.sums_and_rows(counts.sum(0), losses.sum(), shown)


def shown_frame(label_map: Any) -> Any:
    """Returns the number of the last frame of each clip [b, t, h, w] that has labels, or the last
    one where none has: the frames behind it repeat it.
    """
    labelled = (label_map != IGNORED).any((2, 3))
    return labelled.shape[1] - 1 - labelled[:, ::-1].argmax(1)


def finish(
    sums: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray | jax.Array],
    info: DataInfo,
    config: Any,
) -> dict[str, float]:
    """Returns the metrics of segmentation, over the pixels of all frames."""
    return segmentation.finish(sums, rows, info, config)


def class_table(
    sums: Mapping[str, np.ndarray | np.generic],
    rows: Mapping[str, np.ndarray],
    info: DataInfo,
    config: Any,
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Returns the table of segmentation, over the pixels of all frames."""
    return segmentation.class_table(sums, rows, info, config)


def panels(
    side: Any,
    below: Any,
    *,
    sums: Mapping[str, np.ndarray | np.generic],
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, np.ndarray],
    info: DataInfo,
    config: Any,
) -> list[str]:
    """Draws the panels of segmentation, of each clip its last frame."""
    truth = examples["label_map"]
    shown = {**examples, "label_map": truth[np.arange(len(truth)), shown_frame(truth)]}
    found = dict(sums=sums, rows=rows, examples=shown, info=info, config=config)
    return segmentation.panels(side, below, **found)


def predictions() -> ModuleType:
    """Returns what predicts for single pictures, as in segmentation."""
    return segmentation.predictions()
