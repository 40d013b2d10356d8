"""The non-local block: four modes against float64 NumPy, presets, both orders, chunks, counts and
errors.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_macs import jaxpr_macs

from lambdanet.attention import create_attention, list_attention, nonlocal_block
from lambdanet.attention.nonlocal_block import NonLocal
from lambdanet.ops import softmax_attention

DIM = 12
PRESETS = list_attention("nonlocal*")
SOFTMAX = ("embedded_gaussian", "gaussian")


def block(spec="nonlocal", dim=DIM, seed=0, **options):
    """A block in the evaluation view with random numbers in every array, and these by path in
    float64.
    """
    built = nnx.eval_shape(
        lambda: create_attention(dict(name=spec, **options), dim, rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(seed)
    weights = {}
    for path, variable in nnx.to_flat_state(nnx.state(built, (nnx.Param, nnx.BatchStat))):
        positive = path[-1] in ("var", "scale")
        spread = variable.shape[0] ** -0.5 if path[-1] == "kernel" else 0.5
        value = (
            rng.uniform(0.5, 1.5, variable.shape)
            if positive
            else spread * rng.standard_normal(variable.shape)
        )
        variable.set_value(jnp.asarray(value, jnp.float32))
        weights["/".join(path)] = np.float64(variable[...])
    return nnx.view(built, use_running_average=True, raise_if_not_found=False), weights


def image(*spatial, dim=DIM, batch=2, seed=7):
    return jnp.asarray(
        np.random.default_rng(seed).standard_normal((batch, *spatial, dim)), jnp.float32
    )


@nnx.jit
def with_map(built, x):
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    return built(x), y, sown["attention_map"][0]


@jax.jit
def run(built, x):
    return built(x)


@jax.jit
def value_and_gradients(built, x):
    graphdef, params, rest = nnx.split(built, nnx.Param, ...)

    def loss(params, x):
        y = nnx.merge(graphdef, params, rest)(x)
        return jnp.sum(jnp.sin(3 * y)), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(nnx.to_pure_dict(params), x)
    return y, gradients


# --------------------------------------------------------------------------------------------------
# The formulas


def by_hand(weights, x, *, mode, window, pool_first=True, scale=1.0, norm="batch", groups=1):
    """Loops over windows and pairs, in float64; returns the output and f / Z as [b, n, m]."""

    def linear(layer, a):
        return a @ weights[f"{layer}/kernel"] + weights.get(f"{layer}/bias", 0)

    def pool(a):
        grid = [s // p for s, p in zip(a.shape[1:-1], window, strict=True)]
        out = np.empty((a.shape[0], *grid, a.shape[-1]))
        for cell in itertools.product(*map(range, grid)):
            inside = tuple(slice(i * p, (i + 1) * p) for i, p in zip(cell, window, strict=True))
            out[(slice(None), *cell)] = (
                a[(slice(None), *inside)].reshape(a.shape[0], -1, a.shape[-1]).max(1)
            )
        return out

    def flat(a):
        return a.reshape(a.shape[0], -1, a.shape[-1])

    x = np.float64(x)
    source = pool(x) if pool_first else x
    after = (lambda a: a) if pool_first else pool
    g = flat(after(linear("value", source)))
    theta, phi = (
        (x, after(source))
        if mode == "gaussian"
        else (linear("query", x), after(linear("key", source)))
    )
    theta, phi = flat(theta), flat(phi)
    b, n, m = len(x), theta.shape[1], phi.shape[1]
    f = np.empty((b, n, m))
    for s, i, j in itertools.product(range(b), range(n), range(m)):
        if mode == "concatenation":
            f[s, i, j] = max(
                (np.concatenate([theta[s, i], phi[s, j]]) @ weights["pair/kernel"]).item(), 0
            )
        else:
            f[s, i, j] = theta[s, i] @ phi[s, j] * scale
    if mode in SOFTMAX:
        f = np.exp(f - f.max(-1, keepdims=True))
        f /= f.sum(-1, keepdims=True)
    else:
        f /= m
    z = linear("out", f @ g)
    if norm != "none":
        mean, var = weights.get("norm/mean"), weights.get("norm/var")
        if norm == "group":
            cut = z.reshape(b, n, groups, -1)
            mean, var = (
                np.repeat(a, z.shape[-1] // groups, -1)[:, None]
                for a in (cut.mean((1, 3)), cut.var((1, 3)))
            )
        z = (z - mean) / np.sqrt(var + 1e-5) * weights["norm/scale"] + weights["norm/bias"]
    return x + z.reshape(x.shape), f


HALF, SIXTH = 6**-0.5, DIM**-0.5
CASES = {
    # name: map, spec and options, what the formula is told instead
    "nonlocal": ((5, 7), dict(), dict(window=(2, 2), scale=HALF)),
    "nonlocal_fair": ((4, 3), dict(spec="nonlocal_fair"), dict(window=(2, 2), scale=HALF)),
    "nonlocal_paper": ((5, 4), dict(spec="nonlocal_paper"), dict(window=(2, 2), pool_first=False)),
    "nonlocal_alexhex7": (
        (5, 4),
        dict(spec="nonlocal_alexhex7"),
        dict(window=(2, 2), pool_first=False),
    ),
    "nonlocal_cgnl_repo": (
        (3, 4),
        dict(spec="nonlocal_cgnl_repo"),
        dict(window=(1, 1), scale=HALF),
    ),
    "nonlocal_mmcv": (
        (3, 4),
        dict(spec="nonlocal_mmcv"),
        dict(window=(1, 1), scale=HALF, norm="none"),
    ),
    "nonlocal_timm": ((3, 4), dict(spec="nonlocal_timm"), dict(window=(1, 1), scale=SIXTH)),
    "gaussian, sequence": ((9,), dict(mode="gaussian"), dict(window=(2,))),
    "gaussian, pooled after": (
        (5, 4),
        dict(mode="gaussian", pool_first=False),
        dict(window=(2, 2), pool_first=False),
    ),
    "dot, clip, pooled in time": (
        (4, 3, 5),
        dict(mode="dot_product", pool_size=(2, 3, 2)),
        dict(window=(2, 3, 2)),
    ),
    "dot, other order, group norm": (
        (5, 4),
        dict(mode="dot_product", order="linear", norm="group", norm_groups=3),
        dict(window=(2, 2), norm="group", groups=3),
    ),
    "concatenation, clip": (
        (2, 5, 4),
        dict(mode="concatenation", pool_first=False, use_bias=False),
        dict(window=(1, 2, 2), pool_first=False),
    ),
    "concatenation, other order": (
        (5, 7),
        dict(mode="concatenation", order="linear"),
        dict(window=(2, 2)),
    ),
    "axis shorter than its window": (
        (1, 5),
        dict(inner_dim=6, out_bias=False),
        dict(window=(1, 2), scale=HALF),
    ),
    "one pixel": ((1, 1), dict(mode="concatenation", order="linear"), dict(window=(1, 1))),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_formula(name):
    spatial, options, told = CASES[name]
    built, weights = block(**options)
    x = image(*spatial)
    y, captured, shown = with_map(built, x)
    expected, expected_map = by_hand(
        weights, x, mode=options.get("mode", "embedded_gaussian"), **told
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(captured, expected, rtol=1e-5, atol=1e-5)
    grid = tuple(s // p for s, p in zip(spatial, told["window"], strict=True))
    assert shown.shape == (2, 1, *spatial, *grid)
    np.testing.assert_allclose(
        shown.reshape(expected_map.shape), expected_map, rtol=1e-4, atol=1e-5
    )
    assert built.macs(*spatial) == jaxpr_macs(built, x[:1])


def test_every_preset_has_a_case():
    assert set(PRESETS) <= set(CASES)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        for mode, order in (("embedded_gaussian", "auto"), ("concatenation", "linear")):
            built, weights = block(mode=mode, order=order, norm="none", zero_init="none")
            for _, variable in nnx.to_flat_state(nnx.state(built, nnx.Param)):
                variable.set_value(jnp.asarray(variable[...], jnp.float64))
            x = np.float64(image(4, 5))
            scale = HALF if mode in SOFTMAX else 1.0
            expected, _ = by_hand(weights, x, mode=mode, window=(2, 2), scale=scale, norm="none")
            np.testing.assert_allclose(run(built, jnp.asarray(x)), expected, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------
# Two orders, chunks


@pytest.mark.parametrize("mode", ["dot_product", "concatenation"])
def test_linear_order_equals_direct(mode):
    x = image(6, 7)
    x = jnp.concatenate([x, x[:, :, ::-1]], axis=1)  # equal keys, for the sort
    results = [
        value_and_gradients(block(mode=mode, order=order)[0], x) for order in ("direct", "linear")
    ]
    for direct, linear in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(linear, direct, rtol=0, atol=2e-5 * np.abs(direct).max())


def test_linear_order_is_chosen_when_cheaper_and_has_no_pairs():
    def widest(mode, spatial, **options):
        built, _ = block(
            mode=mode, dim=8, norm="none", zero_init="none", sub_sample=False, **options
        )
        jaxpr = jax.make_jaxpr(lambda x: built(x))(jnp.ones((1, *spatial, 8)))
        return max(v.aval.size for equation in jaxpr.eqns for v in equation.outvars)

    for mode in ("dot_product", "concatenation"):
        assert widest(mode, (16, 16)) == widest(mode, (16, 16), order="linear") < 256 * 256 / 8
        assert widest(mode, (16, 16), order="direct") >= 256 * 256
        # d = 4: 2 N M < (N + M) d for 1 and 2 positions; N M < 2 d (N + M) up to 16
        assert widest(mode, (1, 2)) == widest(mode, (1, 2), order="direct")


@pytest.mark.parametrize("mode", ["embedded_gaussian", "concatenation"])
def test_chunks_equal_all_at_once(mode):
    x = image(5, 7)
    options = dict(
        mode=mode, order="direct", use_bias=False
    )  # a softmax cancels the keys' bias: its gradient is rounding
    whole = value_and_gradients(block(query_chunk=None, **options)[0], x)
    chunks = value_and_gradients(
        block(query_chunk=8, **options)[0], x
    )  # 4 chunks of 8 and one of 3
    for one, other in zip(*map(jax.tree.leaves, (whole, chunks)), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-5 * np.abs(one).max())
    built, _ = block(query_chunk=7, **options)
    assert built.macs(5, 7) == jaxpr_macs(built, x[:1])  # no chunk is filled up


def training_bytes(x, **options):
    """Compiled temporaries of a forward and a backward pass."""
    built, _ = block(dim=x.shape[-1], norm="none", zero_init="none", **options)
    # A new function each time: the test below changes a constant, which is no part of the cache's
    # key.
    fresh = jax.jit(lambda built, x: value_and_gradients.__wrapped__(built, x))
    return fresh.lower(built, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product"])
def test_chunks_take_less_memory(mode, monkeypatch):
    x = jnp.ones((1, 20, 40, 4))
    pairs = 4 * 800 * 200
    options = dict(mode=mode, order="direct")
    whole = training_bytes(x, query_chunk=None, **options)
    assert whole > pairs
    chunks = training_bytes(x, query_chunk=80, **options)
    assert chunks < pairs / 2
    assert training_bytes(x, query_chunk="auto", **options) == whole  # below the limit
    monkeypatch.setattr(softmax_attention, "choose_chunk", lambda pairs, backend: 80)
    monkeypatch.setattr(nonlocal_block, "_CHUNK_BYTES", {})
    monkeypatch.setattr(
        nonlocal_block, "_CHUNK_BYTES_ELSEWHERE", pairs // 9
    )  # 88 queries at most: 10 times 80
    assert training_bytes(x, query_chunk="auto", **options) == chunks


def test_exports_with_a_symbolic_batch():
    (batch,) = jax.export.symbolic_shape("b")
    for options in (dict(), dict(query_chunk=5), dict(mode="concatenation", order="linear")):
        built, _ = block(**options)
        exported = jax.export.export(jax.jit(lambda x, built=built: built(x)))(
            jax.ShapeDtypeStruct((batch, 4, 6, DIM), jnp.float32)
        )
        assert exported.out_avals[0].shape == (batch, 4, 6, DIM)


@pytest.mark.parametrize(
    "options",
    [
        dict(mode="gaussian"),
        dict(mode="dot_product", order="linear"),
        dict(mode="concatenation", order="linear"),
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_bfloat16_of_the_other_modes(options):
    x = image(5, 7)
    exact = run(block(**options)[0], x)
    built, _ = block(dtype=jnp.bfloat16, **options)
    y = run(built, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), exact, rtol=0, atol=2e-2 * np.abs(exact).max())


# --------------------------------------------------------------------------------------------------
# Start and presets


@pytest.mark.parametrize("name", PRESETS)
def test_starts_as_the_identity(name):
    x = image(4, 5)
    for mode in ("embedded_gaussian", "concatenation"):
        built = create_attention(dict(name=name, mode=mode), DIM, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(built(x), x)


def test_zero_scale_has_a_gradient_and_zero_init_none_is_no_identity():
    x = image(4, 5)
    for norm, zero_init in (("batch", "norm"), ("group", "norm"), ("batch", "conv")):
        built = NonLocal(DIM, norm=norm, zero_init=zero_init, rngs=nnx.Rngs(0))
        built = nnx.view(built, use_running_average=True, raise_if_not_found=False)
        y, (gradients, _) = value_and_gradients(built, x)
        np.testing.assert_array_equal(y, x)
        assert (
            np.abs(
                gradients["norm"]["scale"] if zero_init == "norm" else gradients["out"]["kernel"]
            ).max()
            > 0
        )
    assert np.abs(NonLocal(DIM, zero_init="none", rngs=nnx.Rngs(0))(x) - x).max() > 1e-2


@pytest.mark.parametrize(
    ("name", "std", "bias", "out"),
    [
        ("nonlocal", 0.01, "zero", "random"),
        ("nonlocal_fair", 0.01, "zero", "random"),
        ("nonlocal_paper", (2 / 64) ** 0.5, "zero", "random"),
        ("nonlocal_alexhex7", (1 / 3 / 128) ** 0.5, "random", "random"),
        ("nonlocal_cgnl_repo", 0.01, None, "random"),
        ("nonlocal_mmcv", 0.01, "zero", "zero"),
        ("nonlocal_timm", (2 / 16) ** 0.5, "zero", "random"),
    ],
)
def test_presets_start_as_their_sources(name, std, bias, out):
    built = create_attention(name, 128, rngs=nnx.Rngs(3))
    assert built.inner == (16 if name == "nonlocal_timm" else 64)
    kernels = np.concatenate(
        [layer.kernel[...].ravel() for layer in (built.query, built.key, built.value)]
    )
    np.testing.assert_allclose(kernels.std(), std, rtol=0.05)
    assert abs(kernels.mean()) < 0.05 * std
    if bias is None:
        assert built.query.bias is None and built.out.bias is None
    else:
        assert (bias == "random") == bool(np.any(built.key.bias[...]))
        assert np.abs(built.key.bias[...]).max() <= 128**-0.5
    assert (out == "random") == bool(np.any(built.out.kernel[...]))
    assert (built.norm is None) == (name == "nonlocal_mmcv")


def test_inner_dim():
    def inner(dim, inner_dim):
        return nnx.eval_shape(lambda: NonLocal(dim, inner_dim=inner_dim, rngs=nnx.Rngs(0))).inner

    assert [inner(c, "half") for c in (1, 2, 5, 256)] == [1, 1, 2, 128]
    # 90 / 8 = 11.25 would round to 8, more than a tenth below, so timm takes 16
    assert [inner(c, "eighth") for c in (8, 64, 90, 96, 512)] == [8, 8, 16, 16, 64]
    assert inner(8, 3) == 3


# --------------------------------------------------------------------------------------------------
# Counts, errors


def shaped(dim, **options):
    return nnx.eval_shape(lambda: NonLocal(dim, **options, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("dim", "embedded", "gaussian"),
    [
        (256, 132_224, 66_432),
        (512, 526_592, 263_936),
        (1024, 2_101_760, 1_052_160),
        (2048, 8_397_824, 4_201_472),
    ],
)
def test_parameter_counts(dim, embedded, gaussian):
    def count(**options):
        return sum(
            leaf.size for leaf in jax.tree.leaves(nnx.state(shaped(dim, **options), nnx.Param))
        )

    assert count() == count(mode="dot_product") == embedded
    assert count(mode="gaussian") == gaussian
    assert count(mode="concatenation") == embedded + dim


def test_multiply_adds_at_224_pixels():
    def giga(dim, side, **options):
        return round(shaped(dim, **options).macs(side, side) / 1e9, 3)

    pooling = dict(sub_sample=False), dict(pool_first=False), dict()
    assert [giga(512, 28, **options) for options in pooling] == [0.726, 0.490, 0.336]
    assert [giga(1024, 14, **options) for options in pooling] == [0.450, 0.421, 0.267]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(mode="softmax"),
            "mode is 'softmax'; allowed: 'embedded_gaussian', 'gaussian', 'dot_product', 'concat",
        ),
        (dict(scale=2.0), "scale is 2.0; allowed: 'none', 'inner', 'input'"),
        (dict(inner_dim=0), "inner_dim is 0; allowed: 'half', 'eighth' or a positive number"),
        (dict(inner_dim="third"), "inner_dim is 'third'; allowed"),
        (dict(query_chunk=0), "query_chunk is 0; allowed: None, 'auto' or a positive number"),
        (
            dict(norm="none"),
            "zero_init is 'norm' and norm is 'none'; allowed without a norm: 'conv', 'none'",
        ),
        (dict(norm="group", norm_groups=5), "norm_groups is 5 for 12 channels; allowed: divisors"),
        (
            dict(order="linear"),
            "order is 'linear' in mode 'embedded_gaussian'; allowed: 'auto', 'direct'",
        ),
        (
            dict(pool_size=(2, 2), sub_sample=False),
            r"pool_size is \(2, 2\) and sub_sample is False",
        ),
        (dict(pool_size=(2, 0)), r"pool_size is \(2, 0\); allowed: one to three positive numbers"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"non-local: {message}"):
        NonLocal(DIM, **options, rngs=nnx.Rngs(0))


def test_maps_are_refused():
    built, _ = block(pool_size=(2, 2))
    with pytest.raises(
        ValueError,
        match=r"pool_size is \(2, 2\), the map has size \(3, 4, 5\); expected one number per",
    ):
        built(image(3, 4, 5))
    with pytest.raises(ValueError, match=r"non-local: the input has shape \(2, 12\)"):
        built(jnp.ones((2, 12)))
