"""Detections as files: COCO's results and annotations of a split; pictures with boxes and masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import UnidentifiedImageError

from lambdanet.analysis import box_drawing
from lambdanet.atomic import write_file
from lambdanet.data import box_geometry, decode, geometry
from lambdanet.data.paste_masks import paste_masks
from lambdanet.data.record import DataInfo
from lambdanet.ops.images import normalise
from lambdanet.tasks import detection, detection_scores

MOST_NAMED = 8  # objects that a line of the table names


def write_results(
    rows: Mapping[str, np.ndarray], folder: Path, *, info: DataInfo, masks: bool, prefix: str = ""
) -> list[Path]:
    """Writes predictions.json, with masks also mask_predictions.json, and truth.json.

    They are COCO's results of boxes and of masks, and annotations; pictures and categories have the
    numbers that the set's origin gave them, where it kept them. What is reported is what this says:

        truth = pycocotools.coco.COCO("truth.json")
        COCOeval(truth, truth.loadRes("predictions.json"), "bbox")        (or "segm")

    Args:
        rows: of a whole split, see `detection.score`.
        folder: where they go.
        info: names and numbers of the classes.
        masks: whether there are masks.
        prefix: of the files' names.

    Returns:
        The files.
    """
    names = detection_scores.all_names(rows, info)
    numbers = info.class_ids if len(info.class_ids) == len(names) else None
    contents: dict[str, Any] = {"predictions": detection_scores.results(rows, "box", numbers)}
    if masks:
        contents["mask_predictions"] = detection_scores.results(rows, "mask", numbers)
    contents["truth"] = detection_scores.truth(rows, names, numbers)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_file(folder / f"{prefix}{name}.json", json.dumps(content) + "\n")
        for name, content in contents.items()
    ]


def write(
    model: nnx.Module, files: Mapping[str, Path], folder: Path, *, info: DataInfo, config: Any
) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[str]]:
    """Writes for every picture NAME_objects.png, the picture with what is found on it; and
    predictions.json: COCO's images, annotations (with score) and categories.

    Args:
        model: evaluation view.
        files: what the outputs are called, without a suffix -> picture.
        folder: where they go.
        info: of the data, for the names.
        config: reads the sections data and detection. Pictures are fitted into data.image_size, as
            in evaluation; what is written is in pixels of the picture.

    Returns:
        (columns, rows, problems): picture, file, objects; the pictures that cannot be read, and
        why.
    """
    data, own = config.data, config.detection
    graphdef, state = nnx.split(model)

    @jax.jit  # compiled once: all pictures have the canvas
    def detect(state: Any, image: jax.Array, image_shape: jax.Array) -> dict[str, jax.Array]:
        images = normalise(image[None], data.mean, data.std)
        return nnx.merge(graphdef, state).detect(images, image_shape[None])

    names = [*info.classes, *(f"class {i}" for i in range(len(info.classes), model.num_classes))]
    numbers = info.class_ids if len(info.class_ids) == len(names) else range(1, len(names) + 1)
    images, annotations, rows, problems = [], [], [], []
    for name, path in files.items():
        try:
            full, canvas, shape = read_picture(path, data)
        except UnidentifiedImageError:
            problems.append(f"{path}: not an image")
            continue
        except Exception as error:  # damaged files raise many types
            problems.append(f"{path}: cannot be read ({error})")
            continue
        found = {k: np.asarray(v[0]) for k, v in detect(state, canvas, shape).items()}
        size = full.shape[:2]
        kept = found["valid"] & (found["scores"] >= own.shown_score)
        boxes = detection.stored_boxes(
            jnp.asarray(found["boxes"][kept])[None], jnp.asarray(shape)[None], jnp.array([size])
        )
        boxes, classes, scores = np.asarray(boxes[0]), found["classes"][kept], found["scores"][kept]
        masks = paste_masks(found["masks"][kept], boxes, size) if own.masks else None
        labels = [f"{names[c]} {100 * s:.0f} %" for c, s in zip(classes, scores, strict=True)]
        drawn = box_drawing.draw_objects(
            full, boxes[::-1], classes[::-1], labels[::-1], None if masks is None else masks[::-1]
        )
        written = folder / f"{name}_objects.png"
        written.parent.mkdir(parents=True, exist_ok=True)
        write_file(written, lambda temporary, drawn=drawn: drawn.save(temporary, format="png"))
        number = len(images) + 1
        images.append({"id": number, "file_name": str(path), "height": size[0], "width": size[1]})
        coded = detection_scores.encode(masks) if own.masks else [None] * len(boxes)
        for box, cls, value, code in zip(boxes, classes, scores, coded, strict=True):
            left, top, right, bottom = box.astype(np.float64).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(numbers[cls]),
                    "bbox": [left, top, right - left, bottom - top],
                    "score": float(value),
                }
                | ({"segmentation": code} if code else {})
            )
        more = ["..."] * (len(labels) > MOST_NAMED)
        said = ", ".join(labels[:MOST_NAMED] + more) or "nothing"
        rows.append((str(path), str(written), said))
    categories = [{"id": int(n), "name": name} for n, name in zip(numbers, names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "predictions.json", json.dumps(content) + "\n")
    return ("picture", "with objects", "objects"), rows, problems


def read_picture(path: Path, data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a picture in full, uint8 [h, w, c]; on the canvas of evaluation, uint8 [height,
    width, c]; and (height, width) of its part of the canvas, int32 [2].
    """
    contents = path.read_bytes()

    def opened() -> decode.Picture:
        return decode.open_image(contents, exif_orientation=data.exif_orientation)

    picture = opened()
    size = picture.size
    drawn = box_geometry.fitted(size, data)
    image = decode.to_array(geometry.warp_image(picture, drawn, data.channels))
    options = dict(channels=data.channels, interpolation="bilinear")
    full = decode.crop_and_resize(opened(), (0, 0, *size), size=size[::-1], **options)
    shape = np.array(drawn.size, np.int32)
    return decode.to_array(full), box_geometry.on_canvas(image, data), shape
