"""Attention whose queries and keys have one channel each, at the optimisation level of users: as a
product of bfloat16 matrices it ended the process on CPU with jaxlib 0.10.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops.softmax_attention import softmax_attention

as_users_do = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})


def by_formula(query, key, value, heads):
    if heads:
        query, key, value = (jnp.swapaxes(a, 1, 2) for a in (query, key, value))
    weights = jax.nn.softmax(0.7 * query * jnp.swapaxes(key, -1, -2), -1)
    mixed = weights @ value
    return jnp.swapaxes(mixed, 1, 2) if heads else mixed


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_formula(dtype, heads):
    draw = np.random.default_rng(0)
    between = (4,) if heads else ()
    exact = [
        jnp.asarray(draw.standard_normal((2, 64, *between, c)), dtype).astype(jnp.float32)
        for c in (1, 1, 8)
    ]

    def attend(*arrays):
        given = (a.astype(dtype) for a in arrays)
        found = softmax_attention(*given, scale=0.7, heads=heads)[0]
        return jnp.sum(jnp.sin(found.astype(jnp.float32))), found.astype(jnp.float32)

    def formula(*arrays):
        found = by_formula(*arrays, heads)
        return jnp.sum(jnp.sin(found)), found

    (_, found), gradients = as_users_do(jax.value_and_grad(attend, (0, 1, 2), True))(*exact)
    (_, expected), others = jax.jit(jax.value_and_grad(formula, (0, 1, 2), True))(*exact)
    close = dict(float32=1e-5, bfloat16=0.03)[dtype]
    np.testing.assert_allclose(found, expected, atol=close)
    for ours, theirs in zip(gradients, others, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=close * np.abs(theirs).max())
