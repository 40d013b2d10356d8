"""Cross-shaped window attention against loops over stripes; the two ways to be global; reach;
errors.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_macs import jaxpr_macs

from lambdanet.attention.cross_shaped_window import CrossShapedWindowAttention

DIM = 8
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def randomised(built):
    rng = np.random.default_rng(0)
    nnx.update(
        built,
        jax.tree.map(
            lambda a: a + 0.5 * rng.standard_normal(a.shape).astype(a.dtype), nnx.state(built)
        ),
    )
    return built


def layer(**options):
    defaults = dict(num_heads=4, stripe_width=2)
    return randomised(CrossShapedWindowAttention(DIM, **{**defaults, **options}, rngs=nnx.Rngs(0)))


def inputs(*spatial, batch=2):
    return np.random.default_rng(1).standard_normal((batch, *spatial, DIM)).astype(np.float32)


@once
def captured(built, x):
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(sown)["attention_map"][0]


def by_hand(built, x, width):
    """(output, weights [b, h, y, x, Y, X]) in float64: every query looks at every position of its
    stripe.

    `width` is that of the stripes, of which the first half of the heads has vertical ones, or None:
    no stripes.
    """
    x, size, heads = np.float64(x), x.shape[1:3], built.num_heads
    qkv = x @ np.float64(built.qkv.kernel[...])
    if built.qkv.bias is not None:
        qkv = qkv + np.float64(built.qkv.bias[...])
    q, k, v = np.split(qkv, 3, -1)
    kernel, bias = (
        np.concatenate([np.float64(getattr(conv, name)[...]) for conv in built.position_convs], -1)
        for name in ("kernel", "bias")
    )
    depth, mixed, weights = DIM // heads, np.zeros_like(x), np.zeros((len(x), heads, *size, *size))
    for h, y, z in np.ndindex(heads, *size):
        # Positions of the stripe on the map, and how many zeros it has beside them.
        axis = None if width is None else 1 if h < heads // 2 else 0
        ranges = [range(n) for n in size]
        count = size[0] * size[1]
        if axis is not None and size[axis] > width:
            front = -size[axis] % width // 2
            first = ((y, z)[axis] + front) // width * width - front
            ranges[axis] = range(max(first, 0), min(first + width, size[axis]))
            count = width * size[1 - axis]
        stripe = [(i, j) for i in ranges[0] for j in ranges[1]]
        part = slice(h * depth, (h + 1) * depth)
        for b in range(len(x)):
            logits = (
                np.array([q[b, y, z, part] @ k[b, i, j, part] for i, j in stripe]) * depth**-0.5
            )
            exponents = np.exp(logits)
            shares = exponents / (
                exponents.sum() + count - len(stripe)
            )  # the logit of a padded key is zero
            mixed[b, y, z, part] = bias[part]
            for (i, j), share in zip(stripe, shares, strict=True):
                weights[b, h, y, z, i, j] = share
                mixed[b, y, z, part] += share * v[b, i, j, part]
                if abs(i - y) <= 1 and abs(j - z) <= 1:
                    mixed[b, y, z, part] += kernel[i - y + 1, j - z + 1, 0, part] * v[b, i, j, part]
    return mixed @ np.float64(built.output.kernel[...]) + np.float64(
        built.output.bias[...]
    ), weights


CASES = {
    "stripes divide the map": ((4, 6), dict(), 2),
    "padded": ((5, 7), dict(stripe_width=3, qkv_bias=False), 3),
    "lines": ((4, 3), dict(stripe_width=1, num_heads=2), 1),
    "one side within a stripe": ((3, 7), dict(stripe_width=4), 4),
    "global": ((3, 5), dict(stripe_width=None, num_heads=1), None),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_loops(name):
    spatial, options, width = CASES[name]
    built, x = layer(**options), inputs(*spatial)
    y, shown = captured(built, x)
    expected, weights = by_hand(built, x, width)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown, weights, rtol=1e-4, atol=1e-6)
    as_convolution = layer(
        **options, impl="conv"
    )  # 'shift' has no convolution that could be counted
    assert built.macs(*spatial) == jaxpr_macs(as_convolution, x[:1])


def test_a_map_of_one_stripe_makes_the_layer_global():
    whole, split = layer(stripe_width=3, size=(3, 3)), layer(stripe_width=3)
    assert (len(whole.position_convs), len(split.position_convs)) == (1, 2)
    params = nnx.to_pure_dict(nnx.state(split))
    convs = params.pop("position_convs")
    joined = {name: jnp.concatenate([convs[i][name] for i in range(2)], -1) for name in convs[0]}
    nnx.update(whole, {**params, "position_convs": {0: joined}})
    x = inputs(3, 3)
    np.testing.assert_allclose(
        once(whole.__call__)(x), once(split.__call__)(x), rtol=1e-5, atol=1e-5
    )
    for other in ((3, 4), (2, 2), None):
        assert len(layer(stripe_width=3, size=other).position_convs) == 2


def test_an_output_depends_on_a_cross():
    built, x = layer(), inputs(6, 6, batch=1)
    reach = np.abs(once(jax.grad(lambda x: jnp.sum(built(x)[0, 2, 5])))(x)).sum((0, -1)) > 0
    expected = np.zeros((6, 6), bool)
    expected[2:4] = expected[:, 4:] = True
    np.testing.assert_array_equal(reach, expected)


def test_initial_state():
    built = CrossShapedWindowAttention(64, num_heads=8, rngs=nnx.Rngs(0))
    for linear in (built.qkv, built.output):
        assert 0.018 < np.std(linear.kernel[...]) < 0.022 and not np.any(linear.bias[...])
    for conv in built.position_convs:
        for array in (conv.kernel, conv.bias):
            assert 0.25 < np.abs(array[...]).max() <= 1 / 3
        assert 0.17 < np.std(conv.kernel[...]) < 0.22  # 1 / sqrt(27)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=3), "num_heads is 3; allowed: divisors of dim=8"),
        (
            dict(num_heads=1),
            "num_heads is 1; allowed: even numbers, half for each direction, or stripe_width=None",
        ),
        (dict(stripe_width=0), "stripe_width is 0; allowed: an integer of 1 or more, or None"),
        (dict(size=(0, 2)), r"size is \(0, 2\); allowed"),
        (dict(impl="fast"), "impl is 'fast'; allowed: auto, shift, conv"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)
