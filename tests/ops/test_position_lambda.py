"""Position lambdas: every lowering against the definition, written out pair by pair."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part

from lambdanet.ops import cost_model, position_lambda, relative_table, spectral_lambda

# map size, taps per axis, dilation, u, rows per chunk
GEOMETRIES = {
    "local": ((5, 4), (3, 3), 1, 1, 2),  # five rows in chunks of two
    "clipped": ((4, 7), (23, 23), 1, 2, 3),  # no tap beyond 2 n - 1 has a key to meet
    "global": ((4, 3), (7, 5), 1, 1, 1),
    "moving keys": ((11, 3), (5, 5), 1, 2, 4),
    "dilated": ((9, 5), (5, 3), 2, 1, 2),
    "dilated beyond the map": ((3, 8), (5, 5), (4, 3), 1, 2),
    "one pixel": ((1, 1), (3, 3), 1, 2, 4),
    "one row": ((1, 6), (3, 5), 1, 1, 1),
    "1-D": ((7,), (5,), 2, 2, 3),
    "tiles": ((17, 5), (7, 3), 1, 1, 4),  # three tiles of six rows, one of them ragged
    "3-D": ((3, 2, 4), (3, 5, 3), 1, 1, 2),
}
LOWERINGS = ("dense", "conv", "query_first", "row_chunks", "halo_tiles", "spectral")
position_term = jax.jit(
    position_lambda.position_term, static_argnames=("dilation", "impl", "chunk_rows")
)
dense_embeddings = jax.jit(relative_table.dense_embeddings, static_argnames=("shape", "dilation"))


def arrays(shape, scope, u, *, h=3, k=4, v=5, batch=2, dtype=np.float64):
    rng = np.random.default_rng(0)
    sizes = ((batch, *shape, h, k), (batch, *shape, u, v), (*scope, u, k))
    return tuple(rng.standard_normal(size).astype(dtype) for size in sizes)


def pairwise_embeddings(table, shape, dilation):
    """E [n, m, u, k] by two loops over positions."""
    steps = (dilation,) * len(shape) if isinstance(dilation, int) else dilation
    places = list(itertools.product(*map(range, shape)))
    out = np.zeros((len(places), len(places), *table.shape[-2:]), table.dtype)
    for (i, query), (j, key) in itertools.product(enumerate(places), enumerate(places)):
        offsets = [b - a for a, b in zip(query, key, strict=True)]
        taps = [o // d + r // 2 for o, d, r in zip(offsets, steps, table.shape, strict=False)]
        on_grid = all(o % d == 0 for o, d in zip(offsets, steps, strict=True))
        if on_grid and all(0 <= t < r for t, r in zip(taps, table.shape, strict=False)):
            out[i, j] = table[tuple(taps)]
    return out


def index_of_pairs(scope, shape, dilation):
    """Flat tap index of every pair, and whether the pair has a tap; so that the reference can be
    differentiated.
    """
    numbers = np.arange(1, np.prod(scope) + 1).reshape(*scope, 1, 1)
    found = pairwise_embeddings(numbers, shape, dilation)[..., 0, 0]
    return np.maximum(found - 1, 0), found > 0


def reference(q, v, table, index, valid):
    flat = table.reshape(-1, *table.shape[-2:])
    pairs = jnp.where(valid[..., None, None], flat[index], 0)
    flat_q = q.reshape(q.shape[0], -1, *q.shape[-2:])
    flat_v = v.reshape(v.shape[0], -1, *v.shape[-2:])
    return jnp.einsum("bnhk,nmuk,bmuv->bnhv", flat_q, pairs, flat_v).reshape(
        *q.shape[:-1], v.shape[-1]
    )


@pytest.mark.parametrize("name", part(GEOMETRIES, ["clipped", "dilated", "3-D"]))
def test_every_lowering_equals_the_definition_in_values_and_gradients(name):
    shape, scope, dilation, u, rows = GEOMETRIES[name]
    with jax.enable_x64():
        q, v, table = arrays(shape, scope, u)
        index, valid = index_of_pairs(scope, shape, dilation)
        cotangent = np.random.default_rng(1).standard_normal((*q.shape[:-1], v.shape[-1]))

        def with_gradients(function):
            y, pull = jax.vjp(function, q, v, table)
            return y, *pull(jnp.asarray(cotangent))

        expected = jax.jit(lambda: with_gradients(lambda *a: reference(*a, index, valid)))()
        for impl in LOWERINGS:
            if impl == "spectral" and len(shape) > 2:
                continue
            options = dict(dilation=dilation, impl=impl, chunk_rows=rows)
            found = jax.jit(with_gradients, static_argnums=0)(
                lambda *a, options=options: position_lambda.position_term(*a, **options)
            )
            for what, ours, theirs in zip(
                ("y", "dq", "dv", "dtable"), found, expected, strict=True
            ):
                assert ours.dtype == jnp.float64
                np.testing.assert_allclose(
                    ours, theirs, rtol=0, atol=1e-10, err_msg=f"{impl} {what}"
                )


CONTENT = {  # the lowering of the forward pass, map size, taps, dilation, u, whether it joins
    "few elements": ("query_first", (4, 7), (3, 5), 1, 2, True),
    "more elements": ("query_first", (9, 8), (3, 3), 1, 1, False),
    "whole map": ("spectral", (5, 4), (3, 3), 1, 2, True),
    "tiles in groups": ("spectral", (17, 5), (5, 3), 2, 1, True),
    "1-D": ("spectral", (70,), (5,), 1, 1, True),
    "convolution": ("conv", (4, 5), (3, 3), 1, 1, False),
}


@pytest.mark.parametrize("name", part(CONTENT, ["few elements", "tiles in groups"]))
def test_content_lambdas_join_the_sums_of_the_forward_pass_alone(name, monkeypatch):
    impl, shape, scope, dilation, u, joins = CONTENT[name]
    monkeypatch.setattr(
        cost_model,
        "choose_impl",
        lambda geometry, backend, direction: impl if direction == "fwd" else "query_first",
    )
    monkeypatch.setattr(spectral_lambda, "GROUP_ELEMENTS", 17 * 5 * 20)
    with jax.enable_x64():
        q, v, table = arrays(shape, scope, u)
        content = np.random.default_rng(1).standard_normal((2, 4, 5))
        cotangent = np.random.default_rng(2).standard_normal((*q.shape[:-1], 5))

        def ours(*a):
            return position_lambda.position_term(*a[:3], content=a[3], dilation=dilation)

        def apart(*a):
            y = position_lambda.position_term(*a[:3], dilation=dilation, impl="dense")
            return y + jnp.einsum("b...hk,bkv->b...hv", a[0], a[3])

        def with_gradients(function, *a):
            y, pull = jax.vjp(function, *a)
            return y, *pull(jnp.asarray(cotangent))

        operands = q, v, table, content
        found = (
            jax.jit(ours)(*operands),
            *jax.jit(with_gradients, static_argnums=0)(ours, *operands),
        )
        expected = jax.jit(with_gradients, static_argnums=0)(apart, *operands)
        for mine, theirs in zip(found, (expected[0], *expected), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10)
        alone = jax.jit(lambda *a: position_lambda.position_term(*a, dilation=dilation))
        products = [
            program.as_text().count("dot_general")
            for program in (jax.jit(ours).lower(*operands), alone.lower(*operands[:3]))
        ]
        assert (products[0] == products[1]) == joins


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 100])
def test_rows_per_chunk_do_not_matter(rows):
    q, v, table = arrays((5, 3), (3, 5), 1, dtype=np.float32)
    expected = position_term(q, v, table, impl="dense")
    found = position_term(q, v, table, impl="row_chunks", chunk_rows=rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["local", "clipped", "dilated", "1-D", "3-D"])
def test_dense_embeddings_are_the_table_at_key_minus_query(name):
    shape, scope, dilation, u, _ = GEOMETRIES[name]
    table = arrays(shape, scope, u, dtype=np.float32)[2]
    found = dense_embeddings(table, shape=shape, dilation=dilation)
    np.testing.assert_array_equal(
        found, np.swapaxes(pairwise_embeddings(table, shape, dilation), -1, -2)
    )


@pytest.mark.parametrize("impl", LOWERINGS)
def test_shifting_the_map_shifts_the_answer(impl):
    """Away from the border, for a local table."""
    q, v, table = arrays((8, 7), (3, 3), 1, dtype=np.float32)
    y = np.asarray(position_term(q, v, table, impl=impl))
    moved = (np.roll(a, (2, 1), (1, 2)) for a in (q, v))
    rolled = np.asarray(position_term(*moved, table, impl=impl))
    np.testing.assert_allclose(rolled[:, 3:-1, 2:-1], y[:, 1:-3, 1:-2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", LOWERINGS)
@pytest.mark.parametrize("causal", ["inclusive", "strict"])
def test_masked_taps_are_the_causal_mask(impl, causal):
    q, v, table = arrays((3, 4), (5, 3), 2, dtype=np.float32)
    masked = relative_table.mask_taps(table, causal)
    found = position_term(q, v, masked, impl=impl)
    n = 12
    order = np.arange(n)[None] - np.arange(n)[:, None]
    seen = order <= 0 if causal == "inclusive" else order < 0
    pairs = pairwise_embeddings(table, (3, 4), 1) * seen[..., None, None]
    expected = np.einsum(
        "bnhk,nmuk,bmuv->bnhv", q.reshape(2, n, 3, 4), pairs, v.reshape(2, n, 2, 5)
    )
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["dense", "query_first", "auto"])
def test_flat_embeddings_with_another_number_of_context_elements_and_a_mask(impl):
    rng = np.random.default_rng(0)
    q, v = rng.standard_normal((2, 5, 3, 4)), rng.standard_normal((2, 9, 2, 6))
    embeddings, mask = rng.standard_normal((5, 9, 4, 2)), rng.random((5, 9)) < 0.5
    with jax.enable_x64():
        found = position_lambda.flat_position_term(
            q, v, jnp.asarray(embeddings), mask=mask, impl=impl
        )
    masked = embeddings * mask[..., None, None]
    np.testing.assert_allclose(found, np.einsum("bnhk,nmku,bmuv->bnhv", q, masked, v), atol=1e-10)
    lambdas = position_lambda.position_lambdas(v.astype(np.float32), masked.astype(np.float32))
    np.testing.assert_allclose(
        np.einsum("bnhk,bnkv->bnhv", q, lambdas), found, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("impl", LOWERINGS)
def test_bfloat16_stays_close_and_adds_the_tables_gradient_in_float32(impl):
    q, v, table = arrays((6, 5), (11, 9), 1, batch=16, dtype=np.float32)
    q, v = np.float32(jnp.bfloat16(q)), np.float32(jnp.bfloat16(v))
    table = np.float32(jnp.bfloat16(table))

    def loss(table, dtype):
        y = position_lambda.position_term(
            q.astype(dtype), v.astype(dtype), table, impl=impl, chunk_rows=2
        )
        assert y.dtype == dtype
        return jnp.sum(y.astype(jnp.float32) ** 2), y

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, exact), exact_grad = run(table, jnp.float32)
    (_, rounded), grad = run(table, jnp.bfloat16)
    assert grad.dtype == jnp.float32
    for ours, theirs in ((rounded.astype(jnp.float32), exact), (grad, exact_grad)):
        assert np.linalg.norm(ours - theirs) < 1e-2 * np.linalg.norm(theirs)


def test_resized_table_crops_the_centre_or_keeps_ends_and_centre():
    table = arrays((5, 3), (9, 5), 2, dtype=np.float32)[2]
    np.testing.assert_array_equal(
        relative_table.resize_table(table, (5, 3), (3, 2)), table[2:-2, 1:-1]
    )
    grown = relative_table.resize_table(table, (5, 3), (9, 3))
    assert grown.shape == (17, 5, 2, 4)
    np.testing.assert_allclose(grown[::2], table, rtol=1e-6)
    np.testing.assert_allclose(grown[1::2], (table[1:] + table[:-1]) / 2, rtol=1e-5, atol=1e-6)
    assert relative_table.resize_table(table[:1, :1], (1, 1), (2, 3)).shape == (3, 5, 2, 4)
    with pytest.raises(ValueError, match=r"from map size \(4, 3\) to \(5, 5\).*has \(7, 5\) taps"):
        relative_table.resize_table(table, (4, 3), (5, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            dict(shape=(4, 4, 2), scope=(3, 3, 3), impl="spectral"),
            r"needs a map with one or two axes.*\(4, 4, 2\)",
        ),
        (
            dict(impl="fft"),
            "impl is 'fft'; allowed here: auto, dense, conv, query_first, row_chunks, halo_tiles, "
            "spectral",
        ),
        (dict(scope=(4, 3)), "must be odd"),
        (dict(scope=(3,)), "needs 2 tap axes"),
        (dict(dilation=(1, 2, 3)), "has 3 entries; the map has 2 spatial axes"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    q, v, table = arrays(call.pop("shape", (4, 4)), call.pop("scope", (3, 3)), 1, dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        position_lambda.position_term(q, v, table, **call)


def test_wrong_content_lambdas_are_named():
    q, v, table = arrays((4, 4), (3, 3), 1, dtype=np.float32)
    with pytest.raises(ValueError, match=r"shape \(2, 5, 4\); expected .* = \(2, 4, 5\)"):
        position_lambda.position_term(q, v, table, content=np.zeros((2, 5, 4), np.float32))


def test_wrong_flat_embeddings_are_named():
    q, v = np.zeros((1, 4, 2, 3), np.float32), np.zeros((1, 5, 1, 2), np.float32)
    with pytest.raises(
        ValueError, match=r"shape \(4, 4, 3, 1\); expected \[n, m, k, u\] = \(4, 5, 3, 1\)"
    ):
        position_lambda.flat_position_term(q, v, np.zeros((4, 4, 3, 1), np.float32))
    with pytest.raises(ValueError, match="impl is 'conv'; allowed here: auto, dense, query_first"):
        position_lambda.flat_position_term(q, v, np.zeros((4, 5, 3, 1), np.float32), impl="conv")


def test_fused_is_refused_where_it_does_not_run_and_never_chosen():
    q, v, table = jnp.ones((1, 4, 4, 2, 8)), jnp.ones((1, 4, 4, 1, 8)), jnp.ones((3, 3, 1, 8))
    with pytest.raises(
        ValueError,
        match="'fused' is a kernel for NVIDIA GPUs .* the backend is 'cpu'; take impl 'auto'",
    ):
        position_lambda.position_term(q, v, table, impl="fused")
    with pytest.raises(ValueError, match="'fused' takes dilation 1, got"):
        position_lambda.position_term(q, v, table, impl="fused", dilation=2)
    assert all(
        "fused" not in rates
        for device in cost_model.DEVICES.values()
        for rates in device.rates.values()
    )
