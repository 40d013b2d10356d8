"""ConvNormAct and DropPath: values, odd sizes, statistics, initialisation, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.layers import ConvNormAct, DropPath


def conv_reference(x, kernel, stride):
    side = kernel.shape[0]
    pad = side // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = range(0, x.shape[1] - side + 1, stride), range(0, x.shape[2] - side + 1, stride)
    out = [
        [
            np.tensordot(x[:, i : i + side, j : j + side], kernel, ((1, 2, 3), (0, 1, 2)))
            for j in columns
        ]
        for i in rows
    ]
    return np.moveaxis(np.asarray(out), 2, 0)


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (6, 7)])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_evaluation_equals_the_formula(size, kernel_size, stride):
    rng = np.random.default_rng(0)
    layer = ConvNormAct(3, 4, kernel_size, stride=stride, rngs=nnx.Rngs(0))
    for name in ("scale", "bias", "mean"):
        getattr(layer.norm, name)[...] = jnp.asarray(rng.normal(size=4), jnp.float32)
    layer.norm.var[...] = jnp.asarray(rng.uniform(0.5, 2, size=4), jnp.float32)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    y = conv_reference(x, np.asarray(layer.conv.kernel[...]), stride)
    norm = {
        name: np.asarray(getattr(layer.norm, name)[...])
        for name in ("scale", "bias", "mean", "var")
    }
    y = np.maximum(
        (y - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"], 0
    )
    out = nnx.view(layer, use_running_average=True)(x)
    assert out.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 4)
    np.testing.assert_allclose(out, y, rtol=1e-5, atol=1e-5)


def test_training_moves_the_running_statistics_by_the_momentum():
    layer = ConvNormAct(3, 4, 3, norm_momentum=0.8, activation="none", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
    y = layer.conv(x)
    out = layer(x)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(layer.norm.mean[...], 0.2 * y.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(layer.norm.var[...], 0.8 + 0.2 * y.var((0, 1, 2)), atol=1e-5)


def test_initialisation():
    layer = ConvNormAct(64, 32, 3, zero_init=True, rngs=nnx.Rngs(0))
    assert float(layer.conv.kernel[...].std()) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    assert not layer.norm.scale[...].any()
    assert layer.conv.bias is None


def test_bfloat16_keeps_statistics_and_parameters_in_float32():
    layer = ConvNormAct(3, 4, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3))
    assert layer(x).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype("float32")}


def test_macs_equal_the_compilers_count():
    layer = nnx.view(
        ConvNormAct(8, 16, 1, stride=2, activation="none", rngs=nnx.Rngs(0)),
        use_running_average=True,
    )
    graph, state = nnx.split(layer)
    cost = (
        jax.jit(lambda s, x: nnx.merge(graph, s).conv(x))
        .lower(state, jnp.zeros((1, 14, 10, 8)))
        .compile()
        .cost_analysis()
    )
    assert 2 * layer.macs(14, 10) == cost["flops"]


def test_refusals():
    with pytest.raises(ValueError, match="kernel size is 2; allowed: odd"):
        ConvNormAct(3, 4, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="'rellu'. Did you mean 'relu'"):
        ConvNormAct(3, 4, activation="rellu", rngs=nnx.Rngs(0))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    layer = DropPath(0.25)
    x = jnp.ones((4000, 2, 3))
    out = layer(x, rngs=nnx.Rngs(dropout=0))
    first = out[:, 0, 0]
    np.testing.assert_array_equal(out, jnp.broadcast_to(first[:, None, None], out.shape))
    assert set(np.unique(first).tolist()) == {0.0, float(jnp.float32(1) / jnp.float32(0.75))}
    assert float(first.mean()) == pytest.approx(1.0, abs=0.04)
    np.testing.assert_array_equal(nnx.view(layer, deterministic=True)(x), x)
    with pytest.raises(ValueError, match="rngs"):
        layer(x)
    with pytest.raises(ValueError, match="rate is 1.0"):
        DropPath(1.0)


def test_dilation_is_a_kernel_with_holes_and_bias_is_added():
    rng = np.random.default_rng(3)
    layer = ConvNormAct(3, 4, 3, dilation=2, bias=True, activation="none", rngs=nnx.Rngs(0))
    layer.conv.bias[...] = jnp.asarray(rng.normal(size=4), jnp.float32)
    holes = np.zeros((5, 5, 3, 4))
    holes[::2, ::2] = layer.conv.kernel[...]
    x = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    expected = (conv_reference(x, holes, 1) + np.asarray(layer.conv.bias[...])) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(
        nnx.view(layer, use_running_average=True)(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5
    )
    assert layer.macs(4, 6) == 4 * 6 * 9 * 3 * 4
