"""Examples of detection and instance segmentation: pictures and their objects, in fixed shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8

from lambdanet.data import augment, box_geometry, decode, geometry
from lambdanet.data.objects import TALLY, Objects, read_objects
from lambdanet.data.record import DataInfo, Record, UnusableRecordError

Example = dict[str, np.ndarray]


def detection_example(
    record: Record, info: DataInfo, config: Any, rng: np.random.Generator | None
) -> Example:
    """Returns picture and objects of one record; m = detection.max_objects.

    With more than m objects, training takes the largest m, and says so once of every record.

    Args:
        record: with the fields of `objects.read`.
        info: of `objects.read`.
        config: reads the sections data and detection and, where the data names no classes, model.
        rng: draws scale, crop, flip and colours; None gives the whole picture, fitted into the
            canvas, and the truth in its own pixels.

    Returns:
        image uint8 [h, w, c] (the canvas data.image_size), image_shape int32 [2] (height and width
        of the part at the top left that is picture), boxes float32 [m, 4] (left, top, right, bottom
        in pixels of the canvas; right and bottom are outside), classes int32 [m], valid bool [m],
        crowd bool [m], and with detection.masks masks uint8 [m, 112, 112], each in the coordinates
        of its own box. What is not valid is 0.
        Without rng also the truth in pixels of the picture: original_shape int32 [2], true_boxes
        float32 [m, 4], area float32 [m], and with detection.masks mask_counts uint8
        [detection.mask_bytes]: COCO's run lengths of the objects, a line feed between them, then
        zeros.

    Raises:
        UnusableRecordError: what `objects.read_objects` refuses; in evaluation, more than m
            objects, or masks that need more than detection.mask_bytes.
        ValueError, OSError: the image cannot be decoded.
    """
    data, own = config.data, config.detection
    picture = decode.open_image(record.fields["image"], exif_orientation=data.exif_orientation)
    classes = len(info.classes) or config.model.num_classes
    found = read_objects(record, picture.size, classes, on_error=data.on_error, masks=own.masks)
    if rng is None:
        image, drawn = evaluation_picture(picture, data)
        kept = truth(found, picture.size, own, record.name)
    else:
        drawn = box_geometry.draw(picture.size, data, rng)
        image = augment.recolour(geometry.warp_image(picture, drawn, data.channels), data, rng)
        image, kept = box_geometry.on_canvas(image, data), {}
    return {
        "image": image,
        "image_shape": np.array(drawn.size, np.int32),
        **targets(found, picture.size, drawn, own.max_objects, record.name),
        **kept,
    }


def evaluation_picture(
    picture: decode.Picture, data: Any
) -> tuple[UInt8[np.ndarray, "h w c"], geometry.Geometry]:
    """Returns the canvas with the whole picture, as evaluation and prediction see it, and how it
    was brought to the size that it has there.
    """
    drawn = box_geometry.fitted(picture.size, data)
    image = decode.to_array(geometry.warp_image(picture, drawn, data.channels))
    return box_geometry.on_canvas(image, data), drawn


def targets(
    found: Objects, picture_size: tuple[int, int], drawn: geometry.Geometry, most: int, name: str
) -> Example:
    """Returns boxes, classes, valid, crowd and, where there are any, masks of `detection_example`.

    Args:
        found: the objects, in pixels of the picture.
        picture_size: its (width, height).
        drawn: how they are moved, see `box_geometry.warp_objects`.
        most: places for them; of more, the largest are taken.
        name: of the record.
    """
    moved, masks = box_geometry.warp_objects(found, picture_size, drawn)
    largest = _largest(moved.boxes, most, name)
    example = padded(moved.take(largest), most)
    if masks is not None:
        example["masks"] = _rows(masks[largest], most)
    return example


def blank(config: Any) -> Example:
    """Returns a black picture without objects, in the form of evaluation."""
    data, own = config.data, config.detection
    shape, most = np.array(data.image_size, np.int32), own.max_objects
    masks = () if own.masks else None
    none = Objects(
        np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool),
        np.zeros(0, np.float32), masks,
    )  # fmt: skip
    example = {
        "image": np.zeros((*data.image_size, data.channels), np.uint8),
        "image_shape": shape,
        **padded(none, most),
    }
    if own.masks:
        side = box_geometry.MASK_SIDE
        example["masks"] = np.zeros((most, side, side), np.uint8)
    return example | truth(none, tuple(data.image_size[::-1]), own, "")


def _largest(boxes: np.ndarray, most: int, name: str) -> np.ndarray:
    """Returns the positions of the largest boxes, at most `most` of them, in order."""
    if len(boxes) <= most:
        return np.arange(len(boxes))
    text = f"{name}: more objects than detection.max_objects={most}; the largest are taken"
    TALLY.say(text, "objects beyond max_objects, as first drawn", len(boxes) - most)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.sort(np.argsort(-areas, kind="stable")[:most])


def padded(found: Objects, most: int) -> Example:
    """Returns boxes, classes, valid and crowd, with rows of zeros up to `most`."""
    valid = np.ones(len(found), bool)
    fields = dict(boxes=found.boxes, classes=found.classes, valid=valid, crowd=found.crowd)
    return {name: _rows(values, most) for name, values in fields.items()}


def _rows(values: np.ndarray, most: int) -> np.ndarray:
    """Adds rows of zeros, up to `most`."""
    rows = np.zeros((most, *values.shape[1:]), values.dtype)
    rows[: len(values)] = values
    return rows


def truth(found: Objects, size: tuple[int, int], own: Any, name: str) -> Example:
    """Returns original_shape, true_boxes, area and perhaps mask_counts of `detection_example`.

    Args:
        found: the objects, in pixels of the picture.
        size: its (width, height).
        own: the config's section detection.
        name: of the record.

    Raises:
        UnusableRecordError: there is no room for all of them.
    """
    if len(found) > own.max_objects:
        raise UnusableRecordError(
            f"{name}: {len(found)} objects, but detection.max_objects={own.max_objects}; an "
            f"evaluation needs all of them: set detection.max_objects={len(found)} or more"
        )
    stored = {
        "original_shape": np.array(size[::-1], np.int32),
        "true_boxes": _rows(found.boxes, own.max_objects),
        "area": _rows(found.area, own.max_objects),
    }
    if found.masks is not None:
        joined = np.frombuffer(b"\n".join(found.masks), np.uint8)
        if len(joined) > own.mask_bytes:
            raise UnusableRecordError(
                f"{name}: its masks need {len(joined)} bytes, but detection.mask_bytes="
                f"{own.mask_bytes}; set it to {len(joined)} or more"
            )
        stored["mask_counts"] = _rows(joined, own.mask_bytes)
    return stored
