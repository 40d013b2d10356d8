"""The lambda layer module: the paper's equations, variants, counts, errors and what it records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from drawn_weights import drawn
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.lambda_layer import LambdaLayer, resize_params
from lambdanet.ops import relative_table

dense_embeddings = jax.jit(relative_table.dense_embeddings, static_argnames=("shape", "dilation"))
DIM = 12
SMALL = dict(num_heads=3, key_depth=4)


def layer(dim=DIM, *, seed=0, **options):
    """A layer with random weights and statistics."""
    made = nnx.eval_shape(lambda: LambdaLayer(dim, **{**SMALL, **options}, rngs=nnx.Rngs(0)))
    return nnx.view(drawn(made, seed), use_running_average=True, raise_if_not_found=False)


def inputs(*spatial, dim=DIM, batch=2):
    return np.random.default_rng(7).standard_normal((batch, *spatial, dim)).astype(np.float32)


@jax.jit
def run(built, x, **arguments):
    return built(x, **arguments)


def parameters(module):
    return sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))


def softmax(a, axis):
    e = np.exp(a - a.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def by_hand(built, x, embeddings=None, mask=None, context=None):
    """The equations of the paper in float64 NumPy, with all pairs written out; softmax keys."""

    def norm(module, a):
        mean, var, scale, bias = (
            np.float64(p[...]) for p in (module.mean, module.var, module.scale, module.bias)
        )
        return (a - mean) / np.sqrt(var + 1e-5) * scale + bias

    def linear(module, a):
        out = a @ np.float64(module.kernel[...])
        return out if module.bias is None else out + np.float64(module.bias[...])

    x = np.float64(x)
    c = x if context is None else np.float64(context)
    b, spatial, h, k, u = (
        x.shape[0],
        x.shape[1:-1],
        built.num_heads,
        built.key_depth,
        built.intra_depth,
    )
    g = h if built.multi_head else 1
    x, c = x.reshape(b, -1, x.shape[-1]), c.reshape(b, -1, c.shape[-1])
    n, m = x.shape[1], c.shape[1]
    q = norm(built.norm_query, linear(built.query, x)).reshape(b, n, h, k)
    if built.query_norm == "softmax":
        q = softmax(q, -1)
    v = norm(built.norm_value, linear(built.value, c)).reshape(b, m, g, u, -1)
    seen = np.ones((n, m), bool) if mask is None else np.asarray(mask)
    factors = np.zeros((b, n, g, m, u, k))  # kbar + E for every pair
    if built.key is not None:
        keys = linear(built.key, c).reshape(b, m, g, u, k)
        for i in range(n):
            if seen[i].any():
                factors[:, i][:, :, seen[i]] = np.moveaxis(softmax(keys[:, seen[i]], 1), 1, 2)
    if built.position:
        if embeddings is None:
            table = built.embedding[...]
            tables = list(table) if built.multi_head else [table]
            dense = [dense_embeddings(t, shape=spatial, dilation=built.dilation) for t in tables]
        else:
            dense = list(embeddings) if built.multi_head else [embeddings]
        dense = np.stack([np.float64(e) for e in dense])  # g n m k u
        factors += np.where(seen[:, :, None, None], dense, 0).transpose(1, 0, 2, 4, 3)
    weights = np.einsum("bnhk,bnhmuk->bnhmu", q, np.broadcast_to(factors, (b, n, h, m, u, k)))
    y = np.einsum("bnhmu,bmhuv->bnhv", weights, np.broadcast_to(v, (b, m, h, u, v.shape[-1])))
    if built.pos_bias is not None:
        y = y + (q @ np.float64(built.pos_bias[...]))[..., None]
    return y.reshape(b, *spatial, built.dim_out), weights.sum(-1).transpose(0, 2, 1, 3)


VARIANTS = {
    "local": ((5, 4), dict(scope=3)),
    "scope beyond the map": ((3, 4), dict(scope=23)),
    "global": ((4, 3), dict(scope=None, size=(4, 3))),
    "intra-depth, wider": ((4, 3), dict(scope=3, intra_depth=2, dim_out=18)),
    "dilated, oblong scope": ((6, 5), dict(scope=(3, 5), dilation=2)),
    "multi-head": ((4, 3), dict(scope=3, multi_head=True, intra_depth=2)),
    "1-D": ((7,), dict(scope=5, spatial_dims=1)),
    "3-D": ((2, 3, 2), dict(scope=3, spatial_dims=3)),
    "one pixel": ((1, 1), dict(scope=3)),
    "content only": ((4, 3), dict(position=False)),
    "position only": ((4, 3), dict(scope=3, content=False)),
    "biases": ((4, 3), dict(scope=3, qkv_bias=True, pos_bias=True)),
    "query softmax": ((4, 3), dict(scope=3, query_norm="softmax")),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_output_equals_the_papers_equations(name):
    spatial, options = VARIANTS[name]
    built, x = layer(**options), inputs(*spatial)
    expected, _ = by_hand(built, x)
    found = run(built, x)
    assert found.shape == expected.shape and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


FORMS = (dict(scope=3), dict(scope=None, size=(3, 4), multi_head=True))
CAUSAL = [(causal, options) for causal in ("inclusive", "strict") for options in FORMS]


@pytest.mark.parametrize(("causal", "options"), part(CAUSAL, CAUSAL[1:3]))
def test_causal_equals_the_masked_equations_and_ignores_the_future(causal, options):
    built, x = layer(causal=causal, **options), inputs(3, 4)
    mask = np.tri(12, k=0 if causal == "inclusive" else -1, dtype=bool)
    found = run(built, x)
    expected, _ = by_hand(built, x, mask=mask)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    changed = x.copy()
    changed[:, 2, 1] += 1
    later = run(built, changed)
    np.testing.assert_array_equal(later[:, :2], found[:, :2])
    np.testing.assert_array_equal(later[:, 2, :1], found[:, 2, :1])
    if causal == "strict":
        np.testing.assert_array_equal(found[:, 0, 0], 0)
    grads = jax.jit(jax.grad(lambda x: jnp.sum(built(x) ** 2)))(x)
    assert np.isfinite(grads).all()


def test_shared_key_norm_differs_only_by_where_keys_are_normalised():
    options = dict(causal="inclusive", position=False, seed=1)
    x = inputs(2, 3)
    per_context = run(layer(**options), x)
    shared = run(layer(causal_key_norm="shared", **options), x)
    np.testing.assert_allclose(
        per_context[:, -1, -1], shared[:, -1, -1], rtol=1e-5
    )  # the last query sees everything
    assert np.abs(per_context - shared).max() > 1e-2


def test_mask_of_any_form_and_a_query_that_sees_nothing():
    built, x = layer(scope=3), inputs(3, 3)
    mask = np.random.default_rng(0).random((9, 9)) < 0.6
    mask[4] = False
    found = run(built, x, mask=mask)
    expected, _ = by_hand(built, x, mask=mask)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(found[:, 1, 1], 0)
    causal = layer(scope=3, causal="inclusive")
    everything = np.ones((9, 9), bool)
    np.testing.assert_allclose(
        run(causal, x, mask=everything), run(causal, x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("multi_head", [False, True])
def test_context_of_another_length_and_width(multi_head):
    built = layer(scope=None, context_dim=5, multi_head=multi_head)
    x, context = inputs(2, 3), inputs(7, dim=5)
    heads = (3,) if multi_head else ()
    embeddings = np.random.default_rng(3).standard_normal((*heads, 6, 7, 4, 1)).astype(np.float32)
    found = run(built, x, context=context, embeddings=embeddings)
    expected, _ = by_hand(built, x, embeddings=embeddings, context=context)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    alone = layer(position=False, context_dim=5, multi_head=multi_head)
    expected, _ = by_hand(alone, x, context=context)
    np.testing.assert_allclose(
        run(alone, x, context=context), expected, atol=1e-5 * np.abs(expected).max()
    )


def test_flat_and_shared_embeddings_equal_a_table_of_its_own():
    x, own = inputs(4, 3), layer(scope=3)
    expected = run(own, x)
    weights = nnx.to_pure_dict(nnx.state(own, nnx.Any(nnx.Param, nnx.BatchStat)))
    table = weights.pop("embedding")
    for options, given in (
        (dict(scope=3, shared_embeddings=True), table),
        (dict(scope=None), relative_table.dense_embeddings(table, (4, 3))),
    ):
        other = layer(**options)
        assert other.embedding is None
        nnx.update(other, weights)
        np.testing.assert_allclose(run(other, x, embeddings=given), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["dense", "conv", "query_first", "row_chunks", "halo_tiles"])
def test_lowering_is_handed_on(impl):
    x = inputs(5, 4)
    found, expected = run(layer(scope=3, impl=impl, chunk_rows=2), x), run(layer(scope=3), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    traced = str(jax.make_jaxpr(layer(scope=3, impl=impl))(x))
    assert ("conv_general_dilated" in traced) == (impl == "conv")
    assert ("scan" in traced) == (impl in ("row_chunks", "halo_tiles"))


@pytest.mark.parametrize("key_norm", ["l2", "none"])
def test_key_norm_switch(key_norm):
    @jax.jit
    def both(built, x):
        q = built.norm_query(built.query(x)).reshape(2, 6, 3, 4)
        v, keys = built.norm_value(built.value(x)).reshape(2, 6, 4), built.key(x).reshape(2, 6, 4)
        if key_norm == "l2":
            keys = keys / jnp.linalg.norm(keys, axis=1, keepdims=True)
        expected = jnp.einsum("bnhk,bmk,bmv->bnhv", q, keys, v).reshape(2, 3, 2, 12)
        return built(x), expected

    found = both(layer(position=False, key_norm=key_norm), inputs(3, 2))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_eager_equals_jit_and_an_image_does_not_see_its_neighbours():
    built, x = layer(scope=3), inputs(4, 5, batch=3)
    whole = built(x)
    np.testing.assert_allclose(run(built, x), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(built, x[1:2]), whole[1:2], rtol=1e-5, atol=1e-5)


def test_training_view_uses_batch_statistics_and_moves_the_running_ones():
    built, x = nnx.view(layer(scope=3, norm_momentum=0.5), use_running_average=False), inputs(4, 4)
    before = np.asarray(built.norm_value.mean[...])

    @jax.jit
    def both(built, x):
        still = nnx.view(built, use_running_average=True)(x)
        return built(x), still, built.value(x), built.norm_value.mean[...]

    y, still, v, after = (np.asarray(a) for a in both(built, x))
    v = v.reshape(-1, 4)
    np.testing.assert_allclose(after, 0.5 * before + 0.5 * v.mean(0), rtol=1e-5, atol=1e-6)
    assert np.abs(y - still).max() > 1e-3

    def plain():
        return LambdaLayer(DIM, **SMALL, norm_query_value=False, scope=3, rngs=nnx.Rngs(0))

    assert nnx.eval_shape(plain).norm_query is None
    assert nnx.eval_shape(lambda: plain()(x)).shape == x.shape


LOW = [dict(scope=3), dict(scope=3, causal="strict"), dict(scope=5, impl="row_chunks")]


@pytest.mark.parametrize("options", part(LOW, LOW[:1]))
def test_bfloat16_is_close_and_keeps_float32_statistics(options):
    x = inputs(6, 5, dim=16)
    exact = run(layer(16, **{**options, "num_heads": 4}), x)
    low = layer(16, **{**options, "num_heads": 4}, dtype=jnp.bfloat16)
    y = run(low, x)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(nnx.state(low))} == {jnp.dtype("float32")}
    assert np.linalg.norm(y.astype(jnp.float32) - exact) < 1e-2 * np.linalg.norm(exact)


@jax.jit
def captured(built, x):
    y, recorded = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(recorded)


def test_capture_records_factors_and_norms_and_nothing_by_default():
    built, x = layer(scope=3, intra_depth=2), inputs(3, 4)
    y, recorded = captured(built, x)
    assert set(recorded) == {"attention_map", "lambda_norm"}
    (shown,), (norms,) = (recorded[name] for name in ("attention_map", "lambda_norm"))
    assert shown.shape == (2, 3, 3, 4, 3, 4) and norms.shape == (2, 1, 3, 4) and (norms > 0).all()
    expected, factors = by_hand(built, x)
    np.testing.assert_allclose(shown.reshape(2, 3, 12, 12), factors, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())
    nothing = jax.eval_shape(lambda built, x: nnx.capture(built, nnx.Intermediate)(x)[1], built, x)
    assert not jax.tree.leaves(nothing)


@pytest.mark.parametrize(
    ("options", "spatial", "shape"),
    [
        (dict(position=False, multi_head=True), (3, 2), (2, 3, 3, 2, 3, 2)),
        (dict(content=False, scope=3, spatial_dims=1, causal="strict"), (5,), (2, 3, 5, 5)),
        (dict(scope=3, causal="inclusive"), (2, 2), (2, 3, 2, 2, 2, 2)),
    ],
)
def test_captured_factors_of_variants_give_the_output(options, spatial, shape):
    built, x = layer(**options), inputs(*spatial)
    y, recorded = captured(built, x)
    (shown,), (norms,) = (recorded[name] for name in ("attention_map", "lambda_norm"))
    assert shown.shape == shape and norms.shape == (2, 3 if built.multi_head else 1, *spatial)
    n = int(np.prod(spatial))
    v = jax.jit(lambda built, x: built.norm_value(built.value(x)))(built, x)
    v = np.broadcast_to(v.reshape(2, n, -1, 4), (2, n, 3, 4))  # one per head or one for all
    answer = np.einsum("bhnm,bmhv->bnhv", np.reshape(shown, (2, 3, n, n)), v)
    np.testing.assert_allclose(answer.reshape(y.shape), y, rtol=1e-4, atol=1e-5)


COUNTS = [(64, 14768), (128, 22992), (256, 45584), (512, 115344)]


@pytest.mark.parametrize(("dim", "count"), COUNTS)
def test_parameter_counts_of_the_paper(dim, count):
    built = nnx.eval_shape(lambda: LambdaLayer(dim, rngs=nnx.Rngs(0)))
    assert parameters(built) == count


@pytest.mark.parametrize(("d", "k", "h", "u", "r"), [(24, 8, 3, 4, 5), (32, 4, 8, 2, 7)])
def test_parameter_count_formula(d, k, h, u, r):
    built = nnx.eval_shape(
        lambda: LambdaLayer(d, num_heads=h, key_depth=k, intra_depth=u, scope=r, rngs=nnx.Rngs(0))
    )
    formula = d * (h * k + k * u + d // h * u) + 2 * h * k + 2 * (d // h) * u + r * r * k * u
    assert parameters(built) == formula
    biased = nnx.eval_shape(
        lambda: LambdaLayer(
            d, num_heads=h, key_depth=k, intra_depth=u, scope=r, pos_bias=True, rngs=nnx.Rngs(0)
        )
    )
    assert parameters(biased) == formula + k


def test_macs_equal_the_products_of_the_traced_program():
    """Global table and dense lowering: every tap is in the map, so the program does exactly what is
    counted.
    """
    options = dict(num_heads=3, key_depth=4, intra_depth=2, scope=None, size=(3, 5), impl="dense")
    built = nnx.view(LambdaLayer(DIM, **options, rngs=nnx.Rngs(0)), use_running_average=True)

    def products(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            for inner in jax.tree.leaves(
                equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
            ):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    total += products(getattr(inner, "jaxpr", inner))
            if equation.primitive.name == "dot_general":
                contracted = equation.params["dimension_numbers"][0][0]
                sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
                total += int(np.prod(equation.outvars[0].aval.shape) * np.prod(sizes))
        return total

    assert built.macs(3, 5) == products(jax.make_jaxpr(built)(inputs(3, 5, batch=1)).jaxpr)


def test_macs_clip_the_scope_as_the_paper_does():
    local = LambdaLayer(64, rngs=nnx.Rngs(0))
    n, h, k, v = 49, 4, 16, 16
    assert local.macs(7, 7) == n * (64 * (h * k + k + v) + (49 + 1) * k * v + 2 * h * k * v)
    assert local.macs(56, 56) == 3136 * (
        64 * (h * k + k + v) + (23 * 23 + 1) * k * v + 2 * h * k * v
    )
    content = LambdaLayer(64, position=False, rngs=nnx.Rngs(0))
    assert content.macs(7, 7) == n * (64 * (h * k + k + v) + k * v + h * k * v)
    with pytest.raises(ValueError, match="needs 2 sizes"):
        local.macs(7)


def test_initial_scales():
    built = LambdaLayer(256, num_heads=4, key_depth=64, scope=9, rngs=nnx.Rngs(0))
    assert np.std(built.query.kernel[...]) == pytest.approx((64 * 256) ** -0.5, rel=0.05)
    assert np.std(built.key.kernel[...]) == pytest.approx(256**-0.5, rel=0.05)
    assert np.std(built.embedding[...]) == pytest.approx(1, rel=0.05)
    timm = LambdaLayer(256, num_heads=4, key_depth=64, scope=9, init="timm", rngs=nnx.Rngs(0))
    assert np.std(timm.query.kernel[...]) == pytest.approx(256**-0.5, rel=0.05)
    assert np.std(timm.embedding[...]) == pytest.approx(64**-0.5, rel=0.05)


@pytest.mark.parametrize("multi_head", [False, True])
def test_resized_parameters_fit_a_layer_of_the_new_size(multi_head):
    options = dict(scope=None, multi_head=multi_head)
    small, large = layer(size=(3, 4), **options), layer(size=(5, 3), **options)
    params = nnx.to_pure_dict(nnx.state(small, nnx.Param))
    resized = resize_params(params, (3, 4), (5, 3))
    assert jax.tree.map(jnp.shape, resized) == jax.tree.map(
        jnp.shape, nnx.to_pure_dict(nnx.state(large, nnx.Param))
    )
    nnx.update(large, resized)
    assert np.isfinite(run(large, inputs(5, 3))).all()
    cropped = resize_params(params, (3, 4), (2, 2))["embedding"]
    np.testing.assert_array_equal(cropped, params["embedding"][..., 1:-1, 2:-2, :, :])
    with pytest.raises(ValueError, match="no embedding among the parameters"):
        resize_params(nnx.to_pure_dict(nnx.state(layer(position=False), nnx.Param)), (3, 4), (5, 3))


def test_a_step_of_gradient_descent_reaches_every_parameter_and_lowers_the_loss():
    built = LambdaLayer(DIM, **SMALL, scope=3, pos_bias=True, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(built, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    x = inputs(4, 4)
    loss = jax.jit(
        jax.value_and_grad(lambda p: jnp.mean((nnx.merge(graph, p, rest, copy=True)(x) - x) ** 2))
    )
    value, grads = loss(params)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
    assert loss(jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads))[0] < value


def test_factory_hands_the_map_size_to_global_tables_only():
    tied = create_attention(
        dict(name="lambda", scope=None), 8, size=(3, 4), norm_momentum=0.7, rngs=nnx.Rngs(0)
    )
    assert tied.embedding.shape == (5, 7, 1, 16) and tied.norm_query.momentum == 0.7
    assert create_attention("lambda", 8, size=(3, 4), rngs=nnx.Rngs(0)).embedding.shape == (
        23,
        23,
        1,
        16,
    )


WRONG_OPTIONS = [
    (dict(num_heads=5), "5 heads do not divide dim_out=12"),
    (dict(scope=4), "scope is 4; it must be odd"),
    (dict(scope=(3, 3, 3)), "expected a positive number or 2 of them"),
    (
        dict(impl="fft"),
        "impl is 'fft'; allowed: 'auto', 'dense', 'conv', 'query_first', 'row_chunks'",
    ),
    (dict(key_norm="l1"), "key_norm is 'l1'; allowed: 'softmax', 'l2', 'none'"),
    (dict(causal="yes"), "causal is 'yes'; allowed: 'none', 'inclusive', 'strict'"),
    (dict(spatial_dims=4), "spatial_dims is 4; allowed: 1, 2, 3"),
    (dict(key_depth=0), "key_depth=0"),
    (dict(content=False, position=False), "leave nothing"),
    (dict(position=False, pos_bias=True), "pos_bias=True needs position=True"),
    (dict(scope=None, size=(4, 4), dilation=2), "dilation=2 needs a local scope"),
    (dict(scope=None, shared_embeddings=True), "shared_embeddings=True needs"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LambdaLayer(DIM, **{"num_heads": 4, **options}, rngs=nnx.Rngs(0))


WRONG_CALLS = [
    (
        dict(scope=3),
        dict(x=inputs(4, 4, dim=5)),
        r"shape \(2, 4, 4, 5\); expected \[batch, 2 spatial axes, 12",
    ),
    (dict(scope=3), dict(x=inputs(4)), "expected .batch, 2 spatial axes"),
    (
        dict(scope=None, size=(4, 4)),
        dict(x=inputs(4, 5)),
        r"size \(4, 5\), the embedding table is for size \(4, 4\)",
    ),
    (
        dict(scope=3),
        dict(x=inputs(4, 4), context=inputs(5)),
        r"no offsets.*\(16, 5, 4, 1\), got None.*position=False",
    ),
    (
        dict(scope=3),
        dict(x=inputs(4, 4), context=inputs(5, batch=1)),
        r"expected \[2, elements, 12\]",
    ),
    (dict(scope=None), dict(x=inputs(2, 2)), "neither scope nor size"),
    (
        dict(scope=3),
        dict(x=inputs(2, 2), embeddings=np.ones((3, 3, 1, 4))),
        "shared_embeddings=True",
    ),
    (
        dict(scope=3, shared_embeddings=True),
        dict(x=inputs(2, 2)),
        r"must be \(3, 3, 1, 4\), got None",
    ),
    (dict(position=False), dict(x=inputs(2, 2), embeddings=np.ones(1)), "position=False"),
    (
        dict(scope=3),
        dict(x=inputs(2, 2), mask=np.ones((4, 3), bool)),
        r"expected \[n, m\] = \(4, 4\), bool",
    ),
    (
        dict(scope=3, impl="conv"),
        dict(x=inputs(2, 2), mask=np.ones((4, 4), bool)),
        "allowed here: auto, dense",
    ),
    (dict(position=False, causal="strict"), dict(x=inputs(2, 2), context=inputs(5)), "use mask="),
    (dict(position=False, context_dim=5), dict(x=inputs(2, 2)), "so it needs context="),
]


@pytest.mark.parametrize(("options", "call", "message"), WRONG_CALLS)
def test_wrong_calls_are_named(options, call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: layer(**options)(**call))
