"""Objects of pictures: boxes, classes and masks, out of the features of a prepared set.

Read are the sets of this project (`digit_scenes`, and what `python -m lambdanet.data.prepare coco`
and `... voc` make) and those of TFDS that have its features for boxes, such as `coco` and `voc`,
as they are.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from lambdanet.data import findings, run_lengths, sources
from lambdanet.data.record import DataInfo, Record, UnusableRecordError

ENTRIES = {
    "label": "classes",
    "is_crowd": "crowd",
    "is_difficult": "difficult",
    "area": "area",
    "mask": "masks",
}
"""Entries of the feature of objects -> field; 'bbox' is the field 'boxes' (left, top, right, bottom
in pixels) or 'relative_boxes' (top, left, bottom, right in parts of the sides), by its kind.
"""
CATEGORIES = "categories.json"
"""File of a set prepared from COCO's format: the list of its categories, as the origin has it."""
COCO_ABSENT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""Numbers from 1 to 90 that no class of COCO has."""
MARGIN = 1.0
"""Pixels that a box may lie outside of its picture: sets count from 0 or 1, or round."""


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of one picture.

    Attributes:
        boxes: left, top, right, bottom in pixels of the upright picture; right and bottom are
            outside; float32 [n, 4].
        classes: int32 [n].
        crowd: bool [n]: one box around many, or one too difficult to count; neither found nor
            missed, neither positive nor negative.
        area: in pixels, of the mask where there are any, float32 [n].
        masks: `counts` of COCO's compressed run lengths, one per object; None: the set has none.
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    masks: tuple[bytes, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: np.ndarray) -> Objects:
        """Returns some of them, by positions or by a bool for each."""
        at = np.arange(len(self))[rows]
        masks = None if self.masks is None else tuple(self.masks[i] for i in at)
        return Objects(self.boxes[at], self.classes[at], self.crowd[at], self.area[at], masks)


# --------------------------------------------------------------------------------------------------
# Which features
# --------------------------------------------------------------------------------------------------


def read(builder: Any) -> DataInfo:
    """Uses the feature 'image', or the only image, and the feature 'objects', or the only sequence
    with boxes ('bbox') and classes ('label') in it.

    Returns:
        Fields image, boxes or relative_boxes, classes, and of `ENTRIES` what there is; the names of
        the classes, and their original numbers where a file `CATEGORIES` has them, or the set is
        COCO.

    Raises:
        ValueError: none or several candidates, lists all features; boxes in a format that is not
            read; a file `CATEGORIES` that does not fit.
    """
    features = builder.info.features
    image = sources.find_feature(builder, "image", tfds.features.Image)
    found = [key for key, feature in features.items() if _holds_objects(feature)]
    name = "objects" if "objects" in found else found[0] if len(found) == 1 else ""
    if not name:
        listed = ", ".join(f"{key}: {type(f).__name__}" for key, f in sorted(features.items()))
        raise ValueError(
            f"{builder.data_dir} needs a feature 'objects', or exactly one sequence, with entries "
            f"'bbox' (4 numbers) and 'label' (ClassLabel); it has {listed}"
        )
    stored = features[name].feature
    fields = {"image": image, _box_field(stored["bbox"], name): f"{name}/bbox"}
    fields |= {field: f"{name}/{entry}" for entry, field in ENTRIES.items() if entry in stored}
    classes = tuple(stored["label"].names)
    return DataInfo(fields, classes, _class_ids(builder, classes))


def _holds_objects(feature: Any) -> bool:
    stored = getattr(feature, "feature", None)
    return (
        isinstance(stored, tfds.features.FeaturesDict)
        and {"bbox", "label"} <= set(stored.keys())
        and getattr(stored["bbox"], "shape", None) == (4,)
        and isinstance(stored["label"], tfds.features.ClassLabel)
    )


def _box_field(feature: Any, name: str) -> str:
    if not isinstance(feature, tfds.features.BBoxFeature):
        return "boxes"
    written = getattr(feature.bbox_format, "value", feature.bbox_format)
    if written not in (None, "REL_YXYX"):
        raise ValueError(
            f"the feature {name}/bbox has boxes in the format {written}; allowed: REL_YXYX, or a "
            "Tensor of left, top, right, bottom in pixels"
        )
    return "relative_boxes"


def _class_ids(builder: Any, classes: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the original numbers of the classes; () if nobody gave any."""
    file = Path(builder.data_dir) / CATEGORIES
    if file.is_file():
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            found = [(operator.index(entry["id"]), entry["name"]) for entry in content]
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ValueError(f"{file} cannot be read ({type(error).__name__}: {error})") from error
        if tuple(name for _, name in found) != classes:
            raise ValueError(
                f"{file} names {len(found)} categories, and they are not the {len(classes)} classes"
                " of objects/label, in this order; restore it, or prepare the set anew"
            )
        return tuple(number for number, _ in found)
    of_coco = getattr(builder.info, "name", "") == "coco" and len(classes) == 80
    return tuple(n for n in range(1, 91) if n not in COCO_ABSENT) if of_coco else ()


# --------------------------------------------------------------------------------------------------
# One record
# --------------------------------------------------------------------------------------------------


