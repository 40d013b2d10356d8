"""Detections as files: COCO's results and annotations of a split; predictions for pictures, as
plain values and drawn with boxes and masks. What these functions are for: `lambdanet.tasks`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8
from PIL import Image

from lambdanet.analysis.console import say
from lambdanet.atomic import write_file
from lambdanet.data import decode, detection_examples, preprocessing
from lambdanet.data.paste_masks import PastedMasks
from lambdanet.data.record import DataInfo
from lambdanet.drawing import box_drawing
from lambdanet.ops.images import normalise
from lambdanet.tasks import detection, detection_scores
from lambdanet.tasks.segmentation_files import whole_picture

INPUTS = ("image", "image_shape")
ITEMS = "objects"
COLUMNS = ("class", "number", "score", "left", "top", "right", "bottom")
READS, OPTIONS = "picture", ()
MOST_NAMED = 8  # objects that a line of the table names


def write_results(
    rows: Mapping[str, np.ndarray], folder: Path, *, info: DataInfo, masks: bool, prefix: str = ""
) -> list[Path]:
    """Writes predictions.json, with masks also mask_predictions.json, and truth.json.

    They are COCO's results of boxes and of masks, and annotations; pictures and categories have the
    numbers that the set's origin gave them, where it kept them. Pictures of several splits may have
    the same there, which COCO's evaluator takes for one: then they are counted anew, which is said.
    What is reported is what this says:

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
    numbers = info.numbers(len(names))
    pictures, stored = detection_scores.picture_ids(rows)
    if not stored:
        say(
            f"Several of the {len(pictures):,} pictures have the same number in the set, so the "
            f"files in {folder} number them from 1 on, in the order of evaluation."
        )
    about = (numbers, pictures)
    contents: dict[str, Any] = {"predictions": detection_scores.results(rows, "box", *about)}
    if masks:
        contents["mask_predictions"] = detection_scores.results(rows, "mask", *about)
    contents["truth"] = detection_scores.truth(rows, names, *about)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_file(folder / f"{prefix}{name}.json", json.dumps(content) + "\n")
        for name, content in contents.items()
    ]


def class_names(info: DataInfo, config: Any, count: int) -> list[str]:
    """Returns a name for each of `count` classes, 'class 7' where the data has none."""
    return info.names(count)


def example(contents: Any, config: Any) -> dict[str, np.ndarray]:
    """Returns the picture on the canvas of evaluation, image; (height, width) of its part of the
    canvas, image_shape; and of the picture, original_shape.
    """
    picture = decode.open_image(contents, exif_orientation=config.data.exif_orientation)
    image, drawn = detection_examples.evaluation_picture(picture, config.data)
    shapes = {"image_shape": drawn.size, "original_shape": picture.size[::-1]}
    return {"image": image} | {name: np.array(shape, np.int32) for name, shape in shapes.items()}


def describe_preprocessing(config: Any) -> dict[str, Any]:
    """Returns how `example` prepares a picture; see `preprocessing.describe`."""
    own = {"shown_score": config.detection.shown_score}
    return preprocessing.describe(config.data, fit="pad") | own


def answer(model: nnx.Module, batch: Mapping[str, jax.Array], config: Any) -> dict[str, jax.Array]:
    """Returns what the model's `detect` finds, in pixels of the canvas."""
    images = normalise(batch["image"], config.data.mean, config.data.std)
    return model.detect(images, batch["image_shape"])


def values(
    found: Mapping[str, np.ndarray],
    example: Mapping[str, np.ndarray],
    names: Sequence[str],
    config: Any,
    top: int,
) -> dict[str, Any]:
    """Returns `width` and `height` of the picture; `objects`, a list of {class, number, score,
    box}, those with at least detection.shown_score, the best first, boxes as (left, top, right,
    bottom) in pixels of the picture; and with masks `masks`, bool [objects, height, width], of
    which each is pasted when it is looked at.
    """
    height, width = map(int, example["original_shape"])
    shown = shown_objects(found, example["image_shape"], (height, width), config)
    objects = [
        {"class": names[c], "number": int(c), "score": float(s), "box": list(map(float, box))}
        for box, c, s in zip(*shown[:3], strict=True)
    ]
    masks = {} if shown.masks is None else {"masks": shown.masks}
    return {"width": width, "height": height, "objects": objects} | masks


def summary(values: Mapping[str, Any]) -> str:
    """Returns the best objects for a line of the table."""
    labels = [f"{one['class']} {100 * one['score']:.0f} %" for one in values["objects"]]
    more = ["..."] * (len(labels) > MOST_NAMED)
    return ", ".join(labels[:MOST_NAMED] + more) or "nothing"


def drawings(
    contents: Any, values: Mapping[str, Any], names: Sequence[str], config: Any
) -> dict[str, Image.Image]:
    """Returns the picture with its objects, as 'objects'."""
    return {"objects": draw(whole_picture(contents, config.data), _objects_of(values), names)}


