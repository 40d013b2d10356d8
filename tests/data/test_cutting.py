"""Cutting clips: which frames, which parts, and clips that cannot be cut."""

import types

import numpy as np
import pytest
from data_helpers import jpeg
from PIL import Image

from configs import base
from lambdanet.data import cutting, decode, geometry


def section(**keys):
    default = base.get_config().clips.to_dict()
    return types.SimpleNamespace(**{**default, **keys})


@pytest.fixture
def data():
    config = base.get_config().data
    config.image_size, config.channels = (8, 8), 3
    return config


def generator():
    return np.random.default_rng(0)


def test_training_draws_every_start_evenly_and_keeps_the_stride():
    own, rng = section(frames=4, frame_stride=2), generator()
    drawn = np.stack([cutting.draw_numbers(10, own, rng) for _ in range(400)])
    assert (np.diff(drawn) == 2).all() and drawn.min() == 0 and drawn.max() == 9
    counts = np.bincount(drawn[:, 0])
    assert len(counts) == 4 and counts.min() > 70
    # There is but one: nothing is drawn.
    before = rng.bit_generator.state
    assert cutting.draw_numbers(7, own, rng).tolist() == [0, 2, 4, 6]
    assert rng.bit_generator.state == before


def test_jitter_moves_frames_within_the_clip_and_keeps_their_order():
    own, rng = section(frames=4, frame_stride=4, jitter=2), generator()
    drawn = np.stack([cutting.draw_numbers(20, own, rng) for _ in range(300)])
    steps = np.diff(drawn)
    assert set(np.unique(steps)) == set(range(9)) and drawn.min() == 0 and drawn.max() == 19
    single = np.stack([cutting.draw_numbers(13, own, rng) for _ in range(300)])
    assert np.abs(single - [0, 4, 8, 12]).max() == 2 and single.max() == 12


@pytest.mark.parametrize(
    ("length", "clips", "starts"),
    [(20, 1, [7]), (20, 2, [0, 13]), (20, 4, [0, 4, 9, 13]), (7, 3, [0, 0, 0]), (8, 3, [0, 1, 1])],
)
def test_views_lie_evenly_over_the_clip(length, clips, starts):
    own = section(frames=4, frame_stride=2, eval_clips=clips)
    found = cutting.view_numbers(length, own)
    assert found[:, 0].tolist() == starts and (np.diff(found) == 2).all()


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6])
def test_short_clips_begin_again_or_are_refused(length):
    own = section(frames=4, frame_stride=2)
    wanted = [(2 * i) % length for i in range(4)]
    assert cutting.draw_numbers(length, own, generator()).tolist() == wanted
    assert cutting.view_numbers(length, own).tolist() == [wanted]
    jittered = section(frames=4, frame_stride=2, jitter=1)
    drawn = [cutting.draw_numbers(length, jittered, generator()) for _ in range(20)]
    assert np.max(drawn) < length and np.min(drawn) >= 0
    refusing = section(frames=4, frame_stride=2, short="refuse")
    for cut in (lambda own: cutting.view_numbers(length, own),
                lambda own: cutting.draw_numbers(length, own, generator())):  # fmt: skip
        with pytest.raises(ValueError, match=f"has {length} frames.*frames=4.*need 7.*'loop'"):
            cut(refusing)
        with pytest.raises(ValueError, match="the clip has no frames"):
            own_empty = section()
            cutting.view_numbers(0, own_empty)


def test_crops_lie_along_the_longer_side(data):
    boxes = [g.box for g in cutting.view_geometries((40, 16), data, 3)]
    assert boxes == [(0, 0, 16, 16), (12, 0, 28, 16), (24, 0, 40, 16)]
    boxes = [g.box for g in cutting.view_geometries((16, 40), data, 2)]
    assert boxes == [(0, 0, 16, 16), (0, 24, 16, 40)]
    assert cutting.view_geometries((40, 16), data, 1) == [geometry.centred((40, 16), data)]
    data.eval_crop = 0.5
    boxes = [g.box for g in cutting.view_geometries((40, 16), data, 3)]
    assert boxes == [(0, 4, 8, 12), (16, 4, 24, 12), (32, 4, 40, 12)]


def test_only_the_frames_that_are_cut_are_decoded_each_once(data, monkeypatch):
    frames = [jpeg((20 * i, 0, 0)) for i in range(10)]
    frames[4] = b"damaged, and not asked for"
    opened, inner = [], decode.open_image
    monkeypatch.setattr(decode, "open_image", lambda f, **k: opened.append(f) or inner(f, **k))
    places = []
    images = cutting.cut(
        frames,
        np.array([2, 7, 2]),
        lambda size: places.append(size) or geometry.centred(size, data),
        data,
    )
    assert opened == [frames[2], frames[7]] and places == [(12, 10)]
    reds = [np.asarray(image)[0, 0, 0] for image in images]
    assert np.abs(np.array(reds) - [40.0, 140, 40]).max() < 8


def test_decoded_frames_are_cut_likewise(data):
    frames = np.arange(5 * 8 * 8 * 3, dtype=np.uint8).reshape(5, 8, 8, 3)
    images = cutting.cut(frames, np.array([4, 1]), lambda s: geometry.centred(s, data), data)
    assert np.array_equal(np.stack([np.asarray(i) for i in images]), frames[[4, 1]])
    assert isinstance(images[0], Image.Image)


def test_frames_that_do_not_fit_are_named(data):
    place = lambda size: geometry.centred(size, data)  # noqa: E731
    frames = [jpeg((0, 0, 0)), jpeg((0, 0, 0), size=(12, 11)), b"GIF of nothing", jpeg((0, 0, 0))]
    with pytest.raises(ValueError, match="several sizes: 0 is 12 x 10, 1 is 12 x 11"):
        cutting.cut(frames, np.array([0, 1]), place, data)
    with pytest.raises(ValueError, match="frame 2: UnidentifiedImageError"):
        cutting.cut(frames, np.array([0, 2]), place, data)
    frames[3] = frames[3][:-60]
    with pytest.raises(ValueError, match="frame 3: OSError"):
        cutting.cut(frames, np.array([3]), place, data)
