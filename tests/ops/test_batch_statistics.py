"""Batch normalisation in training: values, statistics and all gradients against flax in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lambdanet.layers import batch_norm
from lambdanet.ops.batch_statistics import normalise_batch


def plain(x, scale, bias, epsilon):
    axes = tuple(range(x.ndim - 1))
    mean, square = x.mean(axes), (x * x).mean(axes)
    var = jnp.maximum(0.0, square - mean**2)
    return (x - mean) / jnp.sqrt(var + epsilon) * scale + bias, (mean, var)


def test_values_statistics_and_gradients():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, scale, bias = (
            jnp.asarray(rng.standard_normal(s) + 0.5) for s in ((3, 5, 4), (4,), (4,))
        )
        weights = [jnp.asarray(rng.standard_normal(s)) for s in ((3, 5, 4), (4,), (4,))]

        def loss(function, x, scale, bias):
            outputs = function(x, scale, bias, 1e-5)
            return sum(
                jnp.sum(w * jnp.sin(y))
                for w, y in zip(weights, jax.tree.leaves(outputs), strict=True)
            ), outputs

        (_, ours), of_ours = jax.value_and_grad(loss, (1, 2, 3), has_aux=True)(
            normalise_batch, x, scale, bias
        )
        (_, theirs), of_theirs = jax.value_and_grad(loss, (1, 2, 3), has_aux=True)(
            plain, x, scale, bias
        )
    for a, b in zip(
        jax.tree.leaves((ours, of_ours)), jax.tree.leaves((theirs, of_theirs)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_layer_is_flaxs_and_masks_still_work():
    x = jax.random.normal(jax.random.key(0), (4, 3, 8)).astype(jnp.bfloat16)
    mask = jnp.arange(4)[:, None, None] < 3
    for options in ({}, {"mask": mask}):
        ours = batch_norm(8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        theirs = nnx.BatchNorm(8, momentum=0.9, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        a, b = ours(x, **options), theirs(x, **options)
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=0.02)
        for name in ("mean", "var"):
            np.testing.assert_allclose(
                getattr(ours, name)[...], getattr(theirs, name)[...], rtol=1e-5
            )


def test_constant_channels_have_finite_gradients():
    gradient = jax.grad(lambda x: normalise_batch(x, jnp.ones(1), jnp.zeros(1), 1e-5)[0][0, 0])(
        jnp.full((3, 1), 7.0)
    )
    assert np.isfinite(gradient).all()
