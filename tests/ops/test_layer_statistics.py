"""Layer normalisation: values and both modes of differentiation against flax in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.layers import LayerNorm
from lambdanet.ops.layer_statistics import normalise_features

SHAPES = ((2, 3, 5), (5,), (5,))


def plain(x, scale, bias, epsilon):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(x.var(-1, keepdims=True) + epsilon) * scale + bias


@pytest.mark.parametrize("mode", ["reverse", "forward", "second"])
def test_values_and_derivatives(mode):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        operands, along = (
            [jnp.asarray(rng.standard_normal(s) + 0.5) for s in SHAPES] for _ in range(2)
        )
        operands[0] = operands[0].at[0, 0].set(7.0)  # variance zero

        def loss(function, *operands):
            return jnp.sum(jnp.sin(function(*operands, 1e-5)))

        def run(function):
            of = jax.grad(loss, (1, 2, 3))
            if mode == "reverse":
                return function(*operands, 1e-5), of(function, *operands)
            taken = loss if mode == "forward" else of
            return jax.jvp(lambda *t: taken(function, *t), operands, along)

        for a, b in zip(
            *(jax.tree.leaves(run(f)) for f in (normalise_features, plain)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_is_flaxs_and_masks_still_work(dtype):
    x = 3 * jax.random.normal(jax.random.key(0), (4, 3, 8)) + 1
    ours = LayerNorm(8, epsilon=1e-6, dtype=dtype, rngs=nnx.Rngs(0))
    theirs = nnx.LayerNorm(8, epsilon=1e-6, use_fast_variance=False, dtype=dtype, rngs=nnx.Rngs(0))
    for options in ({}, {"mask": jnp.arange(8) < 6}):

        def both(layer, options=options):
            y, back = jax.vjp(lambda x: layer(x, **options), x.astype(dtype))
            return y, *back(jnp.sin(3 * y))

        for a, b in zip(both(ours), both(theirs), strict=True):
            assert a.dtype == b.dtype == dtype
            tolerance = 1e-5 if dtype == jnp.float32 else 0.02
            np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance)
