"""Objects drawn into pictures: masks, boxes of crowds, labels beside each other."""

import numpy as np
from PIL import Image

from lambdanet.drawing import box_drawing

CLASSES = np.array([0, 1])
COLOURS = [box_drawing.class_colour(number) for number in (0, 1)]


def test_masks_of_crowds_are_filled_in_stripes():
    image = np.full((12, 24, 3), 100, np.uint8)
    masks = np.zeros((2, 12, 24), bool)
    masks[0, :, :12], masks[1, :, 12:] = True, True
    drawn = box_drawing.fill_masks(image, iter(masks), CLASSES, np.array([False, True]))
    mixed = [np.round(50 + np.array(colour) / 2) for colour in COLOURS]
    assert (drawn[:, :12] == mixed[0]).all()
    striped = (drawn[:, 12:] == mixed[1]).all(axis=2)
    assert 0.4 < striped.mean() < 0.6 and (drawn[:, 12:][~striped] == 100).all()


def test_boxes_of_crowds_are_dashed_and_end_at_the_border():
    drawn = Image.new("RGB", (60, 40), "white")
    boxes = np.array([[5.0, 5, 55, 35], [-3, 10, 70, 45]])
    box_drawing.outline(drawn, boxes, CLASSES, line=1, crowds=np.array([False, True]))
    pixels = np.asarray(drawn)
    assert (pixels[5, 5:55] == COLOURS[0]).all() and (pixels[34, 5:10] == COLOURS[0]).all()
    for side in (pixels[10, 6:54], pixels[39], pixels[10:, 0], pixels[10:, 59]):
        dashes = (side == COLOURS[1]).all(axis=-1)
        assert 0.4 < dashes.mean() < 0.7


def labelled(boxes, apart):
    """How many pixels have the colours of the two labels."""
    drawn = Image.new("RGB", (100, 60), "white")
    labels = ["cat", "dog"]
    box_drawing.write_labels(drawn, boxes, COLOURS, labels, size=11, apart=apart)
    pixels = np.asarray(drawn)
    return [int((pixels == colour).all(axis=2).sum()) for colour in COLOURS]


def test_labels_apart_cover_no_other():
    alone = labelled(np.array([[0.0, 20, 10, 30], [60, 20, 90, 30]]), False)
    same = np.array([[10.0, 25, 90, 55]] * 2)
    assert labelled(same, False)[0] < alone[0] / 2  # the second one lies on it
    assert labelled(same, True) == alone  # above the box, and within it
    low = np.array([[10.0, 0, 90, 20]] * 2)
    assert labelled(low, True) == alone  # within the box, and below it
    whole = np.array([[0.0, 0, 100, 60]] * 3)
    drawn = Image.new("RGB", (100, 17), "white")  # no room for a second one
    colours = [*COLOURS, COLOURS[1]]
    box_drawing.write_labels(drawn, whole, colours, ["x"] * 3, size=11, apart=True)
    assert not (np.asarray(drawn) == COLOURS[1]).all(axis=2).any()
