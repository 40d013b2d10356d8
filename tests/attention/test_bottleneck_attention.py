"""BoTNet attention against its definition pair by pair; resizing; errors."""

import jax
import numpy as np
import pytest
from drawn_weights import drawn
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.bottleneck_attention import BottleneckAttention, resize_params

DIM = 12


def layer(size=(3, 5), **options):
    return drawn(
        nnx.eval_shape(
            lambda: BottleneckAttention(
                DIM, **{"num_heads": 3, "size": size, **options}, rngs=nnx.Rngs(0)
            )
        )
    )


def inputs(*spatial, batch=2):
    return np.random.default_rng(1).standard_normal((batch, *spatial, DIM)).astype(np.float32)


@jax.jit
def captured(built, x):
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(sown)["attention_map"][0]


def by_hand(built, x, relative_scale):
    """(output, weights [b, h, y, x, Y, X]) in float64, one query and head at a time."""
    x = np.float64(x)
    tables = np.float64(built.height_embedding[...]), np.float64(built.width_embedding[...])

    def project(linear):
        out = x @ np.float64(linear.kernel[...])
        out = out if linear.bias is None else out + np.float64(linear.bias[...])
        return out.reshape(*x.shape[:3], built.num_heads, -1)

    q, k, v = (project(linear) for linear in (built.query, built.key, built.value))
    batch, height, width, heads, depth = q.shape
    weights, out = np.zeros((batch, heads, height, width, height, width)), np.zeros(v.shape)
    for b, h, i, j in np.ndindex(batch, heads, height, width):
        logits = np.zeros((height, width))
        for m, n in np.ndindex(height, width):
            embedding = tables[0][m - i + height - 1] + tables[1][n - j + width - 1]
            logits[m, n] = (
                q[b, i, j, h] @ k[b, m, n, h] / np.sqrt(depth)
                + relative_scale * q[b, i, j, h] @ embedding
            )
        exponents = np.exp(logits - logits.max())
        weights[b, h, i, j] = exponents / exponents.sum()
        out[b, i, j, h] = np.einsum("mn,mnv->v", weights[b, h, i, j], v[b, :, :, h])
    return out.reshape(batch, height, width, -1), weights


@pytest.mark.parametrize(
    "options", [dict(), dict(key_depth=2, dim_out=9, qkv_bias=True, scale_relative=True)]
)
def test_equals_the_definition(options):
    built, x = layer(**options), inputs(3, 5)
    scaled = built.scale_relative
    expected, weights = by_hand(built, x, built.key_depth**-0.5 if scaled else 1.0)
    y, shown = captured(built, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown, weights, rtol=1e-4, atol=1e-6)
    other, _ = by_hand(built, x, 1.0 if scaled else built.key_depth**-0.5)
    assert np.abs(other - expected).max() > 1e-2  # the flag matters


def test_resized_tables_keep_offsets_or_interpolate():
    params = nnx.to_pure_dict(nnx.state(layer((3, 5)), nnx.Param))
    smaller = resize_params(params, (3, 5), (3, 2))
    np.testing.assert_array_equal(smaller["height_embedding"], params["height_embedding"])
    np.testing.assert_array_equal(smaller["width_embedding"], params["width_embedding"][3:-3])
    larger = resize_params(params, (3, 5), (5, 5))
    np.testing.assert_allclose(
        larger["height_embedding"][::2], params["height_embedding"], rtol=1e-5
    )
    middle = (params["height_embedding"][1:] + params["height_embedding"][:-1]) / 2
    np.testing.assert_allclose(larger["height_embedding"][1::2], middle, rtol=1e-5, atol=1e-6)
    target = layer((5, 5))
    nnx.update(target, larger)
    assert jax.eval_shape(target, inputs(5, 5)).shape == (2, 5, 5, DIM)
    with pytest.raises(ValueError, match=r"from map size \(4,\) to \(5,\)"):
        resize_params(params, (4, 5), (5, 5))


def test_host_hands_the_size_on_and_another_map_is_refused():
    built = create_attention("bottleneck_attention", DIM, size=(3, 4), rngs=nnx.Rngs(0))
    assert built.height_embedding.shape == (5, 3) and built.width_embedding.shape == (7, 3)
    with pytest.raises(
        ValueError, match=r"size \(4, 3\), the embeddings are for size \(3, 4\).*resize_params"
    ):
        built(inputs(4, 3))
    with pytest.raises(ValueError, match="expected .batch, 2 spatial axes"):
        built(inputs(12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=None), "size is None; allowed: the map's"),
        (dict(size=(3, 0)), r"size is \(3, 0\)"),
        (dict(num_heads=5), "num_heads is 5; allowed: divisors of dim_out=12"),
        (dict(key_depth=0), "key_depth is 0; allowed: 1 or more"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)
