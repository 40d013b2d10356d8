"""Objects of pictures: which features of a set they are read from, what is refused, run lengths."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_helpers import jpeg
from pycocotools import mask as coco_masks

from configs import base
from lambdanet import data
from lambdanet.data import objects, run_lengths, scenes, storage
from lambdanet.data.record import Record, UnusableRecordError

SIZE = (40, 30)


def bitmap(seed, size=SIZE):
    """A mask with holes and several parts, uint8 [h, w]."""
    noise = np.random.default_rng(seed).random((size[1] // 3 + 1, size[0] // 3 + 1)) < 0.4
    return noise.repeat(3, axis=0).repeat(3, axis=1)[: size[1], : size[0]].astype(np.uint8)


def record(boxes=((1, 2, 11, 22), (3, 4, 30, 30)), classes=(0, 1), **fields):
    boxes = [np.array(box, np.float32) for box in boxes]
    return Record({"boxes": boxes, "classes": list(classes), **fields}, 7, "record 7, file a.jpg")


def read(found, classes=2, on_error="raise", masks=False):
    return objects.read_objects(found, SIZE, classes, on_error=on_error, masks=masks)


def test_objects_keep_what_is_stored():
    masks = [run_lengths.encode(bitmap(seed)) for seed in (0, 1)]
    fields = dict(crowd=[False, True], area=[9.5, 2.0], masks=masks)
    found = read(record(**fields), masks=True)
    assert found.boxes.dtype == np.float32 and found.boxes.tolist()[1] == [3, 4, 30, 30]
    assert found.classes.dtype == np.int32 and found.crowd.tolist() == [False, True]
    assert found.area.tolist() == [9.5, 2.0] and found.masks == tuple(masks)
    assert read(record(**fields)).masks is None
    del fields["area"]
    assert read(record(**fields)).area.tolist() == [bitmap(0).sum(), bitmap(1).sum()]
    assert read(record(difficult=[True, False])).crowd.tolist() == [True, False]
    assert read(record()).area.tolist() == [200, 702]
    assert len(read(record((), ()))) == 0 and read(record((), ())).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((np.nan, 2, 11, 22), r"object 1: box \(nan, 2, 11, 22\) is not made of finite numbers"),
        ((1, 2, np.inf, 22), "not made of finite numbers"),
        ((5, 2, 5, 22), r"box \(5, 2, 5, 22\) has no area: it is 0 wide and 20 high"),
        ((5, 22, 9, 2), "has no area: it is 4 wide and -20 high"),
        ((50, 2, 60, 22), r"lies outside of the picture, which is 40 x 30"),
        ((40, 2, 40.5, 22), "lies outside"),
        ((1, 2, 42, 22), r"box \(1, 2, 42, 22\) ends outside of the picture, which is 40 x 30"),
    ],
)
def test_boxes_that_cannot_be_are_named_or_left_out(box, reason, caplog):
    wrong = record(((1, 2, 11, 22), box), (0, 1))
    with pytest.raises(UnusableRecordError, match=f"record 7, file a.jpg: .*{reason}"):
        read(wrong)
    objects.TALLY.said.clear()
    with caplog.at_level(logging.WARNING):
        found = read(wrong, on_error="skip")
        read(wrong, on_error="skip")
    mended = "ends" in reason
    assert found.boxes.tolist() == [[1, 2, 11, 22]] + [[1, 2, 40, 22]] * mended
    said = [line for line in caplog.messages if "record 7" in line]
    assert len(said) == 1 and "so far" in said[0]


def test_rounding_at_the_border_and_the_whole_picture_are_right():
    boxes = ((-1, 0, 40.5, 30), (0, 0, 40, 30), (39, 29, 40, 30))
    assert read(record(boxes, (0, 0, 0))).boxes.tolist() == [list(map(float, b)) for b in boxes]


@pytest.mark.parametrize("label", [-1, 2, 2**40])
def test_classes_beyond_the_data_are_named_or_left_out(label):
    wrong = record(classes=(label, 1))
    with pytest.raises(UnusableRecordError, match=r"object 0: class .*; allowed: 0 to 1 \(2 clas"):
        read(wrong)
    assert read(wrong, on_error="skip").classes.tolist() == [1]
    twice = record(((1, 2, 42, 22), (3, 4, 30, 30)), (label, 1))
    assert read(twice, on_error="skip").classes.tolist() == [1]  # cutting does not mend a class


def test_masks_of_another_size_and_damaged_ones():
    right = run_lengths.encode(bitmap(0))
    for counts, reason in (
        (run_lengths.encode(bitmap(0, (41, 30))), "object 1: a mask of 1230 pixels.*40 x 30"),
        (right[:-1], "object 1: a mask"),
        (b"", "cannot be read"),
        (b"\x01\x02", "cannot be read"),
    ):
        wrong = record(masks=[right, counts])
        with pytest.raises(UnusableRecordError, match=reason):
            read(wrong, masks=True)
        assert read(wrong, on_error="skip", masks=True).masks == (right,)
    with pytest.raises(UnusableRecordError, match="has no masks.*detection.masks=False"):
        read(record(), on_error="skip", masks=True)
    with pytest.raises(UnusableRecordError, match=r"2 classes, but \{'crowd': 3\}"):
        read(record(crowd=[False] * 3), on_error="skip")


def test_totals_of_run_lengths():
    rng = np.random.default_rng(0)
    for seed in range(40):
        size = tuple(rng.integers(1, 60, 2).tolist())
        mask = bitmap(seed, size) if seed % 2 else (rng.random(size[::-1]) < 0.05)
        counts = run_lengths.encode(mask)
        assert run_lengths.total(counts) == mask.size
        assert np.array_equal(run_lengths.decode(counts, size), mask)
        assert run_lengths.area(counts, size) == mask.sum()
    large = coco_masks.encode(np.ones((3000, 4000), np.uint8, order="F"))["counts"]
    assert run_lengths.total(large) == 12_000_000


# ---- Data sets -----------------------------------------------------------------------------------


class Boxed(tfds.core.GeneratorBasedBuilder):
    """A set with the features of TFDS's coco or voc."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, name, more, *, data_dir):
        self.name, self.more = name, more
        super().__init__(data_dir=data_dir)

    def _info(self):
        kinds = {k: np.int64 if k in ("area", "id") else np.bool_ for k in self.more}
        objects = {"bbox": tfds.features.BBoxFeature(), **kinds}
        objects["label"] = tfds.features.ClassLabel(num_classes=80)
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples()}

    def _generate_examples(self):
        box = tfds.features.BBox(ymin=0.1, xmin=0.25, ymax=0.5, xmax=1.0)
        values = {"bbox": box, "label": 79, **{k: int("is" in k) or 55 for k in self.more}}
        for n, found in enumerate(([values], [])):
            name = f"{n}.jpg"
            image = jpeg((200, 0, 0), SIZE)
            yield n, {"image": image, "image/filename": name, "image/id": 41 + n, "objects": found}


