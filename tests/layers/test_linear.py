"""The linear layer is flax's, with one axis of rows in its products."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.layers import Linear


def layers(**options):
    return [layer(4, 3, **options, rngs=nnx.Rngs(0)) for layer in (Linear, nnx.Linear)]


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 3), (2, 0, 3)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_values_and_gradients(leading, use_bias):
    x = jax.random.normal(jax.random.key(0), (*leading, 4))

    def run(layer):
        def loss(layer, x):
            y = layer(x)
            return jnp.sum(jnp.sin(y)), y

        return nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)(layer, x)

    for a, b in zip(*(jax.tree.leaves(run(x)) for x in layers(use_bias=use_bias)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_the_kernel_copies_nothing():
    """What flattening the rows is for: XLA's CPU backend turns neither factor."""

    def turned(layer):
        graph, weights = nnx.split(layer)

        def loss(weights, x):
            return jnp.sum(jnp.sin(nnx.merge(graph, weights)(jnp.sin(x))))

        x = jnp.ones((2, 8, 8, 4))
        program = jax.jit(jax.grad(loss, (0, 1))).lower(weights, x).compile().as_text()
        return re.findall(r"f32\[[34],128\]\{1,0\}", program)

    ours, theirs = layers()
    assert not turned(ours)
    assert turned(theirs)
