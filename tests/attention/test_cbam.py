"""CBAM against its formula, with all pools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.cbam import ConvolutionalBlockAttention


def filled(dim, **options):
    """A block in the evaluation view with all weights random."""
    block = nnx.eval_shape(lambda: ConvolutionalBlockAttention(dim, **options, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(block, (nnx.Param, nnx.BatchStat))):
        value = (
            rng.uniform(0.5, 1.5, variable.shape)
            if path[-1] == "var"
            else 0.4 * rng.normal(size=variable.shape)
        )
        variable.set_value(jnp.asarray(value, jnp.float32))
    return nnx.view(block, capture=True, use_running_average=True, raise_if_not_found=False)


def inputs(*shape):
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@jax.jit
def run(block, x):
    y, recorded = nnx.capture(block, nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(recorded)["gate"][0]


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def by_hand(block, x):
    """Output and gate in float64, the convolution tap by tap."""
    weight = {"/".join(path): np.float64(v[...]) for path, v in nnx.to_flat_state(nnx.state(block))}
    x = np.float64(x)
    axes = tuple(range(1, x.ndim - 1))
    pooled = {
        "avg": x.mean(axes),
        "max": x.max(axes),
        "lp": np.sqrt((x**2).sum(axes)),
        "lse": np.log(np.exp(x).sum(axes)),
    }
    logits = 0
    for name in block.pools:
        hidden = np.maximum(pooled[name] @ weight["reduce/kernel"] + weight["reduce/bias"], 0)
        logits = logits + hidden @ weight["expand/kernel"] + weight["expand/bias"]
    gate = sigmoid(logits).reshape(len(x), *(1,) * len(axes), -1)
    if block.spatial is not None:
        kernel, seen = weight["spatial/conv/kernel"], x * gate
        side, (height, width) = len(kernel), x.shape[1:3]
        seen = np.stack([seen.max(-1), seen.mean(-1)], -1)
        padded = np.pad(seen, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
        answer = np.zeros((len(x), height, width, 1))
        for i in range(side):
            for j in range(side):
                answer += padded[:, i : i + height, j : j + width] @ kernel[i, j]
        answer = (answer - weight["spatial/norm/mean"]) / np.sqrt(weight["spatial/norm/var"] + 1e-5)
        gate = gate * sigmoid(answer * weight["spatial/norm/scale"] + weight["spatial/norm/bias"])
    return x * gate, gate


VARIANTS = {
    "default": ((3, 5), dict()),
    "all pools, small kernel": ((9, 4), dict(pools=("avg", "max", "lp", "lse"), kernel_size=3)),
    "sequence": ((7,), dict(spatial=False, pools=("lse",))),
    "clip": ((2, 3, 2), dict(spatial=False)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_formula(name):
    spatial, options = VARIANTS[name]
    block, x = filled(12, reduction=4, **options), inputs(2, *spatial, 12)
    for found, reference in zip(run(block, x), by_hand(block, x), strict=True):
        assert found.shape == reference.shape
        np.testing.assert_allclose(found, reference, atol=1e-5 * np.abs(reference).max())


def test_spatial_gate_starts_at_one_half_with_slow_statistics():
    block, x = (
        create_attention("cbam", 16, norm_momentum=0.5, rngs=nnx.Rngs(0)),
        inputs(2, 3, 4, 16),
    )
    assert block.spatial.norm.momentum == 0.99
    assert not np.any(block.reduce.bias[...]) and not np.any(block.expand.bias[...])
    _, gate = run(nnx.view(block, capture=True, use_running_average=True), x)
    alone = create_attention(dict(name="cbam", spatial=False), 16, rngs=nnx.Rngs(0))
    _, channel_gate = run(nnx.view(alone, capture=True), x)
    np.testing.assert_allclose(gate, np.broadcast_to(channel_gate / 2, gate.shape), rtol=1e-6)
    wide = ConvolutionalBlockAttention(1024, rngs=nnx.Rngs(0))
    assert np.std(wide.reduce.kernel[...]) == pytest.approx((1 / 3 / 1024) ** 0.5, rel=0.05)


def test_root_of_squares_of_a_dead_channel_has_a_gradient():
    block, x = filled(8, reduction=2, pools=("lp",), spatial=False), inputs(1, 3, 4, 8)
    x[..., 2] = 0
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(nnx.view(block, capture=False)(x) ** 2)))(x)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def parameters(dim, **options):
    block = nnx.eval_shape(lambda: ConvolutionalBlockAttention(dim, **options, rngs=nnx.Rngs(0)))
    return sum(p.size for p in jax.tree.leaves(nnx.state(block, nnx.Param)))


# Parameters of the network without CBAM, blocks and channels per stage, and with CBAM.
NETWORKS = {
    "ResNet-18": (11_689_512, (2, 2, 2, 2), 64, 11_779_392),
    "ResNet-34": (21_797_672, (3, 4, 6, 3), 64, 21_960_468),
    "ResNet-50": (25_557_032, (3, 4, 6, 3), 256, 28_089_624),
    "ResNet-101": (44_549_160, (3, 4, 23, 3), 256, 49_330_172),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_of_the_released_networks(name):
    plain, blocks, width, total = NETWORKS[name]
    assert (
        plain + sum(number * parameters(width * 2**stage) for stage, number in enumerate(blocks))
        == total
    )


def test_count_and_multiply_adds():
    c = 256
    assert parameters(c) == 2 * c * c // 16 + c // 16 + c + 100
    assert parameters(c, reduction=4, spatial=False) == 2 * c * c // 4 + c // 4 + c
    block = ConvolutionalBlockAttention(32, rngs=nnx.Rngs(0))
    assert block.macs(3, 5) == 2 * 2 * 32 * 2 + 15 * 49 * 2
    assert (
        ConvolutionalBlockAttention(32, pools=("avg",), spatial=False, rngs=nnx.Rngs(0)).macs(3, 5)
        == 2 * 32 * 2
    )


WRONG = [
    (dict(reduction=17), "reduction is 17 for 16 channels; allowed: 1 <= reduction"),
    (
        dict(pools=("avg", "min")),
        r"pools is \('avg', 'min'\); allowed: .* 'avg', 'max', 'lp', 'lse'",
    ),
    (dict(pools=("avg", "avg")), "one or more of"),
    (dict(pools=()), r"pools is \(\)"),
    (dict(pools="max"), "pools is 'max'; allowed: a tuple"),
    (dict(kernel_size=4), "kernel_size is 4; allowed: odd"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ConvolutionalBlockAttention(16, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("spatial", [(5,), (2, 3, 2)])
def test_spatial_gate_needs_two_spatial_axes(spatial):
    with pytest.raises(
        ValueError,
        match=r"cbam: the input has shape .* expected \[batch, 2 spatial axes, 16 channels\]",
    ):
        ConvolutionalBlockAttention(16, rngs=nnx.Rngs(0))(inputs(1, *spatial, 16))
