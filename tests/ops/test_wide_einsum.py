"""Products of bfloat16 operands with float32 sums, at the optimisation level that users have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops.wide_einsum import wide_einsum

as_users_do = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
SIZES = dict(b=2, m=6, h=3, d=4, k=5)


@pytest.mark.parametrize(
    "equation",
    [
        "bmhd,mk->bkhd",  # of token compression; UNIMPLEMENTED in XLA's CPU backend as it stands
        "bmhd,hmk->bkhd",
        "bmhd,bkhd->bhmk",
        "md,dk->mk",
        "bmd,d->bm",
        "d,kd->k",
    ],
)
def test_bfloat16_products_run_and_are_added_up_in_float32(equation):
    draw = np.random.default_rng(0)
    shapes = [
        tuple(SIZES[letter] for letter in part)
        for part in equation[: equation.index("-")].split(",")
    ]
    exact = [draw.integers(-64, 64, size=shape).astype(np.float32) for shape in shapes]

    @as_users_do
    def run(*operands):
        y, pull = jax.vjp(functools.partial(wide_einsum, equation), *operands)
        return y, pull(y)

    y, gradients = run(*(jnp.asarray(a, jnp.bfloat16) for a in exact))
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, np.einsum(equation, *exact))  # integers: exact in float32 only
    for gradient, wide in zip(gradients, run(*exact)[1], strict=True):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_array_equal(gradient, wide.astype(jnp.bfloat16))


def test_wider_operands_stay_as_wide():
    with jax.enable_x64():
        y = wide_einsum("md,dk->mk", jnp.ones((2, 3), jnp.float64), jnp.ones((3, 2), jnp.float32))
        assert y.dtype == jnp.float64
