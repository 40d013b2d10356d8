"""Every augmentation against values worked out by hand, and determinism."""

import numpy as np
import pytest
from PIL import Image

from lambdanet.data import augment

OPS = augment.RAND_AUGMENT_OPS


class Fixed:
    """Stands in for a generator: hands out the given numbers in order, whatever is asked for."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)

    def integers(self, *args, **kwargs):
        return self.values.pop(0)

    uniform = integers


def grey(rows):
    return Image.fromarray(np.array(rows, np.uint8))


def pixels(image):
    return np.array(image).astype(int)


POSITIVE, NEGATIVE = 0.9, 0.1  # what `random()` returns to choose the sign


def test_color_jitter_factors():
    image = Image.fromarray(np.array([[[100, 50, 0], [200, 150, 20]]], np.uint8))

    class Order(Fixed):
        def permutation(self, n):
            return np.arange(n)

    doubled = augment.color_jitter(image, (0.5, 0.0, 0.0), Order(1.2))
    assert pixels(doubled).tolist() == [[[120, 60, 0], [240, 180, 24]]]
    no_colour = augment.color_jitter(image, (0.0, 0.0, 1.0), Order(0.0))
    luma = [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in pixels(image)[0]]
    assert (
        pixels(no_colour)[0, :, 0].tolist() == luma
        and np.ptp(pixels(no_colour), axis=-1).max() == 0
    )
    flat = augment.color_jitter(image, (0.0, 1.0, 0.0), Order(0.0))
    assert np.ptp(pixels(flat)) == 0 and abs(pixels(flat).max() - np.mean(luma)) <= 1


def test_random_erasing_overwrites_one_rectangle_in_range():
    rng, areas = np.random.default_rng(1), []
    for _ in range(50):
        image = np.full((40, 30, 3), 7, np.uint8)
        erased = (augment.random_erasing(image, 1.0, rng) != 7).any(-1)
        rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
        area = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert (
            erased.sum() == area[0] * area[1]
        )  # one full rectangle (a noise pixel of (7, 7, 7) has chance 6e-8)
        areas.append(erased.sum() / erased.size)
    assert 0.01 < min(areas) < 0.08 and 0.25 < max(areas) < 0.36
    untouched = augment.random_erasing(np.full((4, 4, 1), 7, np.uint8), 0.3, Fixed(0.3))
    assert (untouched == 7).all()


def test_auto_contrast_stretches_to_full_range():
    assert pixels(OPS["auto_contrast"](grey([[50, 100, 150]]), 1, None)).tolist() == [[0, 127, 255]]


def test_equalize_spreads_equal_counts():
    image = grey(np.repeat([[10], [20], [30], [40]], 256, axis=1))
    assert np.unique(pixels(OPS["equalize"](image, 1, None))).tolist() == [0, 85, 171, 255]


def test_invert():
    assert pixels(OPS["invert"](grey([[0, 100, 255]]), 1, None)).tolist() == [[255, 155, 0]]


def test_rotate_by_sign_and_level():
    image = grey([[1, 2], [3, 4]])
    assert pixels(OPS["rotate"](image, 3.0, Fixed(POSITIVE))).tolist() == [
        [2, 4],
        [1, 3],
    ]  # 90 degrees to the left
    assert pixels(OPS["rotate"](image, 3.0, Fixed(NEGATIVE))).tolist() == [[3, 1], [4, 2]]
    corner = OPS["rotate"](
        grey(np.zeros((9, 9))), 1.5, Fixed(POSITIVE)
    )  # 45 degrees: the corners come from outside
    assert pixels(corner)[0, 0] == augment.FILL and pixels(corner)[4, 4] == 0


@pytest.mark.parametrize("level, mask", [(1.0, 0xF0), (0.1, 0x80), (3.0, 0xFF), (0.5, 0xC0)])
def test_posterize_keeps_high_bits(level, mask):
    values = np.arange(256, dtype=np.uint8)[None]
    assert np.array_equal(pixels(OPS["posterize"](grey(values), level, None)), values & mask)


def test_solarize_inverts_bright_pixels():
    assert pixels(OPS["solarize"](grey([[0, 127, 128, 255]]), 0.5, None)).tolist() == [
        [0, 127, 127, 0]
    ]
    assert pixels(OPS["solarize"](grey([[0, 128, 255]]), 1.5, None)).tolist() == [[0, 128, 255]]


def test_solarize_add_brightens_dark_pixels():
    assert pixels(OPS["solarize_add"](grey([[0, 100, 127, 128, 200]]), 1.0, None)).tolist() == [
        [110, 210, 237, 128, 200]
    ]
    assert pixels(OPS["solarize_add"](grey([[100]]), 3.0, None)).tolist() == [[255]]


def test_enhancers_at_factor_one_and_a_tenth():
    image = Image.fromarray(np.array([[[250, 0, 0], [0, 200, 50]]], np.uint8))
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert np.array_equal(pixels(OPS[name](image, 0.5, None)), pixels(image)), (
            name
        )  # factor 1.8 * 0.5 + 0.1 = 1
    assert pixels(OPS["brightness"](image, 0.0, None)).tolist() == [[[25, 0, 0], [0, 20, 5]]]
    luma = np.array([[[75], [123]]])  # 0.299 * 250; 0.587 * 200 + 0.114 * 50
    assert (
        np.abs(pixels(OPS["color"](image, 0.0, None)) - (0.9 * luma + 0.1 * pixels(image))).max()
        <= 1
    )
    assert (
        np.abs(pixels(OPS["contrast"](image, 0.0, None)) - (0.9 * 99 + 0.1 * pixels(image))).max()
        <= 1
    )


def test_sharpness_moves_away_from_the_smoothed_image():
    image = grey(np.pad([[130]], 2, constant_values=100))
    smooth = (5 * 130 + 8 * 100) / 13  # kernel of ones with a 5 in the middle
    for level, factor in ((0.0, 0.1), (1.0, 1.9)):
        assert (
            abs(
                pixels(OPS["sharpness"](image, level, None))[2, 2]
                - (smooth + factor * (130 - smooth))
            )
            <= 1
        )


@pytest.mark.parametrize("name, axis", [("shear_x", 1), ("shear_y", 0)])
def test_shear_moves_rows_by_their_distance(name, axis):
    ramp = np.broadcast_to(10 * np.arange(16), (16, 16))
    ramp = ramp if axis == 1 else ramp.T
    sheared = pixels(OPS[name](grey(ramp), 1.0, Fixed(POSITIVE)))
    line, place = np.indices((16, 16)) if axis == 1 else np.indices((16, 16))[::-1]
    source = place + 0.3 * (line + 0.5)  # bilinear resampling of a linear ramp is exact
    assert np.abs(sheared - 10 * source)[source <= 15].max() <= 1
    assert (sheared[source > 16.5] == augment.FILL).all()


@pytest.mark.parametrize("name, axis", [("translate_x", 1), ("translate_y", 0)])
def test_translate_by_a_fraction_of_the_side(name, axis):
    image = np.arange(100, dtype=np.uint8).reshape(10, 10)
    level = 0.224 * 2  # 100 / 224 * level = 0.2 of 10 pixels
    moved = pixels(OPS[name](grey(image), level, Fixed(POSITIVE)))
    expected = np.full((10, 10), augment.FILL)
    if axis == 1:
        expected[:, :8] = image[:, 2:]
    else:
        expected[:8] = image[2:]
    assert np.array_equal(moved, expected)
    back = pixels(OPS[name](grey(image), level, Fixed(NEGATIVE)))
    assert np.array_equal(
        np.flip(back), np.where(expected == augment.FILL, augment.FILL, 99 - expected)
    )


def test_cutout_clips_at_the_border():
    image = grey(np.zeros((10, 20)))
    cut = pixels(
        OPS["cutout"](image, 0.56, Fixed(1, 5))
    )  # 40 / 224 * 0.56 = 0.1: half sides 2 (width 20) and 1 (height 10)
    expected = np.zeros((10, 20))
    expected[4:6, 0:3] = augment.FILL
    assert np.array_equal(cut, expected) and not pixels(image).any()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", list(OPS))
def test_operations_keep_mode_and_size_and_repeat(name, mode):
    shape = (13, 17) if mode == "L" else (13, 17, 3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    for level in (0.0, 1.0, 3.0):
        first, second = (OPS[name](image, level, np.random.default_rng(3)) for _ in range(2))
        assert first.mode == mode and first.size == image.size
        assert np.array_equal(pixels(first), pixels(second))


def test_rand_augment_applies_layers_operations_uniformly(monkeypatch):
    calls = []

    def recorder(name):
        return lambda image, level, rng: (calls.append((name, level)), image)[1]

    monkeypatch.setattr(augment, "RAND_AUGMENT_OPS", {name: recorder(name) for name in OPS})
    rng = np.random.default_rng(0)
    for _ in range(400):
        augment.rand_augment(grey([[1]]), 3, 15.0, rng)
    assert len(calls) == 1200 and {level for _, level in calls} == {1.5}
    counts = [sum(name == op for name, _ in calls) for op in OPS]
    assert min(counts) > 40 and max(counts) < 115  # 75 expected, 4 standard deviations
