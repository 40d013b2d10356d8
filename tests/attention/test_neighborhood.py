"""Neighborhood attention: full attention where the window is the map, small maps, dilation,
capture, counts, errors.
"""

import functools

import jax
import numpy as np
import pytest
from drawn_weights import drawn
from flax import nnx
from jaxpr_macs import jaxpr_macs

from lambdanet.attention.neighborhood import NeighborhoodAttention

DIM = 12
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def layer(**options):
    """A layer whose biases and table are large enough to matter."""
    return drawn(
        nnx.eval_shape(
            lambda: NeighborhoodAttention(
                DIM, **{"num_heads": 3, "kernel_size": 3, **options}, rngs=nnx.Rngs(0)
            )
        )
    )


def image(*size, batch=2):
    return np.random.default_rng(1).standard_normal((batch, *size, DIM)).astype(np.float32)


@once
def run(built, x):
    return built(x)


@once
def captured(built, x):
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(sown)["attention_map"][0]


def full_attention(built, x):
    """(output, weights) of attention over all pairs in float64, the bias read at key - query."""
    x, (height, width) = np.float64(x), x.shape[1:3]
    kernel, bias = np.float64(built.qkv.kernel[...]), np.float64(built.qkv.bias[...])
    q, k, v = np.moveaxis((x @ kernel + bias).reshape(*x.shape[:3], 3, built.num_heads, -1), 3, 0)
    table, (kh, kw) = np.float64(built.relative_bias[...]), built.kernel_size
    logits = np.einsum("byxnd,bYXnd->bnyxYX", q, k) * (DIM / built.num_heads) ** -0.5
    for y, x_, Y, X in np.ndindex(height, width, height, width):
        logits[:, :, y, x_, Y, X] += table[:, Y - y + kh - 1, X - x_ + kw - 1]
    weights = np.exp(logits)
    weights /= weights.sum((-2, -1), keepdims=True)
    mixed = np.einsum("bnyxYX,bYXnd->byxnd", weights, v).reshape(x.shape)
    return mixed @ np.float64(built.output.kernel[...]) + np.float64(
        built.output.bias[...]
    ), weights


def test_a_window_as_large_as_the_map_is_full_attention():
    built, x = layer(kernel_size=(5, 7)), image(5, 7)
    expected, weights = full_attention(built, x)
    np.testing.assert_allclose(run(built, x), expected, rtol=1e-4, atol=1e-5)
    y, shown = captured(built, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown, weights, rtol=1e-4, atol=1e-6)


def test_small_maps():
    x = image(2, 6)
    padded = layer(kernel_size=5)
    y, shown = captured(padded, x)
    larger = np.pad(
        x, ((0, 0), (0, 3), (0, 0), (0, 0))
    )  # before the projection: padded keys are its bias
    np.testing.assert_allclose(y, run(padded, larger)[:, :2], rtol=1e-5, atol=1e-5)
    assert shown.shape == (2, 3, 2, 6, 2, 6) and (np.sum(shown, (-2, -1)) < 0.999).all()
    for border in ("zero", "masked", "circular"):  # these have no smallest map, and nothing to pad
        assert layer(border=border, kernel_size=(5, 3))._pad(x) is x


def test_dilated_attention_is_attention_inside_each_residue_class():
    x = image(6, 9)
    dilated, plain = layer(dilation=(2, 3)), layer()
    y = run(dilated, x)
    for row, column in np.ndindex(2, 3):
        np.testing.assert_allclose(
            y[:, row::2, column::3], run(plain, x[:, row::2, column::3]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("options", "taken"),
    [(dict(kernel_size=5), 1), (dict(kernel_size=3), 1), (dict(border="zero"), 0)],
)
def test_lowerings_are_equal_and_auto_takes_blocks_but_for_few_shifts(options, taken):
    x = image(8, 6)
    shift, block, auto = (
        layer(**dict(kernel_size=3) | options, impl=impl) for impl in ("shift", "block", "auto")
    )
    np.testing.assert_allclose(run(shift, x), run(block, x), rtol=1e-5, atol=1e-5)
    products = [jaxpr_macs(built, x[:1]) for built in (shift, block, auto)]
    assert products[2] == products[taken] != products[1 - taken]


def test_borders_differ_at_the_border_alone():
    x = image(7, 7)
    inside = (slice(None), slice(1, -1), slice(1, -1))
    results = [
        run(layer(border=border), x) for border in ("neighborhood", "zero", "masked", "circular")
    ]
    for i, y in enumerate(results):
        np.testing.assert_allclose(y[inside], results[0][inside], rtol=1e-5, atol=1e-5)
        assert all(np.abs(y - other).max() > 1e-3 for other in results[:i])


def test_options_and_initial_state():
    built = NeighborhoodAttention(64, num_heads=4, kernel_size=(5, 7), rngs=nnx.Rngs(0))
    assert built.relative_bias.shape == (4, 9, 13) and built.qkv.kernel.shape == (64, 192)
    for kernel in (built.qkv.kernel, built.output.kernel, built.relative_bias):
        values = np.asarray(kernel[...])
        assert np.std(values) == pytest.approx(0.02, rel=0.15) and np.abs(values).max() > 0.04
    assert not np.any(built.qkv.bias[...]) and not np.any(built.output.bias[...])
    bare = NeighborhoodAttention(
        64, num_heads=4, qkv_bias=False, relative_bias=False, rngs=nnx.Rngs(0)
    )
    assert set(nnx.to_pure_dict(nnx.state(bare))) == {"qkv", "output"} and bare.qkv.bias is None
    x = image(3, 3)  # without a scale every query takes the mean
    flat = layer(scale=0.0, relative_bias=False)
    mean = np.broadcast_to(x.mean((1, 2), keepdims=True), x.shape)
    value = mean @ flat.qkv.kernel[:, 2 * DIM :] + flat.qkv.bias[2 * DIM :]
    np.testing.assert_allclose(
        run(flat, x), value @ flat.output.kernel[...] + flat.output.bias[...], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("width", "blocks", "counted", "published"),
    [
        (64, (3, 4, 6, 5), 2554671104, 2.695e9),
        (64, (3, 4, 18, 5), 4096077824, 4.295e9),
        (96, (3, 4, 18, 5), 7473580032, 7.772e9),
        (128, (3, 4, 18, 5), 13278797824, 13.677e9),
    ],
)
def test_counts_as_published(width, blocks, counted, published):
    """Networks of the paper at 224 pixels: their count without the attention itself, plus ours of
    it.
    """
    attention = 0
    for stage, depth in enumerate(blocks):
        dim, side = width * 2**stage, 56 // 2**stage
        built = nnx.eval_shape(lambda dim=dim: NeighborhoodAttention(dim, rngs=nnx.Rngs(0)))
        attention += depth * (built.macs(side, side) - 4 * side**2 * dim**2)
    assert counted + attention == pytest.approx(published, rel=2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=5), "num_heads is 5; allowed: divisors of dim=12"),
        (dict(kernel_size=4), "kernel_size is 4; allowed: an odd number"),
        (
            dict(kernel_size=(3, 5, 7)),
            r"kernel_size is \(3, 5, 7\); allowed: an odd number, or a pair",
        ),
        (dict(dilation=(1, 0)), r"dilation is \(1, 0\); allowed: an integer >= 1"),
        (
            dict(border="reflect"),
            "border is 'reflect'; allowed: neighborhood, zero, masked, circular",
        ),
        (dict(impl="unfold"), "impl is 'unfold'; allowed: auto, shift, block"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)
