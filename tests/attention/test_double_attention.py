"""Double attention against its equations, and what a wrong softmax axis would break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.double_attention import DoubleAttention


def filled(dim, **options):
    """A block in the evaluation view with all weights random."""
    block = nnx.eval_shape(lambda: DoubleAttention(dim, **options, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(block, (nnx.Param, nnx.BatchStat))):
        value = (
            rng.uniform(0.5, 1.5, variable.shape)
            if path[-1] in ("scale", "var")
            else rng.normal(size=variable.shape)
        )
        variable.set_value(jnp.asarray(value, jnp.float32))
    return nnx.view(block, capture=True, use_running_average=True, raise_if_not_found=False)


def inputs(*shape):
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@jax.jit
def run(block, x):
    """Output and captured map."""
    y, recorded = nnx.capture(block, nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(recorded)["attention_map"][0]


def by_hand(block, x):
    """The equations in float64, one position and one descriptor at a time; and the N x N weights
    they amount to.
    """
    weight = {"/".join(path): np.float64(v[...]) for path, v in nnx.to_flat_state(nnx.state(block))}
    outputs, weights = [], []
    for sample in np.float64(x).reshape(len(x), -1, x.shape[-1]):
        a, b, v = (
            sample @ weight[f"{n}/kernel"] + weight[f"{n}/bias"]
            for n in ("feature", "gather", "distribute")
        )
        n = b.shape[1]
        maps = [np.exp(b[:, j]) / np.exp(b[:, j]).sum() for j in range(n)]
        descriptors = [
            sum(share * feature for share, feature in zip(one, a, strict=True)) for one in maps
        ]
        mixtures = [np.exp(row) / np.exp(row).sum() for row in v]
        z = np.stack([sum(row[j] * descriptors[j] for j in range(n)) for row in mixtures])
        weights.append([sum(row[j] * maps[j] for j in range(n)) for row in mixtures])
        if block.out is not None:
            z = z @ weight["out/kernel"] + weight.get("out/bias", 0)
        if block.norm is not None:
            z = (z - weight["norm/mean"]) / np.sqrt(weight["norm/var"] + 1e-5) * weight[
                "norm/scale"
            ] + weight["norm/bias"]
        outputs.append(sample + z if block.residual else z)
    spatial = x.shape[1:-1]
    return np.stack(outputs).reshape(*x.shape[:-1], -1), np.reshape(
        weights, (len(x), 1, *spatial, *spatial)
    )


VARIANTS = {
    "default": ((3, 5), dict()),
    "clip, widths": ((2, 3, 2), dict(feature_dim=5, num_descriptors=3)),
    "sequence, bare": (
        (7,),
        dict(feature_dim=5, num_descriptors=3, norm="none", residual=False, project_out=False),
    ),
    "no norm": ((3, 2), dict(norm="none")),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_equations(name):
    spatial, options = VARIANTS[name]
    block, x = filled(8, **options), inputs(2, *spatial, 8)
    for found, reference in zip(run(block, x), by_hand(block, x), strict=True):
        assert found.shape == reference.shape
        np.testing.assert_allclose(found, reference, atol=1e-5 * np.abs(reference).max())


def test_maps_sum_to_one_over_positions_and_over_descriptors():
    block, x = filled(8, num_descriptors=3), 3 * inputs(2, 2, 3, 4, 8)
    gather, distribute = block.maps(x)
    assert gather.shape == distribute.shape == (2, 24, 3)
    np.testing.assert_allclose(gather.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(distribute.sum(axis=2), 1, rtol=1e-5)
    assert (
        np.abs(gather.sum(axis=2) - 1).max() > 0.1
        and np.abs(distribute.sum(axis=1) - 1).max() > 0.1
    )
    rows = run(block, x)[1].reshape(2, 24, 24).sum(axis=-1)
    np.testing.assert_allclose(rows, 1, rtol=1e-5)


def test_batch_order_and_size_change_nothing():
    block, x = filled(8), inputs(3, 3, 5, 8)
    whole, _ = run(block, x)
    np.testing.assert_allclose(
        run(block, x[[2, 0, 1]])[0], whole[np.array([2, 0, 1])], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(run(block, x[1:2])[0], whole[1:2], rtol=1e-5, atol=1e-5)


def test_nothing_is_quadratic_in_the_map():
    block = nnx.view(filled(8), capture=False)
    positions = 24 * 32
    jaxpr = jax.make_jaxpr(block)(inputs(1, 24, 32, 8))
    largest = max(v.aval.size for equation in jaxpr.jaxpr.eqns for v in equation.outvars)
    assert largest <= positions * 8


def test_starts_as_the_identity_only_with_its_norm():
    x = inputs(2, 3, 4, 8)
    block = nnx.view(
        create_attention("double_attention", 8, rngs=nnx.Rngs(0)), use_running_average=True
    )
    np.testing.assert_array_equal(block(x), x)
    assert block.out.bias is None and block.feature.bias is not None
    bare = DoubleAttention(8, norm="none", rngs=nnx.Rngs(0))
    assert bare.out.bias is not None and np.abs(bare(x) - x).max() > 1e-2


def count_and_macs(dim, *size, **options):
    block = nnx.eval_shape(lambda: DoubleAttention(dim, **options, rngs=nnx.Rngs(0)))
    return sum(p.size for p in jax.tree.leaves(nnx.state(block, nnx.Param))), block.macs(*size)


def test_defaults_reconstruct_the_papers_network():
    """33.0 M and 6.5 G are printed for ResNet-50 with five blocks; at half the channels the sum is
    32.91 M and 6.43 G.
    """
    resnet50, macs = 25_557_032, 3.86e9
    stage3, stage4 = count_and_macs(512, 28, 28), count_and_macs(1024, 14, 14)
    assert resnet50 + 2 * stage3[0] + 3 * stage4[0] == 32_911_400
    assert macs + 2 * stage3[1] + 3 * stage4[1] == pytest.approx(6.43e9, rel=1e-3)
    quarter = dict(feature_dim=128, num_descriptors=128)
    assert count_and_macs(512, 28, 28, **quarter)[1] == pytest.approx(0.231e9, rel=2e-3)
    c, m, n = 512, 100, 60
    count, macs = count_and_macs(c, 5, 3, feature_dim=m, num_descriptors=n, norm="none")
    assert count == c * (2 * m + 2 * n) + m + 2 * n + c
    assert macs == 15 * (c * (2 * m + 2 * n) + 2 * m * n)


WRONG = [
    (dict(norm="bn"), "norm is 'bn'; allowed: 'batch', 'none'"),
    (dict(feature_dim=0), "feature_dim is 0"),
    (dict(num_descriptors=-1), "num_descriptors is -1"),
    (
        dict(project_out=False, residual=False),
        "norm is 'batch', residual is False with project_out=False",
    ),
    (
        dict(project_out=False, norm="none"),
        "norm is 'none', residual is True with project_out=False",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DoubleAttention(8, **options, rngs=nnx.Rngs(0))
