"""The exact Gaussian error linear unit."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

IMPLS = ("auto", "erfc", "erf")


def gelu(x: Float[Array, "*s"], *, impl: str = "auto") -> Float[Array, "*s"]:
    """x P(z < x) for a standard normal z, not the tanh approximation.

    Args:
        x: any shape.
        impl: 'erfc' (`jax.nn.gelu`, exact in relative terms far below zero too); 'erf' (PyTorch's
            formula, x (1 + erf) / 2, with a gradient from `x` alone: the same to float32's rounding
            of x, and on CPU twice as fast, where XLA writes erfc as two branches); 'auto' takes
            'erf' on CPU and 'erfc' elsewhere.

    Returns:
        The dtype of `x`; computed in float32 or wider.

    Raises:
        ValueError: unknown impl.
    """
    if impl not in IMPLS:
        raise ValueError(f"gelu: impl is {impl!r}; allowed: {', '.join(IMPLS)}")
    if impl == "erfc" or (impl == "auto" and jax.default_backend() != "cpu"):
        return jax.nn.gelu(x, approximate=False)
    precise = jnp.promote_types(x.dtype, jnp.float32)
    return _by_erf(x.astype(precise)).astype(x.dtype)


def _share(x: jax.Array, sign: float = 1.0) -> jax.Array:
    """P(z < x), from erf(sign x): the same number for both signs."""
    return 0.5 * (1.0 + sign * lax.erf(x * (sign * math.sqrt(0.5))))


@jax.custom_vjp
def _by_erf(x: jax.Array) -> jax.Array:
    return x * _share(x)


def _backward(x, cotangent):
    # With the other sign XLA does not find the forward pass's erf: it would write that out there as
    # a map of its own, and reading it again takes longer than the polynomial.
    return (cotangent * (_share(x, -1.0) + x * jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)),)


_by_erf.defvjp(lambda x: (_by_erf(x), x), _backward)
