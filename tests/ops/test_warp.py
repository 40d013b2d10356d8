"""Warping along a flow against a loop in float64, and what it does at the ends of its range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops.warp import warp


def loop(features, flow, cotangent):
    """Value, and gradients of sum(value * cotangent), of maps [b, h, w, c]; (dx, dy)."""
    features, flow = np.float64(features), np.float64(flow)
    value, pixels = np.zeros((*flow.shape[:3], features.shape[-1])), np.zeros(features.shape)
    slope = np.zeros(flow.shape)
    for b, i, j in np.ndindex(*flow.shape[:3]):
        x, y = j + flow[b, i, j, 0], i + flow[b, i, j, 1]
        for v in (int(np.floor(y)), int(np.floor(y)) + 1):
            for u in (int(np.floor(x)), int(np.floor(x)) + 1):
                if not (0 <= v < features.shape[1] and 0 <= u < features.shape[2]):
                    continue
                weight = (1 - abs(y - v), 1 - abs(x - u))
                value[b, i, j] += weight[0] * weight[1] * features[b, v, u]
                pixels[b, v, u] += weight[0] * weight[1] * cotangent[b, i, j]
                counts = features[b, v, u] @ cotangent[b, i, j]
                slope[b, i, j, 0] += weight[0] * counts * (1 if u > np.floor(x) else -1)
                slope[b, i, j, 1] += weight[1] * counts * (1 if v > np.floor(y) else -1)
    return value, pixels, slope


@jax.jit
def both(features, flow, cotangent):
    value, pull = jax.vjp(warp, features, flow)
    return value, *pull(cotangent)


def draw(spread=2.0):
    rng = np.random.default_rng(0)
    shapes = (2, 5, 7, 3), (2, 5, 7, 2), (2, 5, 7, 3)
    features, flow, cotangent = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return features, spread * flow, cotangent


def test_value_and_gradients_are_the_loops():
    features, flow, cotangent = draw()
    flow[0, 0, 0] = 1.5, 2.25  # the same places from many positions
    flow[1] = [[(3.3 - x, 2.6 - y) for x in range(7)] for y in range(5)]
    # beyond the ends, partly outside on each side, whole numbers
    flow[0, 1, :5] = [(1e9, 0), (-1.5, -1.5), (4.5, 0.5), (0.25, 3.5), (2, -1)]
    for found, expected in zip(
        both(features, flow, cotangent), loop(features, flow, cotangent), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_no_flow_is_the_identity_and_whole_flow_a_shift():
    features, flow, cotangent = draw()
    same, gradient, _ = both(features, 0 * flow, cotangent)
    np.testing.assert_array_equal(same, features)
    np.testing.assert_array_equal(gradient, cotangent)
    shifted, gradient, _ = both(features, 0 * flow + np.float32([2, -1]), cotangent)
    expected = np.zeros_like(features)
    expected[:, 1:, :-2] = features[:, :-1, 2:]
    np.testing.assert_array_equal(shifted, expected)
    expected = np.zeros_like(features)
    expected[:, :-1, 2:] = cotangent[:, 1:, :-2]
    np.testing.assert_array_equal(gradient, expected)


def test_the_order_of_the_channels():
    features, flow, _ = draw()
    np.testing.assert_array_equal(warp(features, flow), warp(features, flow[..., ::-1], order="yx"))
    with pytest.raises(ValueError, match="order is 'ij'; allowed: xy, yx"):
        warp(features, flow, order="ij")


def test_flow_that_is_not_finite_gives_zero_and_harms_no_other():
    features, flow, cotangent = draw()
    broken = flow.copy()
    broken[0, 1, 2], broken[1, 3, 3] = (np.nan, 0), (0, np.inf)
    flow[0, 1, 2] = flow[1, 3, 3] = 1e4
    for found, expected in zip(
        both(features, broken, cotangent), both(features, flow, cotangent), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_maps_of_low_precision():
    features, flow, cotangent = draw()
    low = jnp.asarray(features, jnp.bfloat16)
    value, gradient, slope = both(low, flow, jnp.asarray(cotangent, jnp.bfloat16))
    assert value.dtype == gradient.dtype == jnp.bfloat16 and slope.dtype == jnp.float32
    expected = warp(low.astype(jnp.float32), flow).astype(jnp.bfloat16)
    np.testing.assert_array_equal(value, expected)
