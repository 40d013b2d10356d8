"""Convolutions: every lowering against XLA's in float64, values and gradients; window sums against
their automatic transpose.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops.convolution import convolution
from lambdanet.ops.depthwise import depthwise_conv
from lambdanet.ops.window_taps import gather_back, tap_views

once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# impl, map, kernel, options
CASES = [
    ("product", (2, 5, 4, 3), (1, 1, 3, 6), {}),
    ("product", (2, 5, 4, 3), (1, 1, 3, 6), dict(stride=(2, 3))),
    ("product", (2, 9, 7, 3), (4, 2, 3, 5), dict(stride=(4, 2))),
    ("product", (1, 4, 7, 2), (2, 1, 2, 3), dict(stride=(2, 2))),
    ("product", (2, 6, 5, 2), (3, 2, 2, 3), dict(stride=(2, 1), padding=((1, 1), (0, 2)))),
    ("blocks", (2, 5, 4, 12), (3, 3, 3, 8), dict(groups=4, padding=((1, 1), (1, 1)))),
    (
        "blocks",
        (1, 7, 6, 96),
        (3, 1, 2, 48),
        dict(groups=48, stride=(2, 1), padding=((2, 0), (0, 1)), dilation=(2, 1)),
    ),
    ("shift", (2, 5, 4, 3), (3, 5, 1, 3), dict(groups=3, padding=((1, 1), (2, 2)))),
    ("shift", (2, 7, 6, 3), (3, 3, 1, 3), dict(groups=3, padding=((1, 1), (1, 1)), stride=(2, 2))),
    ("shift", (2, 1, 8, 3), (5, 3, 1, 3), dict(groups=3, padding=((2, 2), (1, 1)), stride=(3, 2))),
    ("shift", (1, 7, 5, 2), (1, 3, 1, 2), dict(groups=2, padding=((0, 0), (1, 1)), stride=(3, 1))),
]


@pytest.mark.parametrize(("impl", "shape", "sides", "options"), CASES)
def test_lowerings_equal_xlas_convolution(impl, shape, sides, options):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(rng.standard_normal(s)) for s in (shape, sides))

        @functools.partial(once, static_argnums=2)
        def both(x, kernel, impl):
            def loss(x, kernel):
                y = convolution(x, kernel, impl=impl, **options)
                return jnp.sum(jnp.sin(y)), y

            (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
            return y, *gradients

        for ours, expected in zip(both(x, kernel, impl), both(x, kernel, "conv"), strict=True):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-11)


def test_auto_takes_the_first_that_the_operation_allows():
    def primitives(x, kernel, **options):
        jaxpr = jax.make_jaxpr(functools.partial(convolution, **options))(
            jnp.ones(x), jnp.ones(kernel)
        )
        return str(jaxpr)

    same = dict(padding=((1, 1), (1, 1)))
    assert "dot_general" in primitives((1, 4, 4, 2), (1, 1, 2, 3))
    assert "dot_general" in primitives((1, 5, 4, 3), (3, 3, 3, 7), stride=(2, 2), **same)
    assert (
        primitives((1, 4, 4, 64), (3, 3, 4, 64), groups=16, **same).count("conv_general_dilated")
        == 2
    )
    assert "custom_vjp" in primitives((1, 4, 4, 2), (3, 3, 1, 2), groups=2, **same)
    for shape, kernel in (((1, 4, 4, 16), (3, 3, 16, 3)), ((1, 4, 4, 40), (1, 1, 40, 3))):
        jaxpr = primitives(shape, kernel, **same)
        assert "conv_general_dilated" in jaxpr and "custom_vjp" not in jaxpr


def test_half_precision_products_sum_in_float32():
    x = jnp.asarray([256.0] + [1.0] * 8, jnp.bfloat16).reshape(
        1, 1, 1, 9
    )  # 256 + 1 is 256 in bfloat16, 256 + 8 is not
    y = convolution(x, jnp.ones((1, 1, 9, 1), jnp.bfloat16), impl="product")
    assert y.dtype == jnp.bfloat16 and float(y[0, 0, 0, 0]) == 264.0


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (
            (3, 3, 4, 2),
            dict(impl="fast"),
            "impl is 'fast'; allowed: auto, conv, product, blocks, shift",
        ),
        (
            (3, 3, 4, 2),
            dict(groups=2),
            r"4 channels in 2 groups do not fit a kernel of shape \(3, 3, 4, 2\)",
        ),
        ((3, 3, 2, 3), dict(groups=2), "4 channels in 2 groups do not fit"),
        (
            (3, 3, 4, 2),
            dict(impl="product", dilation=(2, 2)),
            r"'product' does not allow .*\(2, 2\).*; allowed: conv$",
        ),
        ((3, 3, 2, 4), dict(impl="shift", groups=2), "; allowed: conv, blocks$"),
    ],
)
def test_refuses(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        convolution(jnp.ones((1, 4, 4, 4)), jnp.ones(kernel), **options)


@pytest.mark.parametrize(("sides", "stride"), [((3, 3), (1, 2)), ((1, 5), (3, 2))])
def test_gather_back_is_the_transpose_of_the_views(sides, stride):
    weights = np.random.default_rng(0).standard_normal(sides[0] * sides[1])
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 7, 6, 2)))
        y, transpose = jax.vjp(
            lambda x: sum(w * v for w, v in zip(weights, tap_views(x, sides, stride), strict=True)),
            x,
        )
        back = gather_back([y], (7, 6), sides, stride, lambda tap, moved: weights[tap] * moved[0])
        np.testing.assert_allclose(back, transpose(y)[0], rtol=1e-12, atol=1e-12)


def test_strided_depthwise_keeps_every_batch_axis():
    x, kernel = jnp.ones((2, 3, 5, 4, 2)), jnp.ones((3, 3, 1, 2))
    outputs = [depthwise_conv(x, kernel, stride=(2, 1), impl=impl) for impl in ("shift", "conv")]
    np.testing.assert_array_equal(*outputs)
    assert outputs[0].shape == (2, 3, 3, 4, 2)
