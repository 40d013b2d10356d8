"""Linformer against its equations: sharing, order, projections, lengths, masks; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.linformer import Linformer, resize_params
from lambdanet.attention.mhsa import MultiHeadSelfAttention
from lambdanet.layers.token_compression import TokenCompression, default_slots
from lambdanet.training.state import split_model

DIM, LENGTH = 8, 15


def noisy(built, seed=0):
    rng = np.random.default_rng(seed)
    nnx.update(
        built,
        jax.tree.map(
            lambda a: a + 0.3 * rng.standard_normal(a.shape).astype(a.dtype), nnx.state(built)
        ),
    )
    return built


def layer(**options):
    given = {"num_heads": 2, "max_length": LENGTH, "num_projected": 4, **options}
    return noisy(Linformer(DIM, **given, rngs=nnx.Rngs(0)))


def compression(**options):
    return noisy(TokenCompression(LENGTH, 4, **options, rngs=nnx.Rngs(1)), seed=1)


def inputs(*spatial, batch=2, dim=DIM, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, *spatial, dim)).astype(np.float32)


@jax.jit
def run(built, x, **arguments):
    return built(x, **arguments)


@jax.jit
def captured(built, x):
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(sown)["attention_map"][0]


def f64(parameter):
    return np.float64(parameter[...])


def matrix(compressor, head, m, depth):
    """E [k, d, m, d] of one head for m tokens: what slot j feature e takes of token i feature f;
    and the bias [k, d].
    """
    bias = np.zeros(1) if compressor.bias is None else f64(compressor.bias)
    bias = bias[head] if compressor.bias is not None and compressor.heads else bias
    if compressor.projection == "convolution":
        kernel, w = f64(compressor.window_kernel), compressor.window
        kernel = kernel[head] if compressor.heads else kernel
        slots = -(-m // w)
        out = np.zeros((slots, depth, m, depth))
        for i in range(m):
            out[i // w, :, i] = kernel[i % w].T
        return out, np.broadcast_to(bias, (slots, depth))
    kernel = f64(compressor.kernel)
    kernel = kernel[head] if compressor.heads else kernel
    out = np.einsum("mk,ef->kemf", kernel[:m], np.eye(depth))
    return out, np.broadcast_to(
        bias[:, None] if compressor.bias is not None else 0.0, (kernel.shape[1], depth)
    )


def by_hand(built, x, context=None, shared=None, mask=None):
    """(y [b, n, c], weights [b, h, n, k]) of lists of tokens, in float64, E and F written out."""

    def linear(module, a):
        return a @ f64(module.kernel) + (0 if module.bias is None else f64(module.bias))

    x = np.float64(x)
    tokens = x if context is None else np.float64(context)
    keep = np.ones(tokens.shape[:2]) if mask is None else np.float64(mask)
    e = built.compress_key if shared is None else shared
    f = built.compress_value or e
    to_value = built.value or built.key
    d, h, m = built.head_dim, built.num_heads, tokens.shape[1]
    q = linear(built.query, x)
    out, weights = np.zeros(q.shape), []
    for head in range(h):
        part = slice(head * d, (head + 1) * d)
        kv_part = part if built.kv_heads > 1 else slice(0, d)
        slots = []
        for compressor, project in ((e, built.key), (f, to_value)):
            if built.order == "project_then_compress":
                full, bias = matrix(compressor, head, m, d)
                projected = linear(project, tokens)[..., kv_part] * keep[..., None]
                slots.append(np.einsum("kemf,bmf->bke", full, projected) + bias)
            else:
                full, bias = matrix(compressor, head, m, tokens.shape[-1])
                mixed = np.einsum("kemf,bmf->bke", full, tokens * keep[..., None]) + bias
                slots.append(linear(project, mixed)[..., kv_part])
        exponents = np.exp(np.einsum("bnd,bkd->bnk", q[..., part], slots[0]) / np.sqrt(d))
        weights.append(exponents / exponents.sum(-1, keepdims=True))
        out[..., part] = weights[-1] @ slots[1]
    return linear(built.output, out), np.stack(weights, 1)


VARIANTS = {
    "default": dict(),
    "per head, biases": dict(sharing="none", qkv_bias=True, compress_bias=True),
    "E = F": dict(sharing="key_value", compress_bias=True),
    "values are keys": dict(share_kv=True, one_kv_head=True),
    "values are keys, E = F": dict(share_kv=True, sharing="key_value", head_dim=3),
    "authors' code": dict(order="compress_then_project", qkv_bias=True),
    "authors' code, E = F": dict(order="compress_then_project", sharing="key_value", share_kv=True),
    "authors' code, F, no W_v": dict(
        order="compress_then_project", share_kv=True, compress_bias=True
    ),
    "convolution": dict(projection="convolution", compress_bias=True),
    "convolution per head": dict(projection="convolution", sharing="none"),
    "convolution of the input": dict(
        projection="convolution", order="compress_then_project", compress_bias=True
    ),
    "fixed": dict(projection="fixed", output_bias=False),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_equations(name):
    """A short sequence in the axes of a map: n' = 10 of n = 15 tokens; multiply-adds are those of
    the program.
    """
    built, x = layer(**VARIANTS[name]), inputs(5, 2)
    expected, weights = by_hand(built, x.reshape(2, 10, DIM))
    y, shown = captured(built, x)
    np.testing.assert_allclose(y.reshape(2, 10, DIM), expected, atol=1e-5 * np.abs(expected).max())
    slots = weights.shape[-1]
    np.testing.assert_allclose(shown.reshape(weights.shape), weights, atol=1e-5)
    assert shown.shape == (2, 2, 5, 2, slots, 1) and slots == (3 if "convolution" in name else 4)
    assert built.macs(5, 2) == products(jax.make_jaxpr(built)(x[:1]).jaxpr)


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


def test_identity_for_e_and_f_is_full_attention():
    built = layer(num_projected=LENGTH, qkv_bias=True)
    for compressor in (built.compress_key, built.compress_value):
        compressor.kernel[...] = jnp.eye(LENGTH)
    full = MultiHeadSelfAttention(DIM, num_heads=2, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(built))
    nnx.update(full, {k: v for k, v in params.items() if not k.startswith("compress")})
    x = inputs(5, 3)
    np.testing.assert_allclose(run(built, x), run(full, x), rtol=1e-4, atol=1e-5)


def test_orders_differ_by_the_bias_of_keys_and_values_alone():
    x = inputs(LENGTH)

    def gap(bias):
        first, second = (
            run(layer(order=order, qkv_bias=bias), x)
            for order in ("project_then_compress", "compress_then_project")
        )
        return np.abs(first - second).max()

    assert gap(False) < 1e-5 and gap(True) > 1e-2


def test_context_and_compression_of_the_network():
    """Cross attention to 7 of 15 tokens of another width; E = F comes with the call and equals one
    of its own.
    """
    options = dict(context_dim=6, one_kv_head=True)
    given, own = layer(sharing="layerwise", **options), layer(sharing="key_value", **options)
    assert given.compress_key is None
    shared = compression(bias=False)
    nnx.update(own, nnx.to_pure_dict(nnx.state(given)))
    own.compress_key.kernel[...] = shared.kernel[...]
    x, context = inputs(4, 2), inputs(7, dim=6)
    y = run(given, x, context=context, compression=shared)
    expected, _ = by_hand(given, x.reshape(2, 8, DIM), context, shared)
    np.testing.assert_allclose(y.reshape(2, 8, DIM), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(own, x, context=context), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [dict(qkv_bias=True), dict(order="compress_then_project", qkv_bias=True)]
)
def test_masked_tokens_are_absent(options):
    """Padding behind a sequence, whatever it holds, gives the result of the sequence without it,
    with biases, too.
    """
    built, x = layer(**options), inputs(12)
    mask = np.arange(12)[None] < np.array([[9], [12]])
    padded = np.where(mask[..., None], x, 1e3).astype(np.float32)
    y = run(built, x, context=padded, mask=mask)
    expected, _ = by_hand(built, x, x, mask=mask)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    short, _ = by_hand(built, x, x[:, :9])
    np.testing.assert_allclose(y[0], short[0], rtol=1e-4, atol=1e-5)


def test_fixed_projection_is_random_stored_and_not_trained():
    built = Linformer(
        DIM, num_heads=2, size=(40, 50), num_projected=100, projection="fixed", rngs=nnx.Rngs(0)
    )
    _, params, stats = split_model(built)
    assert "compress_key" not in params and set(stats) == {"compress_key", "compress_value"}
    kernel = stats["compress_key"]["kernel"]
    assert (
        kernel.shape == (2000, 100)
        and abs(float(kernel.std()) * 10 - 1) < 0.01
        and abs(float(kernel.mean())) < 1e-3
    )
    assert np.abs(kernel - stats["compress_value"]["kernel"]).max() > 0.1
    # Johnson and Lindenstrauss: products of vectors are kept about
    vectors = np.random.default_rng(0).standard_normal((20, 2000))
    lengths = np.linalg.norm(vectors @ kernel, axis=1) / np.linalg.norm(vectors, axis=1)
    assert 0.7 < lengths.min() < lengths.max() < 1.3


def test_parameters_of_the_sharing_modes():
    """E and F of the paper for h = 2: four, two, one and none per layer."""

    def extra(sharing):
        built = nnx.eval_shape(
            lambda: Linformer(DIM, num_heads=2, size=(3, 5), sharing=sharing, rngs=nnx.Rngs(0))
        )
        return sum(p.size for p in jax.tree.leaves(nnx.state(built, nnx.Param))) - (
            4 * DIM * DIM + DIM
        )

    per_matrix = 15 * default_slots(15)
    assert [extra(s) for s in ("none", "headwise", "key_value", "layerwise")] == [
        n * per_matrix for n in (4, 2, 1, 0)
    ]


def test_default_slots_and_size():
    assert [default_slots(n) for n in (1, 4, 35, 512, 128 * 128)] == [1, 1, 9, 128, 128]
    built = create_attention("linformer", DIM, size=(7, 5), rngs=nnx.Rngs(0))
    assert built.num_projected == 9 and built.compress_key.kernel.shape == (35, 9)
    with pytest.raises(
        ValueError, match=r"size \(5, 7\), E and F are for size \(7, 5\).*resize_params"
    ):
        built(inputs(5, 7))
    varying = create_attention(
        dict(name="linformer", max_length=40), DIM, size=(7, 5), rngs=nnx.Rngs(0)
    )
    assert varying.size is None and jax.eval_shape(varying, inputs(5, 7)).shape == (2, 5, 7, DIM)


def test_resized_maps_compress_smooth_images_alike():
    built = layer(size=(6, 5), max_length=None, sharing="none")
    params = nnx.to_pure_dict(nnx.state(built, nnx.Param))
    same = resize_params(params, (6, 5), (6, 5))
    np.testing.assert_allclose(
        same["compress_key"]["kernel"], params["compress_key"]["kernel"], rtol=1e-6
    )
    larger = resize_params(params, (6, 5), (12, 10))
    assert jax.tree.map(jnp.shape, larger) == jax.tree.map(
        jnp.shape,
        nnx.to_pure_dict(
            nnx.state(layer(size=(12, 10), max_length=None, sharing="none"), nnx.Param)
        ),
    )
    constant = {"compress_key": {"kernel": jnp.ones((30, 2))}}
    slots = resize_params(constant, (6, 5), (12, 10))["compress_key"]["kernel"].sum(0)
    np.testing.assert_allclose(slots, 30, rtol=1e-5)  # sum over 120 pixels as over 30
    ramp = {
        "compress_key": {
            "kernel": jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 3, 1)).reshape(12, 1)
        }
    }
    rows = resize_params(ramp, (4, 3), (8, 3))["compress_key"]["kernel"].reshape(8, 3) * 2
    np.testing.assert_allclose(
        rows[1:-1, 0], np.arange(0.25, 3, 0.5), rtol=1e-5
    )  # along the rows of the map, not of n
    np.testing.assert_allclose(rows, rows[:, :1] * np.ones(3), rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"from \(5, 5\) to \(6, 5\): compress_key has a kernel \(2, 30, 4\)"
    ):
        resize_params(params, (5, 5), (6, 5))
    windows = nnx.to_pure_dict(nnx.state(layer(projection="convolution"), nnx.Param))
    with pytest.raises(ValueError, match="compress_key has no kernel"):
        resize_params(windows, (LENGTH,), (20,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(sharing="kv"),
            "sharing is 'kv'; allowed: 'none', 'headwise', 'key_value', 'layerwise'",
        ),
        (
            dict(order="paper"),
            "order is 'paper'; allowed: 'project_then_compress', 'compress_then_project'",
        ),
        (
            dict(projection="mean"),
            "projection is 'mean'; allowed: 'linear', 'convolution', 'fixed'",
        ),
        (dict(num_heads=3), "num_heads is 3; allowed: divisors of dim=8"),
        (dict(head_dim=0), "head_dim is 0"),
        (dict(num_projected=16), "num_projected is 16; allowed: 1 to the number of tokens, 15"),
        (dict(max_length=None), "size is None, max_length is None; one of them"),
        (dict(sharing="none", one_kv_head=True), "sharing is 'none' with one_kv_head=True"),
        (
            dict(sharing="none", order="compress_then_project"),
            "sharing is 'none' with order='compress_then_project'",
        ),
        (
            dict(sharing="layerwise", compress_bias=True),
            "sharing is 'layerwise' with compress_bias=True",
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        (
            dict(),
            dict(x=inputs(16)),
            r"16 tokens of a map of size \(16,\); allowed: up to max_length=15",
        ),
        (
            dict(),
            dict(x=inputs(4), context=inputs(4, dim=5)),
            r"shape \(2, 4, 5\); expected \[2, positions, 8\]",
        ),
        (
            dict(context_dim=5),
            dict(x=inputs(4)),
            r"shape \(2, 4, 8\); expected \[2, positions, 5\]",
        ),
        (
            dict(),
            dict(x=inputs(2, 2), mask=np.ones((2, 4), bool)),
            r"mask has shape \(2, 4\).*expected \(2, 2, 2\), bool",
        ),
        (
            dict(sharing="layerwise"),
            dict(x=inputs(4)),
            "no compression given to a layer with sharing='layerwise'",
        ),
        (
            dict(),
            dict(x=inputs(4), compression="own"),
            "a compression given to a layer with sharing='headwise'",
        ),
        (
            dict(sharing="layerwise", num_projected=5),
            dict(x=inputs(4), compression="own"),
            r"= \(15, 4, 'linear'.*\(15, 5",
        ),
    ],
)
def test_wrong_calls(options, call, message):
    if call.get("compression"):
        call = dict(call, compression=compression())
    with pytest.raises(ValueError, match=message):
        layer(**options)(**call)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(slots=6), "slots is 6; allowed: 1 to the number of tokens, 5"),
        (dict(slots=2, projection="max"), "projection is 'max'; allowed: 'linear'"),
        (dict(slots=2, projection="convolution"), "needs their number, features="),
    ],
)
def test_wrong_compressions(options, message):
    with pytest.raises(ValueError, match=message):
        TokenCompression(5, **options, rngs=nnx.Rngs(0))
