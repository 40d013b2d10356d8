"""The feature pyramid and nearest resizing; values of both are in the golden tests, too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_macs import jaxpr_macs

from lambdanet.layers import FeaturePyramid, resize_nearest

SIZES = [(14, 22), (7, 11), (4, 6), (2, 3)]
DIMS = (4, 6, 8, 10)


def maps():
    draw = np.random.default_rng(0)
    return [
        jnp.asarray(draw.standard_normal((1, *size, dim)), jnp.float32)
        for size, dim in zip(SIZES, DIMS, strict=True)
    ]


@pytest.mark.parametrize("after", [(7, 11), (14, 22), (3, 5), (1, 1), (9, 4)])
def test_nearest_takes_the_position_that_pytorch_takes(after):
    x = jnp.arange(7 * 11, dtype=jnp.float32).reshape(1, 7, 11, 1)
    y = resize_nearest(x, after)
    rows, columns = (np.arange(n) * m // n for n, m in zip(after, (7, 11), strict=True))
    np.testing.assert_array_equal(y[0, :, :, 0], np.asarray(x)[0, rows][:, columns, 0])
    with pytest.raises(ValueError, match=r"size is \(0, 3\)"):
        resize_nearest(x, (0, 3))


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, SIZES),
        (dict(num_levels=5), [*SIZES, (1, 2)]),
        (dict(num_levels=5, start=1, extra="on_input"), [*SIZES[1:], (1, 2), (1, 1)]),
        (dict(num_levels=5, start=1, extra="on_output"), [*SIZES[1:], (1, 2), (1, 1)]),
    ],
)
def test_sizes_and_macs(options, sizes):
    neck = FeaturePyramid(DIMS, 8, **options, rngs=nnx.Rngs(0))
    levels = neck(maps())
    assert [level.shape for level in levels] == [(1, *size, 8) for size in sizes]
    assert neck.macs(SIZES) == jaxpr_macs(neck, maps())


def test_a_relu_between_the_levels_beyond():
    options = dict(num_levels=5, start=1, extra="on_input")
    plain, rectified = (
        FeaturePyramid(DIMS, 8, **options, extra_relu=relu, rngs=nnx.Rngs(0))(maps())
        for relu in (False, True)
    )
    for own, other in zip(plain[:4], rectified[:4], strict=True):
        np.testing.assert_array_equal(own, other)
    assert np.abs(plain[4] - rectified[4]).max() > 1e-3


def test_published_counts():
    for dims, total in (
        ((256, 512, 1024, 2048), 3_344_384),
        ((64, 128, 320, 512), 2_623_488),
        ((96, 192, 384, 768), 2_730_000),
    ):
        neck = nnx.eval_shape(lambda dims=dims: FeaturePyramid(dims, rngs=nnx.Rngs(0)))
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(neck, nnx.Param)))
        assert round(count, -4) == round(total, -4)
    options = dict(num_levels=5, start=1, extra="on_input")
    neck = nnx.eval_shape(
        lambda: FeaturePyramid((256, 512, 1024, 2048), **options, rngs=nnx.Rngs(0))
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(neck, nnx.Param)))
    assert round(count / 1e6, 2) == 8.00


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(start=4), "start is 4; allowed: 0 to 3"),
        (dict(extra="pol"), "extra is 'pol'; allowed: pool, on_input, on_output"),
        (dict(num_levels=3), "num_levels is 3; allowed: 4 or more"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FeaturePyramid(DIMS, 8, **options, rngs=nnx.Rngs(0))
    neck = FeaturePyramid(DIMS, 8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="the maps have"):
        neck(maps()[::-1])
