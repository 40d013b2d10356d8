"""Examples of detection: pictures and objects move together, in fixed shapes; what is cut off."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import base
from lambdanet import data
from lambdanet.data import box_geometry, decode, detection_examples, geometry, objects, run_lengths
from lambdanet.data.record import DataInfo, Record, UnusableRecordError

CANVAS = (48, 64)
INFO = DataInfo({"image": "image", "boxes": "objects/bbox"}, ("cat", "dog"))
TRAINING = {"image", "image_shape", "boxes", "classes", "valid", "crowd", "masks"}
TRUTH = {"original_shape", "true_boxes", "area", "mask_counts"}


def settings(masks=True, most=8, mask_bytes=2000, **values):
    config = base.get_config()
    config.data.image_size, config.data.channels = CANVAS, 3
    config.data.mean, config.data.std = (0.2, 0.4, 0.6), (0.5,) * 3
    config.data.update(values)
    plain = data.attributes(config)
    plain.detection = SimpleNamespace(max_objects=most, masks=masks, mask_bytes=mask_bytes)
    return plain


def ellipses(size, count, seed=0):
    """Boxes and masks of ellipses in a picture of (width, height): tight boxes [n, 4], masks."""
    rng, (width, height) = np.random.default_rng(seed), size
    y, x = np.mgrid[:height, :width] + 0.5
    boxes, masks = [], []
    while len(masks) < count:
        middle, radii = rng.uniform(0, size), rng.uniform(0.1, 0.4, 2) * size
        mask = ((x - middle[0]) / radii[0]) ** 2 + ((y - middle[1]) / radii[1]) ** 2 < 1
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            masks.append(mask)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(masks).reshape(-1, height, width)


def record(size=(90, 70), count=4, seed=0, **more):
    """A picture whose red and green say where a pixel comes from, with ellipses on it."""
    width, height = size
    boxes, masks = ellipses(size, count, seed)
    y, x = np.mgrid[:height, :width]
    fields = {
        "image": np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8),
        "boxes": list(boxes),
        "classes": [i % 2 for i in range(count)],
        "masks": [run_lengths.encode(mask) for mask in masks],
    }
    return Record(fields | more, 3, "record 3"), masks


def example(found, config, seed=0):
    rng = None if seed is None else np.random.default_rng(seed)
    return detection_examples.detection_example(found, INFO, config, rng)


def paste(crop, box, shape):
    """The mask on a canvas: a pixel is set if the part of the crop at its middle is."""
    side, canvas = len(crop), np.zeros(shape, bool)
    left, top, right, bottom = box
    rows = np.arange(int(np.ceil(top - 0.5)), int(np.ceil(bottom - 0.5)))
    columns = np.arange(int(np.ceil(left - 0.5)), int(np.ceil(right - 0.5)))
    v = ((rows + 0.5 - top) / (bottom - top) * side).astype(int).clip(0, side - 1)
    u = ((columns + 0.5 - left) / (right - left) * side).astype(int).clip(0, side - 1)
    canvas[rows[:, None], columns] = crop[v[:, None], u]
    return canvas


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def test_the_batch_has_the_shapes_of_the_contract_in_every_form():
    config = settings(crop="scale_crop", flip=0.5)
    shapes = {
        "image": ((48, 64, 3), np.uint8),
        "image_shape": ((2,), np.int32),
        "boxes": ((8, 4), np.float32),
        "classes": ((8,), np.int32),
        "valid": ((8,), bool),
        "crowd": ((8,), bool),
        "masks": ((8, 112, 112), np.uint8),
        "original_shape": ((2,), np.int32),
        "true_boxes": ((8, 4), np.float32),
        "area": ((8,), np.float32),
        "mask_counts": ((2000,), np.uint8),
    }
    for count in (0, 1, 5):
        for seed, names in ((0, TRAINING), (None, TRAINING | TRUTH)):
            found = example(record(count=count)[0], config, seed)
            assert set(found) == names
            assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
                k: shapes[k] for k in names
            }
            valid = found["valid"]
            assert all(not found[k][~valid].any() for k in ("boxes", "classes", "crowd", "masks"))
    blank = detection_examples.blank(config)
    assert {k: (v.shape, v.dtype) for k, v in blank.items()} == shapes and not blank["valid"].any()
    config.detection.masks = False
    without = TRAINING | TRUTH - {"mask_counts"} - {"masks"}
    assert set(example(record()[0], config, None)) == without - {"masks"}
    assert set(detection_examples.blank(config)) == without - {"masks"}


@pytest.mark.parametrize("crop", box_geometry.CROPS)
@pytest.mark.parametrize("size", [(90, 70), (200, 20), (20, 200), (30, 30)])
def test_pictures_boxes_and_masks_stay_together(crop, size):
    """A mask on the canvas is the picture's mask, warped; its box is tight around it; the colours
    inside say that the picture lies there.
    """
    config = settings(crop=crop, flip=0.5, scale_range=(0.5, 3.0), image_size=(96, 128))
    kept = 0
    for seed in range(12):
        found, masks = record(size, 3, seed)
        made = example(found, config, seed)
        rng = np.random.default_rng(seed)
        drawn = box_geometry.draw(size, config.data, rng)
        assert tuple(made["image_shape"]) == drawn.size
        height, width = drawn.size
        assert (made["image"][height:] == (51, 102, 153)).all()
        assert (made["image"][:, width:] == (51, 102, 153)).all()
        warped = [geometry.warp_labels(m.astype(np.uint8), drawn) > 0 for m in masks]
        scale = height / (drawn.box[3] - drawn.box[1])
        boxes = made["boxes"][made["valid"]]
        assert (boxes >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes <= [width, height, width, height]).all()
        for box, crop_, label in zip(boxes, made["masks"], made["classes"], strict=False):
            pasted = paste(crop_, box, (height, width))
            overlaps = [iou(pasted, w) for w in warped]
            best = int(np.argmax(overlaps))
            assert label == best % 2
            if min(box[2:] - box[:2]) < 6:
                continue
            kept += 1
            assert overlaps[best] > 0.8
            rows = np.flatnonzero(warped[best].any(1))
            columns = np.flatnonzero(warped[best].any(0))
            tight = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert np.abs(box - tight).max() <= 1 + scale
    assert kept > 5


@pytest.mark.parametrize("crop", geometry.CROPS)
def test_boxes_follow_every_geometry_and_come_back(crop):
    """The corners of a box go where the label map's pixels go."""
    section = settings(flip=0.5, shift=3, crop=crop, scale_range=(0.7, 2.0)).data
    for seed in range(10):
        drawn = geometry.draw((50, 40), section, np.random.default_rng(seed))
        labels = np.zeros((40, 50), np.uint8)
        labels[10:30, 15:40] = 1
        seen = geometry.warp_labels(labels, drawn) == 1
        box = np.array([[15, 10, 40, 30]], np.float32)
        moved = box_geometry.warp_boxes(box, drawn)
        np.testing.assert_allclose(box_geometry.unwarp_boxes(moved, drawn), box, atol=1e-9)
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        left, top, right, bottom = drawn.valid_box
        clipped = np.clip(moved[0], (left, top) * 2, (right, bottom) * 2)
        assert np.abs(clipped - tight).max() <= 1 + 3 * (crop == "shift")


