"""Spatial-reduction attention against loops over windows, bins and keys; small maps, token lists,
initial state, errors.
"""

import functools
import math

import jax
import numpy as np
import pytest
from drawn_weights import drawn
from flax import nnx
from jaxpr_macs import jaxpr_macs

from lambdanet.attention.mhsa import MultiHeadSelfAttention
from lambdanet.attention.spatial_reduction import SpatialReductionAttention
from lambdanet.layers import adaptive_avg_pool

DIM = 6
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def layer(**options):
    return drawn(
        nnx.eval_shape(
            lambda: SpatialReductionAttention(DIM, **{"num_heads": 2, **options}, rngs=nnx.Rngs(0))
        )
    )


def inputs(*spatial, batch=2):
    return np.random.default_rng(1).standard_normal((batch, *spatial, DIM)).astype(np.float32)


@once
def captured(built, x):
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(sown)["attention_map"][0]


def linear(module, x):
    y = x @ np.float64(module.kernel[...])
    return y if module.bias is None else y + np.float64(module.bias[...])


def reduced(built, x):
    """The map that keys come from, window by window."""
    if built.reduction is None:
        return x
    kernel, r = np.float64(built.reduction.kernel[...]), built.sr_ratio
    if built.linear:
        pooled = np.zeros((len(x), 7, 7, DIM))
        for i, j in np.ndindex(7, 7):
            rows, columns = (
                slice(math.floor(at * n / 7), math.ceil((at + 1) * n / 7))
                for at, n in zip((i, j), x.shape[1:3], strict=True)
            )
            pooled[:, i, j] = x[:, rows, columns].mean((1, 2))
        x = pooled
    counts = [max(n // r, 1) for n in x.shape[1:3]]
    out = np.zeros((len(x), *counts, DIM)) + np.float64(built.reduction.bias[...])
    for i, j, u, v in np.ndindex(*counts, r, r):
        at = i * r + u, j * r + v
        if all(p < n for p, n in zip(at, x.shape[1:3], strict=True)):
            out[:, i, j] += x[:, at[0], at[1]] @ kernel[u, v]
    out = (out - out.mean(-1, keepdims=True)) / np.sqrt(out.var(-1, keepdims=True) + 1e-5)
    out = out * np.float64(built.norm.scale[...]) + np.float64(built.norm.bias[...])
    if built.linear:
        out = out * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(out)
    return out


def by_hand(built, x):
    """(output, weights [b, h, *queries, *keys]) in float64."""
    x = np.float64(x)
    seen = reduced(built, x)
    heads, depth = built.num_heads, DIM // built.num_heads
    q = linear(built.query, x).reshape(len(x), -1, DIM)
    k, v = np.split(linear(built.key_value, seen).reshape(len(x), -1, 2 * DIM), 2, -1)
    mixed, weights = np.zeros_like(q), np.zeros((len(x), heads, q.shape[1], k.shape[1]))
    for b, h, i in np.ndindex(len(x), heads, q.shape[1]):
        part = slice(h * depth, (h + 1) * depth)
        exponents = np.exp([q[b, i, part] @ key[part] / math.sqrt(depth) for key in k[b]])
        weights[b, h, i] = exponents / exponents.sum()
        mixed[b, i, part] = weights[b, h, i] @ v[b, :, part]
    return linear(built.output, mixed).reshape(x.shape), weights.reshape(
        len(x), heads, *x.shape[1:-1], *seen.shape[1:-1]
    )


CASES = {
    "last row and column left out": ((5, 7), dict()),
    "smaller than a window": ((2, 5), dict(sr_ratio=3, qkv_bias=False)),
    "not reduced": ((2, 3), dict(sr_ratio=1)),
    "list of tokens": ((5,), dict(sr_ratio=1, num_heads=3)),
    "linear, overlapping and repeated bins": ((9, 4), dict(linear=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_loops(name):
    spatial, options = CASES[name]
    built, x = layer(**options), inputs(*spatial)
    y, shown = captured(built, x)
    expected, weights = by_hand(built, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown, weights, rtol=1e-4, atol=1e-6)
    assert built.macs(*spatial) == jaxpr_macs(built, x[:1])


def test_without_reduction_it_is_multi_head_attention():
    built, plain = layer(sr_ratio=1), MultiHeadSelfAttention(DIM, num_heads=2, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(built))
    pair = params.pop("key_value")
    for i, name in enumerate(("key", "value")):
        params[name] = {key: array[..., i * DIM : (i + 1) * DIM] for key, array in pair.items()}
    nnx.update(plain, params)
    x = inputs(3, 2)
    np.testing.assert_allclose(
        once(built.__call__)(x), once(plain.__call__)(x), rtol=1e-5, atol=1e-6
    )


def test_adaptive_pooling_with_whole_bins_is_the_mean_of_cells():
    x = inputs(4, 6)
    np.testing.assert_allclose(
        adaptive_avg_pool(x, (2, 3)),
        x.reshape(2, 2, 2, 3, 2, DIM).mean((2, 4)),
        rtol=1e-6,
        atol=1e-6,
    )
    assert adaptive_avg_pool(x.astype("bfloat16"), (7, 7)).dtype == "bfloat16"
    with pytest.raises(
        ValueError, match=r"size is \(0, 3\); allowed: a height and a width of 1 or more"
    ):
        adaptive_avg_pool(x, (0, 3))


def test_initial_state():
    built = SpatialReductionAttention(32, num_heads=2, sr_ratio=2, rngs=nnx.Rngs(0))
    for projection in (built.query, built.key_value, built.output):
        assert 0.018 < np.std(projection.kernel[...]) < 0.022 and not np.any(projection.bias[...])
    bound = (2 * 2 * 32) ** -0.5
    for array in (built.reduction.kernel, built.reduction.bias):
        assert 0.9 * bound < np.abs(array[...]).max() <= bound
    assert built.norm.epsilon == 1e-5
    normal = SpatialReductionAttention(
        32, num_heads=2, conv_init="fan_out", rngs=nnx.Rngs(0)
    ).reduction
    np.testing.assert_allclose(np.std(normal.kernel[...]), (2 / (2 * 2 * 32)) ** 0.5, rtol=0.05)
    assert not np.any(normal.bias[...])


def test_lists_of_tokens_have_no_windows():
    for options in (dict(sr_ratio=2), dict(linear=True)):
        with pytest.raises(ValueError, match=r"expected \[batch, 2 spatial axes, 6 channels\]"):
            layer(**options)(inputs(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=4), "num_heads is 4; allowed: divisors of dim=6"),
        (dict(sr_ratio=0), "sr_ratio is 0 with linear=False; allowed: an integer of 1 or more"),
        (
            dict(sr_ratio=2, linear=True),
            "sr_ratio is 2 with linear=True; allowed: .* with linear=True only None",
        ),
        (dict(conv_init="zeros"), "conv_init is 'zeros'; allowed: fan_in, fan_out"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)
