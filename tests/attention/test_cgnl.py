"""CGNL against the generalized non-local operator with its whole L x L matrix, and what its group
norm does to it.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.cgnl import CompactGeneralizedNonLocal, kernel_response, rbf_coefficients


def filled(dim, *, seed=0, **options):
    """A block whose weights are all random; theta and phi are large, so that the powers of the RBF
    differ.
    """
    block = nnx.eval_shape(lambda: CompactGeneralizedNonLocal(dim, **options, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    for path, variable in nnx.to_flat_state(nnx.state(block, (nnx.Param, nnx.BatchStat))):
        value = (
            rng.uniform(0.5, 1.5, variable.shape)
            if path[-1] in ("scale", "var")
            else rng.normal(size=variable.shape)
        )
        large = 20 if path[0] in ("theta", "phi") and options.get("kernel") == "rbf" else 1
        variable.set_value(jnp.asarray(large * value, jnp.float32))
    return nnx.view(block, capture=True, use_running_average=True, raise_if_not_found=False)


def inputs(*shape):
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@jax.jit
def run(block, x):
    """Output and captured kernel output."""
    y, recorded = nnx.capture(block, nnx.Intermediate)(x)
    return y, nnx.to_pure_dict(recorded)["gate"][0]


def generalized_non_local(theta, phi, g, kernel):
    """K g with K [L, L] written out; the vectors hold all channels of all positions."""
    return np.stack([[kernel(t, p) for p in phi] for t in theta]) @ g


KERNELS = {
    "dot": lambda t, p: t * p,
    "rbf": lambda t, p: (
        math.exp(-2e-4) * sum((2e-4 * t * p) ** k / math.factorial(k) for k in range(4))
    ),
    "rbf 1": lambda t, p: math.exp(-2e-4) * (1 + 2e-4 * t * p),
}


def by_hand(block, x, kernel, *, scale, batch_norm=False):
    """Output and kernel output in float64 loops over samples and groups."""
    weight = {"/".join(path): np.float64(v[...]) for path, v in nnx.to_flat_state(nnx.state(block))}
    x = np.float64(x)
    flat = x.reshape(len(x), -1, x.shape[-1])
    theta, phi, g = (flat @ weight[f"{name}/kernel"] for name in ("theta", "phi", "g"))
    width, wide = block.inner_dim // block.groups, block.dim // block.groups
    response, z = np.zeros_like(theta), np.zeros_like(flat)
    for sample, group in itertools.product(range(len(x)), range(block.groups)):
        here, there = (slice(group * n, (group + 1) * n) for n in (width, wide))
        vectors = [a[sample, :, here].reshape(-1) for a in (theta, phi, g)]
        answer = generalized_non_local(*vectors, kernel) / (
            math.sqrt(len(vectors[0])) if scale else 1
        )
        response[sample, :, here] = answer.reshape(-1, width)
        z[sample, :, there] = response[sample, :, here] @ weight["out_kernel"][:, there]
        if not batch_norm:
            part = z[sample, :, there]
            z[sample, :, there] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    if batch_norm:
        z = (z - weight["norm/mean"]) / np.sqrt(weight["norm/var"] + 1e-5)
    y = flat + z * weight["norm/scale"] + weight["norm/bias"]
    return y.reshape(x.shape), response.reshape(*x.shape[:-1], -1)


VARIANTS = {
    "dot, one group": ((3, 5), dict(groups=1), "dot"),
    "dot, groups, scale": ((3, 5), dict(groups=3, use_scale=True), "dot"),
    "rbf": ((5, 3), dict(groups=2, kernel="rbf"), "rbf"),
    "rbf of order 1, scale, inner": (
        (4,),
        dict(groups=2, kernel="rbf", order=1, use_scale=True, inner_dim=4),
        "rbf 1",
    ),
    "batch norm, clip": ((2, 1, 3), dict(groups=3, norm="batch"), "dot"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_generalized_non_local_operator(name):
    spatial, options, kernel = VARIANTS[name]
    block, x = filled(12, **options), inputs(2, *spatial, 12)
    scale, batch_norm = options.get("use_scale", False), options.get("norm") == "batch"
    expected = by_hand(block, x, KERNELS[kernel], scale=scale, batch_norm=batch_norm)
    for found, reference in zip(run(block, x), expected, strict=True):
        assert found.shape == reference.shape
        np.testing.assert_allclose(found, reference, atol=1e-5 * np.abs(reference).max())


def test_series_with_the_true_beta_is_the_gaussian():
    """exp(-gamma (t - p)^2) = exp(-gamma t^2) exp(-gamma p^2) exp(2 gamma t p): the series stands
    for the last factor.
    """
    gamma, beta = 1e-4, math.exp(-2e-4)
    t, p, g = 40 * np.random.default_rng(0).normal(size=(3, 30))
    exact = generalized_non_local(t, p, g, lambda t, p: math.exp(-gamma * (t - p) ** 2))

    def error(order):
        weighted = g * np.exp(-gamma * p**2) / beta
        answer = kernel_response(
            *(a.reshape(1, 5, 1, 6) for a in (t, p, weighted)), rbf_coefficients(order)
        )
        return (
            np.abs(np.asarray(answer).reshape(-1) * np.exp(-gamma * t**2) - exact).max()
            / np.abs(exact).max()
        )

    errors = [error(order) for order in (1, 3, 5, 9)]
    assert errors == sorted(errors, reverse=True)
    assert (
        errors[1] > 1e-4 and errors[-1] < 1e-5
    )  # the released order is no exact Gaussian for entries of this size


def test_sums_of_bfloat16_maps_are_float32():
    theta, phi, g = (
        np.random.default_rng(1).normal(1, 1, size=(3, 1, 900, 1, 4)).astype(jnp.bfloat16)
    )
    found = kernel_response(theta, phi, g, (0, 1))
    exact = np.float64(theta) * (np.float64(phi) * np.float64(g)).sum()
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_group_norm_cancels_the_sums_and_batch_norm_keeps_them(norm):
    block, x = filled(16, groups=4, norm=norm), inputs(2, 6, 5, 16)
    y, response = run(block, x)
    grads = jax.jit(jax.grad(lambda block: jnp.sum(block(x) * x[::-1])))(
        nnx.view(block, capture=False)
    )
    of_phi, of_theta = (
        float(jnp.abs(getattr(grads, name).kernel[...]).max()) for name in ("phi", "theta")
    )
    theta = (x @ np.asarray(block.theta.kernel[...])).reshape(response.shape)
    signs = np.sign((np.asarray(response) * theta).reshape(2, -1, 4, 2).sum(axis=(1, 3)))
    assert {-1, 1} <= set(signs.flat)  # both occur
    only_sign = theta.reshape(2, 30, 4, 2) * signs[:, None, :, None]
    kernel = np.asarray(block.out_kernel[...]).reshape(2, 4, 4)
    z = np.einsum("bpgi,igo->bpgo", only_sign, kernel).reshape(x.shape)
    difference = np.abs(x + block.norm(jnp.asarray(z)) - y).max()
    if norm == "group":
        assert difference < 1e-3 and of_phi < 1e-4 * of_theta
    else:
        assert difference > 1 and of_phi > 0.1 * of_theta


def test_gradients_of_the_sums_where_nothing_cancels_them():
    """d/d phi of sum(c y) with y = theta sum(phi g): g sum(c theta), and the same with phi and g
    exchanged.
    """
    theta, phi, g, cotangent = np.random.default_rng(2).normal(size=(4, 2, 7, 3, 2))

    def loss(phi, g):
        return jnp.sum(kernel_response(jnp.asarray(theta), phi, g, (0, 1)) * cotangent)

    found = jax.grad(loss, (0, 1))(jnp.asarray(phi), jnp.asarray(g))
    common = (cotangent * theta).sum(axis=(1, 3), keepdims=True)
    np.testing.assert_allclose(found[0], common * g, atol=1e-5 * np.abs(common * g).max())
    np.testing.assert_allclose(found[1], common * phi, atol=1e-5 * np.abs(common * phi).max())


@pytest.mark.parametrize("name", ["cgnl", "cgnlx"])
def test_starts_as_the_identity_and_can_leave_it(name):
    block, x = create_attention(name, 16, rngs=nnx.Rngs(0)), inputs(2, 3, 4, 16)

    @jax.jit
    def output_and_gradient(block):
        return block(x), jax.grad(lambda block: jnp.sum(block(x) ** 2))(block)

    y, gradient = output_and_gradient(block)
    np.testing.assert_array_equal(y, x)
    assert np.abs(gradient.norm.scale[...]).min() > 0 and np.abs(gradient.norm.bias[...]).min() > 0
    assert block.groups == 8 and block.inner_dim == 8
    assert np.std(block.theta.kernel[...]) == pytest.approx(0.01, rel=0.3)
    if name == "cgnlx":
        assert block.coefficients == pytest.approx(
            [0.9998, 1.9996e-4, 1.9996e-8, 1.33307e-12], rel=1e-4
        )


def parameters(**options):
    block = nnx.eval_shape(lambda: create_attention(dict(options), 1024, rngs=nnx.Rngs(0)))
    return sum(p.size for p in jax.tree.leaves(nnx.state(block, nnx.Param)))


def test_counts_of_the_released_blocks():
    assert parameters(name="cgnl") == parameters(name="cgnlx") == 1_640_448
    c, inner = 1024, 96
    assert (
        parameters(name="cgnl", inner_dim=inner, groups=4) == 3 * c * inner + c * inner // 4 + 2 * c
    )
    block = nnx.eval_shape(lambda: create_attention("cgnl", c, rngs=nnx.Rngs(0)))
    assert block.macs(14, 14) == 196 * (3 * 512 * 1024 + 512 * 1024 // 8)


def test_batch_norm_takes_the_momentum_of_its_host():
    block = create_attention(
        dict(name="cgnl", norm="batch"), 16, norm_momentum=0.7, rngs=nnx.Rngs(0)
    )
    assert block.norm.momentum == 0.7 and not np.any(block.norm.scale[...])


WRONG = [
    (
        dict(),
        r"groups is 8; .* the 24 channels and the 12 inner channels .* here 1, 2, 3, 4, 6, 12",
    ),
    (dict(groups=3, inner_dim=4), "groups is 3; .* here 1, 2, 4"),
    (dict(groups=0), "groups is 0"),
    (dict(groups=1, inner_dim=0), "0 inner channels"),
    (dict(groups=4, kernel="gauss"), "kernel is 'gauss'; allowed: 'dot', 'rbf'"),
    (dict(groups=4, norm="bn"), "norm is 'bn'; allowed: 'group', 'batch'"),
    (dict(groups=4, kernel="rbf", order=0), "order is 0; allowed: 1 or more"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CompactGeneralizedNonLocal(24, **options, rngs=nnx.Rngs(0))
