"""Diagonality-preserving loss (Zhang et al. 2024): attention should be symmetric and strongest on
the diagonal.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

VARIANTS = ("paper", "flipped", "norm_flipped", "norm_hinge_agg", "norm_hinge_pair")
MATRICES = ("logits", "probs")


def diagonality_loss(
    logits: Float[Array, "*b n n"], variant: str = "norm_hinge_agg", on: str = "logits"
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Returns (symmetry term, diagonality term) of every matrix; their sum is the loss.

        sym  = sum_ij |A_ij - A_ji|,     diag = sum_i ((N - 1) A_ii - sum_{j != i} A_ij)
        paper             sym            diag
        flipped           sym           -diag
        norm_flipped      sym / N^2     -diag / (N (N - 1))
        norm_hinge_agg    sym / N^2      mean_i relu(mean_{j != i} A_ij - A_ii)
        norm_hinge_pair   sym / N^2      mean_{i != j} relu(A_ij - A_ii)

    The diagonality term of a 1x1 matrix is 0. |x| and relu have derivative 0 at 0. Float32 or
    wider.

    Source: Zhang et al. 2024 (see `LessAttention`), equations 8 and 9: a matrix should have A_ij =
    A_ji and A_ii > A_ij. 'paper' is the printed loss, whose second term grows with the diagonal, so
    that minimising it does the opposite; 'flipped' has the other sign, and on logits neither is
    bounded below. The other three are ours: 'norm_hinge_pair' is zero exactly where both properties
    hold, not strictly; 'norm_hinge_agg' compares the diagonal with the mean of its row, as the
    printed term does.

    Args:
        logits: logits of attention layers, queries first.
        variant: one of the table above.
        on: 'logits', as the paper's notation has it | 'probs', their softmax over the keys.

    Raises:
        ValueError: an unknown choice, or matrices that are not square.
    """
    for name, value, allowed in (("variant", variant, VARIANTS), ("on", on, MATRICES)):
        if value not in allowed:
            raise ValueError(
                f"diagonality loss: {name} is {value!r}; allowed: {', '.join(allowed)}"
            )
    n = logits.shape[-1]
    if logits.ndim < 2 or logits.shape[-2] != n:
        raise ValueError(
            f"diagonality loss: the logits have shape {logits.shape}; expected square matrices "
            "[..., n, n]"
        )
    a = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    a = jax.nn.softmax(a, axis=-1) if on == "probs" else a
    symmetry = jnp.abs(a - jnp.swapaxes(a, -1, -2)).sum(axis=(-2, -1))
    if variant not in ("paper", "flipped"):
        symmetry = symmetry / n**2
    if n == 1:
        return symmetry, jnp.zeros_like(symmetry)
    diagonal = jnp.diagonal(a, axis1=-2, axis2=-1)
    excess = (a.sum(axis=-1) - diagonal) / (
        n - 1
    ) - diagonal  # mean of the others less the diagonal, per row
    if variant == "paper":
        return symmetry, -n * (n - 1) * excess.mean(axis=-1)
    if variant == "flipped":
        return symmetry, n * (n - 1) * excess.mean(axis=-1)
    if variant == "norm_flipped":
        return symmetry, excess.mean(axis=-1)
    if variant == "norm_hinge_agg":
        return symmetry, jax.nn.relu(excess).mean(axis=-1)
    pairs = jax.nn.relu(a - diagonal[..., None]).sum(axis=(-2, -1))  # i = j adds nothing
    return symmetry, pairs / (n * (n - 1))
