"""Softmax attention in blocks of queries is the dense one: values, gradients, transformations; and
what decides which runs.
"""

import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from jaxpr_sizes import largest_array

from lambdanet import batch_split
from lambdanet.ops import attention_lowering, cost_model, softmax_attention
from lambdanet.ops.attention_lowering import Pairs, Turns, choose_chunk
from lambdanet.ops.blocked_attention import ALIASING, unaliased_parts
from lambdanet.ops.relative_logits import relative_attention
from lambdanet.ops.softmax_attention import dot_attention
from lambdanet.ops.softmax_attention import softmax_attention as attend
from lambdanet.ops.window_attention import window_attention

BATCH, HEADS, QUERIES, KEYS, DEPTH, VALUE = (2, 3), 2, 37, 23, 4, 5
SIZE = 8  # five blocks, three queries of the last one missing


def normal(seed, *shapes, dtype=np.float64):
    draw = np.random.default_rng(seed)
    return [draw.standard_normal(shape).astype(dtype) for shape in shapes]


def operands(heads=False, dtype=np.float64):
    middle = (HEADS,) if heads else ()
    lengths = ((QUERIES, DEPTH), (KEYS, DEPTH), (KEYS, VALUE))
    return normal(0, *((*BATCH, n, *middle, d) for n, d in lengths), dtype=dtype)


def value_and_gradients(function, *arrays):
    def loss(*arrays):
        y = function(*arrays)
        return jnp.sum(jnp.sin(y)), y

    return jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True)(*arrays)


def compare(make, *arrays, others=(SIZE,)):
    """make(query_chunk) -> a function of the arrays: its value and all gradients are the same with
    each of the others as in one piece."""
    tolerance = {np.dtype("float64"): 1e-10, np.dtype("float32"): 1e-5}[arrays[0].dtype]

    @jax.jit
    def run(*arrays):
        return [value_and_gradients(make(chunk), *arrays) for chunk in (None, *others)]

    with jax.enable_x64(arrays[0].dtype == np.float64):
        whole, *pieces = map(jax.tree.leaves, run(*map(jnp.asarray, arrays)))
    for parts in pieces:
        for one, other in zip(whole, parts, strict=True):
            assert one.dtype == other.dtype == arrays[0].dtype
            scale = np.abs(one).max()
            assert scale > 0
            np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * scale)


# Of pairs [*b n m] or, with heads, [*b h n m]; True where a pair may be seen.
VISIBLE = np.arange(QUERIES * KEYS).reshape(QUERIES, KEYS) % 3 > 0
VISIBLE[5] = VISIBLE[-1] = False  # these see nothing
CASES = {
    "plain": dict(),
    "heads": dict(heads=True),
    "mask": dict(mask=VISIBLE),
    "mask of keys": dict(mask=VISIBLE[:1], heads=True),
    "bias": dict(bias=(QUERIES, KEYS)),
    "bias of heads": dict(bias=(HEADS, QUERIES, KEYS), mask=VISIBLE, heads=True),
    "bias of keys": dict(bias=(3, 1, 1, KEYS), heads=True),
    "bias of samples": dict(bias=(2, 1, QUERIES, KEYS), mask=VISIBLE[None]),
}


@pytest.mark.parametrize("name", part(CASES, ["plain", "mask of keys", "bias of heads"]))
def test_equals_the_dense_form_in_float64(name):
    options = dict(CASES[name])
    arrays = operands(options.get("heads", False))
    if "bias" in options:
        arrays += normal(1, options.pop("bias"))

    def make(chunk):
        def function(query, key, value, bias=None):
            given = dict(options, scale=0.7, query_chunk=chunk, bias=bias)
            return attend(query, key, value, **given)[0]

        return function

    turns = (Turns(1, SIZE), Turns(3, QUERIES)) if name in ("plain", "heads") else ()
    compare(make, *arrays, others=(SIZE, *turns))


def test_turns_whose_blocks_are_no_longer_than_they_may_be():
    """Lengths that the cache does not like get one block more, or empty queries."""
    query, key, value = normal(5, (3, 2 * ALIASING, DEPTH), (3, KEYS, DEPTH), (3, KEYS, VALUE))
    assert unaliased_parts(2 * ALIASING, 2 * ALIASING) == 2 * ALIASING + ALIASING // 4
    assert unaliased_parts(2 * ALIASING, ALIASING) == 43 and unaliased_parts(37, 8) == 8
    turns = [Turns(1, 2 * ALIASING), Turns(3, 2 * ALIASING), Turns(1, ALIASING)]

    def make(chunk):
        return lambda *a: attend(*a, scale=0.7, query_chunk=chunk)[0]

    compare(make, query, key, value, others=turns)


