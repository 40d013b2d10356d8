"""A class for every pixel: cross entropy of up-sampled logits; mean IoU and pixel accuracy from one
confusion matrix.

Models have `outputs(images, rngs=...)`: 'logits' at any resolution, and further maps by name, of
which 'auxiliary' (an auxiliary head) and all others but 'embedding' are logits, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from lambdanet.analysis.sliding_window import looker
from lambdanet.data import augment, decode, geometry, label_maps, sources
from lambdanet.data.record import DataInfo, Record
from lambdanet.ops.images import normalise
from lambdanet.ops.upsampled_pixels import IGNORED, class_counts, pixel_scores
from lambdanet.tasks import class_confusions, segmentation_classes, segmentation_losses
from lambdanet.tasks.segmentation_classes import all_names, class_iou, class_names
from lambdanet.tasks.segmentation_losses import Terms

METRICS = {"mean_iou": "max", "pixel_accuracy": "max", "loss": "min"}
INFERENCES = ("whole", "slide")
THUMBNAIL = 96  # pixels of the longer side of the predictions that go to the report
Batch = dict[str, jax.Array]


def read(builder: Any) -> DataInfo:
    """Uses the feature 'image', or the only image beside the label maps, and the label maps.

    Raises:
        ValueError: none or several candidates; lists all features.
    """
    features = builder.info.features
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    masks = [k for k in images if k in label_maps.FEATURES]
    masks += [k for k in images if isinstance(features[k], tfds.features.LabeledImage)]
    plain = [k for k in images if k not in masks]
    only = len(plain) == 1
    image = plain[0] if only else sources.find_feature(builder, "image", tfds.features.Image)
    mask, names = label_maps.find_mask(builder, image)
    return DataInfo({"image": image, "segmentation_mask": mask}, names)


def model_options(info: DataInfo, config: Any) -> dict[str, Any]:
    """Returns the number of classes: that of the data, unless the model's section asks for more.

    Raises:
        ValueError: the model's section has fewer classes than the data, or the data does not say
            how many it has and the section does not either, or there are more than 255.
    """
    names, wanted = class_names(info, config), config.model.get("num_classes")
    known = len(names)
    if not info.features:  # nobody has looked at the data
        return {"num_classes": wanted or 1}
    if wanted is None and not known:
        feature = info.features["segmentation_mask"]
        raise ValueError(
            f"the feature {feature!r} does not say how many classes it has: set model.num_classes"
        )
    if wanted is not None and wanted < known:
        raise ValueError(f"model.num_classes={wanted}, but the data has {known} classes")
    count = known if wanted is None else wanted
    if count > label_maps.MAX_CLASSES:
        raise ValueError(f"{count} classes; allowed: up to {label_maps.MAX_CLASSES} in label maps")
    return {"num_classes": count}


def check_data(info: DataInfo, config: Any) -> None:
    """Raises ValueError unless segmentation.class_weights has a number for each class."""
    count = model_options(info, config)["num_classes"]
    if len(config.segmentation.class_weights) not in (0, count):
        names = all_names(info, config, count)
        listed = ", ".join(names[:20] + ["..."] * (count > 20))
        raise ValueError(
            f"segmentation.class_weights has {len(config.segmentation.class_weights)} numbers; "
            f"allowed: {count}, one per class ({listed}), or () for equal weights"
        )


def check_model(model: Any, config: Any) -> None:
    """Raises ValueError if a model has no `outputs`, the logits of every pixel."""
    name = config.model.name
    if hasattr(model, "detect"):
        raise ValueError(f"{name!r} finds objects: set task='detection'")
    if not hasattr(model, "outputs"):
        raise ValueError(
            f"{name!r} classifies whole images; for the task 'segmentation' take model.name="
            f"'segmenter' with model.backbone={name!r} and a model.head"
        )


# --------------------------------------------------------------------------------------------------
# Examples
# --------------------------------------------------------------------------------------------------


def example(
    record: Record, info: DataInfo, config: Any, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """Returns dict(image uint8 [h, w, c], label_map uint8 [h, w]) of one record; 255 = ignored.

    Args:
        record: with the fields image (a file's bytes, or pixels) and segmentation_mask (likewise,
            of an index picture).
        info: of `read`.
        config: reads the sections data, segmentation and, where the data names no classes, model.
        rng: draws crop, flip and colours; None gives the whole picture, fitted into the canvas of
            evaluation (segmentation.eval_size, else data.image_size).

    Raises:
        CorruptRecordError: labels beyond the classes, another size than the picture's, a colour
            picture in place of an index picture, a label map that cannot be decoded.
        ValueError, OSError: the image cannot be decoded.
    """
    data, own = config.data, config.segmentation
    picture = decode.open_image(record.fields["image"], exif_orientation=data.exif_orientation)
    labels = label_maps.read_label_map(
        record.fields["segmentation_mask"],
        len(class_names(info, config)) or config.model.num_classes,
        reduce_zero_label=own.reduce_zero_label,
        name=record.name,
        size=picture.size,
    )
    if rng is None:
        image, drawn = evaluation_picture(picture, config)
    else:
        drawn = geometry.draw(picture.size, data, rng, labels)
        image = augment.recolour(geometry.warp_image(picture, drawn, data.channels), data, rng)
        image = geometry.paint_padding(image, drawn)
    return {"image": image, "label_map": geometry.warp_labels(labels, drawn).astype(np.uint8)}


def evaluation_picture(
    picture: decode.Picture, config: Any
) -> tuple[UInt8[np.ndarray, "h w c"], geometry.Geometry]:
    """Returns a picture as evaluation and prediction see it, and how it lies in that canvas."""
    drawn = geometry.fitted(picture.size, evaluation_data(config))
    return decode.to_array(geometry.warp_image(picture, drawn, config.data.channels)), drawn


def blank(config: Any) -> dict[str, np.ndarray]:
    """Returns a black image without labels, of the size of evaluation."""
    size = evaluation_data(config).image_size
    image = np.zeros((*size, config.data.channels), np.uint8)
    return {"image": image, "label_map": np.full(size, IGNORED, np.uint8)}


def evaluation_data(config: Any) -> Any:
    """The section `data` with the canvas of evaluation as its image_size."""
    size = tuple(config.segmentation.eval_size or config.data.image_size)
    return SimpleNamespace(**{**vars(config.data), "image_size": size})


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def mix(batch: Batch, key: jax.Array, config: Any) -> Batch:
    """Returns the batch."""
    return batch


def loss(
    model: nnx.Module, batch: Batch, config: Any, rngs: nnx.Rngs
) -> tuple[Float[Array, ""], Terms]:
    """The losses of what the model gives for the images; see `segmentation_losses.losses`.

    Args:
        model: training view with `outputs`; see the module's docstring.
        batch: image uint8 [b, h, w, c], label_map [b, h, w].
        config: reads data.mean, data.std and the section `segmentation`.
        rngs: stream `dropout`.

    Raises:
        ValueError: the category-consistent loss is asked for, and the model has no 'embedding'.
    """
    labels, align = batch["label_map"].astype(jnp.int32), model.align_corners
    images = normalise(batch["image"], config.data.mean, config.data.std)
    maps = model.outputs(images, rngs=rngs)
    return segmentation_losses.losses(maps, labels, config, align_corners=align)


# --------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------


def scores(
    model: nnx.Module, images: Float[Array, "b h w c"], config: Any
) -> tuple[Float[Array, "b oh ow k"], bool]:
    """Returns logits of normalised images of any size, and the `align_corners` to resize them with:
    the model's own, at low resolution, or full ones of several windows or views.

    Args:
        model: evaluation view.
        images: normalised.
        config: reads the section `segmentation` and data.image_size.
    """
    own = config.segmentation
    if own.inference == "whole" and tuple(own.eval_scales) == (1.0,) and not own.eval_flip:
        return model.outputs(images)["logits"].astype(jnp.float32), model.align_corners
    crop = stride = None
    if own.inference == "slide":
        crop = tuple(own.slide_crop or config.data.image_size)
        stride = tuple(own.slide_stride) or tuple(math.ceil(2 * side / 3) for side in crop)
    views = dict(scales=tuple(own.eval_scales), flip=own.eval_flip)
    return looker(model, crop=crop, stride=stride, **views)(images), False


def score(model: nnx.Module, batch: Batch, config: Any) -> tuple[Batch, Batch]:
    """Counts the pixels of the images with mask 1 by true and predicted class.

    Args:
        model: evaluation view.
        batch: image uint8 [b, h, w, c], label_map [b, h, w], mask float32 [b].
        config: reads data.mean, data.std and what `scores` does.

    Returns:
        (sums, rows): confusion int32 [true class, predicted class] and loss, the sum of cross
        entropies; and for each image intersection and union of truth and prediction and the pixels
        in truth by class, int32 [b, k], and its prediction, uint8, made smaller to THUMBNAIL
        pixels.
    """
    images = normalise(batch["image"], config.data.mean, config.data.std)
    labels = jnp.where(batch["mask"][:, None, None] > 0, batch["label_map"], IGNORED)
    labels = labels.astype(jnp.int32)
    logits, align_corners = scores(model, images, config)
    return sums_and_rows(*pixel_counts(logits, labels, align_corners=align_corners))


def pixel_counts(
    logits: Float[Array, "b h w k"],
    labels: Int[Array, "b height width"],
    *,
    align_corners: bool = False,
) -> tuple[Int[Array, "b k k"], Float[Array, ""], UInt8[Array, "b _y _x"]]:
    """Returns the pixels of each image by true and predicted class, the sum of all cross entropies,
    and the predictions, made smaller to THUMBNAIL pixels.

    Args:
        logits: at any resolution.
        labels: 255 = ignored.
        align_corners: how the logits are resized to the labels.
    """
    each, predicted = pixel_scores(logits, labels, align_corners=align_corners)
    counts = class_counts(labels, predicted, logits.shape[-1])
    step = max(-(-max(labels.shape[1:]) // THUMBNAIL), 1)
    small = predicted[:, step // 2 :: step, step // 2 :: step].astype(jnp.uint8)
    return counts, each.sum(), small


def sums_and_rows(
    counts: Int[Array, "b k k"], loss: Float[Array, ""], prediction: UInt8[Array, "b y x"]
) -> tuple[Batch, Batch]:
    """Returns what `score` does, of what `pixel_counts` gives."""
    right, true = jnp.diagonal(counts, axis1=1, axis2=2), counts.sum(2)
    rows = {
        "intersection": right,
        "union": true + counts.sum(1) - right,
        "true": true,
        "prediction": prediction,
    }
    return {"confusion": counts.sum(0), "loss": loss}, rows


def finish(
    sums: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray | jax.Array],
    info: DataInfo,
    config: Any,
) -> dict[str, float]:
    """Returns mean IoU and pixel accuracy in [0, 1], and the mean loss of the labelled pixels.

    Raises:
        ValueError: no pixel has a label.
    """
    counts = np.asarray(sums["confusion"], np.float64)
    right, true = np.diag(counts), counts.sum(1)
    if not counts.any():
        raise ValueError("no pixel of the split has a label: all are 255 (ignored)")
    return {
        "mean_iou": float(np.nanmean(class_iou(right, true + counts.sum(0) - right, true))),
        "pixel_accuracy": float(right.sum() / true.sum()),
        "loss": float(sums["loss"] / true.sum()),
    }


def class_table(
    sums: Mapping[str, np.ndarray | np.generic],
    rows: Mapping[str, np.ndarray],
    info: DataInfo,
    config: Any,
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Returns (columns, rows, remark) of the results by class; see `segmentation_classes.table`."""
    counts = np.asarray(sums["confusion"], np.float64)
    return segmentation_classes.table(counts, all_names(info, config, len(counts)))


def confusions(
    sums: Mapping[str, np.ndarray | np.generic],
    rows: Mapping[str, np.ndarray],
    info: DataInfo,
    config: Any,
) -> class_confusions.Table:
    """Returns (columns, rows) of the most frequent confusions; see `class_confusions.table`."""
    counts = np.asarray(sums["confusion"])
    true, predicted = np.indices(counts.shape).reshape(2, -1)
    names = all_names(info, config, len(counts))
    return class_confusions.table(true, predicted, counts.ravel(), names, counted="pixels")


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
    """Draws IoU by class, and pictures with truth and prediction; see `segmentation_panels`."""
    from lambdanet.tasks import segmentation_panels  # imports matplotlib

    names = all_names(info, config, rows["union"].shape[1])
    lines = segmentation_panels.panels(side, below, rows=rows, examples=examples, names=names)
    return lines + class_confusions.markdown(confusions(sums, rows, info, config))


def predictions() -> ModuleType:
    """Returns what predicts for single pictures; see `segmentation_files`."""
    from lambdanet.tasks import segmentation_files

    return segmentation_files
