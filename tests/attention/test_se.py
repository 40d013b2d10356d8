"""Squeeze-and-excitation against its formula, with the name tables of two PyTorch ports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.se import TORCH_NAMES
from lambdanet.interop.names import convert


def formula(x, weights):
    axes = tuple(range(1, x.ndim - 1))
    hidden = np.maximum(x.mean(axes) @ weights["reduce/kernel"] + weights.get("reduce/bias", 0), 0)
    gate = 1 / (1 + np.exp(-(hidden @ weights["expand/kernel"] + weights.get("expand/bias", 0))))
    return x * gate.reshape(x.shape[0], *[1] * len(axes), -1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial", [(5,), (5, 3), (1, 1), (2, 3, 4)])
def test_equals_the_formula(bias, spatial):
    rng = np.random.default_rng(0)
    layer = create_attention(dict(name="se", bias=bias, ratio=4), 12, rngs=nnx.Rngs(0))
    weights = {}
    for path, variable in nnx.to_flat_state(nnx.state(layer)):
        weights["/".join(path)] = rng.normal(size=variable.shape).astype(np.float32)
        variable[...] = jnp.asarray(weights["/".join(path)])
    assert set(weights) == {
        f"{m}/{p}"
        for m in ("reduce", "expand")
        for p in (("kernel", "bias") if bias else ("kernel",))
    }
    x = rng.normal(size=(2, *spatial, 12)).astype(np.float32)
    np.testing.assert_allclose(layer(jnp.asarray(x)), formula(x, weights), rtol=1e-5, atol=1e-5)
    assert layer.macs(*spatial) == 2 * 12 * 3


def test_bfloat16_gates_in_float32():
    layer = create_attention("se", 8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    exact = create_attention("se", 8, rngs=nnx.Rngs(0))(x)
    y = layer(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y, exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("first", "second", "tail"), [("fc1", "fc2", (1, 1)), ("fc.0", "fc.2", ())]
)
def test_names_of_both_ports(first, second, tail):
    rng = np.random.default_rng(1)
    state = {
        f"{first}.weight": rng.normal(size=(3, 12, *tail)),
        f"{second}.weight": rng.normal(size=(12, 3, *tail)),
    }
    ours = convert(state, TORCH_NAMES, {"reduce/kernel": (12, 3), "expand/kernel": (3, 12)})
    np.testing.assert_array_equal(ours["reduce/kernel"], state[f"{first}.weight"].reshape(3, 12).T)
    np.testing.assert_array_equal(ours["expand/kernel"], state[f"{second}.weight"].reshape(12, 3).T)


@pytest.mark.parametrize("ratio", [0, 9])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=f"ratio is {ratio} for 8 channels; allowed: 1 <= ratio"):
        create_attention(dict(name="se", ratio=ratio), 8, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("spatial", [(5,), (3, 5)])
def test_capture_shows_the_gate(spatial):
    layer = nnx.view(create_attention("se", 8, rngs=nnx.Rngs(0)), capture=True)
    x = jax.random.normal(jax.random.key(0), (2, *spatial, 8))
    y, recorded = nnx.capture(layer, nnx.Intermediate)(x)
    (gate,) = nnx.to_pure_dict(recorded)["gate"]
    assert gate.shape == (2, *(1,) * len(spatial), 8) and np.ptp(gate) > 0.1
    np.testing.assert_allclose(x * gate, y, rtol=1e-6)


# Parameters of the network without squeeze-excite, blocks per stage, and with it: with and without
# biases.
NETWORKS = {
    "ResNet-50": (25_557_032, (3, 4, 6, 3), 28_088_024, 28_071_976),
    "ResNet-101": (44_549_160, (3, 4, 23, 3), 49_326_872, None),
    "ResNet-152": (60_192_808, (3, 8, 36, 3), 66_821_848, None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_of_the_papers_networks(name):
    def parameters(dim, bias):
        layer = nnx.eval_shape(
            lambda: create_attention(dict(name="se", ratio=16, bias=bias), dim, rngs=nnx.Rngs(0))
        )
        return sum(p.size for p in jax.tree.leaves(nnx.state(layer, nnx.Param)))

    plain, blocks, *totals = NETWORKS[name]
    for bias, total in zip((True, False), totals, strict=True):
        if total is not None:
            assert (
                plain + sum(n * parameters(256 * 2**stage, bias) for stage, n in enumerate(blocks))
                == total
            )