def test_evaluation_keeps_every_object_and_its_exact_truth():
    boxes = [np.array(b, np.float32) for b in ((0, 0, 900, 90), (5, 5, 6, 6), (-0.5, 3, 20, 9))]
    masks = np.zeros((3, 90, 900), bool)
    masks[0], masks[1, 5, 5], masks[2, 3:9, :20] = True, True, True
    counts = [run_lengths.encode(m) for m in masks]
    image = np.zeros((90, 900, 3), np.uint8)
    more = dict(image=image, boxes=boxes, classes=[0, 1, 0], masks=counts, crowd=[0, 0, 1])
    found = example(Record({**more, "area": [7.5, 1, 2]}, 0, "r"), settings(), None)
    assert found["image_shape"].tolist() == [6, 64] and found["original_shape"].tolist() == [
        90,
        900,
    ]
    assert found["valid"].sum() == 3 and found["crowd"].tolist()[:3] == [False, False, True]
    assert np.array_equal(found["true_boxes"][:3], boxes)
    assert found["area"].tolist()[:3] == [7.5, 1, 2]
    np.testing.assert_allclose(found["boxes"][0], (0, 0, 64, 6), atol=1e-5)
    np.testing.assert_allclose(found["boxes"][1], np.array((5, 5, 6, 6)) * 64 / 900, rtol=0.07)
    assert found["masks"][:2].all()
    stored = bytes(found["mask_counts"]).rstrip(b"\0").split(b"\n")
    assert stored == counts


