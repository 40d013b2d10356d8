"""Every lowering under every transformation of JAX: the same values as the reference lowering,
'dense', and no refusal.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from flax import nnx

from lambdanet.attention.lambda_layer import LambdaLayer
from lambdanet.ops import cost_model, lambda_mix, slide_mix
from lambdanet.ops.batch_statistics import normalise_batch
from lambdanet.ops.depthwise import depthwise_conv
from lambdanet.ops.gelu import gelu
from lambdanet.ops.max_pool import max_of_slices

REFERENCE = "dense"
# 'auto' by what the cost model chooses for the forward pass alone and for training.
AUTO = tuple(
    f"auto:{forward}:{training}"
    for forward, training in (
        ("dense", "query_first"),
        ("spectral", "conv"),
        ("row_chunks", "spectral"),
        ("query_first", "row_chunks"),
    )
)
SHAPE = (3, 4)


@pytest.fixture
def choose(monkeypatch):
    """Takes 'auto:forward:training' or a lowering, and returns what `impl` is to be."""

    def chosen(name: str) -> str:
        impl, *directions = name.split(":")
        if directions:
            choice = dict(zip(cost_model.DIRECTIONS, directions, strict=True))
            monkeypatch.setattr(
                cost_model, "choose_impl", lambda g, b, direction: choice[direction]
            )
        return impl

    return chosen


def normal(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    draw = np.random.default_rng(seed)
    return [jnp.asarray(draw.normal(size=shape)) for shape in shapes]


# Each takes a function of some arrays to one array, and the arrays.


def loss_of(function):
    return lambda *arrays: jnp.sum(jnp.tanh(function(*arrays)))


def twice(arrays):
    """Two different examples of every array."""
    return [jnp.stack([array, 0.5 - array]) for array in arrays]


def all_gradients(function, arrays):
    return jax.grad(loss_of(function), tuple(range(len(arrays))))


def gradients_per_example(function, arrays):
    """Of two examples with the same parameters, the last of several arrays."""
    many = max(1, len(arrays) - 1)
    examples, shared = twice(arrays[:many]), arrays[many:]
    axes = [0] * len(examples) + [None] * len(shared)
    return jax.vmap(all_gradients(function, arrays), axes)(*examples, *shared)


def in_scan(function):
    def loss(first, *rest):
        def step(carry, scale):
            return carry + 0.1 * jnp.mean(jnp.tanh(function(carry * scale, *rest))), None

        return jnp.sum(jax.lax.scan(step, first, jnp.asarray([0.5, 1.5]))[0] ** 2)

    return loss


TRANSFORMATIONS = {
    "grad": lambda f, a: all_gradients(f, a)(*a),
    "vmap": lambda f, a: jax.vmap(f)(*twice(a)),
    "grad of vmap": lambda f, a: all_gradients(jax.vmap(f), a)(*twice(a)),
    "vmap of grad": gradients_per_example,
    "grad of grad": lambda f, a: jax.grad(
        lambda *b: sum(jnp.vdot(g, c) for g, c in zip(all_gradients(f, a)(*b), a, strict=True)),
        tuple(range(len(a))),
    )(*a),
    "remat": lambda f, a: all_gradients(jax.checkpoint(f), a)(*a),
    "scan": lambda f, a: jax.grad(in_scan(f), tuple(range(len(a))))(*a),
}
FORWARD = {
    "jvp": lambda f, a: jax.jvp(f, a, [0.5 - b for b in a]),
    "jvp of vmap": lambda f, a: jax.jvp(jax.vmap(f), twice(a), [0.5 - b for b in twice(a)]),
    "jacfwd of grad": lambda f, a: jax.jacfwd(lambda b: all_gradients(f, a)(*a[:-1], b))(a[-1]),
}


def results(names, function, arrays):
    run = jax.jit(lambda arrays: {name: names[name](function, arrays) for name in names})
    return run(arrays)


@functools.cache
def expected_of(layer, shapes, reference):
    names = TRANSFORMATIONS | FORWARD if reference == REFERENCE else TRANSFORMATIONS
    with jax.enable_x64():
        return results(names, layer(reference), normal(0, *shapes))


def compare(names, layer, impl, shapes, lowering=REFERENCE):
    expected = expected_of(layer, shapes, lowering)
    with jax.enable_x64():
        found = results(names, layer(impl), normal(0, *shapes))
    for name in names:
        ours, theirs = (jax.tree.leaves(result[name]) for result in (found, expected))
        scale = max(np.abs(array).max() for array in theirs)
        assert scale > 0, name
        for mine, reference in zip(ours, theirs, strict=True):
            assert mine.dtype == np.float64, name
            np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-10 * scale, err_msg=name)


# --------------------------------------------------------------------------------------------------
# Lambdas


def local_lambdas_of_heads(impl: str):
    """Keys, values and a local table for every head, as in a multi-head layer."""

    def mix(q, keys, v, table):
        return lambda_mix.mix(q, keys, v, table, None, impl=impl, chunk_rows=2)

    return jax.vmap(mix, in_axes=(-3, -3, -3, 0), out_axes=-3)


def causal_global_lambdas(impl: str):
    def mix(q, v, table):
        return lambda_mix.mix(q, None, v, table, None, causal="inclusive", impl=impl, chunk_rows=2)

    return mix


def masked_lambdas(impl: str):
    """A context of its own, every third pair unseen."""
    mask = jnp.arange(4 * 5).reshape(4, 5) % 3 > 0

    def mix(q, keys, v, embeddings):
        return lambda_mix.mix(q, keys, v, None, embeddings, mask=mask, impl=impl)

    return mix


# q, keys, v and the table or embeddings.
LAMBDAS = {
    local_lambdas_of_heads: ((1, *SHAPE, 2, 1, 3), (1, *SHAPE, 2, 2, 3), (1, *SHAPE, 2, 2, 2))
    + ((2, 3, 3, 2, 3),),
    causal_global_lambdas: ((1, *SHAPE, 2, 3), (1, *SHAPE, 1, 2), (5, 7, 1, 3)),
    masked_lambdas: ((1, 4, 2, 3), (1, 5, 2, 3), (1, 5, 2, 2), (4, 5, 3, 2)),
}
FLAT_AUTO = ("auto:dense:query_first", "auto:query_first:dense")
CAUSAL = ("query_first", "row_chunks", AUTO[-1])


CASES = [
    *((local_lambdas_of_heads, name) for name in (*cost_model.GRID_IMPLS[1:], *AUTO)),
    *((causal_global_lambdas, name) for name in CAUSAL),
    *((masked_lambdas, name) for name in ("query_first", *FLAT_AUTO)),
]


# A pair of choices: the gradients of all lambdas are one operation's.
ALWAYS = [(masked_lambdas, FLAT_AUTO[0])]


@pytest.mark.parametrize(("layer", "impl"), part(CASES, ALWAYS))
def test_lambdas(layer, impl, choose):
    compare(TRANSFORMATIONS | FORWARD, layer, choose(impl), LAMBDAS[layer])


PAIRS = [(multi_head, name) for multi_head in (False, True) for name in AUTO[::3]]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("multi_head", "name"), part(PAIRS, [PAIRS[1], PAIRS[2]]))
def test_the_layer_with_different_choices_for_both_directions(multi_head, name, choose):
    def make(impl):
        options = dict(num_heads=2, key_depth=2, scope=3, intra_depth=2, multi_head=multi_head)
        return LambdaLayer(4, **options, impl=impl, rngs=nnx.Rngs(0))

    def gradient(layer, x):
        return nnx.grad(lambda layer: jnp.sum(layer(x) ** 2))(layer)

    (x,) = normal(0, (2, *SHAPE, 4))
    found, expected = (
        nnx.jit(gradient)(make(impl), x.astype(jnp.float32)) for impl in (choose(name), REFERENCE)
    )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max() + 1e-6)


# --------------------------------------------------------------------------------------------------
# Operations with gradients of their own, which JAX allows in reverse mode alone


def slides(impl: str):
    def mix(q, k, v, key_weight, value_weight):
        weights = dict(key_weight=key_weight, value_weight=value_weight)
        return slide_mix.slide_mix(q, k, v, **weights, impl=impl)[0]

    return mix


def depthwise_convolutions(impl: str):
    return lambda x, kernel: depthwise_conv(x, kernel, stride=(2, 1), impl=impl)


def gelus(impl: str):
    return lambda x: gelu(x, impl=impl)


def max_pools(impl: str):
    def by_reduction(x):
        sides, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        around = ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, sides, strides, around)

    return by_reduction if impl == "reduction" else lambda x: max_of_slices(x, 3, 2)


def batch_norms(impl: str):
    def by_formula(x, scale, bias):
        mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        return (x - mean) * jax.lax.rsqrt(var + 0.1) * scale + bias

    return by_formula if impl == "formula" else lambda *a: normalise_batch(*a, 0.1)[0]


MAP = (1, 4, 3, 2)
OWN_GRADIENTS = {
    slides: ("shift", "conv", ((*MAP, 2),) * 3 + ((3, 3, 2, 9),) * 2),
    depthwise_convolutions: ("shift", "conv", (MAP, (3, 3, 1, 2))),
    gelus: ("erf", "erfc", (MAP,)),
    max_pools: ("slices", "reduction", (MAP,)),
    batch_norms: ("fused", "formula", (MAP, MAP[-1:], MAP[-1:])),
}


@pytest.mark.parametrize("operation", part(OWN_GRADIENTS, [batch_norms]))
def test_operations_with_gradients_of_their_own(operation):
    impl, reference, shapes = OWN_GRADIENTS[operation]
    compare(TRANSFORMATIONS, operation, impl, shapes, reference)
