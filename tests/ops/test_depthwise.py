"""Depthwise convolution: both lowerings against loops, their gradients against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops.depthwise import depthwise_conv

once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def arrays(shape, sides):
    rng = np.random.default_rng(0)
    draws = (shape, (*sides, 1, shape[-1]), shape[-1:])
    return tuple(rng.standard_normal(draw).astype(np.float32) for draw in draws)


def by_hand(x, kernel, bias):
    flat = np.float64(x).reshape(-1, *x.shape[-3:])
    out = np.zeros_like(flat)
    rows, columns = kernel.shape[:2]
    for i, j, u, v in np.ndindex(*x.shape[-3:-1], rows, columns):
        at = i + u - rows // 2, j + v - columns // 2
        if 0 <= at[0] < x.shape[-3] and 0 <= at[1] < x.shape[-2]:
            out[:, i, j] += np.float64(kernel[u, v, 0]) * flat[:, at[0], at[1]]
    return out.reshape(x.shape) + bias


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((2, 3, 4, 5, 3), (3, 3)),
        ((2, 5, 2, 3), (5, 1)),
        ((1, 1, 1, 2), (3, 5)),
        ((0, 3, 4, 2), (3, 3)),
    ],
)
def test_lowerings_equal_loops_and_have_equal_gradients(shape, sides):
    x, kernel, bias = arrays(shape, sides)
    weights = np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    @functools.partial(once, static_argnums=3)
    def both(x, kernel, bias, impl):
        def loss(x, kernel, bias):
            y = depthwise_conv(x, kernel, bias, impl=impl)
            return jnp.sum(y * weights), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, kernel, bias)
        return y, gradients

    expected = by_hand(x, kernel, bias)
    shift, conv = both(x, kernel, bias, "shift"), both(x, kernel, bias, "conv")
    for y, _ in (shift, conv):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for ours, other in zip(shift[1], conv[1], strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-5)


def test_sums_of_half_precision_maps_are_float32():
    x, kernel = np.full((1, 3, 3, 1), 1.0), np.full((3, 3, 1, 1), 1.0)
    kernel[1, 1] = 256.0  # 256 + 1 is 256 in bfloat16, 256 + 8 is not
    for impl in ("shift", "conv"):
        y = once(functools.partial(depthwise_conv, impl=impl))(
            x.astype(jnp.bfloat16), kernel.astype(jnp.float32)
        )
        assert y.dtype == jnp.bfloat16 and y[0, 1, 1, 0] == 264.0


@pytest.mark.parametrize(
    ("sides", "channels", "impl", "message"),
    [
        ((3, 3), 2, "fast", "impl is 'fast'; allowed: auto, shift, conv"),
        ((3, 2), 2, "auto", r"shape \(3, 2, 1, 2\); allowed: \[odd, odd, 1, 2\]"),
        ((3, 3), 4, "auto", r"shape \(3, 3, 1, 4\); allowed: \[odd, odd, 1, 2\]"),
    ],
)
def test_refuses(sides, channels, impl, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((*sides, 1, channels)), impl=impl)