def test_crops_cut_boxes_and_masks_and_leave_out_what_is_gone():
    mask = np.zeros((40, 80), bool)
    mask[5:35, 10:20] = mask[30:35, 10:70] = True  # an L: half of its box has no pixel
    gone = np.zeros_like(mask)
    gone[10:20, 72:78] = True
    sliver = np.zeros_like(mask)
    sliver[2:9, 39:60] = True
    boxes = np.array([(10, 5, 70, 35), (72, 10, 78, 20), (39, 2, 60, 9)], np.float32)
    counts = tuple(run_lengths.encode(m) for m in (mask, gone, sliver))
    zeros = np.zeros(3, np.int32)
    found = objects.Objects(boxes, np.arange(3, dtype=np.int32), zeros > 0, boxes[:, 0], counts)
    right = geometry.Geometry((30, 0, 80, 40), (80, 100), "bilinear")  # without the L's upright
    moved, crops = box_geometry.warp_objects(found, (80, 40), right)
    assert moved.boxes[0].tolist() == [0, 60, 80, 70]  # the box is drawn anew around its foot
    assert crops[0].all() and moved.classes.tolist() == [0, 1, 2]
    left = geometry.Geometry((0, 0, 39.5, 40), (40, 39), "bilinear", flip=True)
    moved, crops = box_geometry.warp_objects(found, (80, 40), left)
    assert moved.classes.tolist() == [0] and crops[0, :, -30:].any()
    np.testing.assert_allclose(moved.boxes[0], (0, 5, 39 - 10 * 39 / 39.5, 35), 1e-6)
    boxes_only, none = box_geometry.warp_objects(
        objects.Objects(boxes, zeros, zeros > 0, boxes[:, 0]), (80, 40), right
    )
    assert none is None and boxes_only.boxes[0].tolist() == [0, 10, 80, 70]


def test_bitmaps_lose_little_of_a_mask():
    """IoU of masks that went through bitmaps of 112 x 112 with the masks themselves: what is
    smaller than the bitmap comes back whole; of the rest, the border moves by half a cell.
    """
    lost = {}
    for side in (16, 60, 112, 200, 400):
        size = (side * 2, side * 2)
        boxes, masks = ellipses(size, 12, side)
        for box, mask in zip(boxes, masks, strict=True):
            crop = box_geometry.crop_mask(mask.astype(np.uint8), box)
            smaller = min(box[2:] - box[:2]) < 4
            found = paste(crop, box, mask.shape)
            lost.setdefault(side, []).append(0 if smaller else 1 - iou(found, mask))
    means = {side: np.mean(values) for side, values in lost.items()}
    assert max(lost[16]) == 0 and max(lost[60]) < 0.03
    assert all(mean < 0.01 for mean in means.values()), means
    assert max(max(values) for values in lost.values()) < 0.03


def test_too_many_objects(caplog):
    config = settings(most=3)
    found, _ = record(count=5)
    objects.TALLY.said.clear()
    made = example(found, config)
    whole = example(found, settings(most=5))["boxes"]
    areas = np.prod(whole[:, 2:] - whole[:, :2], axis=1)
    assert made["boxes"].tolist() == whole[np.sort(np.argsort(-areas)[:3])].tolist()
    assert any("record 3: more objects than detection.max_objects=3" in m for m in caplog.messages)
    with pytest.raises(UnusableRecordError, match="5 objects, but detection.max_objects=3.*=5 or"):
        example(found, config, None)
    with pytest.raises(
        UnusableRecordError, match="masks need .* bytes, but detection.mask_bytes=9"
    ):
        example(found, settings(mask_bytes=9), None)


