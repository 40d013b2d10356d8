"""Objects of sequences of frames: boxes that move, of objects that keep their class.

Read are sets whose records hold a sequence of pictures, and of the same m objects in every frame
the boxes, in one array: `moving_digits`, and any set of TFDS of that form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lambdanet.data import sources
from lambdanet.data.objects import Objects, read_objects
from lambdanet.data.record import DataInfo, Record, UnusableRecordError

FORM = (
    "a sequence of images ('frames'); boxes, a Tensor of floats [frames, objects, 4]: left, top, "
    "right, bottom in pixels of each object in each frame, zeros where it is not in it; classes, a "
    "Sequence of ClassLabel or a Tensor of integers [objects]; and of integers the names, a "
    "ClassLabel"
)
"""What a set has to have."""


def read(builder: Any) -> DataInfo:
    """Uses the features 'frames', 'boxes' and 'classes', or the only ones of their forms; see
    `FORM`. Names are those of the classes, else those of the feature 'label', or of the only
    ClassLabel.

    Raises:
        ValueError: none or several candidates; lists all features.
    """
    features = builder.info.features
    try:
        frames = sources.find_frames(builder)
        boxes = _only(features, "boxes", _is_boxes)
        count = features[boxes].shape[1]
        classes = _only(features, "classes", lambda feature: _is_classes(feature, count))
        names = getattr(getattr(features[classes], "feature", None), "names", None)
        if names is None:
            label = _only(features, "label", lambda f: isinstance(f, tfds.features.ClassLabel))
            names = features[label].names
    except ValueError as error:
        listed = ", ".join(f"{key}: {_form(f)}" for key, f in sorted(features.items()))
        raise ValueError(f"{builder.data_dir} needs {FORM}; it has {listed} ({error})") from error
    return DataInfo({"frames": frames, "boxes": boxes, "classes": classes}, tuple(names))


def read_frame(
    record: Record, number: int, size: tuple[int, int], num_classes: int, *, on_error: str
) -> Objects:
    """Returns the objects that are in one frame of a record, checked as those of a picture.

    Args:
        record: with the fields of `read`.
        number: of the frame.
        size: (width, height) of the frame.
        num_classes: see `objects.read_objects`.
        on_error: likewise.

    Raises:
        UnusableRecordError: boxes for another number of frames or objects, and what
            `objects.read_objects` refuses.
    """
    fields = record.fields
    boxes, classes = np.asarray(fields["boxes"]), np.asarray(fields["classes"])
    expected = (len(fields["frames"]), len(classes), 4)
    if boxes.shape != expected:
        raise UnusableRecordError(
            f"{record.name}: boxes of shape {boxes.shape}; expected {expected}, those of "
            f"{expected[1]} objects in {expected[0]} frames"
        )
    there = (boxes[number] != 0).any(axis=1)
    own = {"boxes": boxes[number][there], "classes": classes[there]}
    one = Record(own, record.id, f"{record.name}, frame {number}")
    return read_objects(one, size, num_classes, on_error=on_error, masks=False)


def _only(features: Mapping[str, Any], name: str, fits: Any) -> str:
    """The feature of that name if it fits, else the only one that does."""
    found = [key for key, feature in features.items() if fits(feature)]
    if name in found:
        return name
    if len(found) != 1:
        several = f"several for {name!r}: {', '.join(found)}" if found else f"none for {name!r}"
        raise ValueError(several)
    return found[0]


def _is_boxes(feature: Any) -> bool:
    shape = getattr(feature, "shape", None) or ()
    plain = isinstance(feature, tfds.features.Tensor) and len(shape) == 3 and shape[2] == 4
    return plain and np.issubdtype(feature.np_dtype, np.floating)


def _is_classes(feature: Any, count: int | None) -> bool:
    if isinstance(feature, tfds.features.Sequence):
        return isinstance(feature.feature, tfds.features.ClassLabel)
    plain = isinstance(feature, tfds.features.Tensor) and feature.shape == (count,)
    return plain and np.issubdtype(feature.np_dtype, np.integer)


def _form(feature: Any) -> str:
    """What a feature is called in the list of all."""
    kind, inner = type(feature).__name__, getattr(feature, "feature", None)
    if inner is not None:
        return f"{kind} of {type(inner).__name__}"
    plain = isinstance(feature, tfds.features.Tensor) and feature.shape
    return f"{kind}{list(feature.shape)}" if plain else kind
