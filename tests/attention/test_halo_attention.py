"""Halo attention against brute force over windows; padding, strides, locality; errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import nnx

from lambdanet.attention.bottleneck_attention import BottleneckAttention
from lambdanet.attention.halo_attention import HaloAttention

DIM = 8


def layer(**options):
    return drawn(
        nnx.eval_shape(
            lambda: HaloAttention(
                DIM,
                **{"num_heads": 2, "block_size": 2, "halo_size": 1, **options},
                rngs=nnx.Rngs(0),
            )
        )
    )


def inputs(*spatial, batch=2):
    return np.random.default_rng(1).standard_normal((batch, *spatial, DIM)).astype(np.float32)


@jax.jit
def run(built, x):
    return built(x)


@jax.jit
def captured(built, x):
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(sown)["attention_map"][0]


def by_hand(built, x):
    """(output, weights on the map [b, h, y, x, Y, X]) in float64: every query looks up its window
    key by key.
    """
    x = np.float64(x)
    tables = np.float64(built.height_embedding[...]), np.float64(built.width_embedding[...])

    def project(linear):
        out = x @ np.float64(linear.kernel[...])
        out = out if linear.bias is None else out + np.float64(linear.bias[...])
        return out.reshape(*x.shape[:3], built.num_heads, -1)

    q, kv = project(built.query), project(built.key_value)
    size, depth, stride, window = x.shape[1:3], built.key_depth, built.stride, built.window_size
    rows, columns = (-(-s // stride) for s in size)
    out = np.zeros((len(x), rows, columns, built.num_heads, kv.shape[-1] - depth))
    weights = np.zeros((len(x), built.num_heads, rows, columns, *size))
    relative_scale = depth**-0.5 if built.scale_relative else 1.0
    for b, h, i, j in np.ndindex(len(x), built.num_heads, rows, columns):
        query, place = q[b, i * stride, j * stride, h], (i * stride, j * stride)
        corner = [p // built.block_size * built.block_size - built.halo_size for p in place]
        inside = [
            p % built.block_size // stride for p in place
        ]  # strided queries of the block before this one
        logits, values, keys = [], [], []
        for m, n in np.ndindex(window, window):
            at = corner[0] + m, corner[1] + n
            on_map = all(0 <= a < s for a, s in zip(at, size, strict=True))
            pair = kv[b, at[0], at[1], h] if on_map else np.zeros(kv.shape[-1])
            embedding = (
                tables[0][m - inside[0] + window - 1] + tables[1][n - inside[1] + window - 1]
            )
            logits.append(query @ pair[:depth] * depth**-0.5 + relative_scale * query @ embedding)
            values.append(pair[depth:])
            keys.append(at if on_map else None)
        exponents = np.exp(np.array(logits) - max(logits))
        shares = exponents / exponents.sum()
        out[b, i, j, h] = shares @ np.array(values)
        for share, key in zip(shares, keys, strict=True):
            if key is not None:
                weights[b, h, i, j, key[0], key[1]] = share
    return out.reshape(len(x), rows, columns, -1), weights


CASES = {
    "multiple of the block": ((4, 6), dict()),
    "padded, wide halo": ((5, 3), dict(halo_size=3)),
    "no halo": ((3, 5), dict(halo_size=0)),
    "block larger than the map": ((3, 2), dict(block_size=5)),
    "one pixel": ((1, 1), dict(block_size=3)),
    "biases, depths, scaled": (
        (5, 4),
        dict(qkv_bias=True, key_depth=3, dim_out=6, scale_relative=True),
    ),
    "stride": ((7, 5), dict(block_size=4, stride=2)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_brute_force(name):
    spatial, options = CASES[name]
    built, x = layer(**options), inputs(*spatial)
    expected, weights = by_hand(built, x)
    y, shown = captured(built, x)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown, weights, rtol=1e-4, atol=1e-6)


def test_one_block_without_halo_is_bottleneck_attention():
    built = layer(block_size=4, halo_size=0)
    whole = BottleneckAttention(DIM, num_heads=2, size=(4, 4), rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(built))
    pairs = params.pop("key_value")["kernel"].reshape(DIM, 2, 8)  # [k | v] head by head
    for name, part in (("key", pairs[..., :4]), ("value", pairs[..., 4:])):
        params[name] = {"kernel": part.reshape(DIM, 8)}
    nnx.update(whole, params)
    x = inputs(4, 4)
    np.testing.assert_allclose(run(built, x), run(whole, x), rtol=1e-5, atol=1e-5)


def test_an_output_depends_on_its_window_alone():
    built, x = layer(), inputs(6, 6, batch=1)
    reach = np.abs(jax.jit(jax.grad(lambda x: jnp.sum(built(x)[0, 2:4, 2:4])))(x)).sum((0, -1)) > 0
    expected = np.zeros((6, 6), bool)
    expected[1:5, 1:5] = True  # the block's rows and columns 2 and 3, and a halo of 1
    np.testing.assert_array_equal(reach, expected)


def test_memory_is_linear_in_the_map():
    built = layer()

    def temporary(side):
        x = jax.ShapeDtypeStruct((1, side, side, DIM), jnp.float32)
        return jax.jit(built.__call__).lower(x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(32) < 4.5 * temporary(16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=3), "num_heads is 3; allowed: divisors of dim_out=8"),
        (dict(key_depth=0), "key_depth is 0"),
        (dict(block_size=0), "block_size is 0, halo_size is 1; allowed: block_size >= 1"),
        (dict(halo_size=-1), "halo_size is -1; allowed: block_size >= 1, halo_size >= 0"),
        (dict(block_size=3, stride=2), "stride is 2; allowed: divisors of block_size=3; else pool"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)
