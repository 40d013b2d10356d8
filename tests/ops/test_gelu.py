"""GELU: both forms in float64 and in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops.gelu import gelu


def test_forms_have_equal_values_and_gradients():
    with jax.enable_x64(True):
        x = jnp.linspace(-9, 9, 181)
        for of in (
            lambda x, impl: gelu(x, impl=impl),
            jax.grad(lambda x, impl: jnp.sum(jnp.sin(gelu(x, impl=impl)))),
        ):
            np.testing.assert_allclose(of(x, "erf"), of(x, "erfc"), rtol=1e-11, atol=1e-14)


def test_half_precision_is_computed_in_float32():
    x = jnp.linspace(-4, 4, 65).astype(jnp.bfloat16)
    y = gelu(x, impl="erf")
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, gelu(x.astype(jnp.float32), impl="erf").astype(jnp.bfloat16))


def test_refuses():
    with pytest.raises(ValueError, match="impl is 'tanh'; allowed: auto, erfc, erf"):
        gelu(jnp.ones(1), impl="tanh")