@pytest.mark.parametrize("scale", part([0.5, 300.0], [300.0]))
def test_equals_the_dense_form_in_float32(scale):
    """Also where the logits are in the thousands, whose logarithm of a sum is rounded to 1e-4."""
    mask = jnp.asarray(VISIBLE)

    def make(chunk):
        return lambda *a: attend(*a, scale=scale, mask=mask, query_chunk=chunk)[0]

    compare(make, *operands(dtype=np.float32))


def test_a_query_that_may_see_nothing_gets_the_plain_mean():
    query, key, value = (a[0, 0] for a in operands(dtype=np.float32))
    options = dict(scale=0.7, mask=VISIBLE, query_chunk=SIZE)

    @jax.jit
    def run(*arrays):
        y, pull = jax.vjp(lambda *a: attend(*a, **options)[0], *arrays)
        return y, pull(jnp.zeros_like(y).at[5].set(1.0))

    y, (of_query, of_key, of_value) = run(query, key, value)
    np.testing.assert_allclose(y[5], value.mean(0), rtol=1e-5, atol=1e-6)
    assert not np.any(of_query) and not np.any(of_key)
    np.testing.assert_allclose(of_value, np.full(value.shape, 1 / KEYS), rtol=1e-5)


def test_shared_heads_of_keys():
    q, k, v = normal(2, (2, 11, 6, 3), (2, 7, 2, 3), (2, 7, 2, 4))
    compare(lambda chunk: lambda *a: dot_attention(*a, scale=0.3, query_chunk=chunk)[0], q, k, v)


@pytest.mark.parametrize(
    ("queries", "keys", "taps"), [((5, 3), (5, 3), (9, 5)), ((2, 9), (4, 2), (7, 17))]
)
def test_relative_logits(queries, keys, taps):
    """Blocks of two rows and a remainder; and rows that are longer than a block."""
    shapes = [(2, *queries, HEADS, DEPTH), (2, *keys, HEADS, DEPTH), (2, *keys, HEADS, VALUE)]
    arrays = normal(3, *shapes, *((t, DEPTH) for t in taps))
    options = dict(scale=0.5, relative_scale=2.0)
    compare(
        lambda chunk: lambda *a: relative_attention(*a, **options, query_chunk=chunk)[0], *arrays
    )


@pytest.mark.parametrize("way", [SIZE, Turns(1, SIZE), Turns(3, QUERIES)])
def test_bfloat16_has_a_float32_softmax(way):
    def make(chunk):
        return lambda *a: attend(*a, scale=0.7, query_chunk=chunk)[0]

    arrays = operands(dtype=jnp.bfloat16)
    wide = [np.float32(a) for a in arrays]

    @jax.jit
    def run(arrays, wide):
        return value_and_gradients(make(way), *arrays), value_and_gradients(make(None), *wide)

    ((_, y), gradients), ((_, expected), wanted) = run(arrays, wide)
    for one, other in zip((y, *gradients), (expected, *wanted), strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.float32(one), other, rtol=0, atol=2e-2 * np.abs(np.float32(other)).max()
        )
    kinds = {
        variable.aval.dtype.name
        for equation in equations(jax.make_jaxpr(make(way))(*arrays).jaxpr)
        if equation.primitive.name in ("exp", "reduce_max", "reduce_sum")
        for variable in equation.invars
    }
    assert kinds == {"float32"}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from equations(getattr(inner.jaxpr, "jaxpr", inner.jaxpr))


@pytest.mark.parametrize("way", [None, 128, Turns(1, 256)])
def test_many_large_values_do_not_leave_the_range_of_float16(way):
    """Their sum before it is divided by that of the exponentials would be 256 times 1000."""
    query, key = jnp.zeros((2, 256, 4), jnp.float16), jnp.ones((256, 4), jnp.float16)
    value = jnp.full((256, 3), 1000, jnp.float16)
    key, value = (jnp.broadcast_to(a, (2, *a.shape)) for a in (key, value))
    y, _ = attend(query, key, value, scale=1.0, query_chunk=way)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y, 1000, rtol=2e-3)


