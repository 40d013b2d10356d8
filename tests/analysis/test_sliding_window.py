"""Windows over a picture against tiles and a float64 brute force; views of several sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.analysis.sliding_window import average_views, looker, slide, window_starts
from lambdanet.layers.resize import resize_bilinear

KERNEL = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)


def forward(images):
    """Logits that depend on the place in the window and on all of it."""
    rows = jnp.arange(images.shape[1])[:, None, None]
    return images @ KERNEL + 0.1 * rows + images.mean((1, 2, 3), keepdims=True)


def pictures(height, width):
    return np.random.default_rng(1).standard_normal((2, height, width, 3)).astype(np.float32)


def test_starts_cover_the_axis_and_end_with_it():
    assert window_starts(10, 4, 4) == (0, 4, 6)
    assert window_starts(12, 4, 4) == (0, 4, 8)
    assert window_starts(10, 4, 3) == (0, 3, 6)
    assert window_starts(4, 4, 2) == window_starts(3, 4, 4) == (0,)
    with pytest.raises(ValueError, match="stride 5 with windows of 4 pixels; allowed: 1 to 4"):
        window_starts(10, 4, 5)


def test_a_stride_of_the_window_gives_tiles():
    images = pictures(8, 15)
    tiles = [
        np.concatenate([forward(images[:, i : i + 4, j : j + 5]) for j in (0, 5, 10)], axis=2)
        for i in (0, 4)
    ]
    found = jax.jit(lambda x: slide(forward, x, crop=(4, 5), stride=(4, 5)))(images)
    np.testing.assert_allclose(found, np.concatenate(tiles, axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [((11, 17), (4, 6), (3, 2)), ((11, 4), (4, 6), (1, 5)), ((9, 9), (8, 8), (8, 8))],
)
def test_averages_equal_a_brute_force_in_float64(size, crop, stride):
    images = pictures(*size)
    total, count = np.zeros((2, *size, 5)), np.zeros(size)
    crop_used = np.minimum(size, crop)

    def starts(axis):  # mmsegmentation's loop
        grids = max(size[axis] - crop[axis] + stride[axis] - 1, 0) // stride[axis] + 1
        for i in range(grids):
            end = min(i * stride[axis] + crop[axis], size[axis])
            yield max(end - crop[axis], 0)

    for i in starts(0):
        for j in starts(1):
            window = slice(i, i + crop_used[0]), slice(j, j + crop_used[1])
            total[:, *window] += np.float64(forward(images[:, *window]))
            count[window] += 1
    assert count.min() >= 1
    found = jax.jit(lambda x: slide(forward, x, crop=crop, stride=stride))(images)
    np.testing.assert_allclose(found, total / count[..., None], rtol=1e-6, atol=1e-6)


def test_views_average_probabilities():
    images = pictures(8, 12)
    scales = (0.5, 1.0, 1.5)
    total = 0.0
    for scale in scales:
        size = (int(8 * scale + 0.5), int(12 * scale + 0.5))
        scaled = np.asarray(jax.image.resize(images, (2, *size, 3), "bilinear"))
        view = jax.jit(lambda x: jax.nn.softmax(resize_bilinear(forward(x), (8, 12))))
        for way in (1, -1):
            total = total + np.float64(view(scaled[:, :, ::way]))[:, :, ::way]
    found = jax.jit(lambda x: average_views(forward, x, scales=scales, flip=True))(images)
    np.testing.assert_allclose(np.exp(found), total / 6, rtol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, rtol=1e-5)


def test_one_view_is_the_model_itself():
    images = pictures(8, 12)
    options = dict(crop=None, stride=None, scales=(1.0,), flip=False)
    np.testing.assert_array_equal(looker(forward, **options)(images), forward(images))


def test_windows_are_compiled_once_whatever_their_number():
    calls = []

    def noted(images):
        calls.append(images.shape)
        return forward(images)

    jax.jit(lambda x: slide(noted, x, crop=(4, 4), stride=(2, 2))).lower(pictures(40, 40))
    assert 1 <= len(calls) <= 3 and set(calls) == {(2, 4, 4, 3)}
