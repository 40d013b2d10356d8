"""Scenes of digits: what is drawn, that its truth is true, that no threshold finds it; and the data
set that is made of them.
"""

import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_helpers import sizes
from pycocotools import mask as run_lengths
from sklearn.datasets import load_digits

from configs import base
from lambdanet import data
from lambdanet.data import (
    decode,
    digit_scenes,
    digits,
    label_maps,
    photographs,
    prepared,
    scene_picture,
    scenes,
    sources,
)

SIZE = (96, 96)
PINNED_ROWS = [724, 1471, 1560, 1287, 581, 140]
PINNED_BOXES = [
    [62, 41, 73, 55],
    [49, 11, 71, 42],
    [57, 59, 74, 87],
    [24, 36, 45, 70],
    [70, 63, 84, 86],
    [33, 48, 50, 75],
]


@pytest.fixture(scope="module")
def drawn():
    """Forty scenes of every split."""
    return {
        split: [scenes.draw(scenes.load_material(split), i, SIZE) for i in range(40)]
        for split in scenes.SPLITS
    }


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """The config section of a small prepared set."""
    config = base.get_config().data
    config.source, config.data_dir = "digit_scenes", str(tmp_path_factory.mktemp("scenes"))
    config.image_size, config.channels = (96, 80), 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "SPLITS", {"train": 12, "validation": 6, "test": 6})
        data.prepare_embedded(config)
    return config


def every(drawn):
    return [scene for of_split in drawn.values() for scene in of_split]


def test_scenes_are_a_pure_function_of_split_index_and_size(drawn):
    for split, found in drawn.items():
        again = scenes.draw(scenes.load_material(split), 17, SIZE)
        assert np.array_equal(again.image, found[17].image)
        assert np.array_equal(again.label_map, found[17].label_map)
    assert len({scene.image.tobytes() for scene in every(drawn)}) == 120
    # Drawn once and written down: the stream never changes.
    assert drawn["test"][3].rows.tolist() == PINNED_ROWS
    assert drawn["test"][3].boxes.astype(int).tolist() == PINNED_BOXES


def test_splits_share_neither_digits_nor_parts_of_the_photographs(drawn):
    target = load_digits().target
    parts = digits.split_rows(target)
    for split, found in drawn.items():
        for scene in found:
            assert set(scene.rows) <= set(parts[split])
            assert np.array_equal(target[scene.rows], scene.labels)
    used = [photographs.PART[split] for split in scenes.SPLITS]
    assert [last for _, last in used[:-1]] == [first for first, _ in used[1:]]
    widths = [[p.shape[1] for p in photographs.parts(split)] for split in scenes.SPLITS]
    assert np.sum(widths, axis=0).tolist() == [640, 640]
    assert np.min(widths) == photographs.NARROWEST
    counts = np.bincount(np.concatenate([scene.labels for scene in every(drawn)]))
    assert len(counts) == 10 and counts.min() > 20


def test_every_digit_is_there_whole_enough(drawn):
    numbers = [len(scene.labels) for scene in every(drawn)]
    assert set(numbers) == {2, 3, 4, 5, 6}
    for scene in every(drawn):
        assert scene.masks.any(axis=(1, 2)).all() and scene.masks.sum(axis=0).max() == 1
        heights = scene.boxes[:, 3] - scene.boxes[:, 1]
        assert heights.min() >= 8 and heights.max() <= 48


def test_the_three_truths_agree(drawn):
    """Label map, masks and boxes: a labelled pixel is in the mask of a digit of its class, all of a
    mask is labelled or at an edge, and a box just holds its mask.
    """
    for scene in every(drawn):
        of_masks = np.zeros(SIZE, int)
        for label, mask, (left, top, right, bottom) in zip(
            scene.labels, scene.masks, scene.boxes.astype(int), strict=True
        ):
            of_masks[mask] = 1 + label
            inside = mask[top:bottom, left:right]
            assert inside.sum() == mask.sum()
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()
        kept = scene.label_map != scenes.IGNORE
        assert np.array_equal(of_masks[kept], scene.label_map[kept])
        assert 0.003 < 1 - kept.mean() < 0.15


def test_the_upper_digit_hides_the_lower_one():
    covers = np.zeros((3, 4, 6), np.float32)
    covers[0, 1], covers[1, :, 2], covers[2, 1, 2:4] = 1.0, 0.9, 0.6
    seen = scenes._visible(covers)
    assert seen[2].sum() == 2 and not seen[1][1, 2] and seen[1].sum() == 3
    assert seen[0].sum() == 4 and (seen.sum(axis=0) <= 1).all()


