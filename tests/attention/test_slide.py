"""Slide attention against loops, its fixed shifts, its merged form, and the names of the public
code.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from covering import part
from flax import nnx
from jaxpr_macs import jaxpr_macs

from lambdanet.attention.slide import (
    MERGED_TORCH_NAMES,
    TORCH_NAMES,
    SlideAttention,
    head_major_qkv,
    reparameterise,
)
from lambdanet.interop.names import NameMappingError, convert
from lambdanet.training.state import flatten_names

DIM = 12
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def layer(**options):
    """A layer with random numbers in every parameter."""
    made = nnx.eval_shape(
        lambda: SlideAttention(DIM, **{"num_heads": 2, **options}, rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(made, nnx.Param)):
        variable.set_value(jnp.asarray(rng.normal(0, 0.4, variable.shape), variable.dtype))
    return made


def image(*size, batch=2):
    return np.random.default_rng(1).standard_normal((batch, *size, DIM)).astype(np.float32)


def names(module) -> dict:
    return flatten_names(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def captured(module, x):
    graphdef, state = nnx.split(nnx.view(module, capture=True))
    y, sown = once(lambda state, x: nnx.capture(nnx.merge(graphdef, state), nnx.Intermediate)(x))(
        state, x
    )
    sown = nnx.to_pure_dict(sown)
    return y, sown["slot_weights"][0], sown["attention_map"][0]


def by_hand(made, x, *, fixed=True, learned=True, scale=None, position_bias="key", shared=False):
    """float64 loops over positions, heads, slots and taps: (output, weights [b, heads, slots, H,
    W]).
    """
    p = {name: np.float64(value) for name, value in names(made).items()}
    heads, side, inner = made.num_heads, made.kernel_size, p["output/kernel"].shape[0]
    depth, slots, (batch, height, width) = inner // heads, side**2, x.shape[:3]
    scale = (DIM / heads) ** -0.5 if scale is None else scale
    qkv = x @ p["qkv/kernel"] + p.get("qkv/bias", 0)
    y, shown = (
        np.zeros((batch, height, width, inner)),
        np.zeros((batch, heads, slots, height, width)),
    )

    def read(b, h, row, column, part):
        first = h * depth if shared else (3 * h + part) * depth
        inside = 0 <= row < height and 0 <= column < width
        return qkv[b, row, column, first : first + depth] if inside else np.zeros(depth)

    def slot(b, h, i, j, o, part):
        """The mixture of the window that slot o holds: channel c of the kernels is at c * slots +
        o.
        """
        own = "deformed_value_" if part == 2 and "deformed_value_kernel" in p else "deformed_"
        mixed = np.zeros(depth)
        if fixed:
            mixed += read(b, h, i + o // side - side // 2, j + o % side - side // 2, part)
        if learned:
            for t, s in itertools.product(range(side), range(side)):
                tap = p[own + "kernel"][t, s, 0, o::slots]
                mixed += tap * read(b, h, i + t - side // 2, j + s - side // 2, part)
            mixed += p[own + "bias"][o::slots]
        return mixed + (p["fixed_bias"][o::slots] if "fixed_bias" in p else 0)

    for b, h, i, j in itertools.product(range(batch), range(heads), range(height), range(width)):
        q = scale * read(b, h, i, j, 0)
        keys, values = (
            np.stack([slot(b, h, i, j, o, part) for o in range(slots)]) for part in (1, 2)
        )
        if position_bias == "key":
            keys += p["position_bias"][h][:, None]
        logits = keys @ q + (p["position_bias"][h] if position_bias == "logit" else 0)
        weights = np.exp(logits) / np.exp(logits).sum()
        shown[b, h, :, i, j] = weights
        y[b, i, j, h * depth : (h + 1) * depth] = weights @ values
    return y @ p["output/kernel"] + p["output/bias"], shown


CASES = {
    "the paper's": ((4, 5), dict(), dict()),
    "window larger than the map": (
        (2, 3),
        dict(kernel_size=5, scale=0.3, qkv_bias=False),
        dict(scale=0.3),
    ),
    "plain local attention": (
        (3, 4),
        dict(path="fixed", fixed_bias=False, position_bias="logit"),
        dict(learned=False, position_bias="logit"),
    ),
    "learned path alone": (
        (3, 2),
        dict(path="learned", position_bias="none"),
        dict(fixed=False, position_bias="none"),
    ),
    "reduced, shared projection": (
        (1, 3),
        dict(dim_reduction=2, share_qkv=True, share_kernel=False, fixed_bias=False),
        dict(shared=True),
    ),
}


@pytest.mark.parametrize(
    "name", part(CASES, ["the paper's", "plain local attention", "reduced, shared projection"])
)
def test_equals_the_loops_before_and_after_merging(name):
    size, options, differences = CASES[name]
    made, x = layer(**options), image(*size)
    expected, weights = by_hand(made, x, **differences)
    for module in (made, reparameterise(made)):
        y, shown, _ = captured(module, x)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * np.abs(expected).max() + 1e-6)
        np.testing.assert_allclose(shown, weights, rtol=0, atol=1e-6)


def test_slots_outside_the_map_stay_in_the_softmax():
    made = layer(path="fixed", fixed_bias=False, position_bias="none")
    x = image(1, 1, batch=1)
    _, weights, shown = captured(made, x)
    q, k, _ = np.moveaxis(np.asarray(made.qkv(x)).reshape(2, 3, 6), 1, 0)  # heads, then q, k and v
    power = np.exp((q * k).sum(-1) * 6**-0.5)
    np.testing.assert_allclose(weights[0, :, 4, 0, 0], power / (power + 8), rtol=1e-5)
    np.testing.assert_allclose(weights[0, :, 0, 0, 0], 1 / (power + 8), rtol=1e-5)
    np.testing.assert_allclose(
        shown[0, :, 0, 0, 0, 0], weights[0, :, 4, 0, 0]
    )  # the map shows the slot that is on it


def test_attention_map_has_the_slots_at_their_places():
    _, weights, shown = captured(layer(), image(4, 3, batch=1))
    expected = np.zeros(shown.shape)
    for i, j, o in itertools.product(range(4), range(3), range(9)):
        row, column = i + o // 3 - 1, j + o % 3 - 1
        if 0 <= row < 4 and 0 <= column < 3:
            expected[:, :, i, j, row, column] = weights[:, :, o, i, j]
    np.testing.assert_allclose(shown, expected, atol=1e-7)


@pytest.mark.parametrize(
    "options", [dict(), dict(share_kernel=False), dict(path="fixed", fixed_bias=False)], ids=str
)
def test_merging(options):
    made = layer(**options)
    before = names(made)
    model = nnx.Sequential(nnx.Linear(DIM, DIM, rngs=nnx.Rngs(0)), nnx.Sequential(made))
    merged = reparameterise(model)
    found = names(merged)
    inner = {path.rsplit("/", 1)[-1] for path in found}
    assert "deformed_kernel" in inner and "deformed_bias" in inner and "fixed_bias" not in inner
    assert ("deformed_value_kernel" in inner) == ("share_kernel" in options)
    again = names(reparameterise(merged))
    assert again.keys() == found.keys() and all(
        np.array_equal(again[path], found[path]) for path in found
    )
    assert names(made).keys() == before.keys(), "the model given was changed"
    fresh = SlideAttention(DIM, num_heads=2, merged=True, **options, rngs=nnx.Rngs(0))
    alike = reparameterise(SlideAttention(DIM, num_heads=2, **options, rngs=nnx.Rngs(0)))
    assert nnx.graphdef(fresh) == nnx.graphdef(alike)
    jax.tree.map(np.testing.assert_array_equal, names(fresh), names(alike))


def test_the_fixed_shifts_do_not_train():
    made, x = layer(), image(3, 3)
    shifts = np.broadcast_to(np.eye(9).reshape(3, 3, 1, 9), (3, 3, 6, 9)).reshape(3, 3, 1, 54)
    tx = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))

    def trained(module):
        graphdef, params = nnx.split(module)

        @once
        def step(params):
            gradients = jax.grad(lambda params: jnp.sum(nnx.merge(graphdef, params)(x) ** 2))(
                params
            )
            return optax.apply_updates(params, tx.update(gradients, tx.init(params), params)[0])

        return nnx.merge(graphdef, step(params))

    after = trained(made)
    assert not np.array_equal(after.deformed_kernel[...], made.deformed_kernel[...])
    assert not np.array_equal(after.fixed_bias[...], made.fixed_bias[...])
    kernel, bias = after.path_sums()[0]
    np.testing.assert_array_equal(kernel, np.float32(shifts) + after.deformed_kernel[...])
    np.testing.assert_array_equal(bias, after.fixed_bias[...] + after.deformed_bias[...])
    # The merged form trains the sum: the decay takes a twentieth of the shifts, too.
    both = trained(reparameterise(made)).path_sums()[0][0]
    np.testing.assert_allclose(both - kernel, -0.05 * shifts, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dim", "heads", "train", "merged"),
    [
        (64, 1, 28169, 22409),
        (64, 2, 22418, 19538),
        (96, 3, 43035, 40155),
        (128, 2, 77586, 71826),
        (128, 4, 71844, 68964),
    ],
)
def test_parameter_counts(dim, heads, train, merged):
    """Counts of the public module, from which its d k^4 frozen numbers are taken here."""

    def count(**options):
        made = nnx.eval_shape(
            lambda: SlideAttention(dim, num_heads=heads, **options, rngs=nnx.Rngs(0))
        )
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(made, nnx.Param)))

    assert count() == train - dim // heads * 81
    assert count(merged=True) == merged


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=5),
        dict(impl="conv"),
        dict(impl="im2col"),
        dict(merged=True),
        dict(dim_reduction=2, share_qkv=True),
    ],
    ids=str,
)
def test_macs_are_those_of_the_program_in_every_lowering(options):
    made = layer(**options)
    assert made.macs(5, 7) == jaxpr_macs(made, image(5, 7, batch=1))


def test_macs_of_the_merged_form():
    made = nnx.eval_shape(lambda: SlideAttention(96, num_heads=3, rngs=nnx.Rngs(0)))
    assert made.macs(56, 56) == 56 * 56 * (4 * 96**2 + 2 * 96 * 81 + 2 * 9 * 96)


def test_lowerings_agree_in_the_layer():
    x = image(4, 5)
    y = [once(layer(impl=impl).__call__)(x) for impl in ("auto", "conv", "im2col")]
    for other in y[1:]:
        np.testing.assert_allclose(other, y[0], rtol=1e-5, atol=1e-5)


def test_initial_state():
    made = SlideAttention(64, num_heads=1, kernel_size=5, rngs=nnx.Rngs(0))
    for name, value in names(made).items():
        if name.startswith(("deformed", "fixed")):
            assert 0.19 < np.abs(value).max() <= 0.2 and np.abs(value).mean() == pytest.approx(
                0.1, rel=0.1
            ), name
        elif name.endswith("kernel") or name == "position_bias":
            assert 0.005 < value.std() < 0.025, name
        else:
            assert not value.any(), name


def test_warm_start_from_the_weights_of_a_window_block():
    rng = np.random.default_rng(0)
    kernel, bias = (
        rng.standard_normal((DIM, 3 * DIM)),
        rng.standard_normal(3 * DIM),
    )  # [(q|k|v)(head)(depth)]
    x = rng.standard_normal((5, DIM))
    wanted = (x @ kernel + bias).reshape(5, 3, 4, 3)
    found = (x @ head_major_qkv(kernel, 4) + head_major_qkv(bias, 4)).reshape(5, 4, 3, 3)
    np.testing.assert_allclose(found, np.swapaxes(wanted, 1, 2))


def torch_state(made, **merged) -> dict:
    """A state dict of the public module, or of its merged form, for a layer of ours."""
    p = {name: np.asarray(value) for name, value in names(made).items()}

    def conv(kernel):
        return np.transpose(kernel, (3, 2, 0, 1))

    state = {
        "qkv.weight": p["qkv/kernel"].T,
        "qkv.bias": p["qkv/bias"],
        "proj.weight": p["output/kernel"].T,
        "proj.bias": p["output/bias"],
        "relative_position_bias_table": p["position_bias"].reshape(1, 2, 1, 9, 1, 1),
    }
    if merged:
        return state | {
            "dep_conv.weight": conv(p["deformed_kernel"]),
            "dep_conv.bias": p["deformed_bias"],
        }
    return state | {
        "dep_conv.weight": np.tile(np.eye(9).reshape(9, 1, 3, 3), (6, 1, 1, 1)),
        "dep_conv.bias": p["fixed_bias"],
        "dep_conv1.weight": conv(p["deformed_kernel"]),
        "dep_conv1.bias": p["deformed_bias"],
    }


def test_names_of_both_forms():
    made = layer()
    merged = reparameterise(made)
    shapes, merged_shapes = (
        {name: value.shape for name, value in names(one).items()} for one in (made, merged)
    )
    state, merged_state = torch_state(made), torch_state(merged, merged=True)
    for found, module in (
        (convert(state, TORCH_NAMES, shapes), made),
        (convert(merged_state, MERGED_TORCH_NAMES, merged_shapes), merged),
    ):
        wanted = names(module)
        assert found.keys() == wanted.keys()
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    with pytest.raises(NameMappingError, match="missing .*(\n.*)*deformed_kernel"):
        convert(merged_state, TORCH_NAMES, shapes)
    with pytest.raises(NameMappingError, match="dep_conv1.weight .*: no rule knows it"):
        convert(state, MERGED_TORCH_NAMES, merged_shapes)
    with pytest.raises(
        NameMappingError, match=r"the shape \(1, heads, 1, slots, 1, 1\), this has \(2, 9\)"
    ):
        convert(state | {"relative_position_bias_table": np.zeros((2, 9))}, TORCH_NAMES, shapes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kernel_size=4), "kernel_size is 4; allowed: odd numbers"),
        (dict(kernel_size=-1), "kernel_size is -1; allowed: odd numbers"),
        (dict(num_heads=5), "num_heads is 5; allowed: divisors of dim / dim_reduction = 12"),
        (
            dict(num_heads=4, dim_reduction=2),
            "num_heads is 4; allowed: divisors of dim / dim_reduction = 6",
        ),
        (dict(dim_reduction=5), "dim_reduction is 5; allowed: divisors of dim=12"),
        (dict(position_bias="keys"), "position_bias is 'keys'; allowed: key, logit, none"),
        (dict(path="both"), "path is 'both'; allowed: deformed, fixed, learned"),
        (dict(impl="auto2"), "impl is 'auto2'; allowed: auto, shift, conv, im2col"),
        (
            dict(path="fixed", share_kernel=False),
            "share_kernel is False with path 'fixed'; allowed: True",
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)
