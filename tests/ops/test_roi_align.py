"""RoIAlign and its gradient against plain loops in float64 and torchvision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from detection_oracles import roi_align as oracle

from lambdanet.ops.roi_align import multi_level_roi_align, roi_align, roi_levels

# A part outside on each side, all outside, empty, smaller than a pixel, longer than many tiles,
# turned around.
ODD = [
    [-10, -7, 13, 9], [60, 50, 90, 99], [-500, -500, -400, -400], [5, 5, 5, 5],
    [3.2, 4.1, 3.9, 4.8], [-40, 10, 140, 14], [0, 0, 84, 76], [84, 76, 84, 76],
]  # fmt: skip


def draw(shape=(19, 21), channels=3, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (batch, 9, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 40, (batch, 9, 2))], -1)
    boxes = np.concatenate([boxes, np.tile(ODD, (batch, 1, 1))], 1).astype(np.float32)
    return rng.standard_normal((batch, *shape, channels)).astype(np.float32), boxes


@functools.partial(jax.jit, static_argnames=("output_size", "scale", "sampling_ratio", "aligned"))
def both(features, boxes, cotangent, **options):
    found, pull = jax.vjp(lambda maps: roi_align(maps, boxes, **options), features)
    return found, pull(cotangent)[0]


SAMPLES = [(ratio, aligned) for ratio in (0, 1, 2, 3) for aligned in (True, False)]


@pytest.mark.parametrize(("ratio", "aligned"), part(SAMPLES, [(0, True), (3, False)]))
def test_value_and_gradient_are_the_loops(ratio, aligned):
    features, boxes = draw()
    cotangent = np.random.default_rng(1).standard_normal((2, boxes.shape[1], 3, 2, 3))
    options = dict(output_size=(3, 2), scale=0.25, aligned=aligned)
    found, gradient = both(
        features, boxes, cotangent.astype(np.float32), sampling_ratio=ratio, **options
    )
    value, expected = oracle(
        features, boxes, (3, 2), 0.25, ratio, aligned, cotangent.astype(np.float32)
    )
    np.testing.assert_allclose(found, value, atol=3e-5)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_each_box_comes_from_its_own_level():
    features, boxes = draw((24, 22))
    boxes[0, :3] = [[0, 0, 8, 8], [0, 0, 15.99, 16], [0, 0, 16, 16]]
    coarse = draw((12, 11), seed=1)[0]
    sizes = np.sqrt(np.prod(boxes[..., 2:] - boxes[..., :2], -1))
    level = roi_levels(boxes, 2, 8.0)
    assert level[0, :3].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(level, sizes >= 16)
    cotangent = np.random.default_rng(2).standard_normal((*boxes.shape[:2], 2, 2, 3))
    cotangent = cotangent.astype(np.float32)

    @jax.jit
    def run(maps, cotangent):
        options = dict(strides=(4, 8), output_size=(2, 2), canonical_size=8.0)
        found, pull = jax.vjp(lambda m: multi_level_roi_align(m, boxes, **options), maps)
        return found, pull(cotangent)[0]

    found, gradients = run((features, coarse), cotangent)
    for number, (own_map, scale) in enumerate(((features, 0.25), (coarse, 0.125))):
        own = np.asarray(level == number)
        only = np.where(own[..., None, None, None], cotangent, 0)
        value, gradient = oracle(own_map, boxes, (2, 2), scale, cotangent=only)
        assert own.any()
        np.testing.assert_allclose(np.asarray(found)[own], value[own], atol=3e-5)
        np.testing.assert_allclose(gradients[number], gradient, atol=1e-4)
    options = dict(strides=(4, 8), output_size=(2, 2), sampling_ratio=0, canonical_size=8.0)
    align = jax.jit(lambda maps: multi_level_roi_align(maps, boxes, **options))
    dense = align((features, coarse))
    value = oracle(coarse, boxes, (2, 2), 0.125, 0)[0]
    np.testing.assert_allclose(np.asarray(dense)[own], value[own], atol=3e-5)


def test_levels_are_those_of_the_papers():
    side = np.array([1, 55, 111.9, 112, 223, 224, 447, 448, 2000], np.float32)
    boxes = np.stack([0 * side, 0 * side, side, side], -1)
    assert roi_levels(boxes, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert roi_levels(jnp.zeros((1, 4)), 4).tolist() == [0]


def test_a_box_that_is_not_finite_gives_zero_and_harms_no_other():
    features, boxes = draw()
    boxes[0, 0, 1], boxes[1, 3, 2] = np.nan, np.inf
    cotangent = np.ones((*boxes.shape[:2], 2, 2, 3), np.float32)
    options = dict(output_size=(2, 2), scale=0.25)
    found, gradient = both(features, boxes, cotangent, **options)
    assert np.isfinite(found).all() and not found[0, 0].any() and not found[1, 3].any()
    kept = np.delete(boxes[:1], 0, 1)
    value, expected = oracle(features[:1], kept, (2, 2), 0.25, cotangent=cotangent[:1, 1:])
    np.testing.assert_allclose(found[:1, 1:], value, atol=3e-5)
    np.testing.assert_allclose(gradient[:1], expected, atol=1e-4)


def test_maps_of_low_precision():
    features, boxes = draw()
    low = jnp.asarray(features, jnp.bfloat16)
    cotangent = jnp.ones((*boxes.shape[:2], 2, 2, 3))
    options = dict(output_size=(2, 2), scale=0.25)
    found, gradient = both(low, boxes, cotangent, **options)
    assert found.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    expected = both(low.astype(jnp.float32), boxes, cotangent, **options)
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(gradient, expected[1].astype(jnp.bfloat16))


def test_boxes_get_no_gradient():
    features, boxes = draw()
    gradient = jax.jit(
        jax.grad(lambda boxes: roi_align(features, boxes, output_size=(2, 2), scale=0.25).sum())
    )(boxes)
    assert not np.any(gradient)


def test_what_cannot_be_is_refused():
    features, boxes = draw()
    with pytest.raises(ValueError, match="sampling_ratio=-1; give a number of samples, or 0"):
        roi_align(features, boxes, output_size=(2, 2), scale=0.25, sampling_ratio=-1)
    with pytest.raises(ValueError, match="1 strides for 2 maps"):
        multi_level_roi_align([features, features], boxes, strides=(4,), output_size=(2, 2))


@pytest.mark.parametrize("ratio", part([0, 2], [0]))
def test_memory_is_that_of_maps_and_result(ratio):
    """512 boxes of 7 x 7 bins; their samples alone would be 4 or 16 times the result."""
    features = jax.ShapeDtypeStruct((1, 48, 48, 64), jnp.float32)
    boxes = jax.ShapeDtypeStruct((1, 512, 4), jnp.float32)

    def loss(features, boxes):
        options = dict(output_size=(7, 7), scale=0.25, sampling_ratio=ratio)
        return jnp.sum(roi_align(features, boxes, **options) ** 2)

    optimised = {"xla_backend_optimization_level": 3}
    compiled = jax.jit(jax.grad(loss)).lower(features, boxes).compile(optimised)
    result = 512 * 49 * 64 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * result


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_value_and_gradient_are_torchvisions(ratio, aligned):
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    features, boxes = draw()
    maps = torch.tensor(features.transpose(0, 3, 1, 2)).requires_grad_()
    theirs = ops.roi_align(
        maps, [torch.tensor(own) for own in boxes], (3, 2), 0.25, ratio or -1, aligned
    )
    cotangent = np.random.default_rng(1).standard_normal((2, boxes.shape[1], 3, 2, 3))
    cotangent = cotangent.astype(np.float32)
    theirs.backward(torch.tensor(cotangent.reshape(-1, 3, 2, 3).transpose(0, 3, 1, 2)))
    options = dict(output_size=(3, 2), scale=0.25, sampling_ratio=ratio, aligned=aligned)
    found, gradient = both(features, boxes, cotangent, **options)
    expected = theirs.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=3e-5)
    np.testing.assert_allclose(gradient, maps.grad.numpy().transpose(0, 2, 3, 1), atol=1e-4)