def read_objects(
    record: Record, size: tuple[int, int], num_classes: int, *, on_error: str, masks: bool
) -> Objects:
    """Returns the objects of a record, checked.

    A box that ends outside of the picture by up to `MARGIN` is rounding, and stays as it is.

    Args:
        record: with the fields of `read`.
        size: (width, height) of the upright picture.
        num_classes: classes are 0 to num_classes - 1.
        on_error: 'raise', or 'skip': objects with mistakes are left out, boxes that end outside
            are cut; the first time it is said of every record, with the number so far.
        masks: with masks; False gives None.

    Raises:
        UnusableRecordError: names the record, the object and the value: with on_error='raise' a box
            that is not a number, has a side of 0 or less, lies or ends outside, a class beyond
            num_classes, a mask of another size; in any case, fields of different lengths, or no
            masks where they are asked for.
    """
    found = _stored(record, size, masks)
    problems, cut, mended = check_boxes(found.boxes, size)
    for i, label in enumerate(found.classes):
        if not 0 <= label < num_classes:
            many = findings.counted(num_classes, "classes")
            problems[i] = f"class {label}; allowed: 0 to {num_classes - 1} ({many})"
            mended[i] = False
    for i, counts in enumerate(found.masks or ()):
        if reason := run_lengths.why_wrong(counts, size):
            problems[i], mended[i] = reason, False
    if problems:
        first = min(problems)
        others = f", and {len(problems) - 1} more such objects" if len(problems) > 1 else ""
        text = f"{record.name}: object {first}: {problems[first]}{others}"
        if on_error != "skip":
            raise UnusableRecordError(
                f"{text}; mend the data, or set data.on_error='skip' to leave such objects out"
            )
        TALLY.say(text, "objects left out, or cut at the border", len(problems))
    wrong = np.isin(np.arange(len(cut)), list(problems))
    boxes = np.where(mended[:, None], cut, found.boxes)
    return dataclasses.replace(found, boxes=boxes).take(~wrong | mended)


def _stored(record: Record, size: tuple[int, int], masks: bool) -> Objects:
    """The objects as they are stored, in pixels."""
    fields = record.fields
    classes = np.asarray(fields["classes"], np.int64).reshape(-1)
    count = len(classes)
    listed = {k: fields[k] for k in ("boxes", "relative_boxes", *ENTRIES.values()) if k in fields}
    lengths = {k: len(v) for k, v in listed.items() if len(v) != count}
    if lengths:
        raise UnusableRecordError(f"{record.name}: {count} classes, but {lengths}")
    if "boxes" in fields:
        boxes = np.asarray(fields["boxes"], np.float32).reshape(-1, 4)
    else:
        parts = np.asarray(fields["relative_boxes"], np.float64).reshape(-1, 4)
        boxes = (parts[:, [1, 0, 3, 2]] * (size * 2)).astype(np.float32)
    crowd = np.zeros(count, bool)
    for name in ("crowd", "difficult"):
        crowd |= np.asarray(fields.get(name, crowd), bool).reshape(-1)
    counts = None
    if masks:
        if "masks" not in fields:
            raise UnusableRecordError(
                f"{record.name}: the set has no masks (no entry 'mask' of its objects); set "
                "detection.masks=False"
            )
        counts = tuple(m if isinstance(m, bytes) else str(m).encode() for m in fields["masks"])
    if "area" in fields:
        area = np.asarray(fields["area"], np.float32).reshape(-1)
    elif "masks" in fields:
        area = np.array([run_lengths.area(counts, size) for counts in fields["masks"]], np.float32)
    else:
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return Objects(boxes, classes.clip(-(2**31), 2**31 - 1).astype(np.int32), crowd, area, counts)


def box_text(box: Iterable[float]) -> str:
    """Returns how messages call a box."""
    return f"box ({', '.join(f'{edge:g}' for edge in box)})"


def check_boxes(
    boxes: np.ndarray, size: tuple[int, int], written: Sequence[str] = ()
) -> tuple[dict[int, str], np.ndarray, np.ndarray]:
    """Says what is wrong with boxes as they are stored, in float32, and cuts them at the border.

    Args:
        boxes: left, top, right, bottom in pixels, float [n, 4].
        size: (width, height) of the picture.
        written: how messages call each box, where it is stored in another form: 'box (1, 1, 9, 9)'.

    Returns:
        Position -> reason; the boxes, cut, float32; bool [n]: where cutting mends what is wrong.
    """
    given = boxes
    with np.errstate(over="ignore"):  # what is beyond all bounds becomes infinite, and is refused
        boxes = given.astype(np.float32)
    cut = np.clip(boxes, 0, np.array(size * 2, boxes.dtype))
    problems, mended = {}, np.zeros(len(boxes), bool)
    picture = f"the picture, which is {size[0]} x {size[1]}"
    for i, box in enumerate(boxes):
        text = written[i] if written else box_text(box)
        if not np.isfinite(box).all():
            problems[i] = f"{text} is not made of finite numbers"
        elif (box[2:] <= box[:2]).any():
            width, height = given[i, 2:] - given[i, :2]
            stored = " (32 bits, which boxes are stored with, hold no sides so small)"
            stored = stored if width > 0 and height > 0 else ""
            problems[i] = f"{text} has no area: it is {width:g} wide and {height:g} high{stored}"
        elif (cut[i, 2:] <= cut[i, :2]).any():
            problems[i] = f"{text} lies outside of {picture}"
        elif np.abs(box - cut[i]).max() > MARGIN:
            problems[i], mended[i] = f"{text} ends outside of {picture}", True
    return problems, cut, mended


# --------------------------------------------------------------------------------------------------
# What is left out is counted
# --------------------------------------------------------------------------------------------------


class Tally:
    """Counts what this process leaves out; every record is named once."""

    def __init__(self):
        self.lock, self.said, self.counts = threading.Lock(), set(), {}

    def say(self, text: str, what: str, count: int) -> None:
        """Adds to a count, and logs it, unless this text was there before."""
        with self.lock:
            if hash(text) in self.said:
                return
            self.said.add(hash(text))
            total = self.counts[what] = self.counts.get(what, 0) + count
            logging.warning("%s (%s so far: %d)", text, what, total)


TALLY = Tally()
