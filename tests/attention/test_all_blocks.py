"""What every registered attention block must do; a new block is checked here as soon as it is
registered.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_macs import jaxpr_macs

from lambdanet.attention import KINDS, create_attention, describe, kind, list_attention, registry

DIM, SIZE = 16, (5, 7)
# Everything here runs once: compiling is what it costs.
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SOWN = ("attention_map", "gate", "channel_map")


def plain_names() -> list[str]:
    """Names without presets of their own: one per block that maps a map to a map."""
    return [
        name
        for name in list_attention()
        if not registry.lookup(name)[1] and kind(name) != "carried"
    ]


@functools.cache
def block(name: str, size=SIZE, dtype=None):
    """A block in the evaluation view with random numbers, which leave no branch at zero, in all
    parameters and running statistics.
    """
    made = nnx.eval_shape(
        lambda: create_attention(name, DIM, size=size, dtype=dtype, rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(1)
    for path, variable in nnx.to_flat_state(nnx.state(made, (nnx.Param, nnx.BatchStat))):
        shape = variable.shape
        if path[-1] == "var":
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) < 2:
            value = rng.normal(0.5, 0.3, shape)
        else:
            value = rng.standard_normal(shape) / np.prod(shape[:-1]) ** 0.5
        variable.set_value(jnp.asarray(value, variable.dtype))
    return nnx.view(made, deterministic=True, use_running_average=True, raise_if_not_found=False)


@functools.cache
def both(name: str):
    """The compiled call with the gradient of the input, which several tests share."""
    module = block(name)

    @once
    def run(x):
        return module(x), jax.grad(lambda x: jnp.sum(module(x) ** 2))(x)

    return run


def image(size=SIZE, batch=2, seed=0):
    return jnp.asarray(
        np.random.default_rng(seed).standard_normal((batch, *size, DIM)), jnp.float32
    )


@pytest.mark.parametrize("name", list_attention())
def test_describes_itself(name):
    text = describe(name)
    assert kind(name) in KINDS
    assert "Source" in text and "Args:" in text and "rngs" in text
    residual = ("residual", "gate", "projection")
    assert any(word in text for word in residual), (
        "the docstring must say what stands around the attention"
    )


@pytest.mark.parametrize("name", plain_names())
def test_shape_batch_invariance_and_gradient(name):
    x = image()
    y, gradient = both(name)(x)
    assert y.shape == x.shape and y.dtype == x.dtype
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    swapped, _ = both(name)(x[::-1])  # a sample's result does not depend on the samples beside it
    np.testing.assert_allclose(swapped[::-1], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", plain_names())
def test_bfloat16_is_close(name):
    x = image(seed=2)
    exact, _ = both(name)(x)
    y = once(block(name, dtype=jnp.bfloat16).__call__)(x)
    assert y.dtype == jnp.bfloat16
    scale = np.abs(exact).max()
    np.testing.assert_allclose(np.asarray(y, np.float32), exact, rtol=0, atol=4e-2 * scale)


@pytest.mark.parametrize("name", plain_names())
def test_smallest_map_and_long_maps(name):
    for size in ((1, 1), (1, 6)):
        x = image(size)
        try:
            y = once(block(name, size).__call__)(x)
        except ValueError as error:
            assert "size" in str(error) or "map" in str(error), (
                "the refusal must say what sizes are allowed"
            )
            continue
        assert y.shape == x.shape and np.isfinite(y).all()


# The lambda layer counts as its paper does, whatever the lowering:
# tests/attention/test_lambda_layer.py. The convolutions of cross-shaped windows are shifted
# products on CPU, which are no contractions, and neighborhood attention counts the pairs of its
# formula: tests/attention/test_cross_shaped_window.py, test_neighborhood.py.
COUNTED_ELSEWHERE = ("lambda", "cross_shaped_window", "neighborhood")


@pytest.mark.parametrize("name", [name for name in plain_names() if name not in COUNTED_ELSEWHERE])
def test_multiply_adds_are_those_of_the_program(name, monkeypatch):
    # Products of taps beyond the map are counted, whether they are computed or not.
    monkeypatch.setattr("lambdanet.ops.convolution._SEEN", 0.0)
    assert block(name).macs(*SIZE) == jaxpr_macs(block(name), image(batch=1))


@pytest.mark.parametrize("name", plain_names())
def test_capture_shows_something_finite(name):
    x = image()
    graphdef, state = nnx.split(nnx.view(block(name), capture=True))

    @once
    def run(x):
        y, sown = nnx.capture(nnx.merge(graphdef, state), nnx.Intermediate)(x)
        return y, nnx.to_pure_dict(sown)

    y, sown = run(x)
    np.testing.assert_allclose(y, both(name)(x)[0], rtol=1e-5, atol=1e-5)
    flat = {path[-2]: np.asarray(value) for path, value in _leaves(sown)}
    shown = {key: value for key, value in flat.items() if key in SOWN}
    assert shown, f"capture sowed {sorted(flat)}; one of {SOWN} is needed"
    for key, value in shown.items():
        assert np.isfinite(value).all() and value.shape[0] == len(x)
        assert (
            value.ndim
            == {"attention_map": 2 + 2 * len(SIZE), "gate": 2 + len(SIZE), "channel_map": 3}[key]
        )


def _leaves(tree, path=()):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, (tuple, list)):
        for key, value in enumerate(tree):
            yield from _leaves(value, (*path, key))
    else:
        yield path, tree


@pytest.mark.parametrize("name", plain_names())
def test_refuses_other_channels(name):
    with pytest.raises(ValueError, match=f"{DIM + 1}"):
        block(name)(jnp.ones((1, *SIZE, DIM + 1)))


def test_kinds_split_the_list():
    assert sorted(name for kind in KINDS for name in list_attention(kind=kind)) == list_attention()
    with pytest.raises(ValueError, match="'mixr'; allowed: None, mixer, context, carried"):
        list_attention(kind="mixr")


def test_counter_counts_loops_and_convolutions():
    def program(x, kernel):
        y = jax.lax.map(lambda row: row @ row.T, x)
        image = jax.lax.conv_general_dilated(
            x[..., None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y, image

    shapes = jnp.ones((3, 4, 5)), jnp.ones((3, 3, 1, 2))
    assert jaxpr_macs(program, *shapes) == 3 * 4 * 4 * 5 + 3 * 4 * 5 * 9 * 2


@pytest.mark.parametrize("name", [name for name in list_attention() if kind(name) != "carried"])
def test_maps_of_integers_or_of_nothing_are_refused(name):
    made = block(name)
    with pytest.raises(ValueError, match=r"dtype uint8; expected a floating one"):
        made(jnp.zeros((1, *SIZE, DIM), jnp.uint8))
    with pytest.raises(ValueError, match=r"shape \(1, 0, 7, 16\); expected \[batch"):
        made(jnp.zeros((1, 0, 7, DIM)))
