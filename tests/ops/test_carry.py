"""Attention to a neighbourhood of another frame: plain loops, and what a flow would do."""

import functools

import jax
import numpy as np
import pytest

from lambdanet.ops.carry import carry
from lambdanet.ops.warp import warp

SIZE = (6, 9)


def draw(dim=4, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((2, *SIZE, width)).astype(np.float32) for width in (dim, dim, channels)
    ]


def loop(query, key, value, bias, ring_bias=None, step=2):
    """One softmax over the offsets of the square and those of the ring outside of it."""
    near = len(bias) // 2
    offsets = {(u - near, v - near): bias[u, v] for u in range(len(bias)) for v in range(len(bias))}
    if ring_bias is not None:
        far = len(ring_bias) // 2
        for u in range(len(ring_bias)):
            for v in range(len(ring_bias)):
                at = ((u - far) * step, (v - far) * step)
                offsets.setdefault(at, ring_bias[u, v])
    out = np.zeros(value.shape)
    for b, i, j in np.ndindex(*value.shape[:3]):
        seen = {
            (i + u, j + v): query[b, i, j] @ key[b, i + u, j + v] / query.shape[-1] ** 0.5 + add
            for (u, v), add in offsets.items()
            if 0 <= i + u < SIZE[0] and 0 <= j + v < SIZE[1]
        }
        weights = np.exp(np.float64(list(seen.values())))
        rows = np.stack([value[b, y, x] for y, x in seen])
        out[b, i, j] = weights @ rows / weights.sum()
    return out


@pytest.mark.parametrize("ring", [None, 2])
def test_it_is_the_loops(ring):
    query, key, value = draw()
    rng = np.random.default_rng(1)
    bias = rng.standard_normal((3, 3)).astype(np.float32)
    ring_bias = None if ring is None else rng.standard_normal((5, 5)).astype(np.float32)
    found = jax.jit(carry)(query, key, value, bias, ring_bias)
    np.testing.assert_allclose(found, loop(query, key, value, bias, ring_bias), atol=2e-6)


def test_a_translation_is_recovered_exactly_and_equals_the_warp():
    """Frames whose embeddings are all different, moved by (1 down, 2 left)."""
    _, key, value = draw(dim=64)
    query = np.zeros_like(key)
    query[:, :-1, 2:] = key[:, 1:, :-2]  # a place that shows what was at (y + 1, x - 2)
    bias = np.zeros((5, 5), np.float32)
    found = jax.jit(carry)(200 * query, key, value, bias)
    flow = np.broadcast_to(np.float32([-2, 1]), (2, *SIZE, 2))
    expected = warp(value, flow)
    np.testing.assert_array_equal(found[:, :-1, 2:], expected[:, :-1, 2:])
    np.testing.assert_array_equal(expected[:, :-1, 2:], value[:, 1:, :-2])


def test_a_large_bias_in_the_middle_is_the_identity():
    query, key, value = draw()
    bias = np.zeros((5, 5), np.float32)
    bias[2, 2] = 1e4
    found = jax.jit(functools.partial(carry, ring_step=3))(
        query, key, value, bias, np.zeros((3, 3), np.float32)
    )
    np.testing.assert_array_equal(found, value)


def test_a_ring_within_the_square_is_refused():
    query, key, value = draw()
    square, ring = np.zeros((9, 9), np.float32), np.zeros((5, 5), np.float32)
    with pytest.raises(ValueError, match="a ring of radius 4 lies within the square of radius 4"):
        carry(query, key, value, square, ring)
