"""Detections as files: COCO's results and annotations of a split; pictures with boxes and masks."""

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
from PIL import Image, UnidentifiedImageError

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
    data = config.data
    graphdef, state = nnx.split(model)

    @jax.jit  # compiled once: all pictures have the canvas
    def detect(state: Any, image: jax.Array, image_shape: jax.Array) -> dict[str, jax.Array]:
        images = normalise(image[None], data.mean, data.std)
        return nnx.merge(graphdef, state).detect(images, image_shape[None])

    names, numbers = classes_of(info, model.num_classes)
    results, rows, problems = Results(names, numbers), [], []
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
        objects = shown_objects(found, shape, full.shape[:2], config)
        image = draw(full, objects, names)
        written = folder / f"{name}_objects.png"
        written.parent.mkdir(parents=True, exist_ok=True)
        write_file(written, lambda temporary, image=image: image.save(temporary, format="png"))
        results.add(str(path), full.shape[:2], objects)
        labels = labels_of(objects, names)
        more = ["..."] * (len(labels) > MOST_NAMED)
        said = ", ".join(labels[:MOST_NAMED] + more) or "nothing"
        rows.append((str(path), str(written), said))
    results.write(folder)
    return ("picture", "with objects", "objects"), rows, problems


class Objects(NamedTuple):
    """What is shown of a picture, in its pixels, the best first.

    Attributes:
        boxes: float32 [n, 4]; left, top, right, bottom.
        classes: int [n].
        scores: float32 [n].
        masks: bool [n, h, w]; None for a detector without.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None


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
    masks = paste_masks(found["masks"][kept], boxes, size) if own.masks else None
    return Objects(boxes, found["classes"][kept], found["scores"][kept], masks)


def classes_of(info: DataInfo, count: int) -> tuple[list[str], Sequence[int]]:
    """Returns a name for each of `count` classes, and the numbers that files have for them."""
    names = [*info.classes, *(f"class {i}" for i in range(len(info.classes), count))]
    numbers = info.class_ids if len(info.class_ids) == len(names) else range(1, len(names) + 1)
    return names, numbers


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
    """COCO's images, annotations (with score) and categories, picture by picture.

    Args:
        names: of the classes.
        numbers: that they have in the file.
    """

    def __init__(self, names: Sequence[str], numbers: Sequence[int]):
        self.numbers, self.images, self.annotations = numbers, [], []
        self.categories = [
            {"id": int(n), "name": name} for n, name in zip(numbers, names, strict=True)
        ]

    def add(self, file: str, size: tuple[int, int], objects: Objects) -> None:
        """Adds a picture of (height, width) `size`."""
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": file, "height": size[0], "width": size[1]})
        masks = objects.masks
        coded = [None] * len(objects.boxes) if masks is None else detection_scores.encode(masks)
        for box, cls, value, code in zip(*objects[:3], coded, strict=True):
            left, top, right, bottom = box.astype(np.float64).tolist()
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": number,
                    "category_id": int(self.numbers[cls]),
                    "bbox": [left, top, right - left, bottom - top],
                    "score": float(value),
                }
                | ({"segmentation": code} if code else {})
            )

    def write(self, folder: Path) -> Path:
        """Writes <folder>/predictions.json."""
        parts = ("images", "annotations", "categories")
        content = {part: getattr(self, part) for part in parts}
        folder.mkdir(parents=True, exist_ok=True)
        return write_file(folder / "predictions.json", json.dumps(content) + "\n")


def read_picture(path: Path, data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a picture in full, uint8 [h, w, c]; on the canvas of evaluation, uint8 [height,
    width, c]; and (height, width) of its part of the canvas, int32 [2].
    """
    return on_canvas(path.read_bytes(), data)


def on_canvas(
    contents: bytes | UInt8[np.ndarray, "h w c"], data: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what `read_picture` does, of a file's bytes, or of pixels."""

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
