"""Pooling: both lowerings of the maximum, and the padding rules against a written-out reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.layers import avg_pool, max_over, max_pool, max_pool_cells

SIZES = [(1, 1), (1, 5), (2, 2), (7, 4), (8, 9)]


def window_reference(x, window, stride, low, reduce):
    """Reduces the part of each window that lies inside the map; `low` is the padding before each
    axis.
    """
    b, h, w, c = x.shape
    out = np.zeros((b, -(-h // stride), -(-w // stride), c), x.dtype)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            top, left = i * stride - low[0], j * stride - low[1]
            part = x[:, max(top, 0) : top + window, max(left, 0) : left + window]
            out[:, i, j] = reduce(part, axis=(1, 2))
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
def test_max_pool_lowerings_equal_the_reference(size, stride):
    x = (
        np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32) - 5.0
    )  # negative: zero padding would show
    expected = window_reference(x, 3, stride, (1, 1), np.max)
    for impl in ("window", "slices", "auto"):
        np.testing.assert_array_equal(max_pool(x, 3, stride, impl=impl), expected)


@functools.partial(jax.jit, static_argnames="stride")
def pulled_back(x, weights, stride):
    """The gradient of sum(weights * max-pool 3x3)."""
    return jax.vjp(lambda x: max_pool(x, 3, stride, impl="slices"), x)[1](weights)[0]


def first_wins(x, stride, weights):
    """The gradient of sum(weights * max-pool 3x3), the first of equal entries of a window taking it
    all.
    """
    out = np.zeros_like(x)
    b, h, w, c = x.shape
    for n, i, j, k in np.ndindex(b, -(-h // stride), -(-w // stride), c):
        rows, columns = (
            range(max(at * stride - 1, 0), min(at * stride + 2, size))
            for at, size in ((i, h), (j, w))
        )
        places = [(u, v) for u in rows for v in columns]
        u, v = places[int(np.argmax([x[n, u, v, k] for u, v in places]))]
        out[n, u, v, k] += weights[n, i, j, k]
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("values", ["apart", "ties", "minus infinity"])
def test_first_of_equal_entries_gets_the_gradient(size, stride, values):
    rng = np.random.default_rng(1)
    shape = 2, *size, 3
    if values == "apart":
        x = rng.permutation(np.arange(float(np.prod(shape)))).reshape(shape)
    elif values == "ties":
        x = rng.integers(-1, 2, shape).astype(float)
    else:
        x = np.where(rng.random(shape) < 0.8, -np.inf, -1.0)
    weights = rng.standard_normal((2, *(-(-n // stride) for n in size), 3))
    with jax.enable_x64(True):
        ours = pulled_back(x, weights, stride)
    np.testing.assert_allclose(ours, first_wins(x, stride, weights), rtol=1e-12)


def test_both_lowerings_have_the_same_gradient_with_ties():
    x = jnp.asarray(np.random.default_rng(1).integers(0, 3, (2, 7, 6, 3)), jnp.float32)
    grads = [
        jax.jit(jax.grad(lambda x, i=impl: (max_pool(x, impl=i) ** 2).sum()))(x)
        for impl in ("window", "slices")
    ]
    np.testing.assert_array_equal(*grads)


def test_wide_windows_and_strides():
    x = jax.random.normal(jax.random.key(0), (1, 20, 19, 2))

    @functools.partial(jax.jit, static_argnums=(1, 2, 3))
    def both(x, window, stride, impl):
        y, transpose = jax.vjp(lambda x: max_pool(x, window, stride, impl=impl), x)
        return y, transpose(y)[0]

    for window, stride in ((3, 4), (5, 2)):
        results = [both(x, window, stride, impl) for impl in ("window", "slices")]
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_max_pool_refuses_what_it_cannot_do():
    x = jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match="'gather'; allowed: auto, window, slices"):
        max_pool(x, impl="gather")
    with pytest.raises(ValueError, match="window is 2; allowed: odd"):
        max_pool(x, 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [2, 3])
def test_avg_pool_is_tensorflows_same_without_the_padding_in_the_mean(size, window):
    x = np.random.default_rng(2).normal(size=(2, *size, 3)).astype(np.float32)
    low = [max((-(-n // 2) - 1) * 2 + window - n, 0) // 2 for n in size]
    np.testing.assert_allclose(
        avg_pool(x, window), window_reference(x, window, 2, low, np.mean), rtol=1e-5, atol=1e-6
    )


def test_avg_pool_sums_in_float32():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, 9, 9, 8)) + 100, jnp.bfloat16)
    exact = avg_pool(x.astype(jnp.float32), 3)
    pooled = avg_pool(x, 3)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("window", [(2, 2), (1, 3), (2, 3)])
def test_max_of_cells_drops_the_remainder(window):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    rows, columns = 5 // window[0], 7 // window[1]
    cells = x[:, : rows * window[0], : columns * window[1]].reshape(
        2, rows, window[0], columns, window[1], 3
    )

    @jax.jit
    def both(x):
        y = max_pool_cells(x, window)
        return y, jax.grad(lambda x: jnp.sum(max_pool_cells(x, window) ** 2))(x)

    y, gradient = both(x)
    np.testing.assert_array_equal(y, cells.max((2, 4)))
    kept = np.asarray(gradient)[np.nonzero(gradient)]
    np.testing.assert_allclose(np.sort(kept), np.sort(2 * np.ravel(cells.max((2, 4)))), rtol=1e-6)
    assert np.count_nonzero(gradient) == 2 * rows * columns * 3


def test_max_over_looks_for_the_position_only_for_a_gradient():
    x = jnp.asarray([[1.0, 3.0, 3.0], [2.0, -1.0, 0.0]])
    assert "argmax" not in str(jax.make_jaxpr(lambda x: max_over(x, 1))(x))
    assert "argmax" in str(jax.make_jaxpr(jax.grad(lambda x: max_over(x, 1).sum()))(x))
    y, along = jax.jvp(lambda x: max_over(x, 1), (x,), (10 * x,))
    np.testing.assert_array_equal(y, [3, 2])
    np.testing.assert_array_equal(along, [30, 20])


def test_max_over_gives_the_gradient_to_the_first_of_equals():
    x = jnp.asarray([[1.0, 3.0, 3.0], [2.0, -1.0, 0.0]])
    for axis in (0, 1, -1):
        np.testing.assert_array_equal(max_over(x, axis), x.max(axis))
    np.testing.assert_array_equal(
        jax.grad(lambda x: max_over(x, 1).sum())(x), [[0, 1, 0], [1, 0, 0]]
    )
