"""Convolutions: every lowering against XLA's in float64, values and gradients; window sums against
their automatic transpose.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part

from lambdanet.ops import winograd
from lambdanet.ops.convolution import convolution
from lambdanet.ops.depthwise import depthwise_conv
from lambdanet.ops.window_taps import gather_back, tap_views
from lambdanet.ops.winograd import winograd_convolution

once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# impl, map, kernel, options
CASES = [
    ("product", (2, 5, 4, 3), (1, 1, 3, 6), {}),
    ("product", (2, 5, 4, 3), (1, 1, 3, 6), dict(stride=(2, 3))),
    ("product", (2, 9, 7, 3), (4, 2, 3, 5), dict(stride=(4, 2))),
    ("product", (1, 4, 7, 2), (2, 1, 2, 3), dict(stride=(2, 2))),
    ("product", (2, 6, 5, 2), (3, 2, 2, 3), dict(stride=(2, 1), padding=((1, 1), (0, 2)))),
    ("product", (2, 9, 8, 2), (3, 7, 2, 3), dict(stride=(2, 4), padding=((1, 0), (3, 2)))),
    ("product", (1, 5, 9, 1), (1, 3, 1, 2), dict(stride=(3, 5), padding=((1, 1), (0, 1)))),
    ("mixed", (2, 6, 5, 3), (3, 3, 3, 4), dict(stride=(2, 2), padding=((1, 1), (1, 1)))),
    ("mixed", (1, 5, 6, 2), (5, 2, 2, 3), dict(padding=((2, 2), (0, 1)))),
    ("winograd", (2, 5, 4, 3), (3, 3, 3, 6), dict(padding=((1, 1), (1, 1)))),
    ("winograd", (1, 1, 6, 2), (3, 3, 2, 2), dict(padding=((1, 1), (1, 1)))),
    ("winograd", (2, 13, 9, 2), (3, 3, 2, 3), dict(padding=((2, 2), (2, 2)), dilation=(2, 2))),
    ("winograd", (1, 2, 7, 3), (3, 3, 3, 1), dict(padding=((4, 4), (4, 4)), dilation=(4, 4))),
    ("regions", (2, 5, 7, 3), (3, 3, 3, 4), dict(padding=((2, 2), (3, 3)), dilation=(2, 3))),
    ("regions", (1, 4, 9, 2), (3, 5, 2, 3), dict(padding=((5, 5), (4, 4)), dilation=(5, 2))),
    ("regions", (1, 2, 1, 2), (3, 1, 2, 2), dict(padding=((9, 9), (0, 0)), dilation=(9, 2))),
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


BANDS = [((2, 7, 5, 3), 1, 2), ((1, 13, 6, 2), 2, 1), ((6, 5, 3, 2), 2, 2), ((3, 6, 4, 2), 1, 3)]


@pytest.mark.parametrize(("shape", "dilation", "images"), part(BANDS, BANDS[1::2]))
def test_bands_of_winograds_tiles_equal_xlas_convolution(shape, dilation, images):
    """Of rows, and, where the number of rows is not given, of images."""
    assert winograd._image_bands(shape, dilation, 0) == images
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(rng.standard_normal(s)) for s in (shape, (3, 3, shape[3], 4)))

        def results(x, kernel, rows):
            if rows is None:
                same = dict(padding=((dilation, dilation),) * 2, dilation=(dilation, dilation))
                y, back = jax.vjp(lambda *a: convolution(*a, **same, impl="conv"), x, kernel)
            else:
                y, back = jax.vjp(lambda *a: winograd_convolution(*a, dilation, rows), x, kernel)
            return y, *back(jnp.sin(y))

        # 0: two bands, so that XLA keeps the loop; 1 and 3 are at most half of the four rows
        direct, *banded = (once(results, static_argnums=2)(x, kernel, n) for n in (None, 0, 1, 3))
        for found in banded:
            for ours, expected in zip(found, direct, strict=True):
                np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-11)


def test_winograds_tiles_are_always_made_in_a_loop():
    """Outside one, XLA computes what makes the map once for each of the sixteen transforms."""

    def both(x, kernel):
        y, back = jax.vjp(winograd_convolution, x, kernel)
        return y, *back(y)

    jaxpr = str(jax.make_jaxpr(both)(jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))))
    assert jaxpr.count("scan[") + jaxpr.count("while[") >= 3  # forward, both gradients


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


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "taken"),
    [
        ((2, 14, 14, 320), (3, 3, 320, 512), 2, True),  # patch embedding of PVTv2's last stage
        ((2, 224, 224, 3), (7, 7, 3, 64), 4, True),  # and of its first
        ((4, 224, 224, 3), (7, 7, 3, 64), 4, False),  # many windows
        ((2, 14, 14, 16), (3, 3, 16, 32), 2, False),  # a small kernel
        ((2, 7, 7, 256), (3, 3, 256, 256), 1, True),
        ((2, 7, 7, 128), (3, 3, 128, 256), 1, False),
    ],
)
def test_auto_derives_by_products_where_windows_are_few(shape, kernel, stride, taken):
    options = dict(stride=(stride,) * 2, padding=((kernel[0] // 2,) * 2,) * 2)
    given = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, kernel))
    jaxpr = str(jax.make_jaxpr(functools.partial(convolution, **options))(*given))
    assert "conv_general_dilated" in jaxpr and ("custom_jvp" in jaxpr) == taken


def test_mixed_differentiates_what_moves_alone():
    """Of a network's first convolution the image does not: no product with zeros then."""
    x, kernel = jnp.ones((1, 4, 5, 2)), jnp.ones((3, 3, 2, 2))
    moved = jax.random.normal(jax.random.key(0), kernel.shape)

    def run(impl, kernel):
        return convolution(x, kernel, stride=(2, 1), padding=((1, 1), (1, 1)), impl=impl)

    ours, theirs = (
        jax.jvp(functools.partial(run, impl), (kernel,), (moved,)) for impl in ("mixed", "conv")
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    of_kernel = jax.make_jaxpr(jax.grad(lambda k: jnp.sum(jnp.sin(run("mixed", k)))))
    assert str(of_kernel(kernel)).count("dot_general[") == 1


@pytest.mark.parametrize(
    ("shape", "kernel", "options", "taken"),
    [
        ((1, 32, 32, 128), (128, 128), {}, True),
        ((1, 31, 31, 128), (128, 129), {}, True),
        ((1, 32, 32, 128), (128, 127), {}, False),  # few channels
        ((1, 30, 32, 128), (128, 128), {}, False),  # few tiles
        ((1, 32, 32, 128), (128, 128), dict(stride=(2, 2)), False),
        ((1, 32, 32, 128), (128, 128), dict(padding=((0, 0), (0, 0))), False),
        ((1, 32, 32, 128), (128, 128), dict(dilation=(4, 4), padding=((4, 4), (4, 4))), True),
        # tiles of 10 x 10 on a map of 16 x 16 are mostly beyond it
        ((4, 16, 16, 128), (128, 128), dict(dilation=(5, 5), padding=((5, 5), (5, 5))), False),
    ],
)
def test_auto_takes_winograd_where_it_saves_most(shape, kernel, options, taken):
    options = {"padding": ((1, 1), (1, 1)), **options}
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, (3, 3, *kernel)))
    jaxpr = str(jax.make_jaxpr(functools.partial(convolution, **options))(x, kernel))
    assert ("dot_general" in jaxpr) == taken and ("conv_general_dilated" in jaxpr) != taken


