"""Multi-head attention: the textbook's sum over pairs, cross attention, options and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.mhsa import MultiHeadSelfAttention

DIM = 12


def layer(**options):
    return drawn(
        nnx.eval_shape(
            lambda: MultiHeadSelfAttention(DIM, **{"num_heads": 3, **options}, rngs=nnx.Rngs(0))
        )
    )


def inputs(*spatial, batch=2, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, *spatial, DIM)).astype(np.float32)


@jax.jit
def run(built, x, **arguments):
    return built(x, **arguments)


@jax.jit
def captured(built, x, **arguments):
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x, **arguments)
    return y, nnx.to_pure_dict(sown)["attention_map"][0]


def by_hand(built, x, keys, values):
    """(output [b, n, c], weights [b, h, n, m]) of lists of tokens, one query and head at a time, in
    float64.
    """

    def linear(module, a):
        bias = 0 if module.bias is None else np.float64(module.bias[...])
        return np.float64(a) @ np.float64(module.kernel[...]) + bias

    q, k, v = linear(built.query, x), linear(built.key, keys), linear(built.value, values)
    d, y = built.head_dim, np.zeros(q.shape)
    weights = np.zeros((len(x), built.num_heads, x.shape[1], keys.shape[1]))
    for b, h, n in np.ndindex(len(x), built.num_heads, x.shape[1]):
        part = slice(h * d, (h + 1) * d)
        exponents = np.exp(k[b, :, part] @ q[b, n, part] / np.sqrt(d))
        weights[b, h, n] = exponents / exponents.sum()
        y[b, n, part] = weights[b, h, n] @ v[b, :, part]
    return y if built.output is None else linear(built.output, y), weights


@pytest.mark.parametrize("options", [{}, dict(qkv_bias=False, output_bias=False, head_dim=5)])
def test_equals_the_sum_over_pairs_for_any_number_of_axes(options):
    built, x = layer(**options), inputs(3, 5)
    tokens = x.reshape(2, 15, DIM)
    expected, weights = by_hand(built, tokens, tokens, tokens)
    y, shown = captured(built, x)
    np.testing.assert_allclose(y.reshape(2, 15, DIM), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown, weights.reshape(2, 3, 3, 5, 3, 5), rtol=1e-4, atol=1e-6)
    for shape in ((15,), (5, 1, 3)):
        same = run(built, x.reshape(2, *shape, DIM))
        assert same.shape == (2, *shape, DIM)
        np.testing.assert_allclose(same.reshape(y.shape), y, rtol=1e-5, atol=1e-5)


def test_has_no_positions():
    built, x = layer(), inputs(7)
    order = np.random.default_rng(2).permutation(7)
    np.testing.assert_allclose(
        run(built, x[:, order]), run(built, x)[:, order], rtol=1e-5, atol=1e-5
    )


def test_context_and_values_of_another_size():
    built, x, context, values = layer(), inputs(3, 2), inputs(4, 5, seed=2), inputs(4, 5, seed=3)
    lists = [a.reshape(2, -1, DIM) for a in (x, context, values)]
    y, shown = captured(built, x, context=context, value_context=values)
    expected, weights = by_hand(built, *lists)
    np.testing.assert_allclose(y.reshape(2, 6, DIM), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown, weights.reshape(2, 3, 3, 2, 4, 5), rtol=1e-4, atol=1e-6)
    expected, _ = by_hand(built, lists[0], lists[1], lists[1])
    np.testing.assert_allclose(
        run(built, x, context=context).reshape(2, 6, DIM), expected, rtol=1e-4, atol=1e-5
    )


def test_output_projection_can_be_left_to_the_network():
    bare, full = layer(output_projection=False, head_dim=5), layer(head_dim=5)
    nnx.update(bare, {k: v for k, v in nnx.to_pure_dict(nnx.state(full)).items() if k != "output"})
    x = inputs(4)
    inner = run(bare, x)
    assert inner.shape == (2, 4, 15)
    np.testing.assert_allclose(full.output(inner), run(full, x), rtol=1e-5, atol=1e-5)
    assert full.macs(4) - bare.macs(4) == 4 * 15 * DIM


def test_float64_is_not_rounded_on_the_way():
    built, x = layer(), inputs(6)
    expected, _ = by_hand(built, x, x, x)
    with jax.enable_x64():
        y = run(built, jnp.asarray(x, jnp.float64))
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=5), "num_heads is 5; allowed: divisors of dim=12"),
        (dict(num_heads=0, head_dim=4), "num_heads is 0"),
        (dict(head_dim=0), "head_dim is 0; allowed: 1 or more"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        create_attention(dict(name="mhsa", **options), DIM, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(x=inputs()), "expected .batch, 1 or 2 or 3 spatial axes"),
        (
            dict(x=inputs(4), context=inputs(4, batch=1)),
            r"context has shape \(1, 4, 12\); expected \[2, positions, 12\]",
        ),
        (
            dict(x=inputs(4), context=inputs(3), value_context=inputs(5)),
            r"value_context has shape \(2, 5, 12\) beside",
        ),
    ],
)
def test_wrong_calls(call, message):
    with pytest.raises(ValueError, match=message):
        layer()(**call)
