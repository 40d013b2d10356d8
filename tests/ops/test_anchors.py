"""Anchors by hand in both conventions, and torchvision's generator."""

import numpy as np
import pytest

from lambdanet.ops.anchors import base_anchors, level_anchors, pyramid_anchors, whole_strides

RATIOS = (0.5, 1.0, 2.0)


def test_base_anchors():
    exact = base_anchors((32, 64), RATIOS)
    sides = exact[:, 2:] - exact[:, :2]
    np.testing.assert_allclose(sides.prod(1), [32**2, 64**2] * 3, rtol=1e-5)
    np.testing.assert_allclose(sides[:, 1] / sides[:, 0], np.repeat(RATIOS, 2), rtol=1e-5)
    np.testing.assert_allclose(exact[:, :2], -exact[:, 2:])
    rounded = base_anchors((32, 64), RATIOS, rounded=True)
    # torchvision's, as it prints them
    expected = [
        [-23, -11, 23, 11], [-45, -23, 45, 23], [-16, -16, 16, 16],
        [-32, -32, 32, 32], [-11, -23, 11, 23], [-23, -45, 23, 45],
    ]  # fmt: skip
    np.testing.assert_array_equal(rounded, expected)
    assert exact.dtype == rounded.dtype == np.float32


def test_anchors_lie_on_the_grid():
    found = level_anchors((2, 3), (8, 4), (10,), (1.0,)).reshape(2, 3, 1, 4)
    for y in range(2):
        for x in range(3):
            expected = [4 * x - 5, 8 * y - 5, 4 * x + 5, 8 * y + 5]
            np.testing.assert_array_equal(found[y, x, 0], expected)


def test_levels_and_strides():
    shapes = [(25, 13), (13, 7)]
    assert whole_strides((100, 50), shapes) == [(4, 3), (7, 7)]
    found = pyramid_anchors(shapes, [(4, 4), (8, 8)], [(32,), (64,)], RATIOS)
    assert [len(level) for level in found] == [25 * 13 * 3, 13 * 7 * 3]
    np.testing.assert_array_equal(found[1], level_anchors((13, 7), (8, 8), (64,), RATIOS))
    with pytest.raises(ValueError):
        pyramid_anchors(shapes, [(4, 4)], [(32,), (64,)], RATIOS)


def test_anchors_are_torchvisions():
    torch = pytest.importorskip("torch")
    detection = pytest.importorskip("torchvision.models.detection")
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128))
    generator = detection.anchor_utils.AnchorGenerator(sizes, (RATIOS,) * 3)
    shapes = [(25, 19), (13, 10), (7, 5)]
    images = detection.image_list.ImageList(torch.zeros(1, 3, 100, 75), [(100, 75)])
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]
    strides = whole_strides((100, 75), shapes)
    found = pyramid_anchors(shapes, strides, sizes, RATIOS, rounded=True)
    np.testing.assert_array_equal(np.concatenate(found), generator(images, maps)[0])
