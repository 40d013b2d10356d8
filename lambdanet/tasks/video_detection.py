"""Objects of every frame of a video, with features that are carried from key frames to the frames
between, or gathered from neighbouring frames; average precision over all frames.

Training sees a key frame and a later one, or several frames around one (`propagation.others`), and
has the losses of detection of that frame alone. Evaluation takes consecutive frames, each of which
counts as a picture. Places for objects and the metric are those of the section `detection`.

Models have `clip_losses(frames, image_shapes, targets, same, rngs=...)`, terms as `losses` of
detection, `detections(features, image_shapes, size)`, which gives what `detect` does, and what
`carried_features` reads. As such a model detects in single pictures, too, so does
`predictions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.data import (
    augment,
    box_geometry,
    cutting,
    decode,
    detection_examples,
    frame_objects,
    key_frames,
)
from lambdanet.data.geometry import Geometry
from lambdanet.data.record import DataInfo, Record
from lambdanet.ops.images import normalise
from lambdanet.tasks import carried_features, detection
from lambdanet.tasks.detection import Batch, Terms

METRICS = {name: mode for name, mode in detection.METRICS.items() if not name.startswith("mask_")}
SECTIONS = ("detection", "propagation")
TRUTH = ("classes", "valid", "crowd", "true_boxes", "area")
"""What an example of evaluation has of each frame, [t, m, ...]."""
OF_CLIPS = ("id", "original_shape", "image_shape")
"""Rows and parts of examples that clips have, and not each of their frames."""


def metrics(config: Any) -> dict[str, str]:
    """Returns those of `METRICS` that the config asks for, as in detection."""
    return detection.metrics(config)


def read(builder: Any) -> DataInfo:
    """Uses frames and boxes of objects that keep their class; see `frame_objects.FORM`.

    Raises:
        ValueError: none or several candidates; lists all features.
    """
    return frame_objects.read(builder)


def model_options(info: DataInfo, config: Any) -> dict[str, Any]:
    """Returns the number of classes, as in detection."""
    return {"num_classes": detection.model_options(info, config)["num_classes"]}


def check_data(info: DataInfo, config: Any) -> None:
    """Raises ValueError if the splits of evaluation have clips with more objects than there is room
    for, as in detection.
    """
    detection.check_data(info, config)


def check_model(model: Any, config: Any) -> None:
    """Raises ValueError for a model without `clip_losses`, one with masks, and one that reads pairs
    where training gives many frames, or the other way round.
    """
    name = config.model.name
    if not hasattr(model, "clip_losses"):
        given = f"detector={name!r}" if hasattr(model, "detect") else "detector"
        raise ValueError(
            f"{name!r} carries no objects from frame to frame; for the task 'video_detection' take "
            f"model.name='video_detector' with a model.{given} that reads one map and a "
            "model.propagation"
        )
    if model.has_masks:
        raise ValueError(
            f"the detector of {name!r} learns masks, which moving objects do not have here: take "
            "'faster_rcnn' or 'retinanet'"
        )
    carried_features.check_others(model, config)


# --------------------------------------------------------------------------------------------------
# Examples
# --------------------------------------------------------------------------------------------------


def example(
    record: Record, info: DataInfo, config: Any, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """Returns the frames of one record, and the objects of one of them, or of all.

    With `rng`: frames uint8 [n, h, w, c], the key frame or `propagation.others` frames, image uint8
    [h, w, c], the current frame, image_shape int32 [2], which all have, its boxes, classes, valid
    and crowd as in detection, and same, whether the key frame is the current one.
    Without: image is the last of `propagation.eval_frames` consecutive ones, frames are those
    before it, original_shape int32 [2], and of every frame `TRUTH` as in detection, [t, m, ...],
    and counted bool [t]; where the sequence is shorter, its last frame is repeated, and not
    counted.

    Args:
        record: with the fields of `frame_objects.read`.
        info: of `frame_objects.read`.
        config: reads the sections data, detection, propagation and, where the data names no
            classes, model.
        rng: draws the frames, and scale, crop, flip and colours that all of them have; None gives
            whole frames, fitted into the canvas.

    Raises:
        UnusableRecordError: what `frame_objects.read_frame` refuses; in evaluation, more objects
            than detection.max_objects.
        ValueError: no frames, several sizes, or a frame cannot be decoded.
    """
    data, own, carried = config.data, config.detection, config.propagation
    frames, classes = record.fields["frames"], len(info.classes) or config.model.num_classes
    found: dict[str, np.ndarray] = {}

    def objects_of(number: int, size: tuple[int, int]) -> Any:
        options = dict(on_error=data.on_error)
        return frame_objects.read_frame(record, int(number), size, classes, **options)

    def fit(size: tuple[int, int]) -> Geometry:
        drawn = box_geometry.fitted(size, data)
        each = []
        for number in numbers[:counted]:
            objects = objects_of(number, size)
            true = detection_examples.truth(objects, size, own, record.name)
            each.append(detection_examples.padded(objects, own.max_objects) | true)
        for name in TRUTH:
            stacked = np.stack([one[name] for one in each])
            empty = np.zeros((len(numbers) - counted, *stacked.shape[1:]), stacked.dtype)
            found[name] = np.concatenate([stacked, empty])
        found["original_shape"] = each[0]["original_shape"]
        found["image_shape"] = np.array(drawn.size, np.int32)
        return drawn

    def draw(size: tuple[int, int]) -> Geometry:
        drawn, number = box_geometry.draw(size, data, rng), numbers[-1]
        most, name = own.max_objects, f"{record.name}, frame {number}"
        objects = objects_of(number, size)
        found.update(detection_examples.targets(objects, size, drawn, most, name))
        found["image_shape"] = np.array(drawn.size, np.int32)
        return drawn

    if rng is None:
        numbers, counted = key_frames.middle(len(frames), carried.eval_frames)
        found["counted"] = np.arange(len(numbers)) < counted
        clip = [decode.to_array(image) for image in cutting.cut(frames, numbers, fit, data)]
    else:
        numbers = key_frames.draw(len(frames), carried, rng)
        found["same"] = np.bool_(not carried.others and numbers[0] == numbers[1])
        images = cutting.cut(frames, numbers, draw, data)
        seed = int(rng.integers(2**63))  # the same colours for every frame
        clip = [augment.recolour(image, data, np.random.default_rng(seed)) for image in images]
    canvas = np.stack([box_geometry.on_canvas(image, data) for image in clip])
    return {"frames": canvas[:-1], "image": canvas[-1], **found}


def blank(config: Any) -> dict[str, np.ndarray]:
    """Returns black frames without objects, in the form of evaluation."""
    one, count = detection_examples.blank(config), config.propagation.eval_frames
    return {
        "frames": np.repeat(one["image"][None], count - 1, 0),
        **{name: one[name] for name in ("image", "image_shape", "original_shape")},
        **{name: np.repeat(one[name][None], count, 0) for name in TRUTH},
        "counted": np.zeros(count, bool),
    }


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def mix(batch: Batch, key: jax.Array, config: Any) -> Batch:
    """Returns the batch."""
    return batch


def _clip(batch: Mapping[str, Any]) -> jax.Array:
    """All frames, uint8 [b, t, h, w, c], the current one last."""
    return jnp.concatenate([batch["frames"], batch["image"][:, None]], 1)


def loss(
    model: nnx.Module, batch: Batch, config: Any, rngs: nnx.Rngs
) -> tuple[Float[Array, ""], Terms]:
    """The sum of the model's losses of the current frames; see `detection.total`.

    Args:
        model: training view with `clip_losses`; see the module's docstring.
        batch: frames uint8 [b, n, h, w, c], image uint8 [b, h, w, c], image_shape int32 [b, 2],
            boxes [b, m, 4], classes, valid and crowd [b, m], same bool [b].
        config: reads data.mean, data.std and propagation.others.
        rngs: stream `dropout`, of which the model also draws its samples.
    """
    clip = normalise(_clip(batch), config.data.mean, config.data.std)
    targets = {name: batch[name] for name in detection.TARGETS if name in batch}
    same = None if config.propagation.others else batch["same"]
    found = model.clip_losses(clip, batch["image_shape"], targets, same, rngs=rngs)
    return detection.total(found, len(clip))


# --------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------


def score(model: nnx.Module, batch: Batch, config: Any) -> tuple[Batch, Batch]:
    """Detects in all frames, and hands detections and truth to the host; see
    `carried_features.over_frames` for the features that are read.

    Args:
        model: evaluation view.
        batch: the arrays of an evaluation example, [b, ...], and mask float32 [b].
        config: reads data.mean, data.std, propagation.interval and propagation.reach.

    Returns:
        (sums, rows): count, the clips with mask 1; and of each clip those of detection, of every
        frame [b, t, ...], original_shape [b, 2], and counted [b, t].
    """
    clip, shapes, stored = _clip(batch), batch["image_shape"], batch["original_shape"]

    def read(features: jax.Array, _: Any) -> dict[str, jax.Array]:
        found = model.detections(features, shapes, clip.shape[2:4])
        boxes = detection.stored_boxes(found["boxes"], shapes, stored)
        scores = found["scores"].astype(jnp.float32)
        return dict(boxes=boxes, scores=scores, classes=found["classes"], valid=found["valid"])

    found = carried_features.over_frames(model, clip, (), config, read)
    rows = {
        **{name: jnp.moveaxis(values, 0, 1) for name, values in found.items()},
        **{detection.TRUTH[name]: batch[name] for name in (*TRUTH, "original_shape")},
        "counted": batch["counted"],
    }
    return {"count": jnp.sum(batch["mask"].astype(jnp.float32))}, rows


def by_frame(found: Mapping[str, np.ndarray | jax.Array]) -> dict[str, np.ndarray]:
    """Returns rows of clips [n, t, ...] as rows of pictures, the frames that count, one after the
    other; the id of a picture is t times that of the clip, and the number of the frame.

    Args:
        found: those of `score` and id [n], or parts of examples.
    """
    rows = {name: np.asarray(row) for name, row in found.items()}
    counted = rows.pop("counted")
    count = counted.shape[1]
    for name in OF_CLIPS:
        if name in rows:
            rows[name] = np.repeat(rows[name][:, None], count, 1)
    rows["id"] = count * rows["id"] + np.arange(count)
    return {name: row[counted] for name, row in rows.items()}


def finish(
    sums: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray | jax.Array],
    info: DataInfo,
    config: Any,
) -> dict[str, float]:
    """Returns the metrics of detection, over all frames."""
    return detection.finish(sums, by_frame(rows), info, config)


def class_table(
    sums: Mapping[str, np.ndarray | np.generic],
    rows: Mapping[str, np.ndarray],
    info: DataInfo,
    config: Any,
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Returns the table of detection, over all frames."""
    return detection.class_table(sums, by_frame(rows), info, config)


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
    """Draws the panels of detection, whose pictures are frames."""
    shown = {name: examples[name] for name in ("id", "image_shape", "counted")}
    shown = by_frame(shown | {"image": np.asarray(_clip(examples))})
    found = dict(sums=sums, rows=by_frame(rows), examples=shown, info=info, config=config)
    return detection.panels(side, below, **found)


def write_results(
    rows: Mapping[str, np.ndarray], folder: Path, *, info: DataInfo, config: Any, prefix: str = ""
) -> list[Path]:
    """Writes detections and truth of all frames in COCO's format, as in detection."""
    return detection.write_results(by_frame(rows), folder, info=info, config=config, prefix=prefix)


def predictions() -> ModuleType:
    """Returns what predicts for single pictures, as in detection."""
    return detection.predictions()