def test_nothing_of_forward_and_backward_pass_has_all_pairs():
    q, k, v = (np.ones((1, 256, 2, 4), np.float32) for _ in range(3))
    table = np.ones((31, 4), np.float32)
    grid = [a.reshape(1, 16, 16, 2, 4) for a in (q, k, v)]

    def listed(chunk):
        return lambda *a: dot_attention(*a, scale=1.0, query_chunk=chunk)[0].sum()

    def relative(chunk):
        options = dict(scale=1.0, relative_scale=1.0, query_chunk=chunk)
        return lambda *a: relative_attention(*a, **options)[0].sum()

    def windowed(chunk):
        options = dict(window=(16, 16), scale=1.0, query_chunk=chunk)
        regions = np.arange(256)[None] // 100
        return lambda *a: window_attention(*a, regions, **options)[0].sum()

    biases = np.ones((31 * 31, 2), np.float32)
    window = [a.reshape(1, 1, 2, 256, 4) for a in (q, k, v)]
    # On the way to pairs: of columns by every offset of rows, or of rows by all pairs of columns.
    columns, both = 2 * 31 * 16 * 31, 2 * 16**3 * 31
    for make, arrays, held in (
        (listed, (q, k, v), (0, 0)),
        (relative, (*grid, table, table), (0, 0)),
        (windowed, (*window, biases), (both, columns)),
    ):
        largest = [
            largest_array(jax.grad(make(chunk), tuple(range(len(arrays)))), *arrays)
            for chunk in (None, 32)
        ]
        assert largest == [max(2 * 256**2, held[0]), max(2 * 32 * 256, held[1])]
    loss = listed(Turns(1, 32))
    assert largest_array(jax.grad(loss, (0, 1, 2)), q, k, v) == 32 * 256


TRANSFORMATIONS = {
    "vmap of grad": lambda f, a: jax.vmap(jax.grad(f, (0, 1, 2)))(*a),
    "grad of vmap": lambda f, a: jax.grad(lambda *b: jax.vmap(f)(*b).sum(), (0, 1, 2))(*a),
    "remat": lambda f, a: jax.grad(jax.checkpoint(f), (0, 1, 2))(*a),
    "grad of grad": lambda f, a: jax.grad(
        lambda *b: sum(jnp.sum(g**2) for g in jax.grad(f, (0, 1, 2))(*b)), (0, 1, 2)
    )(*a),
}


@pytest.mark.parametrize("name", part(TRANSFORMATIONS, ["vmap of grad", "grad of grad"]))
def test_transformations(name):
    def loss(chunk):
        return lambda *a: jnp.sum(jnp.sin(attend(*a, scale=0.7, query_chunk=chunk)[0]))

    def run(*arrays):
        ways = (None, 4, Turns(1, 4))
        return [TRANSFORMATIONS[name](loss(chunk), arrays) for chunk in ways]

    with jax.enable_x64():
        arrays = [jnp.asarray(a) for a in normal(4, (2, 10, 3), (2, 7, 3), (2, 7, 2))]
        whole, *others = jax.jit(run)(*arrays)
        for parts in others:
            for one, other in zip(whole, parts, strict=True):
                np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-10)


def test_the_choice_is_by_bytes_and_logged_once(caplog, monkeypatch):
    device = cost_model.DEVICES["cpu"]
    side = 1 << 7
    large = Pairs(problems=8, queries=side**2, keys=side**2, depth=32, value_depth=32)
    choose_chunk.cache_clear()
    with caplog.at_level(logging.INFO, "lambdanet.ops.attention_lowering"):
        chunk, again = choose_chunk(large, "cpu"), choose_chunk(large, "cpu")
    assert chunk == again and len(caplog.records) == 1
    assert f"the logits of up to {chunk} queries at a time" in caplog.text
    assert attention_lowering.SMALLEST_BLOCK <= chunk < side**2
    # float64 has twice the bytes, few queries cannot be cut, and small logits are held.
    row = device.all_logits // (4 * 256)
    fitting = Pairs(problems=row, queries=256, keys=1, depth=32, value_depth=32)
    assert choose_chunk(fitting, "cpu") is None
    for name, value in dict(queries=257, dtype="float64").items():
        assert choose_chunk(Pairs(**{**vars(fitting), name: value}), "cpu") is not None
    thin = Pairs(**{**vars(fitting), "queries": 49, "problems": 10 * row})
    assert choose_chunk(thin, "cpu") is None
    # What the arrays are is what is asked about.
    asked = []
    monkeypatch.setattr(
        softmax_attention, "choose_chunk", lambda pairs, backend: asked.append((pairs, backend))
    )
    attend(*operands(heads=True, dtype=np.float32), scale=1.0, heads=True)
    attend(*operands(dtype=np.float32), scale=1.0, mask=VISIBLE)
    with batch_split.over(2):
        attend(*operands(dtype=np.float32), scale=1.0)
    same = dict(queries=QUERIES, keys=KEYS, depth=DEPTH, value_depth=VALUE, dtype="float32")
    backend = jax.default_backend()
    assert asked == [
        (Pairs(problems=12, **same, turns=True), backend),
        (Pairs(problems=6, **same, plain=False), backend),
        (Pairs(problems=3, **same), backend),
    ]


