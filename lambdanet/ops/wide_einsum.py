"""Products of narrow numbers that are added up in wide ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def wide_einsum(equation: str, *operands: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` with sums, and the result, in float32 or wider.

    On CPU the operands are widened first: XLA's CPU backend has no product of two bfloat16 matrices
    with a float32 result for every order of axes (UNIMPLEMENTED, DotThunk BF16 x BF16 = F32). The
    products are the same, since two bfloat16 numbers multiply exactly in float32. Elsewhere the
    backend is asked for the wide result.

    Args:
        equation: as in `jnp.einsum`.
        operands: of one floating dtype, or of several, which are promoted.

    Returns:
        The sums, in the operands' common dtype or float32, whichever is wider.
    """
    wide = jnp.promote_types(jnp.result_type(*operands), jnp.float32)
    if jax.default_backend() == "cpu":
        return jnp.einsum(equation, *(operand.astype(wide) for operand in operands))
    return jnp.einsum(equation, *operands, preferred_element_type=wide)