@pytest.mark.parametrize(
    ("side", "dilation", "products"),
    [(10, 4, 9), (10, 12, 1), (10, 2, 0), (64, 12, 0)],  # a product per region, or XLA's
)
def test_auto_leaves_out_what_is_beyond_the_map(side, dilation, products):
    options = dict(dilation=(dilation,) * 2, padding=((dilation,) * 2,) * 2)
    x, kernel = jnp.zeros((1, side, side, 4)), jnp.zeros((3, 3, 4, 5))
    jaxpr = str(jax.make_jaxpr(functools.partial(convolution, **options))(x, kernel))
    assert jaxpr.count("dot_general[") == products
    assert ("conv_general_dilated" in jaxpr) == (not products)


def test_symbolic_batches_are_exported():
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, 32, 32, 128), jnp.float32)
    same = functools.partial(convolution, padding=((1, 1), (1, 1)))
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)
    exported = jax.export.export(jax.jit(same))(x, kernel)
    assert "convolution" in exported.mlir_module() and exported.out_avals[0].shape == x.shape


def test_symbolic_sides_are_exported():
    """Of a network's first convolution, a product of windows."""
    batch, side = jax.export.symbolic_shape("batch, 2*side")
    x = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 3, 4)), jnp.float32)
    run = functools.partial(convolution, kernel=kernel, stride=(2, 2), padding=((1, 1), (1, 1)))
    exported = jax.export.export(jax.jit(run))(x)
    assert "dot_general" in exported.mlir_module()
    image = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    np.testing.assert_allclose(exported.call(image), run(image, impl="conv"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", part(["float32", "bfloat16"], ["bfloat16"]))
def test_winograd_is_as_exact_as_xlas_convolution(dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((2, 12, 12, 96), (3, 3, 96, 80), (2, 12, 12, 80))]
    x, kernel, cotangent = (jnp.asarray(a, dtype) for a in arrays)

    @functools.partial(once, static_argnums=0)
    def results(impl, x, kernel, cotangent):
        options = dict(padding=((1, 1), (1, 1)), impl=impl)
        y, back = jax.vjp(lambda *a: convolution(*a, **options), x, kernel)
        return y, *back(cotangent)

    with jax.enable_x64(True):
        wide = [a.astype(jnp.float64) for a in (x, kernel, cotangent)]
        exact = [np.asarray(a) for a in results("conv", *wide)]
        assert all(a.dtype == np.float64 for a in exact)
    errors = [
        [
            float(np.linalg.norm(np.asarray(a, np.float64) - e))
            for a, e in zip(found, exact, strict=True)
        ]
        for found in (results(impl, x, kernel, cotangent) for impl in ("winograd", "conv"))
    ]
    for ours, direct in zip(*errors, strict=True):
        assert ours < 2 * direct


ONCE_EACH = [(c[0], *c[2:]) for c in {case[0]: case for case in CASES if len(case[3])}.values()]


@pytest.mark.parametrize(("impl", "sides", "options"), ONCE_EACH)
@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_result_has_the_dtype_of_the_map_in_every_lowering(impl, sides, options, dtypes):
    """The kernel is rounded to it, and its gradient has the kernel's own."""
    channels = sides[2] * options.get("groups", 1)
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), d)
                 for s, d in zip(((1, 7, 6, channels), sides), dtypes, strict=True))  # fmt: skip

    @once
    def results(x, kernel):
        found = []
        for lowering in (impl, "conv", "auto"):
            run = functools.partial(convolution, impl=lowering, **options)
            y, back = jax.vjp(run, x, kernel)
            found.append((y, back(y), run(x, kernel.astype(x.dtype))))
        return found

    for y, gradients, rounded in results(x, kernel):
        assert y.dtype == x.dtype and [g.dtype for g in gradients] == [x.dtype, kernel.dtype]
        np.testing.assert_array_equal(y, rounded)


