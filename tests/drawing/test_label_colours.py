"""Colours of classes: pictures under a label map, and what their legend says."""

import numpy as np
import pytest

from lambdanet.drawing import label_colours


@pytest.mark.parametrize("channels", [1, 3])
def test_an_overlay_leaves_the_background_as_it_was(channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, channels), np.uint8)
    labels = np.zeros((4, 5), np.uint8)
    labels[1:3, 2:], labels[3, 0] = 2, 255
    found = label_colours.overlay(image, labels)
    assert found.shape == (4, 5, 3) and found.dtype == np.uint8
    background = np.broadcast_to(image, (4, 5, 3))[labels == 0]
    np.testing.assert_array_equal(found[labels == 0], background)
    for label, colour in ((2, (0, 128, 0)), (255, label_colours.IGNORED_COLOUR)):
        own = image[labels == label].astype(float)
        np.testing.assert_array_equal(found[labels == label], np.round((own + colour) / 2))


def test_the_legend_has_the_colours_of_the_label_map_and_says_what_overlays_leave_out(monkeypatch):
    drawn = []
    monkeypatch.setattr(label_colours, "drawable", lambda name, *_: drawn.append(name) or name)
    wide = np.asarray(label_colours.legend(["background", "tree", "sea"]))
    assert drawn == ["background", "tree", "sea"]
    for number, colour in enumerate(label_colours.palette(3)):
        np.testing.assert_array_equal(wide[22 * number + 14, 20], colour)
    monkeypatch.setattr(label_colours, "UNPAINTED", "")
    narrow = np.asarray(label_colours.legend(["background", "tree", "sea"]))
    assert wide.shape[1] > narrow.shape[1]  # class 0 has the remark, and room for it
    np.testing.assert_array_equal(wide[22:, : narrow.shape[1]], narrow[22:])
