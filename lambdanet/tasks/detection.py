"""Objects of a picture: boxes with classes and scores, perhaps masks; average precision.

Models have `losses(images, image_shapes, targets, rngs=...)`, terms as (sum, weight), and
`detect(images, image_shapes)`; see models/detection. Boxes are (left, top, right, bottom) in
pixels, right and bottom outside: those of training in the canvas, those of the score in the stored
picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.data import detection_examples, object_counts, objects
from lambdanet.data.record import DataInfo, Record
from lambdanet.ops.images import normalise
from lambdanet.tasks import detection_matching, detection_scores
from lambdanet.tasks.detection_scores import STATISTICS

METRICS = dict.fromkeys(
    [f"box_{name}" for name in STATISTICS] + [f"mask_{name}" for name in STATISTICS] + ["voc_ap50"],
    "max",
)
TARGETS = ("boxes", "classes", "valid", "crowd", "masks")
TRUTH = {
    "true_boxes": "true_boxes",
    "classes": "true_classes",
    "valid": "true_valid",
    "crowd": "true_crowd",
    "area": "area",
    "mask_counts": "mask_counts",
    "original_shape": "original_shape",
}
"""What of a batch goes to the host with the detections -> its name there."""
Batch = dict[str, jax.Array]
Terms = dict[str, tuple[jax.Array, jax.Array]]


def metrics(config: Any) -> dict[str, str]:
    """Returns those of `METRICS` that the config asks for; the first is the headline."""
    own = config.detection
    kinds = ("box", "mask") if own.masks else ("box",)
    names = [f"{kind}_{name}" for kind in kinds for name in STATISTICS]
    names = ["voc_ap50", *names] if own.metric == "voc" else names
    return {name: METRICS[name] for name in names}


def read(builder: Any) -> DataInfo:
    """Uses the picture and its objects; see `objects.read`.

    Raises:
        ValueError: there are none, or several candidates; lists all features.
    """
    return objects.read(builder)


def model_options(info: DataInfo, config: Any) -> dict[str, Any]:
    """Returns the number of classes: that of the data, unless the model's section asks for more;
    then also their numbers, by which torchvision's detectors have their outputs.

    Raises:
        ValueError: the model's section has fewer classes than the data, or masks are asked for
            and the data has none.
    """
    known, wanted = len(info.classes), config.model.get("num_classes")
    if not info.features:  # nobody has looked at the data
        return {"num_classes": wanted or known}
    if config.detection.masks and "masks" not in info.features:
        raise ValueError(
            "detection.masks=True, but the objects of the data have no masks: set it to False, and "
            "take a model without masks ('faster_rcnn', 'retinanet')"
        )
    if wanted is not None and wanted < known:
        raise ValueError(f"model.num_classes={wanted}, but the data has {known} classes")
    if wanted in (None, known):
        return {"num_classes": known}
    return {"num_classes": wanted, "class_numbers": tuple(info.numbers(known))}


def check_data(info: DataInfo, config: Any) -> None:
    """Raises ValueError if the splits of evaluation have pictures with more objects, or longer
    masks, than the config has room for: this is known before the first step, and not at the first
    evaluation. Random images are not looked at.
    """
    splits = [split for split in (config.data.eval_split, config.data.test_split) if split]
    if config.data.source != "synthetic":
        if problems := object_counts.room_problems(config, info, splits):
            raise ValueError("; ".join(problems))


def check_model(model: Any, config: Any) -> None:
    """Raises ValueError if a model detects nothing, or has masks where the config has none, or the
    other way round.
    """
    name, masks = config.model.name, config.detection.masks
    if not hasattr(model, "detect"):
        raise ValueError(
            f"{name!r} finds no objects; for the task 'detection' take model.name='retinanet', "
            f"'faster_rcnn' or 'mask_rcnn' with model.backbone={name!r}"
        )
    if masks and not model.has_masks:
        raise ValueError(
            f"detection.masks=True, but {name!r} gives boxes alone: set it to False, or take "
            "model.name='mask_rcnn'"
        )
    if model.has_masks and not masks:
        raise ValueError(
            f"{name!r} learns masks: set detection.masks=True, or take model.name='faster_rcnn'"
        )


# --------------------------------------------------------------------------------------------------
# Examples
# --------------------------------------------------------------------------------------------------


def example(
    record: Record, info: DataInfo, config: Any, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """Returns a picture with its objects as arrays of fixed shapes; see
    `detection_examples.detection_example`.
    """
    return detection_examples.detection_example(record, info, config, rng)


def blank(config: Any) -> dict[str, np.ndarray]:
    """Returns a black picture without objects."""
    return detection_examples.blank(config)


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def mix(batch: Batch, key: jax.Array, config: Any) -> Batch:
    """Returns the batch."""
    return batch


def loss(
    model: nnx.Module, batch: Batch, config: Any, rngs: nnx.Rngs
) -> tuple[Float[Array, ""], Terms]:
    """The sum of the model's losses; see `total`.

    Args:
        model: training view.
        batch: image uint8 [b, h, w, c], image_shape int32 [b, 2], boxes [b, m, 4], classes, valid
            and crowd [b, m], and with masks: masks uint8 [b, m, s, s].
        config: reads data.mean and data.std.
        rngs: stream `dropout`, of which the model also draws its samples.
    """
    images = normalise(batch["image"], config.data.mean, config.data.std)
    targets = {name: batch[name] for name in TARGETS if name in batch}
    found = model.losses(images, batch["image_shape"], targets, rngs=rngs)
    return total(found, len(images))


def total(found: Terms, pictures: int) -> tuple[Float[Array, ""], Terms]:
    """The sum of losses, each the mean over what it counts.

        loss = sum over terms of sum / max(weight, 1)

    Micro-batches are averaged by their pictures, so with `train.accumulate` a term whose weight
    differs between them (positives) is the mean of their means.

    Args:
        found: name -> (sum, weight).
        pictures: how many the batch has.

    Returns:
        (what is minimised, shown): loss as (sum, pictures), and NAME_loss of every term.
    """
    found = {name: jax.tree.map(jnp.float32, pair) for name, pair in found.items()}
    value = sum(part / jnp.maximum(weight, 1.0) for part, weight in found.values())
    count = jnp.float32(pictures)
    return value, {"loss": (value * count, count)} | {f"{k}_loss": v for k, v in found.items()}


# --------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------


def score(model: nnx.Module, batch: Batch, config: Any) -> tuple[Batch, Batch]:
    """Detects, and hands detections and truth to the host; what is counted, is counted there.

    Args:
        model: evaluation view.
        batch: the arrays of an evaluation example, [b, ...], and mask float32 [b].
        config: reads data.mean, data.std and detection.masks.

    Returns:
        (sums, rows): count, the pictures with mask 1; and of each picture boxes [b, k, 4] in pixels
        of the stored picture, scores, classes and valid [b, k], masks uint8 [b, k, s, s], 255 times
        the probability, and `TRUTH`.
    """
    images = normalise(batch["image"], config.data.mean, config.data.std)
    found = model.detect(images, batch["image_shape"])
    rows = {
        "boxes": stored_boxes(found["boxes"], batch["image_shape"], batch["original_shape"]),
        **{name: found[name] for name in ("scores", "classes", "valid")},
        **{name: batch[key] for key, name in TRUTH.items() if key in batch},
    }
    rows["scores"] = rows["scores"].astype(jnp.float32)
    if config.detection.masks:
        rows["masks"] = jnp.round(255 * found["masks"]).astype(jnp.uint8)
    return {"count": jnp.sum(batch["mask"].astype(jnp.float32))}, rows


def stored_boxes(
    boxes: Float[Array, "b k 4"], image_shape: jax.Array, original_shape: jax.Array
) -> Float[Array, "b k 4"]:
    """Returns boxes of the canvas in pixels of the stored picture, cut at its border.

    Args:
        boxes: in pixels of the canvas.
        image_shape: (height, width) of the picture in the canvas, int [b, 2].
        original_shape: of the stored picture, likewise.
    """
    size = jnp.tile(original_shape[:, ::-1], 2)[:, None].astype(jnp.float32)
    factor = size / jnp.tile(image_shape[:, ::-1], 2)[:, None].astype(jnp.float32)
    return jnp.clip(boxes.astype(jnp.float32) * factor, 0.0, size)


def finish(
    sums: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray | jax.Array],
    info: DataInfo,
    config: Any,
) -> dict[str, float]:
    """Returns COCO's average precisions in [0, 1], and VOC's where it is asked for; nan where there
    is no object to find, such as no small one.
    """
    rows = {name: np.asarray(row) for name, row in rows.items()}
    found = {}
    if config.detection.metric == "voc":
        found["voc_ap50"] = _mean(_voc(rows, info))
    for kind in ("box", "mask") if config.detection.masks else ("box",):
        statistics = detection_scores.scores(rows, info, kind).statistics
        found |= {f"{kind}_{name}": value for name, value in statistics.items()}
    return found


def _voc(rows: Mapping[str, np.ndarray], info: DataInfo) -> np.ndarray:
    return detection_matching.voc_ap50(rows, len(detection_scores.all_names(rows, info)))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def class_table(
    sums: Mapping[str, np.ndarray | np.generic],
    rows: Mapping[str, np.ndarray],
    info: DataInfo,
    config: Any,
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Returns (columns, rows, remark): objects and average precision in percent by class, and what
    has none.
    """
    names = detection_scores.all_names(rows, info)
    columns: dict[str, Sequence[float]] = {}
    kinds = ("box", "mask") if config.detection.masks else ("box",)
    for kind in kinds:
        found = detection_scores.scores(rows, info, kind)
        columns |= {f"{kind} AP %": found.classes["ap"], f"{kind} AP50 %": found.classes["ap50"]}
    if config.detection.metric == "voc":
        columns["VOC AP50 %"] = _voc(rows, info)
    lines = [
        (name, f"{found.objects[i]:,}", *(f"{100 * column[i]:.2f}" for column in columns.values()))
        for i, name in enumerate(names)
    ]
    remark = detection_scores.remark(found, names)
    return ("class", "objects", *columns), lines, remark


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
    """Draws precision over recall, confusions, and pictures; see `detection_panels`."""
    from lambdanet.tasks import detection_panels  # imports matplotlib

    table = class_table({}, rows, info, config)
    return detection_panels.panels(
        side, below, rows=rows, examples=examples, info=info, config=config, table=table
    )


def write_results(
    rows: Mapping[str, np.ndarray], folder: Path, *, info: DataInfo, config: Any, prefix: str = ""
) -> list[Path]:
    """Writes detections and truth of a split in COCO's format; see `detection_files`."""
    from lambdanet.tasks import detection_files

    masks = config.detection.masks
    return detection_files.write_results(rows, folder, info=info, masks=masks, prefix=prefix)


def predictions() -> ModuleType:
    """Returns what predicts for single pictures; see `detection_files`."""
    from lambdanet.tasks import detection_files

    return detection_files