@pytest.mark.parametrize(
    ("name", "more"),
    [("coco", ("is_crowd", "area", "id")), ("voc", ("is_difficult", "is_truncated"))],
)
def test_sets_of_tfds_are_read_as_they_are(name, more, tmp_path):
    assert storage.prepare_atomically(
        lambda scratch: Boxed(name, more, data_dir=scratch), tmp_path / name
    )
    section = base.get_config().data
    section.source, section.data_dir = "tfds", str(tmp_path / name)
    info = objects.read(data.open_builder(section))
    assert len(info.classes) == 80
    assert info.class_ids[-1:] == ((90,) if name == "coco" else ())
    assert len(info.class_ids) == (80 if name == "coco" else 0)
    source = data.open_source(section, "validation", info.features)
    first = source.read(0)
    assert first.id == 41 and "file 0.jpg" in first.name
    found = objects.read_objects(first, SIZE, 80, on_error="raise", masks=False)
    np.testing.assert_allclose(found.boxes, [[10, 3, 40, 15]], rtol=1e-6)
    assert found.classes.tolist() == [79] and found.crowd.tolist() == [True]
    assert found.area.tolist() == [55 if name == "coco" else pytest.approx(360)]
    assert len(objects.read_objects(source.read(1), SIZE, 80, on_error="raise", masks=False)) == 0


def test_digit_scenes_are_read_as_they_are(tmp_path, monkeypatch):
    section = base.get_config().data
    section.source, section.data_dir = "digit_scenes", str(tmp_path)
    section.image_size = (96, 80)
    monkeypatch.setattr(scenes, "SPLITS", {"train": 3, "validation": 1, "test": 1})
    data.prepare_embedded(section)
    info = objects.read(data.open_builder(section))
    assert info.classes == tuple("0123456789") and info.class_ids == ()
    source = data.open_source(section, "train", info.features)
    scene = scenes.draw(scenes.load_material("train"), 2, (96, 80))
    found = [
        objects.read_objects(source.read(i), (80, 96), 10, on_error="raise", masks=True)
        for i in range(3)
    ]
    found = next(f for f in found if np.array_equal(f.boxes, scene.boxes))
    assert found.classes.tolist() == scene.labels.tolist() and not found.crowd.any()
    masks = [run_lengths.decode(m, (80, 96)) for m in found.masks]
    assert np.array_equal(masks, scene.masks)
    assert found.area.tolist() == scene.masks.sum(axis=(1, 2)).tolist()


def fake(features, directory=".", name="mine"):
    info = SimpleNamespace(features=features, name=name)
    return SimpleNamespace(info=info, data_dir=str(directory))


def test_sets_without_objects_are_refused_with_their_features():
    image, label = tfds.features.Image(), tfds.features.ClassLabel(names=["a", "b"])
    plain = {"image": image, "objects": tfds.features.Sequence({"label": label})}
    with pytest.raises(ValueError, match="needs a feature 'objects'.*image: Image, objects: Seq"):
        objects.read(fake(plain))
    box = tfds.features.BBoxFeature(bbox_format="XYWH")
    wrong = {"image": image, "things": tfds.features.Sequence({"bbox": box, "label": label})}
    with pytest.raises(ValueError, match="things/bbox has boxes in the format XYWH; allowed: REL"):
        objects.read(fake(wrong))


def test_original_numbers_of_classes_are_read_and_compared(tmp_path):
    label = tfds.features.ClassLabel(names=["cat", "dog"])
    box = tfds.features.Tensor(shape=(4,), dtype=np.float32)
    features = {
        "image": tfds.features.Image(),
        "things": tfds.features.Sequence({"bbox": box, "label": label}),
    }
    file = tmp_path / objects.CATEGORIES
    file.write_text(json.dumps([{"id": 3, "name": "cat"}, {"id": 17, "name": "dog"}]))
    info = objects.read(fake(features, tmp_path))
    assert info.class_ids == (3, 17) and info.features["boxes"] == "things/bbox"
    file.write_text(json.dumps([{"id": 3, "name": "dog"}, {"id": 17, "name": "cat"}]))
    with pytest.raises(ValueError, match="categories.json names 2 categories, and they are not"):
        objects.read(fake(features, tmp_path))
    file.write_text("[{}]")
    with pytest.raises(ValueError, match="categories.json cannot be read"):
        objects.read(fake(features, tmp_path))
