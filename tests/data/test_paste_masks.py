"""Masks in pictures, against pixels computed one by one and torchvision's."""

import numpy as np
import pytest

from lambdanet.data.paste_masks import PastedMasks, paste_mask, paste_masks

BOXES = np.float32(
    [
        [3.2, 4.7, 20.1, 15.3], [-8, -6, 12, 30], [30, 20, 70, 60], [5, 5, 5, 5], [0, 0, 40, 30],
        [7.9, 3, 8.1, 28], [100, 100, 120, 120], [-50, 5, -20, 9], [-3, -3, 100, 90],
    ]
)  # fmt: skip
SHAPE = (30, 40)


def draw(size=6):
    return np.random.default_rng(0).random((len(BOXES), size, size)).astype(np.float32)


def one_by_one(mask, box, shape):
    size = len(mask) + 2
    padded = np.pad(np.float64(mask), 1)
    grown = np.float32(size / len(mask))
    low, high = [], []
    for a, b in ((box[1], box[3]), (box[0], box[2])):
        half, centre = (b - a) * np.float32(0.5) * grown, (b + a) * np.float32(0.5)
        low.append(int(centre - half))
        high.append(int(centre + half))
    result = np.zeros(shape)
    for y in range(max(low[0], 0), min(high[0] + 1, shape[0])):
        for x in range(max(low[1], 0), min(high[1] + 1, shape[1])):
            value = 0.0
            sides = [(i - a + 0.5) * size / (b - a + 1) - 0.5 for i, a, b in
                     zip((y, x), low, high, strict=True)]  # fmt: skip
            at = [min(max(side, 0), size - 1) for side in sides]
            for i in range(size):
                for j in range(size):
                    near = max(1 - abs(at[0] - i), 0) * max(1 - abs(at[1] - j), 0)
                    value += near * padded[i, j]
            result[y, x] = value
    return result


@pytest.mark.parametrize("number", range(len(BOXES)))
def test_each_pixel(number):
    mask = draw()[number]
    found = paste_mask(mask, BOXES[number], SHAPE)
    np.testing.assert_allclose(found, one_by_one(mask, BOXES[number], SHAPE), atol=1e-5)
    assert found.dtype == np.float32


def test_thresholds_and_no_mask():
    masks = draw()
    found = paste_masks(masks, BOXES, SHAPE, 0.4)
    each = [paste_mask(*pair, SHAPE) > 0.4 for pair in zip(masks, BOXES, strict=True)]
    np.testing.assert_array_equal(found, each)
    assert found.dtype == bool and found.any((1, 2)).sum() >= 5
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), SHAPE).shape == (0, *SHAPE)


def test_masks_one_at_a_time_are_all_of_them():
    masks = draw()
    every, lazy = paste_masks(masks, BOXES, SHAPE), PastedMasks(masks, BOXES, SHAPE)
    assert len(lazy) == len(every) and lazy.shape == every.shape
    np.testing.assert_array_equal(list(lazy), every)
    np.testing.assert_array_equal(list(lazy[::-1]), every[::-1])
    np.testing.assert_array_equal(np.asarray(lazy[1:3], np.uint8), every[1:3])
    with pytest.raises(ValueError, match=f"1 masks and {len(BOXES)} boxes"):
        PastedMasks(masks[:1], BOXES, SHAPE)


def test_masks_are_torchvisions():
    torch = pytest.importorskip("torch")
    heads = pytest.importorskip("torchvision.models.detection.roi_heads")
    boxes = np.delete(BOXES, [6, 7], 0)  # it fails for those all outside
    masks = np.delete(draw(28), [6, 7], 0)
    theirs = heads.paste_masks_in_image(torch.tensor(masks)[:, None], torch.tensor(boxes), SHAPE)
    for mask, box, expected in zip(masks, boxes, theirs[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(paste_mask(mask, box, SHAPE), expected, atol=1e-5)