@pytest.mark.parametrize(("impl", "sides", "options"), ONCE_EACH)
def test_options_may_be_any_sequences(impl, sides, options):
    x = jnp.ones((1, 7, 6, sides[2] * options.get("groups", 1)))
    listed = {k: np.asarray(v).tolist() for k, v in options.items()}
    run = once(lambda x, k: [convolution(x, k, impl=impl, **o) for o in (options, listed)])
    np.testing.assert_array_equal(*run(x, jnp.ones(sides)))


def test_half_precision_products_sum_in_float32():
    x = jnp.asarray([256.0] + [1.0] * 8, jnp.bfloat16).reshape(
        1, 1, 1, 9
    )  # 256 + 1 is 256 in bfloat16, 256 + 8 is not
    y = convolution(x, jnp.ones((1, 1, 9, 1), jnp.bfloat16), impl="product")
    assert y.dtype == jnp.bfloat16 and float(y[0, 0, 0, 0]) == 264.0


def test_gradients_of_windows_in_half_precision_add_up_in_float32():
    """Nine windows see the middle: bfloat16 has 256 + 1 = 256 from either end, but 519 is 520."""
    kernel, x = jnp.ones((1, 9, 1, 1), jnp.bfloat16), jnp.ones((1, 1, 9, 1), jnp.bfloat16)
    options = dict(padding=((0, 0), (4, 4)), impl="product")
    y, back = jax.vjp(lambda x: convolution(x, kernel, **options), x)
    (of_x,) = back(jnp.ones_like(y).at[0, 0, np.array([0, 8])].set(256.0))
    assert float(of_x[0, 0, 4, 0]) == 520.0


