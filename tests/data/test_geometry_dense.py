"""The geometry of segmentation: scaled crops, whole pictures, label maps that follow them."""

import numpy as np
import pytest
from PIL import Image

from configs import base
from lambdanet.data import augment, decode, geometry


def settings(**values):
    data = base.get_config().data
    data.image_size, data.channels, data.mean, data.std = (24, 32), 3, (0.2, 0.4, 0.6), (0.5,) * 3
    data.crop = "scale_crop"
    data.update(values)
    return data


def coordinates(width, height):
    """Labels that say where they come from, and a picture that does: x and y as red and green."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    return 1000 * y + x, decode.open_image(picture)


def drawn(size, data, seed=0, labels=None):
    return geometry.draw(size, data, np.random.default_rng(seed), labels)


def by_hand(labels, found, ignore=255):
    """`warp_labels` in plain loops."""
    height, width = (side + more for side, more in zip(found.size, found.pad, strict=True))
    out = np.full((height, width), ignore)
    left, top, right, bottom = found.box
    for i in range(found.size[0]):
        for j in range(found.size[1]):
            y = int(top + (i + 0.5) * (bottom - top) / found.size[0])
            x = int(left + (j + 0.5) * (right - left) / found.size[1])
            if 0 <= i + found.shift[1] < found.size[0] and 0 <= j + found.shift[0] < found.size[1]:
                out[i + found.shift[1], j + found.shift[0]] = labels[y, x]
    return out[:, ::-1] if found.flip else out


@pytest.mark.parametrize("crop", geometry.CROPS)
@pytest.mark.parametrize("size", [(40, 30), (20, 90), (7, 5)])
def test_label_maps_follow_every_geometry(crop, size):
    labels, _ = coordinates(*size)
    data = settings(crop=crop, shift=3, flip=0.5, scale_range=(0.4, 2.5))
    for seed in range(12):
        found = drawn(size, data, seed)
        warped = geometry.warp_labels(labels, found)
        assert warped.shape == (24, 32) and np.array_equal(warped, by_hand(labels, found))


@pytest.mark.parametrize("size", [(300, 200), (60, 80), (20, 90)])
def test_picture_and_labels_stay_together(size):
    """Every pixel's colour comes from where its label comes from, to within the filter's reach."""
    width, height = min(size[0], 250), min(size[1], 250)
    labels, picture = coordinates(width, height)
    data = settings(flip=0.5, scale_range=(0.3, 3.0))
    for seed in range(20):
        found = drawn((width, height), data, seed)
        image = np.array(geometry.warp_image(picture, found, 3)).astype(int)
        warped = geometry.warp_labels(labels, found, ignore=-1)
        valid = warped >= 0
        left, top, right, bottom = found.valid_box
        inside = np.zeros_like(valid)
        inside[top:bottom, left:right] = True
        assert np.array_equal(valid, inside)
        apart = [image[..., 0] - warped % 1000, image[..., 1] - warped // 1000]
        reach = 1 + 1 / min(1, found.size[0] / (found.box[3] - found.box[1]))
        assert np.abs(apart)[:, valid].max() <= reach
        assert (image[~valid] == (51, 102, 153)).all()  # the mean colour


def test_scale_and_window_are_drawn_uniformly():
    data, size = settings(scale_range=(0.5, 2.0), scale_base=64), (200, 128)
    found = [drawn(size, data, seed) for seed in range(2000)]
    scales = np.array([f.size[0] / (f.box[3] - f.box[1]) for f in found])
    assert np.abs(np.histogram(scales, 4, (0.25, 1.0))[0] - 500).max() < 90  # 64 of 128: half of it
    lefts = np.array([f.box[0] / (200 - (f.box[2] - f.box[0])) for f in found])
    assert lefts.min() == 0 and lefts.max() == 1 and abs(lefts.mean() - 0.5) < 0.03
    exact = [drawn(size, settings(scale_range=(1.0, 1.0)), seed) for seed in range(50)]
    assert all(f.size == (24, 32) and f.box[2] - f.box[0] == 32 for f in exact)
    assert all(float(edge).is_integer() for f in exact for edge in f.box)


def test_what_is_off_draws_nothing():
    rng = np.random.default_rng(0)
    found = geometry.draw((32, 24), settings(scale_range=(1.0, 1.0)), rng)
    assert found.box == (0, 0, 32, 24) and found.pad == (0, 0)
    assert rng.random() == np.random.default_rng(0).random()


def test_windows_of_one_class_are_drawn_anew():
    labels = np.zeros((400, 400), np.int32)
    labels[:40, :40] = 1
    labels[60:] = 255
    most = {}
    for ratio in (1.0, 0.75):
        data = settings(scale_range=(1.0, 1.0), cat_max_ratio=ratio)
        shares = []
        for seed in range(300):
            part = geometry.warp_labels(labels, drawn((400, 400), data, seed, labels))
            counts = np.bincount(part[part != 255], minlength=2)
            shares.append(0 < counts.max() < 0.75 * counts.sum())
        most[ratio] = np.mean(shares)
    assert most[0.75] > 4 * most[1.0] > 0
    nowhere = np.full((400, 400), 255)
    found = drawn((400, 400), settings(cat_max_ratio=0.5), 0, nowhere)  # ends after ten tries
    assert (geometry.warp_labels(nowhere, found) == 255).all()


def test_smaller_pictures_are_padded_with_mean_colour_and_ignore():
    labels, picture = coordinates(10, 12)
    found = drawn((10, 12), settings(scale_range=(1.0, 1.0), flip=1.0))
    assert found.size == (12, 10) and found.pad == (12, 22) and found.valid_box == (22, 0, 32, 12)
    warped = geometry.warp_labels(labels, found)
    assert np.array_equal(warped[:12, 22:], labels[:, ::-1])
    assert (warped[12:] == 255).all() and (warped[:, :22] == 255).all()
    image = np.array(geometry.warp_image(picture, found, 3))
    changed = image // 2
    assert (geometry.paint_padding(changed, found)[12:] == (51, 102, 153)).all()
    assert np.array_equal(changed[:12, 22:], image[:12, 22:] // 2)
    grey = geometry.draw((10, 12), settings(channels=1, mean=(0.5,)), np.random.default_rng(0))
    assert np.array(geometry.warp_image(picture, grey, 1))[-1, -1] == 128


def test_evaluation_takes_the_whole_picture():
    labels, _ = coordinates(32, 24)
    same = geometry.fitted((32, 24), settings())
    assert same.box == (0, 0, 32, 24) and same.size == (24, 32) and same.pad == (0, 0)
    assert np.array_equal(geometry.warp_labels(labels, same), labels)
    for size, part in (((64, 24), (12, 32)), ((16, 6), (12, 32)), ((10, 40), (24, 6))):
        found = geometry.fitted(size, settings())
        assert found.box == (0, 0, *size) and found.size == part
        assert found.pad == (24 - part[0], 32 - part[1]) and not found.flip
    extreme = geometry.fitted((4000, 3), settings())
    assert extreme.size == (1, 32)


def test_photometric_distortion_keeps_its_ranges_and_order():
    noise = np.random.default_rng(0).integers(40, 200, (20, 20, 3), np.uint8)
    image = Image.fromarray(noise)
    results = [augment.photometric_distortion(image, np.random.default_rng(s)) for s in range(400)]
    assert all(result.size == image.size and result.mode == "RGB" for result in results)
    unchanged = np.mean([result.tobytes() == image.tobytes() for result in results])
    assert 0.03 < unchanged < 0.10  # 1/16: each of the four has probability 1/2
    again = augment.photometric_distortion(image, np.random.default_rng(7))
    assert again.tobytes() == results[7].tobytes()
    means = np.array([np.array(r).mean() for r in results]) / noise.mean()
    assert 0.3 < means.min() < 0.55 and 1.4 < means.max() < 2.0
    grey = augment.photometric_distortion(image.convert("L"), np.random.default_rng(3))
    assert grey.mode == "L"


def test_hue_and_saturation_turn_one_colour(monkeypatch):
    class Fixed:
        """Saturation and hue apply, nothing else: halved, and 36 degrees on."""

        def random(self, count=None):
            return np.array([1.0, 1.0, 0.0, 0.0]) if count else 0.9

        def uniform(self, low, high, count=None):
            return np.array([high, low]) if count else high

    image = Image.new("RGB", (2, 2), (200, 100, 100))  # hue 0, saturation 1/2
    turned = np.array(augment.photometric_distortion(image, Fixed()))[0, 0].astype(int)
    assert np.abs(turned - (200, 180, 150)).max() <= 3  # hue 36 degrees, saturation 1/4