def test_wrong_objects_follow_on_error():
    found, _ = record(classes=[0, 1, 2, 1])
    with pytest.raises(UnusableRecordError, match="record 3: object 2: class 2; allowed: 0 to 1"):
        example(found, settings())
    assert example(found, settings(on_error="skip"))["valid"].sum() == 3


def test_examples_are_a_pure_function_of_the_generator():
    config = settings(crop="scale_crop", flip=0.5, photometric_distortion=True)
    found, _ = record()
    first, again = example(found, config, 5), example(found, config, 5)
    assert all(np.array_equal(first[k], again[k]) for k in first)
    plain = settings()
    one, other = example(found, plain, 1), example(found, plain, None)
    assert all(np.array_equal(one[k], other[k]) for k in one)  # what is off draws nothing


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_transparent_and_palette_pictures(mode, channels):
    buffer = io.BytesIO()
    Image.new(mode, (90, 70), 7 if mode == "P" else None).save(buffer, "PNG")
    mean = (0.5,) * channels
    config = settings(crop="scale_crop", channels=channels, mean=mean, std=mean)
    for seed in (0, None):
        made = example(record(image=buffer.getvalue())[0], config, seed)
        assert made["image"].shape == (*CANVAS, channels)
    assert decode.open_image(buffer.getvalue()).size == (90, 70)


@pytest.mark.parametrize("seed", [0, None])
def test_jpegs_that_are_decoded_at_a_part_of_their_size(seed):
    """What a JPEG is decoded at, to save time, is not its size; boxes and masks are in that."""
    buffer, turned = io.BytesIO(), io.BytesIO()
    _, masks = record((400, 300), 3)
    image = Image.fromarray(masks[0].astype(np.uint8) * 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # upright again by a quarter turn
    image.rotate(90, expand=True).save(turned, "JPEG", exif=exif)
    image.save(buffer, "JPEG")
    for value in (buffer.getvalue(), turned.getvalue()):
        made = example(record((400, 300), 3, image=value)[0], settings(flip=1.0), seed)
        height, width = made["image_shape"]
        seen = made["image"][:height, :width, 0] > 128
        pasted = paste(made["masks"][0], made["boxes"][0], (height, width))
        assert made["valid"].sum() == 3 and iou(pasted, seen) > 0.95
        if seed is None:
            assert made["original_shape"].tolist() == [300, 400]


def test_other_crops_are_refused():
    with pytest.raises(ValueError, match="data.crop='shift' is not for boxes; allowed in detect"):
        example(record()[0], settings(crop="shift", shift=2))


def test_large_scale_jitter_draws_uniformly_from_the_range():
    section = settings(crop="scale_crop", scale_range=(0.5, 2.0)).data
    found = [box_geometry.draw((128, 96), section, np.random.default_rng(s)) for s in range(1500)]
    scales = np.array([f.size[0] / (f.box[3] - f.box[1]) for f in found]) * 2  # fitted: a half
    assert np.abs(np.histogram(scales, 3, (0.5, 2.0))[0] - 500).max() < 80
    assert all(f.pad == (0, 0) and f.size <= CANVAS for f in found)
    lefts = [f.box[0] / (128 - f.box[2] + f.box[0]) for f in found if f.box[2] - f.box[0] < 100]
    assert min(lefts) == 0 and abs(np.mean(lefts) - 0.5) < 0.05


def test_synthetic_records_have_objects():
    section = base.get_config().data
    section.source, section.image_size = "synthetic", CANVAS
    info = objects.read(data.open_builder(section))
    source = data.open_source(section, "train", info.features)
    config = settings()
    counts = set()
    for index in range(12):
        made = detection_examples.detection_example(source.read(index), info, config, None)
        counts.add(int(made["valid"].sum()))
        assert made["masks"][made["valid"]].all()
    assert {0, 4} <= counts
    plain = data.open_source(section, "train", {"image": "image", "label": "label"}).read(3)
    assert np.array_equal(plain.fields["image"], source.read(3).fields["image"])
