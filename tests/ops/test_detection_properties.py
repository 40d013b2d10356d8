"""Properties of the operations of detection on inputs that hypothesis looks for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_oracles import greedy

from lambdanet.ops.boxes import CLAMPS, LARGEST_LOG_RATIO, decode_boxes, encode_boxes
from lambdanet.ops.nms import nms
from lambdanet.ops.roi_align import roi_align

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

STDS = (0.1, 0.1, 0.2, 0.2)
COUNT = 40  # of boxes: one compilation for all that is tried
keep = jax.jit(nms, static_argnums=2)
align = jax.jit(
    functools.partial(roi_align, output_size=(2, 3)), static_argnames=("aligned", "scale")
)


def floats(low, high):
    return st.floats(low, high, width=32)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[floats(-50, 500)] * 4), st.tuples(*[floats(1, 400)] * 4))
def test_decoding_undoes_encoding(corners, sides):
    corners, sides = np.float32(corners).reshape(2, 2), np.float32(sides).reshape(2, 2)
    box, anchor = np.concatenate([corners, corners + sides], 1)
    ratios = np.log(np.divide(*np.float64([box[2:] - box[:2], anchor[2:] - anchor[:2]])))
    deltas = encode_boxes(box, anchor, STDS)
    for clamp in CLAMPS:
        low = -LARGEST_LOG_RATIO if clamp == "both" else -np.inf
        if low < ratios.min() and ratios.max() < LARGEST_LOG_RATIO:
            np.testing.assert_allclose(decode_boxes(deltas, anchor, STDS, clamp), box, atol=5e-3)


# Whole coordinates: overlaps are exact quotients, at no threshold by rounding.
whole_box = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(0, 12)] * 2)
one = st.tuples(whole_box, st.integers(0, 9), st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(one, min_size=COUNT, max_size=COUNT), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_is_the_greedy_loop(drawn, threshold):
    boxes, scores, classes = zip(*drawn, strict=True)
    boxes = np.float32([[x, y, x + w, y + h] for x, y, w, h in boxes])
    found = keep(boxes, np.float32(scores), threshold, classes=np.int32(classes))
    assert sorted(greedy(boxes, scores, threshold, classes)) == list(np.flatnonzero(found))


@settings(max_examples=60, deadline=None)
@given(floats(-8, 8), st.tuples(*[floats(0, 36)] * 2, *[floats(0, 60)] * 2), st.booleans())
def test_a_constant_map_gives_the_constant(value, box, aligned):
    """Wherever no sample is further outside than it may be: without `aligned` a box has sides of at
    least a pixel of the map, which is 4 here and may reach out of a map of 40.
    """
    x, y, w, h = box
    boxes = np.float32([[[x, y, min(x + w, 48), min(y + h, 40)]]])
    features = jnp.full((1, 10, 12, 2), value, jnp.float32)
    found = align(features, boxes, scale=0.25, aligned=aligned)
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[floats(0, 30)] * 2, *[floats(0, 30)] * 2))
def test_a_larger_map_changes_nothing_inside(seed, box):
    features = np.random.default_rng(seed).standard_normal((1, 10, 12, 2)).astype(np.float32)
    more = np.pad(features, [(0, 0), (0, 16), (0, 16), (0, 0)], constant_values=7.0)
    x, y, w, h = box
    boxes = np.float32([[[x, y, min(x + w, 44), min(y + h, 36)]]])  # a pixel from the border
    options = dict(scale=0.25, aligned=True)
    found = align(features, boxes, **options)
    np.testing.assert_allclose(align(more, boxes, **options), found, rtol=1e-5, atol=1e-6)
