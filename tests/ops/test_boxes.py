"""Boxes against loops in float64, torchvision, and the round trip of the coder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_oracles import iou

from lambdanet.ops import boxes as ops

STDS = (0.1, 0.1, 0.2, 0.2)


def draw(count, seed=0, size=100.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, size, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0.5, size / 2, (count, 2))], 1).astype(
        np.float32
    )


def test_overlaps_equal_loops():
    a, b = draw(7), draw(9, seed=1)
    b[0], b[1] = a[0], [*a[1, :2], *a[1, :2]]
    expected = np.array([[iou(x, y) for y in np.float64(b)] for x in np.float64(a)])
    pairwise_iou = jax.jit(ops.pairwise_iou)
    np.testing.assert_allclose(pairwise_iou(a, b), expected, atol=1e-6)
    hull, cover = np.zeros_like(expected), np.zeros_like(expected)
    for i, x in enumerate(np.float64(a)):
        for j, y in enumerate(np.float64(b)):
            whole = np.prod(np.maximum(x[2:], y[2:]) - np.minimum(x[:2], y[:2]))
            areas = [np.prod(z[2:] - z[:2]) for z in (x, y)]
            union = sum(areas) / (1 + expected[i, j])
            hull[i, j] = expected[i, j] - (whole - union) / whole
            cover[i, j] = expected[i, j] * union / areas[0]
    np.testing.assert_allclose(jax.jit(ops.pairwise_giou)(a, b), hull, atol=1e-5)
    np.testing.assert_allclose(jax.jit(ops.pairwise_coverage)(a, b), cover, atol=1e-5)
    stacked = pairwise_iou(np.stack([a, a[::-1]]), np.stack([b, b]))
    np.testing.assert_allclose(stacked[1], expected[::-1], atol=1e-6)


@pytest.mark.parametrize("overlap", [ops.pairwise_iou, ops.pairwise_giou, ops.pairwise_coverage])
def test_empty_boxes_overlap_nothing_with_finite_gradients(overlap):
    """Padding is zeros."""
    empty = jnp.zeros((2, 4))
    value, gradient = jax.jit(jax.value_and_grad(lambda a: overlap(a, empty).sum()))(empty)
    assert float(value) == 0 and not np.any(gradient)
    assert not np.any(ops.box_area(jnp.array([[5.0, 5, 3, 9], [1, 1, 1, 1]])))


def test_boxes_are_clipped_to_each_image():
    boxes = jnp.array([[[-5.0, 3, 50, 90], [10, 20, 30, 40]]] * 2)
    found = ops.clip_boxes(boxes, jnp.array([[80, 40], [25, 100]]))
    expected = [[[0, 3, 40, 80], [10, 20, 30, 40]], [[0, 3, 50, 25], [10, 20, 30, 25]]]
    np.testing.assert_array_equal(found, expected)


def test_decoding_undoes_encoding():
    rng = np.random.default_rng(0)
    boxes, anchors = draw(200), draw(200, seed=1)
    anchors[:, 2:] = anchors[:, :2] + np.exp(rng.uniform(1, 3.3, (200, 2)))

    def there_and_back(boxes, anchors, clamp):
        return ops.decode_boxes(ops.encode_boxes(boxes, anchors, STDS), anchors, STDS, clamp)

    for clamp in ops.CLAMPS:
        found = jax.jit(there_and_back, static_argnums=2)(boxes, anchors, clamp)
        np.testing.assert_allclose(found, boxes, atol=1e-3)


def test_clamps():
    anchor = jnp.array([0.0, 0, 16, 16])
    deltas = jnp.array([0.0, 0, 9, -9])
    both, upper = (ops.decode_boxes(deltas, anchor, clamp=clamp) for clamp in ops.CLAMPS)
    np.testing.assert_allclose(both[2:] - both[:2], [1000, 0.256], rtol=1e-4)
    np.testing.assert_allclose(upper[2:] - upper[:2], [1000, 16 * np.exp(-9)], rtol=1e-2)
    with pytest.raises(ValueError, match="clamp='lower'; allowed: 'both', 'upper'"):
        ops.decode_boxes(deltas, anchor, clamp="lower")


def test_padding_is_encoded_without_infinities():
    zeros = jnp.zeros((1, 4))
    assert np.isfinite(ops.encode_boxes(zeros, jnp.array([[0.0, 0, 8, 8]]), STDS)).all()


def test_coder_is_torchvisions():
    torch = pytest.importorskip("torch")
    coder = pytest.importorskip("torchvision.models.detection._utils").BoxCoder((10, 10, 5, 5))
    targets, anchors = draw(50), draw(50, seed=1)
    tensors = torch.tensor(targets), torch.tensor(anchors)
    np.testing.assert_allclose(
        ops.encode_boxes(targets, anchors, STDS), coder.encode_single(*tensors), atol=1e-4
    )
    deltas = np.random.default_rng(2).normal(0, 12, (50, 4)).astype(np.float32)
    theirs = coder.decode_single(torch.tensor(deltas), tensors[1])
    found = ops.decode_boxes(deltas, anchors, STDS, "upper")
    np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-3)
