"""Local attention against loops over queries and window places; both lowerings, gradients included,
in float64.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part

from lambdanet.ops.neighborhood import BORDERS, full_map, key_positions, neighborhood_attention

once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# map, kernel, dilation, border, with a bias table; a side of 5, or of 9, is cut into two blocks
CASES = {
    "neighborhood": ((5, 9), (3, 5), (1, 1), "neighborhood", True),
    "neighborhood, dilated, uneven classes": ((7, 11), (3, 3), (2, 3), "neighborhood", True),
    "neighborhood, map smaller than the window": ((3, 6), (5, 3), (1, 4), "neighborhood", True),
    "neighborhood, no table": ((7, 4), (5, 1), (1, 1), "neighborhood", False),
    "zero": ((5, 9), (5, 3), (1, 1), "zero", True),
    "zero, dilated": ((5, 3), (3, 3), (2, 4), "zero", False),
    "masked": ((7, 9), (3, 5), (1, 1), "masked", True),
    "masked, dilated": ((7, 2), (3, 5), (3, 1), "masked", True),
    "circular": ((5, 9), (3, 5), (1, 1), "circular", True),
    "circular, dilated, wrapped several times": ((5, 2), (3, 5), (2, 3), "circular", True),
}


def axis_rule(length, kernel, dilation, border, i):
    """(key or None, place in the table) of every place in the window of query i of an axis."""
    half, window = kernel // 2, []
    if border == "neighborhood":
        members = [j for j in range(length) if j % dilation == i % dilation]
        place = members.index(i)
        start = min(max(place - half, 0), max(len(members) - kernel, 0))
        for j in range(start, min(start + kernel, len(members))):
            window.append((members[j], j - place + kernel - 1))
        return window
    for s in range(kernel):
        key = i + (s - half) * dilation
        if border == "circular":
            key %= length
        elif not 0 <= key < length:
            key = None
        if key is not None or border == "zero":
            window.append((key, s - half + kernel - 1))
    return window


def by_hand(q, k, v, table, kernel, dilation, border, scale):
    """(output, weights on the map [b, n, y, x, Y, X]); a zero key has only its bias as logit."""
    batch, height, width, heads, depth = q.shape
    out, shown = np.zeros(q.shape), np.zeros((batch, heads, height, width, height, width))
    for b, n, y, x in np.ndindex(batch, heads, height, width):
        rows = axis_rule(height, kernel[0], dilation[0], border, y)
        columns = axis_rule(width, kernel[1], dilation[1], border, x)
        logits, values, keys = [], [], []
        for (Y, p), (X, r) in ((row, column) for row in rows for column in columns):
            exists = Y is not None and X is not None
            bias = 0.0 if table is None else table[n, p, r]
            logits.append(bias + (scale * q[b, y, x, n] @ k[b, Y, X, n] if exists else 0.0))
            values.append(v[b, Y, X, n] if exists else np.zeros(depth))
            keys.append((Y, X) if exists else None)
        weights = np.exp(logits) / np.exp(logits).sum()
        out[b, y, x, n] = weights @ np.array(values)
        for weight, key in zip(weights, keys, strict=True):
            if key is not None:
                shown[(b, n, y, x, *key)] += weight
    return out, shown


def arrays(size, kernel, table, heads=2, depth=3):
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((2, *size, heads, depth)) for _ in range(4)]
    return (*maps, rng.standard_normal((heads, *(2 * k - 1 for k in kernel))) if table else None)


# The hardest of each border, and one without a table.
ALWAYS = ["neighborhood, map smaller than the window", "circular, dilated, wrapped several times"]


@pytest.mark.parametrize("name", part(CASES, ALWAYS))
def test_lowerings_equal_the_definition_and_have_the_same_gradients(name):
    size, kernel, dilation, border, with_table = CASES[name]
    q, k, v, cotangent, table = arrays(size, kernel, with_table)
    window = dict(kernel_size=kernel, dilation=dilation, border=border)

    def run(impl, show=False):
        def loss(arguments):
            y, weights = neighborhood_attention(
                *arguments, **window, scale=0.4, impl=impl, return_weights=show
            )
            shown = full_map(weights, size, **window) if show else None
            return jnp.sum(y * cotangent), (y, shown)

        both = jax.value_and_grad(loss, has_aux=True)
        (_, outputs), gradients = once(both)((q, k, v, table))
        return outputs, gradients

    with jax.enable_x64():
        (shift, shown), shift_gradients = run("shift", show=True)
        (block, _), block_gradients = run("block")
        assert shift.dtype == block.dtype == jnp.float64
    expected, weights = by_hand(q, k, v, table, kernel, dilation, border, 0.4)
    for found in (shift, block):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(shown, weights, rtol=1e-11, atol=1e-12)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12),
        shift_gradients,
        block_gradients,
    )
    assert all(np.abs(g).max() > 0 for g in shift_gradients if g is not None)


def test_zero_border_is_the_unfolded_formula():
    """softmax over all k^2 columns of the zero-padded map, the fixed path of slide attention
    without biases.
    """
    q, k, v, *_ = arrays((3, 4), (3, 3), False)
    columns = []
    for a in (k, v):
        padded = np.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
        columns.append(np.stack([padded[:, y : y + 3, x : x + 4] for y, x in np.ndindex(3, 3)], -2))
    weights = np.exp(0.4 * np.einsum("bhwnd,bhwnsd->bhwns", q, columns[0]))
    weights /= weights.sum(-1, keepdims=True)
    with jax.enable_x64():
        y, _ = once(
            functools.partial(neighborhood_attention, kernel_size=(3, 3), border="zero", scale=0.4)
        )(q, k, v)
    np.testing.assert_allclose(
        y, np.einsum("bhwns,bhwnsd->bhwnd", weights, columns[1]), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("border", BORDERS)
def test_no_array_of_windows(border):
    """The block lowering holds no more than its logits: k and v are not copied once per place of
    the window.
    """
    side, depth, kernel = 28, 32, 7
    q = jnp.ones((1, side, side, 1, depth))
    run = functools.partial(
        neighborhood_attention, kernel_size=(kernel, kernel), border=border, scale=1.0, impl="block"
    )
    largest = 0
    for equation in jax.make_jaxpr(run)(q, q, q).eqns:
        largest = max(largest, *(v.aval.size for v in equation.outvars))
    logits = side**2 * (2 * kernel - 1) ** 2
    assert largest <= logits < side**2 * kernel**2 * depth / 8


def test_positions_of_an_axis():
    for border in BORDERS:
        for length, kernel, dilation in ((7, 3, 2), (2, 5, 1), (9, 5, 1), (5, 3, 4)):
            found = key_positions(length, kernel, dilation, border)
            for i in range(length):
                wanted = [
                    key
                    for key, _ in axis_rule(length, kernel, dilation, border, i)
                    if key is not None
                ]
                assert [key for key in found[i] if key >= 0] == wanted


def test_unknown_names():
    x = jnp.ones((1, 3, 3, 1, 2))
    for name, message in (
        ("border", "border is 'x'; allowed: neighborhood, zero"),
        ("impl", "impl is 'x'; allowed: auto, shift"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            neighborhood_attention(x, x, x, kernel_size=(3, 3), scale=1.0, **{name: "x"})
