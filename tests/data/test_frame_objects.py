"""Objects of frames: which features of a set they are, and what of a record is in a frame."""

import types

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lambdanet.data import frame_objects
from lambdanet.data.moving_digits import MovingDigits
from lambdanet.data.record import Record, UnusableRecordError

F = tfds.features
FRAMES = F.Sequence(F.Image(shape=(8, 8, 3)))
NAMES = ["cat", "dog"]


def builder(**features):
    info = types.SimpleNamespace(features={"frames": FRAMES, **features})
    return types.SimpleNamespace(info=info, data_dir="the set")


def test_the_features_of_moving_digits(tmp_path):
    found = frame_objects.read(MovingDigits((64, 64), data_dir=str(tmp_path)))
    assert found.features == {"frames": "frames", "boxes": "boxes", "classes": "digits"}
    assert found.classes == tuple("0123456789")


@pytest.mark.parametrize(
    "features",
    [
        dict(
            tracks=F.Tensor(shape=(None, 3, 4), dtype=np.float32),
            kinds=F.Sequence(F.ClassLabel(names=NAMES), length=3),
        ),
        dict(
            tracks=F.Tensor(shape=(5, 3, 4), dtype=np.float64),
            kinds=F.Tensor(shape=(3,), dtype=np.int64),
            other=F.Tensor(shape=(5,), dtype=np.int64),
            what=F.ClassLabel(names=NAMES),
        ),
        dict(
            tracks=F.Tensor(shape=(5, 3, 4), dtype=np.float32),
            more=F.Tensor(shape=(3,), dtype=np.int64),
            classes=F.Tensor(shape=(3,), dtype=np.int64),
            label=F.ClassLabel(names=NAMES),
            weather=F.ClassLabel(names=["fair"]),
        ),
    ],
)
def test_other_sets_of_that_form(features):
    found = frame_objects.read(builder(**features))
    kinds = "classes" if "classes" in features else "kinds"
    assert found.features == {"frames": "frames", "boxes": "tracks", "classes": kinds}
    assert found.classes == ("cat", "dog")


BOXES = F.Tensor(shape=(5, 3, 4), dtype=np.float32)
KINDS = F.Sequence(F.ClassLabel(names=NAMES))


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (dict(kinds=KINDS), "none for 'boxes'"),
        (dict(boxes=F.Tensor(shape=(5, 3, 4), dtype=np.int64), kinds=KINDS), "none for 'boxes'"),
        (dict(a=BOXES, b=BOXES, kinds=KINDS), "several for 'boxes': a, b"),
        (dict(boxes=BOXES), "none for 'classes'"),
        (dict(boxes=BOXES, kinds=F.Tensor(shape=(4,), dtype=np.int64)), "none for 'classes'"),
        (dict(boxes=BOXES, kinds=F.Tensor(shape=(3,), dtype=np.int64)), "none for 'label'"),
        (dict(boxes=BOXES, a=KINDS, b=KINDS), "several for 'classes': a, b"),
    ],
)
def test_sets_of_other_forms_are_refused_with_their_features(features, reason):
    with pytest.raises(ValueError) as raised:
        frame_objects.read(builder(**features))
    text = str(raised.value)
    assert "the set needs a sequence of images" in text and reason in text
    assert all(f"{name}: {type(f).__name__}" in text for name, f in features.items())


def record(**changes):
    fields = {
        "frames": [b""] * 2,
        "boxes": np.array([[[1, 2, 5, 6], [0, 0, 0, 0]], [[2, 2, 6, 6], [0, 1, 3, 4]]], np.float32),
        "classes": np.array([1, 0]),
    }
    return Record({**fields, **changes}, 3, "record 3")


def read(record, number):
    return frame_objects.read_frame(record, number, (8, 8), 2, on_error="raise")


def test_the_objects_of_a_frame():
    first, second = read(record(), 0), read(record(), 1)
    assert first.boxes.tolist() == [[1, 2, 5, 6]] and first.classes.tolist() == [1]
    assert second.boxes.tolist() == [[2, 2, 6, 6], [0, 1, 3, 4]]
    assert second.classes.tolist() == [1, 0] and second.area.tolist() == [16, 9]
    assert not second.crowd.any() and second.masks is None


def test_wrong_objects_are_refused_with_the_frame():
    with pytest.raises(UnusableRecordError, match=r"shape \(2, 2, 4\); expected \(3, 2, 4\)"):
        read(record(frames=[b""] * 3), 0)
    boxes = record().fields["boxes"].copy()
    boxes[1, 0, 2] = 2
    with pytest.raises(UnusableRecordError, match="record 3, frame 1: object 0: .* has no area"):
        read(record(boxes=boxes), 1)
    with pytest.raises(UnusableRecordError, match="frame 1: object 1: class 2; allowed: 0 to 1"):
        read(record(classes=np.array([1, 2])), 1)
