"""Poolings of clips against XLA's own windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.video.poolings import POOLINGS, frames_out, pool_frames, pool_space, space_out

SIZE = (2, 5, 7, 6, 3)


def pool(x, name):
    window, padded, _ = POOLINGS[name]
    return pool_frames(pool_space(x, padded), window)


def windows(x, window, stride, padding):
    around = ((0, 0), *((pad, pad) for pad in padding), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), around)


@pytest.mark.parametrize(
    ("name", "window", "stride", "padding"),
    [
        ("paper", (3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ("code", (2, 3, 3), (2, 2, 2), (0, 0, 0)),
        ("padded", (2, 3, 3), (2, 2, 2), (0, 1, 1)),
        ("sparse", (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    ],
)
def test_stem_pooling(name, window, stride, padding):
    x = jnp.asarray(np.random.default_rng(0).permutation(np.prod(SIZE)).reshape(SIZE), jnp.float32)

    @jax.jit
    def both(x):
        ours, pull = jax.vjp(lambda x: pool(x, name), x)
        theirs, pull_theirs = jax.vjp(lambda x: windows(x, window, stride, padding), x)
        return (ours, *pull(ours)), (theirs, *pull_theirs(theirs))

    for ours, theirs in zip(*both(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    frames, padded, _ = POOLINGS[name]
    size = frames_out(5, frames), space_out(7, padded), space_out(6, padded)
    assert jax.eval_shape(lambda x: pool(x, name), x).shape[1:4] == size


def test_one_frame_and_small_frames_stay():
    def shape(function, *size):
        return jax.eval_shape(function, jax.ShapeDtypeStruct((1, *size, 2), "float32")).shape[1:4]

    for window in (1, 2, 3):
        assert shape(lambda x, w=window: pool_frames(x, w), 1, 4, 4) == (1, 4, 4)
        assert frames_out(1, window) == 1
    for side in (1, 2):
        assert shape(lambda x: pool_space(x, False), 3, side, side) == (3, 1, 1)
        assert space_out(side, False) == 1
    assert [frames_out(32, window) for window in (1, 2, 3)] == [32, 16, 16]
    assert (space_out(112, True), space_out(112, False)) == (56, 55)
