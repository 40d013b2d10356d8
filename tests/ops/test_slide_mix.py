"""The core of Slide attention: every lowering against loops, gradients between lowerings, what it
holds in memory.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part

from lambdanet.ops.slide_mix import shift_weight, slide_mix

LOWERINGS = ("shift", "conv", "im2col")
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def arrays(size, kernel_size, heads=2, depth=3, batch=2):
    rng = np.random.default_rng(0)
    slots = kernel_size**2
    q, k, v = rng.standard_normal((3, batch, *size, heads, depth))
    key_weight, value_weight = rng.standard_normal((2, kernel_size, kernel_size, depth, slots))
    key_bias, value_bias = rng.standard_normal((2, depth, slots))
    names = ("q", "k", "v", "key_weight", "value_weight", "key_bias", "value_bias", "position_bias")
    values = (
        q,
        k,
        v,
        key_weight,
        value_weight,
        key_bias,
        value_bias,
        rng.standard_normal((heads, slots)),
    )
    return dict(zip(names, values, strict=True))


def loops(q, k, v, key_weight, value_weight, key_bias, value_bias, position_bias, position_bias_on):
    """One position, head and slot at a time: its key and value from the taps inside the map."""
    batch, height, width, heads, depth = q.shape
    side, slots = len(key_weight), key_weight.shape[-1]
    y, shown = np.zeros_like(q), np.zeros((*q.shape[:-1], slots))
    for b, i, j, h in itertools.product(range(batch), range(height), range(width), range(heads)):
        logits, values = np.zeros(slots), np.zeros((slots, depth))
        for o in range(slots):
            key, values[o] = key_bias[:, o].copy(), value_bias[:, o]
            for t, s in itertools.product(range(side), range(side)):
                row, column = i + t - side // 2, j + s - side // 2
                if 0 <= row < height and 0 <= column < width:
                    key += key_weight[t, s, :, o] * k[b, row, column, h]
                    values[o] += value_weight[t, s, :, o] * v[b, row, column, h]
            if position_bias_on == "key":
                key += position_bias[h, o]
            logits[o] = q[b, i, j, h] @ key + (
                position_bias[h, o] if position_bias_on == "logit" else 0
            )
        powers = np.exp(logits - logits.max())
        shown[b, i, j, h] = powers / powers.sum()
        y[b, i, j, h] = shown[b, i, j, h] @ values
    return y, shown


@pytest.mark.parametrize("position_bias_on", ["key", "logit"])
@pytest.mark.parametrize("impl", LOWERINGS)
def test_equals_the_loops(impl, position_bias_on):
    given = arrays((5, 4), 3)
    expected, weights = loops(**given, position_bias_on=position_bias_on)
    with jax.enable_x64():
        run = once(functools.partial(slide_mix, position_bias_on=position_bias_on, impl=impl))
        y, shown = run(**given)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(shown, weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "kernel_size"), part([((5, 4), 3), ((2, 3), 5), ((1, 6), 3)], [((2, 3), 5)]), ids=str
)
def test_values_and_gradients_of_the_lowerings_are_equal(size, kernel_size):
    given = arrays(size, kernel_size, batch=1)
    with jax.enable_x64():
        cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(given["v"].shape))

        @once
        def everything(given):
            def loss(given, impl):
                y, weights = slide_mix(**given, impl=impl)
                return jnp.sum(y * cotangent) + jnp.sum(weights**2), y

            return [jax.value_and_grad(loss, has_aux=True)(given, impl) for impl in LOWERINGS]

        first, *others = everything(jax.tree.map(jnp.asarray, given))
        assert set(first[1]) == set(given)
        for found in others:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(a).max()),
                first,
                found,
            )


@pytest.mark.exhaustive  # tests/ops/test_transformations.py has those of one lowering
def test_second_derivatives_are_equal():
    given = {
        name: array
        for name, array in arrays((3, 2), 3, heads=1, depth=2, batch=1).items()
        if name != "position_bias"
    }
    with jax.enable_x64():

        @once
        def both(given):
            def first(given, impl):
                inner = jax.grad(lambda given: jnp.sum(jnp.sin(slide_mix(**given, impl=impl)[0])))(
                    given
                )
                return sum(jnp.sum(part**2) for part in inner.values())

            return [jax.grad(first)(given, impl) for impl in ("shift", "im2col")]

        shift, im2col = both(jax.tree.map(jnp.asarray, given))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(a).max()),
            shift,
            im2col,
        )


def test_one_hot_weights_are_the_neighbours():
    given = arrays((4, 5), 3, depth=4)
    weight = np.broadcast_to(shift_weight(3), (3, 3, 4, 9))
    plain = dict(
        key_weight=weight,
        value_weight=weight,
        position_bias=given["position_bias"],
        position_bias_on="logit",
    )
    with jax.enable_x64():
        y, _ = once(slide_mix, static_argnames="position_bias_on")(
            given["q"], given["k"], given["v"], **plain
        )
    padded = [np.pad(given[name], ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0))) for name in "kv"]
    keys, values = (
        np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2)).reshape(2, 4, 5, 2, 4, 9)
        for x in padded
    )
    logits = np.einsum("bxync,bxynco->bxyno", given["q"], keys) + given["position_bias"]
    powers = np.exp(logits)
    expected = np.einsum("bxyno,bxynco->bxync", powers / powers.sum(-1, keepdims=True), values)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


def test_shift_makes_no_copy_of_the_map_per_tap():
    """Temporary memory of the gradient, in maps [h, w, heads, d] and beside the k^2 = 25 of one
    column view.
    """
    given = {
        name: np.float32(array)
        for name, array in arrays((16, 16), 5, heads=1, depth=32, batch=1).items()
    }

    def maps(impl):
        loss = lambda given: jnp.sum(slide_mix(**given, impl=impl)[0] ** 2)  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(given).compile()
        return compiled.memory_analysis().temp_size_in_bytes / given["q"].nbytes

    assert maps("shift") < 25 < 100 < maps("im2col")


def test_errors():
    given = arrays((2, 2), 3)
    with pytest.raises(ValueError, match="impl is 'shfit'; allowed: auto, shift, conv, im2col"):
        slide_mix(**given, impl="shfit")
    with pytest.raises(ValueError, match="position_bias_on is 'none'; allowed: key, logit"):
        slide_mix(**given, position_bias_on="none")
    with pytest.raises(ValueError, match=r"\(3, 2\) .* must be odd"):
        slide_mix(**{**given, "key_weight": given["key_weight"][:, :2]})
