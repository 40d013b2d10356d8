"""Interlaced sparse attention: dense masked attention as the oracle, padding, what reaches what,
counts, options.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.interlaced import InterlacedSparseAttention

DIM = 6


def build(seed=0, dim=DIM, **options):
    """A block in the evaluation view with random numbers everywhere; only traced, which is faster
    than initialising.
    """
    built = nnx.eval_shape(lambda: InterlacedSparseAttention(dim, **options, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    for path, variable in nnx.to_flat_state(nnx.state(built, (nnx.Param, nnx.BatchStat))):
        low, high = dict(scale=(0.7, 1.3), var=(0.7, 1.3)).get(path[-1], (-0.8, 0.8))
        variable.set_value(jnp.asarray(rng.uniform(low, high, variable.shape), jnp.float32))
    return nnx.view(built, deterministic=True, use_running_average=True)


def image(*size, dim=DIM, batch=2):
    return np.random.default_rng(7).standard_normal((batch, *size, dim)).astype(np.float32)


@jax.jit
def run(built, x):
    return built(x)


@jax.jit
def run_shown(built, x):
    """The result and the attention map of the only pair."""
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(sown)["blocks"][0]["attention_map"][0]


def parameters(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def layer(module, x):
    """A 1x1, norm, ReLU in float64."""
    mean, var, scale, bias = (
        np.float64(getattr(module.norm, name)[...]) for name in ("mean", "var", "scale", "bias")
    )
    return np.maximum(
        (x @ np.float64(module.linear.kernel[...]) - mean) / np.sqrt(var + 1e-5) * scale + bias, 0
    )


def dense(unit, x, seen):
    """The unit over all pairs [n, n] of positions, those with seen = False shut out; float64."""
    query, key = x, x
    for of_query, of_key in zip(unit.query, unit.key, strict=True):
        query, key = layer(of_query, query), layer(of_key, key)
    logits = np.where(seen, query @ key.swapaxes(1, 2) / np.sqrt(key.shape[-1]), -1e30)
    weights = np.exp(logits - logits.max(-1, keepdims=True)) * seen
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return layer(unit.out, weights @ (x @ np.float64(unit.value.kernel[...]))), weights


def by_hand(built, x):
    """The block with one pair of sizes, its two attentions as dense ones with a mask; also the
    weights on the map.
    """
    (pair,), (b, h, w, _) = built.blocks, x.shape
    cell = np.asarray(pair.group_size)
    padded = -(-np.asarray([h, w]) // cell) * cell
    first = (padded - (h, w)) // 2
    place = np.stack(np.meshgrid(*map(np.arange, padded), indexing="ij"), -1).reshape(-1, 2)
    inside = ((place >= first) & (place < first + (h, w))).all(-1)
    y = np.zeros((b, len(place), x.shape[-1]))
    y[:, inside] = x.reshape(b, h * w, -1)
    maps = []
    for unit, label in ((pair.long_range, place % cell), (pair.short_range, place // cell)):
        seen = (label[:, None] == label[None]).all(-1)
        y, weights = dense(unit, y, seen & inside if pair.mask_padding else seen)
        maps.append(weights[:, inside][:, :, inside].reshape(b, h, w, h, w))
    x = np.float64(x)
    return layer(built.fuse, np.concatenate([x, y[:, inside].reshape(b, h, w, -1)], -1)), np.stack(
        maps, 1
    )


@pytest.mark.parametrize(
    ("size", "group_size", "mask_padding"),
    [
        ((4, 6), (2, 3), False),
        ((5, 7), (2, 3), False),
        ((5, 7), (2, 3), True),
        ((3, 4), (8, 8), True),
        ((1, 5), (2, 2), False),
    ],
    ids=["divisible", "padded", "padded_masked", "one_cell_masked", "one_row"],
)
def test_equals_dense_attention_inside_groups(size, group_size, mask_padding):
    built = build(group_size=group_size, key_dim=4, value_dim=5, mask_padding=mask_padding)
    x = image(*size)
    expected, maps = by_hand(built, x)
    y, shown = run_shown(built, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shown, maps, rtol=1e-4, atol=1e-6)
    if mask_padding or size == (4, 6):
        np.testing.assert_allclose(shown.sum((4, 5)), 1, rtol=1e-5)


def test_every_output_depends_on_every_input():
    built = build(group_size=(2, 3), dim=8)
    jacobian = jax.jit(jax.jacrev(lambda x: run(built, x)[0]))(
        jnp.asarray(image(4, 6, dim=8, batch=1))
    )
    assert (np.abs(jacobian).max((2, 3, 6)) > 0).all()
    (pair,) = built.blocks

    def long_alone(x):
        cells = x.reshape(1, 2, 2, 2, 3, 8).transpose(0, 2, 4, 1, 3, 5).reshape(1, 2, 3, 4, 8)
        return pair.long_range(cells)[0]

    jacobian = np.abs(jax.jit(jax.jacrev(long_alone))(image(4, 6, dim=8, batch=1)))[0].max(
        (3, 4, 7)
    )
    i, j = np.indices((4, 6)) % np.asarray([2, 3])[:, None, None]
    for offset in np.ndindex(2, 3):
        reached = jacobian[*offset].max(0) > 0
        np.testing.assert_array_equal(reached, (i == offset[0]) & (j == offset[1]))


@pytest.mark.parametrize("mask_padding", [False, True])
def test_batch_statistics_with_and_without_padded_positions(mask_padding):
    x, built = image(5, 7), build(group_size=(2, 3), mask_padding=mask_padding)
    built = nnx.view(built, use_running_average=False)

    @jax.jit
    def step(built, x):
        built(x)
        return nnx.to_pure_dict(nnx.state(built, nnx.BatchStat))

    first = built.blocks[0].long_range.key[0]
    z = (np.float64(x) @ np.float64(first.linear.kernel[...])).reshape(-1, 3)
    positions = len(z) if mask_padding else 2 * 6 * 9  # padded positions add zeros
    mean, square = z.sum(0) / positions, (z**2).sum(0) / positions
    after = step(built, x)["blocks"][0]["long_range"]["key"][0]["norm"]
    np.testing.assert_allclose(
        after["mean"], 0.9 * first.norm.mean[...] + 0.1 * mean, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        after["var"], 0.9 * first.norm.var[...] + 0.1 * (square - mean**2), rtol=1e-5
    )


def test_groups_of_nothing_but_padding_stay_finite():
    built = build(group_size=(8, 8), mask_padding=True)
    y, gradient = jax.jit(jax.value_and_grad(lambda x: (run(built, x) ** 2).sum()))(image(2, 3))
    assert np.isfinite(y) and np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_several_pairs_are_concatenated_with_the_lifted_input():
    built, x = build(group_size=((2, 3), (4, 2)), dim_out=4), image(5, 6)
    parts = jax.jit(lambda built, x: [built.lift(x), *(pair(x) for pair in built.blocks)])(built, x)
    assert [part.shape[-1] for part in parts] == [8, 4, 4]
    expected = layer(built.fuse, np.concatenate(parts, -1).astype(np.float64))
    np.testing.assert_allclose(run(built, x), expected, rtol=1e-5, atol=1e-5)
    lift, fuse = 5 * 6 * 6 * 8, 5 * 6 * 16 * 4
    assert built.macs(5, 6) == lift + fuse + built.blocks[0].macs(5, 6) + built.blocks[1].macs(5, 6)


def test_parameters_and_costs_of_the_paper():
    module = nnx.eval_shape(lambda: create_attention("interlaced", 512, rngs=nnx.Rngs(0)))
    (pair,) = module.blocks
    assert round(parameters(pair) / 1e6, 2) == 1.84
    head = (
        9 * 2048 * 512 + 2 * 512 + parameters(module) + 512 * 19 + 19
    )  # 3x3 with norm in front, classifier behind
    assert round(head / 1e6, 2) == 11.81
    assert round(pair.macs(97, 97) / 1e9, 1) == 21.8
    assert round(pair.macs(128, 128) / 1e9, 1) == 34.1


def test_dropout_takes_whole_channels_and_needs_a_stream():
    built = nnx.view(build(group_size=(2, 2), dropout=0.5, dim=16), deterministic=False)
    x = image(4, 4, dim=16)
    kept = run(nnx.view(built, deterministic=True), x)
    y = np.asarray(jax.jit(lambda built, x: built(x, rngs=nnx.Rngs(dropout=0)))(built, x))
    channels = (y != 0).any((1, 2))
    assert 0 < channels.sum() < channels.size
    np.testing.assert_allclose(y, 2 * kept * channels[:, None, None], rtol=1e-6)
    with pytest.raises(ValueError, match="rngs"):
        jax.eval_shape(built, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(group_size=(0, 8)), r"group_size is \(0, 8\); allowed: a pair"),
        (dict(group_size=(8,)), r"group_size is \(8,\); allowed"),
        (dict(group_size=8), "group_size is 8; allowed"),
        (dict(group_size=()), r"group_size is \(\); allowed"),
        (dict(group_size=((2, 2), (3,))), r"group_size is \(\(2, 2\), \(3,\)\); allowed"),
        (dict(key_dim=0), "key_dim is 0; allowed: 1 or more"),
        (dict(dropout=1.0), "dropout is 1.0; allowed: 0 <= dropout < 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        InterlacedSparseAttention(8, **options, rngs=nnx.Rngs(0))