def test_problems_take_turns_beyond_what_the_cache_holds():
    device = cost_model.DEVICES["cpu"]
    side = math.isqrt(device.turn_problems // 16)  # four of them are one turn
    few = Pairs(problems=4, queries=side, keys=side, depth=32, value_depth=32, turns=True)
    assert choose_chunk(few, "cpu") == Turns(4, side)
    assert choose_chunk(Pairs(**{**vars(few), "problems": 1}), "cpu") is None
    many = Pairs(**{**vars(few), "problems": 30})
    assert choose_chunk(many, "cpu") == Turns(3, side)  # 30 has no divisor 4
    large = Pairs(**{**vars(few), "queries": 8 * side, "keys": 8 * side})
    assert choose_chunk(large, "cpu") == Turns(1, device.turn_block // (4 * 8 * side))
    sums = Pairs(**{**vars(few), "queries": 16 * side, "keys": 16 * side, "plain": False})
    assert choose_chunk(sums, "cpu") == Turns(1, attention_lowering.SMALLEST_BLOCK)
    small = Pairs(**{**vars(sums), "problems": 1, "queries": 2 * side, "keys": 2 * side})
    assert choose_chunk(small, "cpu") is None
    taking = Pairs(**{**vars(small), "problems": 3})
    assert choose_chunk(taking, "cpu") == Turns(1, device.turn_sums // (4 * 2 * side))
    for backend in ("gpu", "tpu", "cuda"):
        assert choose_chunk(many, backend) is None


def test_all_weights_are_given_whatever_was_chosen(monkeypatch):
    monkeypatch.setattr(softmax_attention, "choose_chunk", lambda pairs, backend: SIZE)
    arrays = operands(dtype=np.float32)
    y, none = attend(*arrays, scale=0.7)
    same, weights = attend(*arrays, scale=0.7, return_weights=True)
    assert none is None and weights.shape == (*BATCH, QUERIES, KEYS)
    np.testing.assert_allclose(np.sum(weights, -1), 1, rtol=1e-5)
    np.testing.assert_allclose(y, same, rtol=1e-5, atol=1e-6)


CUDNN = Pairs(8, 128, 128, 64, 64, dtype="bfloat16")


@pytest.mark.parametrize(
    ("change", "backend", "expected"),
    [
        (dict(), "cuda", "cudnn"),
        (dict(dtype="float16", depth=128, value_depth=128), "cuda", "cudnn"),
        (dict(), "gpu", None),  # ROCm, or a GPU before Ampere
        (dict(), "cpu", None),
        (dict(dtype="float32"), "cuda", None),
        (dict(depth=60, value_depth=60), "cuda", None),
        (dict(depth=256, value_depth=256), "cuda", None),
        (dict(value_depth=32), "cuda", None),
        (dict(plain=False), "cuda", None),
    ],
)
def test_cudnn_is_taken_where_it_can_be(change, backend, expected):
    assert choose_chunk(Pairs(**{**vars(CUDNN), **change}), backend) == expected


@pytest.mark.parametrize("heads", part([False, True], [True]))
def test_cudnn_gets_the_layout_of_the_library(heads, monkeypatch):
    """Without a GPU: the library's own form of the same function stands in for the kernel."""
    library, seen = jax.nn.dot_product_attention, []

    def kernel(*arrays, scale, implementation):
        seen.append((implementation, *(a.shape for a in arrays)))
        return library(*arrays, scale=scale, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(softmax_attention, "choose_chunk", lambda pairs, backend: "cudnn")
    query, key, _ = operands(heads, dtype=np.float32)
    y, none = attend(query, key, key, scale=0.7, heads=heads)
    expected, _ = attend(query, key, key, scale=0.7, heads=heads, query_chunk=None)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    middle = HEADS if heads else 1
    lists = [(6, n, middle, DEPTH) for n in (QUERIES, KEYS, KEYS)]
    assert none is None and seen == [("cudnn", *lists)]