def test_a_kernel_beyond_the_map_is_xlas_and_gives_nothing():
    x, kernel = jnp.ones((1, 1, 1, 512)), jnp.ones((3, 3, 512, 512))
    y, back = jax.vjp(convolution, x, kernel)
    assert y.shape == (1, 0, 0, 512) and not any(g.any() for g in back(y))
    with pytest.raises(ValueError, match="'product' does not allow .*; allowed: conv$"):
        convolution(x, kernel, impl="product")


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (
            (3, 3, 4, 2),
            dict(impl="fast"),
            "impl is 'fast'; allowed: auto, conv, product, mixed, winograd, regions, blocks, shift",
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
        (
            (3, 3, 4, 2),
            dict(impl="winograd", stride=(1, 2), padding=((1, 1), (1, 1))),
            r"'winograd' does not allow .* stride \(1, 2\).*; allowed: product, mixed, conv$",
        ),
        (
            (3, 3, 4, 0),
            dict(impl="winograd", padding=((1, 1), (1, 1))),
            "'winograd' does not allow .*; allowed: product, conv$",
        ),
        ((3, 3, 2, 4), dict(impl="shift", groups=2), "; allowed: conv, blocks$"),
        ((3, 3, 4, 2), dict(stride=[1, 0]), r"stride is \[1, 0\]; allowed: two integers from 1"),
        ((3, 3, 4, 2), dict(dilation=2), "dilation is 2; allowed: two integers"),
        ((3, 3, 4, 2), dict(padding=(1, 1)), "padding of the rows is 1; allowed: two integers"),
        ((3, 3, 4, 2), dict(padding="SAME"), r"'SAME'; allowed: \(\(top, bottom\), \(left"),
    ],
)
def test_refuses(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        convolution(jnp.ones((1, 4, 4, 4)), jnp.ones(kernel), **options)


def test_refuses_whole_numbers():
    for of_map, of_kernel in (("int32", "float32"), ("float32", "int32")):
        x, kernel = jnp.ones((1, 4, 4, 4), of_map), jnp.ones((1, 1, 4, 2), of_kernel)
        with pytest.raises(ValueError, match="int32.*; allowed: floating dtypes; convert"):
            convolution(x, kernel)


@pytest.mark.parametrize(("sides", "stride"), [((3, 3), (1, 2)), ((1, 5), (3, 2))])
def test_gather_back_is_the_transpose_of_the_views(sides, stride):
    weights = np.random.default_rng(0).standard_normal(sides[0] * sides[1])
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 7, 6, 2)))

        def weighted(x):
            return sum(w * v for w, v in zip(weights, tap_views(x, sides, stride), strict=True))

        @once
        def both(x):
            y, transpose = jax.vjp(weighted, x)
            scaled = lambda tap, moved: weights[tap] * moved[0]  # noqa: E731
            return gather_back([y], (7, 6), sides, stride, scaled), transpose(y)[0]

        np.testing.assert_allclose(*both(x), rtol=1e-12, atol=1e-12)


def test_strided_depthwise_keeps_every_batch_axis():
    x, kernel = jnp.ones((2, 3, 5, 4, 2)), jnp.ones((3, 3, 1, 2))
    outputs = [depthwise_conv(x, kernel, stride=(2, 1), impl=impl) for impl in ("shift", "conv")]
    np.testing.assert_array_equal(*outputs)
    assert outputs[0].shape == (2, 3, 3, 4, 2)
