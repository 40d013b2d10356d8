"""Position and channel attention of DANet against loops, with chunks, both signs of the energy and
the initial state.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_macs import jaxpr_macs
from jaxpr_sizes import largest_array

from lambdanet.attention import create_attention
from lambdanet.attention.danet import TORCH_NAMES, ChannelAttention, PositionAttention
from lambdanet.interop.names import convert

DIM = 8


def position(**options):
    """A block whose biases and gamma are not zero."""
    made = nnx.eval_shape(
        lambda: PositionAttention(DIM, **{"reduction": 2, **options}, rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(made, nnx.Param)):
        variable.set_value(jnp.asarray(rng.normal(0, 0.6, variable.shape), variable.dtype))
    return made


def channel(**options):
    made = ChannelAttention(DIM, **options, rngs=nnx.Rngs(0))
    made.gamma[...] = jnp.full_like(made.gamma[...], 0.7)
    return made


def image(*spatial, batch=2):
    return np.random.default_rng(3).standard_normal((batch, *spatial, DIM)).astype(np.float32)


@jax.jit
def captured(made, x):
    y, sown = nnx.capture(nnx.view(made, capture=True), nnx.Intermediate)(x)
    ((value,),) = nnx.to_pure_dict(sown).values()
    return y, value


def softmax(a):
    e = np.exp(a - np.max(a))
    return e / e.sum()


def position_by_hand(made, x):
    flat = np.float64(x).reshape(len(x), -1, DIM)
    q, k, v = (
        flat @ np.float64(p.kernel[...]) + np.float64(p.bias[...])
        for p in (made.query, made.key, made.value)
    )
    weights = np.array(
        [
            [softmax([qi @ kj for kj in keys]) for qi in queries]
            for queries, keys in zip(q, k, strict=True)
        ]
    )
    y = flat + float(made.gamma[0]) * np.array(
        [[w @ values for w in rows] for rows, values in zip(weights, v, strict=True)]
    )
    return y.reshape(x.shape), weights


def channel_by_hand(made, x):
    flat, sign = np.float64(x).reshape(len(x), -1, DIM), -1 if made.energy == "max_minus" else 1
    weights = np.array(
        [
            [softmax([sign * (s[:, c] @ s[:, d]) for d in range(DIM)]) for c in range(DIM)]
            for s in flat
        ]
    )
    context = np.array(
        [
            [[w[c] @ pixel for c in range(DIM)] for pixel in s]
            for s, w in zip(flat, weights, strict=True)
        ]
    )
    return (flat + float(made.gamma[0]) * context).reshape(x.shape), weights


@pytest.mark.parametrize("spatial", [(5, 3), (2, 3, 2), (4,)], ids=str)
def test_position_attention_equals_the_loops(spatial):
    made, x = position(), image(*spatial)
    y, shown = captured(made, x)
    expected, weights = position_by_hand(made, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert shown.shape == (2, 1, *spatial, *spatial)
    np.testing.assert_allclose(shown.reshape(weights.shape), weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("energy", ["max_minus", "plain"])
@pytest.mark.parametrize("spatial", [(5, 3), (2, 3, 2), (4,)], ids=str)
def test_channel_attention_equals_the_loops(spatial, energy):
    made, x = channel(energy=energy), 0.5 * image(*spatial)
    y, shown = captured(made, x)
    expected, weights = channel_by_hand(made, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shown, weights, rtol=1e-5, atol=1e-6)


def test_max_minus_gives_the_least_weight_to_the_most_alike():
    x = 0.4 * image(5, 3)
    flat = x.reshape(2, -1, DIM)
    most = np.einsum("bnc,bnd->bcd", flat, flat).argmax(-1)
    assert (most == np.arange(DIM)).mean() > 0.8  # mostly the channel itself
    _, minus = captured(channel(), x)
    _, plain = captured(channel(energy="plain"), x)
    np.testing.assert_array_equal(np.argmin(minus, -1), most)
    np.testing.assert_array_equal(np.argmax(plain, -1), most)


def test_energy_of_bfloat16_is_summed_in_float32():
    """A sum over 4096 positions: in bfloat16 it would stop growing, and the weights would be far
    off.
    """
    x = jnp.asarray(0.05 * (image(64, 64, batch=1) + 1), jnp.bfloat16)
    _, shown = captured(channel(), x)
    np.testing.assert_allclose(
        shown, channel_by_hand(channel(), np.asarray(x, np.float32))[1], rtol=1e-3
    )


def value_and_gradients(made, x):
    graphdef, state = nnx.split(made)

    def loss(state, x):
        y = nnx.merge(graphdef, state)(x)
        return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(state, x)


@pytest.mark.parametrize("chunk", [4, 5, 99])
def test_chunks_equal_the_whole(chunk):
    x = image(5, 3)  # 15 queries: a remainder, none, and a chunk larger than the map
    whole, parts = (value_and_gradients(position(query_chunk=size), x) for size in (None, chunk))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    made = position(query_chunk=chunk)
    idle = -15 % min(chunk, 15)  # queries that fill the last chunk
    pairs = idle * 15 * (made.depth + DIM)
    assert made.macs(5, 3) + pairs == jaxpr_macs(made, x[:1])


def test_chunks_bound_the_memory_of_both_passes():
    def largest(chunk):
        made = position(query_chunk=chunk)
        return largest_array(jax.grad(lambda x: jnp.sum(made(x) ** 2)), image(16, 16, batch=1))

    assert largest(None) == 256**2
    assert largest(16) == 16 * 256


@pytest.mark.parametrize("name", ["position_attention", "channel_attention"])
def test_starts_as_the_identity_and_learns_from_there(name):
    made, x = create_attention(name, DIM, rngs=nnx.Rngs(0)), image(3, 4)
    np.testing.assert_array_equal(made(x), x)
    graphdef, state = nnx.split(made)
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(nnx.merge(graphdef, s)(x) ** 2)))(state)
    assert abs(float(gradient["gamma"][0])) > 1e-3


def test_counts():
    made = nnx.eval_shape(lambda: PositionAttention(512, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(made, nnx.Param))) == 328_321
    assert [leaf.size for leaf in jax.tree.leaves(nnx.state(channel(), nnx.Param))] == [1]
    # 97 x 97, 512 channels: 54.08 and 4.93 G multiply-adds
    assert [
        round(m.macs(97, 97) / 1e9, 2) for m in (made, ChannelAttention(512, rngs=nnx.Rngs(0)))
    ] == [54.08, 4.93]


@pytest.mark.parametrize("made", [position, channel])
def test_float64_is_not_rounded(made):
    with jax.enable_x64():
        built, x = made(param_dtype=jnp.float64), np.float64(image(4, 3))
        by_hand = position_by_hand if made is position else channel_by_hand
        np.testing.assert_allclose(
            built(jnp.asarray(x)), by_hand(built, x)[0], rtol=1e-13, atol=1e-13
        )


def test_names_of_mmsegmentation():
    draw = np.random.default_rng(0).standard_normal
    state = {
        "query_project.weight": draw((4, 8, 1, 1)),
        "query_project.bias": draw(4),
        "gamma.scale": draw(()),
    }
    state |= {"key_project.weight": draw((4, 8, 1, 1)), "key_project.bias": draw(4)}
    state |= {"value_project.weight": draw((8, 8, 1, 1)), "value_project.bias": draw(8)}
    shapes = {
        "/".join(path): variable.shape
        for path, variable in nnx.to_flat_state(nnx.state(position()))
    }
    ours = convert(state, TORCH_NAMES, shapes)
    assert ours["gamma"] == state["gamma.scale"]
    np.testing.assert_array_equal(ours["value/kernel"], state["value_project.weight"][:, :, 0, 0].T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(name="position_attention", reduction=9),
            "reduction is 9 for 8 channels; allowed: 1 <= reduction <= channels",
        ),
        (
            dict(name="position_attention", query_chunk=0),
            "query_chunk is 0; allowed: 'auto', None, 1 or more",
        ),
        (
            dict(name="channel_attention", energy="minus"),
            "energy is 'minus'; allowed: 'max_minus', 'plain'",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_attention(options, DIM, rngs=nnx.Rngs(0))
