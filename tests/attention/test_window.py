"""Window attention against loops over pairs of positions; shifts, regions, both orders of padding;
tables for other windows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import nnx
from jaxpr_macs import jaxpr_macs

from lambdanet.attention import create_attention
from lambdanet.attention.window import WindowAttention, region_mask, resize_table

DIM = 4
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def layer(**options):
    return drawn(
        nnx.eval_shape(
            lambda: WindowAttention(
                DIM, **{"num_heads": 2, "window_size": 3, **options}, rngs=nnx.Rngs(0)
            )
        )
    )


def inputs(*spatial, batch=2):
    return np.random.default_rng(1).standard_normal((batch, *spatial, DIM)).astype(np.float32)


@once
def captured(built, x):
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(sown)["attention_map"][0]


def places(length, window, shift, padding, fit):
    """For every position of the padded axis: its place on the rolled axis, and the number of its
    region.
    """
    shift = 0 if fit and length <= window else shift
    padded = -(-length // window) * window
    position = np.arange(padded)
    if padding == "pad_roll":  # what wraps around was above the first shifted window
        return (position - shift) % padded, position < shift
    place = np.where(position < length, (position - shift) % length, position)
    return place, place >= padded - shift


def by_hand(built, x):
    """(output, weights on the map [b, h, y, x, Y, X]) in float64: every query looks at every key of
    the padded map.
    """
    x, size, window = np.float64(x), x.shape[1:3], built.window_size
    axes = [
        places(*each, built.padding, built.fit)
        for each in zip(size, window, built.shift_size, strict=True)
    ]
    padded = tuple(len(place) for place, _ in axes)
    full = np.zeros((len(x), *padded, DIM))
    full[:, : size[0], : size[1]] = x
    qkv = full @ np.float64(built.qkv.kernel[...])
    if built.qkv.bias is not None:
        qkv = qkv + np.float64(built.qkv.bias[...])
    q, k, v = np.moveaxis(qkv.reshape(*full.shape[:3], 3, built.num_heads, -1), 3, 0)
    table = np.float64(built.relative_bias[...]).reshape(
        2 * window[0] - 1, 2 * window[1] - 1, built.num_heads
    )
    mixed, weights = np.zeros_like(q), np.zeros((len(x), built.num_heads, *padded, *padded))

    def row_of_table(axis, query, key):
        place, region = axes[axis]
        same_window = place[query] // window[axis] == place[key] // window[axis]
        return (
            place[query] - place[key] + window[axis] - 1
            if same_window and region[query] == region[key]
            else None
        )

    for i in np.ndindex(*size):
        seen = []
        for j in np.ndindex(*padded):
            rows = [row_of_table(axis, i[axis], j[axis]) for axis in (0, 1)]
            outside = built.mask_padding and any(p >= n for p, n in zip(j, size, strict=True))
            if None not in rows and not outside:
                seen.append((j, table[tuple(rows)]))
        for b, h in np.ndindex(len(x), built.num_heads):
            logits = np.array(
                [q[b, *i, h] @ k[b, *j, h] * built.scale + bias[h] for j, bias in seen]
            )
            shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            for (j, _), share in zip(seen, shares, strict=True):
                mixed[b, *i, h] += share * v[b, *j, h]
                weights[b, h, *i, *j] = share
    rows, columns = (slice(n) for n in size)
    y = mixed[:, rows, columns].reshape(x.shape) @ np.float64(
        built.output.kernel[...]
    ) + np.float64(built.output.bias[...])
    return y, weights[:, :, rows, columns, rows, columns]


CASES = {
    "windows divide the map": ((6, 3), dict()),
    "shifted": ((6, 9), dict(shift_size=1)),
    "padded, shifted": ((5, 7), dict(window_size=(3, 4), shift_size="half")),
    "padded, shifted by most of a window": ((4, 7), dict(shift_size=2)),
    "rolled, then padded": (
        (5, 7),
        dict(window_size=(3, 4), shift_size=(1, 2), padding="roll_pad"),
    ),
    "padded keys masked, shifted": ((5, 4), dict(shift_size=(1, 2), mask_padding=True)),
    "rolled, then padded and masked": (
        (5, 4),
        dict(shift_size=(1, 2), padding="roll_pad", mask_padding=True),
    ),
    "padded keys masked": ((2, 4), dict(mask_padding=True, qkv_bias=False, scale=1.0)),
    "one window, larger than the map": ((1, 2), dict(window_size=4, shift_size="half")),
    "one shifted window": (
        (3, 2),
        dict(window_size=(3, 4), shift_size="half", fit=False, size=(3, 2)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_loops(name):
    spatial, options = CASES[name]
    built, x = layer(**options), inputs(*spatial)
    y, shown = captured(built, x)
    expected, weights = by_hand(built, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown, weights, rtol=1e-4, atol=1e-6)
    assert built.macs(*spatial) == jaxpr_macs(built, x[:1])


def test_orders_of_padding_agree_where_nothing_is_padded():
    x = inputs(6, 6)
    first, second = (
        once(layer(shift_size=1, padding=order).__call__)(x) for order in ("pad_roll", "roll_pad")
    )
    np.testing.assert_array_equal(first, second)


def test_no_mask_is_made_without_a_shift():
    def primitives(built, *spatial):
        return {
            equation.primitive.name
            for equation in jax.make_jaxpr(built)(inputs(*spatial)).jaxpr.eqns
        }

    shifted = layer(shift_size=1)
    assert "eq" in primitives(shifted, 5, 5)
    assert "eq" not in primitives(shifted, 3, 2) | primitives(
        layer(), 5, 5
    )  # one window has no shift


def test_an_output_depends_on_its_region_alone():
    built, x = layer(shift_size=1), inputs(6, 6, batch=1)

    @once
    def reach(x, i, j):
        return jnp.abs(jax.grad(lambda x: jnp.sum(built(x)[0, i, j]))(x)).sum((0, -1)) > 0

    corner, edge = reach(x, 0, 0), reach(x, 2, 5)
    expected = np.zeros((2, 6, 6), bool)
    expected[0, :1, :1] = True  # the first row and column stay alone; the windows begin at 1
    expected[1, 1:4, 4:] = (
        True  # the last window of the rows from 1 to 3 has two columns of its own
    )
    np.testing.assert_array_equal([corner, edge], expected)


@pytest.mark.parametrize(
    ("options", "size", "window", "shift"),
    [
        (dict(window_size=7, shift_size="half"), (14, 14), (7, 7), (3, 3)),
        (
            dict(window_size=7, shift_size="half"),
            (7, 7),
            (7, 7),
            (3, 3),
        ),  # no shift there, but on larger maps
        (dict(window_size=7, shift_size=3), (4, 12), (4, 7), (2, 3)),
        (dict(window_size=(4, 3), shift_size="half"), (2, 3), (2, 3), (1, 1)),
        (dict(window_size=56), (14, 14), (14, 14), (0, 0)),
        (dict(window_size=3, shift_size=1), None, (3, 3), (1, 1)),
    ],
)
def test_windows_are_cut_to_the_map(options, size, window, shift):
    built = WindowAttention(DIM, num_heads=2, size=size, **options, rngs=nnx.Rngs(0))
    assert (built.window_size, built.shift_size) == (window, shift)
    assert built.relative_bias.shape == ((2 * window[0] - 1) * (2 * window[1] - 1), 2)


def test_initial_state():
    built = WindowAttention(64, num_heads=8, rngs=nnx.Rngs(0))
    for array in (built.qkv.kernel, built.output.kernel, built.relative_bias):
        assert 0.018 < np.std(array[...]) < 0.022 and np.abs(array[...]).max() > 0.04
    assert not np.any(built.qkv.bias[...]) and not np.any(built.output.bias[...])


def test_preset_is_shifted_by_half_a_window():
    built = create_attention("shifted_window", DIM, size=(9, 9), num_heads=2, rngs=nnx.Rngs(0))
    assert (
        isinstance(built, WindowAttention) and built.shift_size == (3, 3) and built.num_heads == 2
    )


def test_region_mask_of_swin():
    mask = region_mask((4, 4), (2, 2), (1, 1))
    assert mask.shape == (4, 4, 4) and mask[0].all()
    np.testing.assert_array_equal(
        mask[1], mask[1][0, 0] & (np.arange(4)[:, None] % 2 == np.arange(4) % 2)
    )
    np.testing.assert_array_equal(mask[3], np.eye(4, dtype=bool))


def test_resized_table():
    wide_by_torch, narrow_by_torch = (
        [1.288, -0.596, -2.0, 1.456, 4.576],
        [0.7728888888889, -2.0, 3.7857777777778],
    )
    # torch.nn.functional.interpolate([1, -2, 4], 5, mode="bicubic", align_corners=False), and of
    # that back to 3
    column = np.array([[1.0], [-2.0], [4.0]])
    wide = resize_table(column, (2, 1), (3, 1))
    np.testing.assert_allclose(wide[:, 0], wide_by_torch, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        resize_table(wide, (3, 1), (2, 1))[:, 0], narrow_by_torch, rtol=0, atol=1e-12
    )
    np.testing.assert_array_equal(resize_table(wide, (3, 1), (3, 1)), wide)
    table = np.random.default_rng(0).standard_normal((3 * 5, 2)).astype(np.float32)
    both = resize_table(table, (2, 3), (4, 2))  # axes by themselves
    rows = resize_table(table.reshape(3, 10), (2, 1), (4, 1)).reshape(7, 5, 2)
    expected = np.stack([resize_table(row, (1, 3), (1, 2)) for row in rows])
    assert both.dtype == np.float32
    np.testing.assert_allclose(both.reshape(7, 3, 2), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(15, 2\) is not for windows of \(2, 2\)"):
        resize_table(table, (2, 2), (3, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=3), "num_heads is 3; allowed: divisors of dim=4"),
        (dict(window_size=0), "window_size is 0; allowed: an integer >= 1"),
        (dict(window_size=(3, 3, 3)), r"window_size is \(3, 3, 3\)"),
        (
            dict(shift_size=3),
            r"shift_size is 3; allowed: 'half', or integers from 0 to below window_size=\(3, 3\)",
        ),
        (dict(shift_size="third"), "shift_size is 'third'; allowed: 'half'"),
        (dict(shift_size=(-1, 0)), r"shift_size is \(-1, 0\)"),
        (dict(size=(0, 3)), r"size is \(0, 3\)"),
        (dict(padding="roll"), "padding is 'roll'; allowed: pad_roll, roll_pad"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)
