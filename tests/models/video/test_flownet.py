"""FlowNet-S: counts, sizes, units, and its transposed convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.training.state import flatten_names, split_model
from models.video.aggregation import Embedding
from models.video.flownet import FlowNetS, Upconv


def parameters(module):
    return flatten_names(split_model(module)[1])


def count(build):
    return sum(leaf.size for leaf in parameters(nnx.eval_shape(build)).values())


def test_counts():
    """38.68 M, and 0.20 M of the scale map; the embedding of FGFA 3.94 M."""
    assert count(lambda: FlowNetS(rngs=nnx.Rngs(0))) == 38_676_514
    assert count(lambda: FlowNetS(scale_channels=1024, rngs=nnx.Rngs(0))) == 38_876_194
    host = dict(dtype=None, param_dtype=jnp.float32)
    assert count(lambda: Embedding(1024, 512, 2048, **host, rngs=nnx.Rngs(0))) == 3_935_232


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_upconv_is_the_transposed_convolution(size):
    layer = Upconv(2, 3, dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(3.0)
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 2)).astype(np.float32)
    kernel, full = np.asarray(layer.kernel[...]), np.zeros((1, 8, 10, 3))
    for i, j in np.ndindex(3, 4):
        full[0, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum(
            "c,yxcd->yxd", x[0, i, j], kernel
        )
    expected = full[:, 1 : 1 + size[0], 1 : 1 + size[1]] + np.arange(3.0)
    np.testing.assert_allclose(layer(x, size), expected, atol=1e-5)


@pytest.mark.parametrize("half", [True, False])
def test_sizes_and_units(half):
    """Any size of picture; flows in cells of the features, 20 pixels of the picture that is read
    per unit; a scale of 1.
    """
    build = lambda: FlowNetS(  # noqa: E731
        stride=16, scale_channels=4, quality=True, width=1 / 32, levels=4, half=half,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    model = build()
    model.flow.kernel[...] = jnp.zeros_like(model.flow.kernel[...])
    model.flow.bias[...] = jnp.asarray([1.0, -1.0])
    images = jnp.ones((1, 50, 37, 3))
    motion = jax.jit(lambda model, x: model(x, x, (4, 3)))(model, images)
    cells = 20 * (2 if half else 1) / 16
    np.testing.assert_allclose(motion.flow, np.broadcast_to([cells, -cells], (1, 4, 3, 2)))
    assert (motion.scale == 1).all() and motion.scale.shape == (1, 4, 3, 4)
    assert motion.quality.shape == (1, 4, 3)


def test_the_summary_covers_all_parameters():
    model = nnx.eval_shape(lambda: FlowNetS(scale_channels=8, quality=True, rngs=nnx.Rngs(0)))
    paths = [name for name, *_ in model.rows("net", (50, 70), (4, 5))]
    for path in parameters(model):
        assert sum(f"net/{path}".startswith(f"{row}/") for row in paths) == 1, path
    assert len(paths) == len(set(paths))
    macs = {name: row[-1] for name, *row in model.rows("net", (64, 64), (4, 4))}
    assert macs["net/encode/0/0"] == 16 * 16 * 49 * 6 * 64
    assert macs["net/raise_features/3"] == 4 * 4 * 16 * 386 * 64  # from a sixteenth of the picture
