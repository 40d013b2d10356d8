"""Clips of moving digits: what is drawn, that the flow is exact, that no frame alone says which
digit moves; and the data set that is made of them.
"""

import io
import os
import re

import numpy as np
import pytest
from data_helpers import sizes
from PIL import Image, ImageSequence
from sklearn.datasets import load_digits

from configs import base
from lambdanet import data
from lambdanet.data import (
    decode,
    digits,
    label_maps,
    moving_digits,
    moving_picture,
    moving_plan,
    moving_scenes,
    photographs,
    prepared,
    sources,
)

SIZE = (64, 64)
PINNED_ROWS = [1513, 768, 1322]
PINNED_BOXES = [[21, 36, 32, 52], [31, 22, 42, 38], [30, 7, 41, 28]]


@pytest.fixture(scope="module")
def drawn():
    """Twenty clips of every split."""
    return {
        split: [moving_scenes.draw(moving_scenes.load_material(split), i, SIZE) for i in range(20)]
        for split in moving_scenes.SPLITS
    }


def every(drawn):
    return [clip for of_split in drawn.values() for clip in of_split]


def test_clips_are_a_pure_function_of_split_index_and_size(drawn):
    for split, found in drawn.items():
        again = moving_scenes.draw(moving_scenes.load_material(split), 13, SIZE)
        assert np.array_equal(again.frames, found[13].frames)
        assert np.array_equal(again.label_map, found[13].label_map)
    assert len({clip.frames.tobytes() for clip in every(drawn)}) == 60
    # Drawn once and written down: the stream never changes.
    assert drawn["test"][3].rows.tolist() == PINNED_ROWS
    assert drawn["test"][3].boxes[5].astype(int).tolist() == PINNED_BOXES


def test_splits_share_neither_digits_nor_parts_of_the_photographs(drawn):
    target = load_digits().target
    parts = digits.split_rows(target)
    for split, found in drawn.items():
        assert [clip.label for clip in found] == [*range(10)] * 2
        for clip in found:
            assert set(clip.rows) <= set(parts[split])
            assert np.array_equal(target[clip.rows], clip.digits)
            assert len(set(clip.digits)) == 3
    used = [photographs.PART[split] for split in moving_scenes.SPLITS]
    assert [last for _, last in used[:-1]] == [first for first, _ in used[1:]]


def test_every_digit_is_inside_and_only_one_moves_by_itself(drawn):
    kinds = np.zeros(3, int)
    for clip in every(drawn):
        own = (clip.motion[:, 1:] != clip.motion[:, :1]).any(-1)
        assert own[:, clip.moving].all() and own.sum() == len(own)
        assert np.array_equal(np.diff(clip.boxes[..., :2], axis=0), clip.motion[:, 1:])
        assert clip.boxes.min() >= 0 and clip.boxes.max() <= 64
        assert np.abs(clip.motion[:, 0]).max() == moving_plan.PAN
        kinds += np.bincount(clip.damage, minlength=3)
        whole = clip.damage == 0
        assert np.array_equal(clip.frames[whole], clip.sharp[whole])
        assert all((clip.frames[t] != clip.sharp[t]).any() for t in np.flatnonzero(~whole))
        assert all(set(np.unique(m)) <= {0, 255, *(1 + clip.digits)} for m in clip.label_map)
        assert 0.005 < (clip.label_map == 255).mean() < 0.08
    assert (kinds[1:] > 40).all() and kinds[0] > 250


def warp(key, flow):
    """out(y, x) = key(y + dy, x + dx) in float64, bilinear, zeros outside."""
    height, width = flow.shape[:2]
    padded = np.zeros((height + 2, width + 2, *key.shape[2:]))
    padded[1:-1, 1:-1] = key
    y, x = np.indices((height, width)) + 1.0 + flow[..., ::-1].astype(float).transpose(2, 0, 1)
    y, x = np.clip(y, 0, height + 0.999), np.clip(x, 0, width + 0.999)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - top)[..., None], (x - left)[..., None]
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def test_the_flow_is_exact_both_ways(drawn):
    """Warped by the flow, the other frame gives the very pixels and classes of this one; what is
    left out are edges, borders, and what another digit hides.
    """
    for clip in drawn["train"][:6] + drawn["test"][:3]:
        for towards in (1, -1):
            flows, valid = moving_scenes.flow(clip, towards)
            last = 7 if towards == 1 else 0
            assert not valid[last].any() and not flows[last].any()
            for t in range(max(0, -towards), 8 - max(0, towards)):
                seen, other = valid[t], t + towards
                back = warp(clip.sharp[other].astype(float), flows[t])
                assert np.array_equal(back[seen], clip.sharp[t][seen])
                labels = warp(clip.label_map[other][..., None].astype(float), flows[t])[..., 0]
                labelled = seen & (clip.label_map[other] != 255)
                assert np.array_equal(labels[seen], clip.label_map[t][seen])
                assert labelled.any() and seen.mean() > 0.85
                # The moving digit is among it, and standing still does not do.
                own = seen & (clip.owners[t] == 1 + clip.moving)
                assert own.sum() > 5
                assert (clip.sharp[other][own] != clip.sharp[t][own]).any()


