"""The global context block against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.gc import GlobalContext


def filled(dim, **options):
    """A block with all weights random."""
    block = nnx.eval_shape(lambda: GlobalContext(dim, **options, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(block, nnx.Param)):
        variable.set_value(jnp.asarray(rng.normal(size=variable.shape), jnp.float32))
    return nnx.view(block, capture=True)


def inputs(*shape):
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@jax.jit
def run(block, x):
    y, recorded = nnx.capture(block, nnx.Intermediate)(x)
    return y, {name: values[0] for name, values in nnx.to_pure_dict(recorded).items()}


def by_hand(block, x):
    """Output, attention and gate in float64, sample by sample."""
    weight = {"/".join(path): np.float64(v[...]) for path, v in nnx.to_flat_state(nnx.state(block))}

    def transform(name, context):
        if f"{name}/reduce/kernel" in weight:
            h = context @ weight[f"{name}/reduce/kernel"] + weight[f"{name}/reduce/bias"]
            h = (h - h.mean()) / np.sqrt(h.var() + 1e-5) * weight[f"{name}/norm/scale"] + weight[
                f"{name}/norm/bias"
            ]
            context = np.maximum(h, 0)
        return context @ weight[f"{name}/expand/kernel"] + weight.get(f"{name}/expand/bias", 0)

    outputs, maps, gates = [], [], []
    for sample in np.float64(x).reshape(len(x), -1, x.shape[-1]):
        attention = np.full(len(sample), 1 / len(sample))
        if block.mask is not None:
            logits = np.exp(sample @ weight["mask/kernel"][:, 0] + weight["mask/bias"])
            attention = logits / logits.sum()
        context = sum(share * position for share, position in zip(attention, sample, strict=True))
        gate = (
            1 / (1 + np.exp(-transform("mul", context)))
            if block.mul is not None
            else np.ones(x.shape[-1])
        )
        outputs.append(sample * gate + (transform("add", context) if block.add is not None else 0))
        maps.append(attention)
        gates.append(gate)
    ones = (1,) * (x.ndim - 2)
    shown = {"attention_map": np.reshape(maps, (len(x), 1, *ones, *x.shape[1:-1]))}
    if block.mul is not None:
        shown["gate"] = np.reshape(gates, (len(x), *ones, x.shape[-1]))
    return np.reshape(outputs, x.shape), shown


VARIANTS = {
    "default": ((3, 5), dict()),
    "both, other ratio": ((5, 3), dict(fusion="both", reduction=4, min_hidden=1)),
    "gate, average, sequence": ((7,), dict(fusion="mul", pooling="average")),
    "simplified non-local, clip": ((2, 3, 2), dict(reduction=None)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_formula(name):
    spatial, options = VARIANTS[name]
    block, x = filled(12, **options), inputs(2, *spatial, 12)
    (y, shown), (expected, expected_shown) = run(block, x), by_hand(block, x)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())
    assert set(shown) == set(expected_shown)
    for key, value in expected_shown.items():
        assert shown[key].shape == value.shape
        np.testing.assert_allclose(shown[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("fusion", "factor"), [("add", 1), ("mul", 0.5), ("both", 0.5)])
def test_starts_as_the_identity_or_as_one_half(fusion, factor):
    block, x = (
        create_attention(dict(name="gc", fusion=fusion), 16, rngs=nnx.Rngs(0)),
        inputs(2, 3, 4, 16),
    )
    np.testing.assert_allclose(block(x), factor * x, rtol=1e-6)


def test_what_is_added_is_the_same_everywhere():
    block, x = filled(12), inputs(2, 3, 5, 12)
    added = run(block, x)[0] - x
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-5)
    assert np.abs(added).max() > 0.1


def parameters(dim, **options):
    block = nnx.eval_shape(lambda: GlobalContext(dim, **options, rngs=nnx.Rngs(0)))
    return sum(p.size for p in jax.tree.leaves(nnx.state(block, nnx.Param)))


def test_counts():
    def formula(c, r, transforms=1):
        return c + 1 + transforms * (2 * c * c // r + 3 * c // r + c)

    assert parameters(256) == formula(256, 16)
    assert parameters(256, reduction=4, fusion="both") == formula(256, 4, 2)
    assert parameters(256, pooling="average") == formula(256, 16) - 257
    assert parameters(256, reduction=None) == 257 + 256 * 256
    # in every block of the last three stages of ResNet-50: the published 28.08 M
    blocks = sum(number * parameters(dim) for number, dim in ((4, 512), (6, 1024), (3, 2048)))
    assert 25_557_032 + blocks == 28_078_773
    assert GlobalContext(32, rngs=nnx.Rngs(0)).hidden == 4 and parameters(
        32, min_hidden=1
    ) == formula(32, 16)


def test_multiply_adds():
    def macs(**options):
        return GlobalContext(32, **options, rngs=nnx.Rngs(0)).macs(3, 5)

    assert macs() == 2 * 15 * 32 + 2 * 32 * 4
    assert macs(pooling="average", fusion="both", reduction=4) == 2 * 2 * 32 * 8
    assert macs(reduction=None) == 2 * 15 * 32 + 32 * 32


WRONG = [
    (dict(fusion="sum"), "fusion is 'sum'; allowed: 'add', 'mul', 'both'"),
    (dict(pooling="max"), "pooling is 'max'; allowed: 'attention', 'average'"),
    (dict(reduction=0), "reduction is 0"),
    (dict(min_hidden=0), "min_hidden is 0; allowed: 1 or more"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GlobalContext(16, **options, rngs=nnx.Rngs(0))