def test_edges_are_smooth_and_ignored():
    stroke = np.zeros((8, 8))
    stroke[:, 3:5] = 1.0
    for side in scenes.DIGIT:
        line = scenes.coverage(stroke, side)[side // 2]
        between = (line > 0.02) & (line < 0.98)
        assert line.max() > 0.98 and 2 <= between.sum() <= 8
        assert ((line > scenes.BAND[0]) & (line < scenes.BAND[1])).sum() <= 4


def test_no_threshold_finds_the_digits(drawn):
    """The best threshold on any channel, on brightness or on the distance from the image's mean
    colour, for all images together or for each by itself as Otsu would, stays far below a network.
    """
    images = np.stack([s.image for s in drawn["train"]]).astype(float)
    maps = np.stack([s.label_map for s in drawn["train"]])
    kept = maps != scenes.IGNORE
    digit = (maps > 0) & kept
    mean = images.mean(axis=(1, 2), keepdims=True)
    apart = np.linalg.norm(images - mean, axis=-1, keepdims=True)
    values = np.concatenate([images, images.mean(-1, keepdims=True), apart], axis=-1)
    best = 0.0
    for channel in np.moveaxis(values, -1, 0):
        for threshold in range(8, 250, 8):
            for found in (channel > threshold, channel < threshold):
                both = (found & digit).sum()
                best = max(best, both / ((found & kept) | digit).sum())
    assert 0.05 < best < 0.3


def test_the_prepared_set_holds_what_was_drawn(section):
    assert sizes(section) == {"train": 12, "validation": 6, "test": 6}
    builder = data.open_builder(section)
    assert label_maps.find_mask(builder, "image") == ("segmentation_mask", scenes.CLASSES)
    features = {k: k for k in ("image", "segmentation_mask", "objects")}
    source = data.open_source(section, "test", features)
    assert sorted(source.ids()) == list(range(18, 24))
    material = scenes.load_material("test")
    expected = {
        scenes.draw(material, i, (96, 80)).image.tobytes(): scenes.draw(material, i, (96, 80))
        for i in range(6)
    }
    for record in map(source.read, range(6)):
        image = np.asarray(decode.open_image(record.fields["image"]).load())
        scene = expected.pop(image.tobytes())
        found = label_maps.read_label_map(
            record.fields["segmentation_mask"], 11, name=record.name, size=(80, 96)
        )
        assert np.array_equal(found, scene.label_map)
        objects = record.fields["objects"]
        assert np.array_equal(objects["label"], scene.labels) and not any(objects["is_crowd"])
        assert np.array(objects["bbox"]).dtype == np.float32
        assert np.array_equal(objects["bbox"], scene.boxes)
        rles = [{"size": (96, 80), "counts": counts} for counts in objects["mask"]]
        assert np.array_equal(run_lengths.decode(rles).transpose(2, 0, 1) == 1, scene.masks)
        boxes = run_lengths.toBbox(rles)  # left, top, width, height
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(boxes, scene.boxes)
    assert not expected


def test_the_photographers_are_named_in_the_prepared_set(section):
    info = prepared.open_prepared(sources.directory(section)).info
    for text in (info.description, info.citation):
        assert "danielbuechele" in text and "vultilion" in text
        assert "creativecommons.org/licenses/by/2.0" in text
    page = open(os.path.join(os.path.dirname(__file__), "../../docs/digit_scenes.md")).read()
    assert "danielbuechele" in page and "vultilion" in page and "images/digit_scenes.png" in page
    assert all(f"{name} {count}" in page for name, count in scenes.SPLITS.items())
    assert isinstance(info.features["segmentation_mask"], tfds.features.LabeledImage)


@pytest.mark.parametrize("size", [(63, 96), (96, 129)])
def test_canvases_that_cannot_be(tmp_path, size):
    with pytest.raises(ValueError, match="canvas of data.source='digit_scenes'.*64 to 128"):
        digit_scenes.prepare(str(tmp_path), size)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot prepare the digit scenes.*writable"):
        digit_scenes.prepare(str(tmp_path / "file"), SIZE)


def test_the_smallest_canvas_holds_six_digits():
    material = scenes.load_material("train")
    numbers = {len(scenes.draw(material, i, (64, 64)).labels) for i in range(30)}
    assert numbers == {2, 3, 4, 5, 6}


def test_the_picture_of_the_docs_is_drawn(tmp_path, capsys):
    path = tmp_path / "scenes.png"
    assert scene_picture.main([str(path), "--size", "64", "64"]) == 0
    assert b"vultilion" in path.read_bytes()
    assert scene_picture.main([str(path), "--size", "9", "64"]) == 1
    assert "canvas" in capsys.readouterr().err