def test_one_frame_says_nothing_about_which_digit_moves():
    """For every frame and every other digit there is a plan, as likely, that has the same frame,
    to the bit, and another label: the best guess from a frame is one of the digits shown.
    """
    material, labels = moving_scenes.load_material("train"), set()
    for index in range(3):
        plan = moving_plan.plan(material, index, SIZE)
        clip = moving_scenes.render(plan, material, SIZE)
        for frame in range(moving_scenes.FRAMES):
            for digit in range(moving_scenes.COUNT):
                other = moving_plan.swapped(plan, frame, digit)
                if digit == plan.moving:
                    assert np.array_equal(other.phases, plan.phases)
                    continue
                # phases are all that differs, and they are uniform
                back = moving_plan.swapped(other, frame, plan.moving)
                assert np.array_equal(back.phases, plan.phases)
                assert ((0 <= other.phases) & (other.phases < moving_plan.PERIOD)).all()
                found = moving_scenes.render(other, material, SIZE)
                assert np.array_equal(found.frames[frame], clip.frames[frame])
                assert not np.array_equal(found.frames, clip.frames)
                assert found.label == clip.digits[digit] != clip.label
                labels.add(found.label)
    assert len(labels) > 3


def test_ways_never_rest():
    phases = np.arange(moving_plan.PERIOD + 1)
    steps = np.diff(moving_plan.swing(phases))
    assert set(np.abs(steps)) == {moving_plan.STEP}
    assert moving_plan.swing(phases).min() == -moving_plan.swing(phases).max()


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """The config section of a small prepared set."""
    config = base.get_config().data
    config.source, config.data_dir = "moving_digits", str(tmp_path_factory.mktemp("clips"))
    config.image_size, config.channels = (64, 72), 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_scenes, "SPLITS", {"train": 4, "validation": 2, "test": 2})
        data.prepare_embedded(config)
    return config


def test_the_prepared_set_holds_what_was_drawn(section):
    assert sizes(section) == {"train": 4, "validation": 2, "test": 2}
    names = ("frames", "label", "segmentation_mask", "flow_next", "flow_back", "boxes", "damage")
    source = data.open_source(section, "test", {k: k for k in (*names, "digits", "moving")})
    assert sorted(source.ids()) == [6, 7]
    material = moving_scenes.load_material("test")
    for record in map(source.read, range(2)):
        clip, found = moving_scenes.draw(material, record.id - 6, (64, 72)), record.fields
        assert all(isinstance(frame, bytes) for frame in found["frames"])
        frames = [np.asarray(decode.open_image(f).load()) for f in found["frames"]]
        assert np.array_equal(frames, clip.frames) and found["label"] == clip.label
        for stored, label_map in zip(found["segmentation_mask"], clip.label_map, strict=True):
            read = label_maps.read_label_map(stored, 11, name=record.name, size=(72, 64))
            assert np.array_equal(read, label_map)
        for name, towards in (("flow_next", 1), ("flow_back", -1)):
            flows, valid = moving_scenes.flow(clip, towards)
            decoded = [moving_digits.decode_flow(stored) for stored in found[name]]
            assert np.array_equal([flow for flow, _ in decoded], flows)
            assert np.array_equal([seen for _, seen in decoded], valid)
        for name in ("boxes", "damage", "digits", "moving"):
            assert np.array_equal(found[name], getattr(clip, name))


def test_the_photographers_are_named_in_the_prepared_set(section):
    info = prepared.open_prepared(sources.directory(section)).info
    for text in (info.description, info.citation):
        assert "danielbuechele" in text and "creativecommons.org/licenses/by/2.0" in text
    page = open(os.path.join(os.path.dirname(__file__), "../../docs/moving_digits.md")).read()
    assert "images/moving_digits.gif" in page and "sides from 64 to 121" in page
    assert all(f"{name} {count}" in page for name, count in moving_plan.SPLITS.items())
    assert "danielbuechele" in page and "vultilion" in page
    named = set(re.findall(r"`(\w+)`", page.partition("| feature")[2].partition("All truth")[0]))
    assert named == set(info.features)


@pytest.mark.parametrize("size", [(63, 96), (64, 122)])
def test_canvases_that_cannot_be(tmp_path, size):
    with pytest.raises(ValueError, match="canvas of data.source='moving_digits'.*64 to 121"):
        moving_digits.prepare(str(tmp_path), size)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot prepare the moving digits.*writable"):
        moving_digits.prepare(str(tmp_path / "file"), SIZE)


def test_the_largest_canvas_is_covered():
    for index in range(8):
        clip = moving_scenes.draw(moving_scenes.load_material("test"), index, (121, 121))
        assert clip.frames.shape == (8, 121, 121, 3)


def test_the_picture_of_the_docs_is_drawn(tmp_path, capsys):
    path = tmp_path / "clips.gif"
    assert moving_picture.main([str(path), "--size", "64", "64"]) == 0
    assert b"vultilion" in path.read_bytes()
    pages = [
        page.copy() for page in ImageSequence.Iterator(Image.open(io.BytesIO(path.read_bytes())))
    ]
    assert len(pages) == moving_scenes.FRAMES - 1
    assert moving_picture.main([str(path), "--size", "9", "64"]) == 1
    assert "canvas" in capsys.readouterr().err
    assert os.path.getsize(path) < 2**20