def _objects_of(values: Mapping[str, Any]) -> Objects:
    found = values["objects"]
    boxes = np.array([one["box"] for one in found], np.float32).reshape(-1, 4)
    classes = np.array([one["number"] for one in found], np.int32)
    scores = np.array([one["score"] for one in found], np.float32)
    return Objects(boxes, classes, scores, values.get("masks"))


def collector(names: Sequence[str], info: DataInfo) -> PictureResults:
    """Returns what writes one file about all pictures, COCO's."""
    return PictureResults(*classes_of(info, len(names)))


class Objects(NamedTuple):
    """What is shown of a picture, in its pixels, the best first.

    Attributes:
        boxes: float32 [n, 4]; left, top, right, bottom.
        classes: int [n].
        scores: float32 [n].
        masks: bool [h, w] of each, pasted when it is looked at; None for a detector without.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    masks: PastedMasks | None


def shown_objects(
    found: Mapping[str, np.ndarray], shape: Sequence[int], size: tuple[int, int], config: Any
) -> Objects:
    """Returns what has at least detection.shown_score.

    Args:
        found: of `detect`, of one picture.
        shape: (height, width) of the picture in its canvas.
        size: (height, width) of the picture.
        config: reads the section detection.
    """
    own = config.detection
    kept = found["valid"] & (found["scores"] >= own.shown_score)
    # all of them: every number of boxes would be compiled anew
    boxes = detection.stored_boxes(
        jnp.asarray(found["boxes"])[None], jnp.asarray([shape]), jnp.asarray([size])
    )
    boxes = np.asarray(boxes[0])[kept]
    masks = PastedMasks(found["masks"][kept], boxes, size) if own.masks else None
    return Objects(boxes, found["classes"][kept], found["scores"][kept], masks)


def classes_of(info: DataInfo, count: int) -> tuple[list[str], Sequence[int]]:
    """Returns a name for each of `count` classes, and the numbers that files have for them."""
    return info.names(count), info.numbers(count)


def labels_of(objects: Objects, names: Sequence[str]) -> list[str]:
    """Returns name and score of each."""
    pairs = zip(objects.classes, objects.scores, strict=True)
    return [f"{names[c]} {100 * s:.0f} %" for c, s in pairs]


def draw(
    picture: UInt8[np.ndarray, "h w c"], objects: Objects, names: Sequence[str]
) -> Image.Image:
    """Returns a picture with its objects, the best on top; see `draw_objects`."""
    masks = None if objects.masks is None else objects.masks[::-1]
    labels = labels_of(objects, names)
    return box_drawing.draw_objects(
        picture, objects.boxes[::-1], objects.classes[::-1], labels[::-1], masks
    )


class Results:
    """COCO's images, annotations (with score) and categories, picture by picture: what COCO's API
    reads, and `python -m lambdanet.data.prepare coco`. Objects without area, or without a pixel in
    their mask, are no annotations there, and left out.

    Args:
        names: of the classes.
        numbers: that they have in the file.
    """

    def __init__(self, names: Sequence[str], numbers: Sequence[int]):
        self.numbers, self.images, self.annotations = numbers, [], []
        self.left_out = 0
        self.categories = [
            {"id": int(n), "name": name} for n, name in zip(numbers, names, strict=True)
        ]

    def add(self, file: str, size: tuple[int, int], objects: Objects) -> None:
        """Adds a picture of (height, width) `size`."""
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": file, "height": size[0], "width": size[1]})
        masks = [None] * len(objects.boxes) if objects.masks is None else objects.masks
        for box, cls, value, mask in zip(*objects[:3], masks, strict=True):
            left, top, right, bottom = box.astype(np.float64).tolist()
            area = (right - left) * (bottom - top) if mask is None else float(mask.sum())
            if not area or left >= right or top >= bottom:
                self.left_out += 1
                continue
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": number,
                    "category_id": int(self.numbers[cls]),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": area,
                    "iscrowd": 0,
                    "score": float(value),
                }
                | ({} if mask is None else {"segmentation": detection_scores.encode(mask)})
            )

    def write(self, folder: Path) -> list[str]:
        """Writes <folder>/predictions.json; returns what was left out, if anything was."""
        parts = ("images", "annotations", "categories")
        content = {part: getattr(self, part) for part in parts}
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "predictions.json", json.dumps(content) + "\n")
        objects = f"{self.left_out:,} object{'s' * (self.left_out != 1)} without a pixel"
        return [f"predictions.json is without {objects}."] if self.left_out else []


class PictureResults(Results):
    """The same, of what `values` returns."""

    def add(self, file: str, values: Mapping[str, Any]) -> None:
        """Adds a picture; `file` within the folder of all."""
        super().add(file, (values["height"], values["width"]), _objects_of(values))


def on_canvas(
    contents: bytes | UInt8[np.ndarray, "h w c"], data: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the picture of a file's bytes, or of pixels, in full, uint8 [h, w, c]; and on the
    canvas of evaluation, uint8 [height, width, c].
    """
    picture = decode.open_image(contents, exif_orientation=data.exif_orientation)
    return whole_picture(contents, data), detection_examples.evaluation_picture(picture, data)[0]
