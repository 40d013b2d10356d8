"""Mixup and cutmix of images with one class each, and the targets of their losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def draw_mixture(
    key: jax.Array, height: int, width: int, *, mixup_alpha: float, cutmix_alpha: float
) -> Float[Array, "5"]:
    """Draws how a batch is mixed: (weight, row, half height, column, half width), which
    `mixture_map` makes a map of.

    mixup (Zhang et al. 2018): weight lambda ~ Beta(alpha, alpha), no box. cutmix (Yun et al. 2019):
    weight 1, and a box of area 1 - lambda around a uniform centre, clipped at the border. With both
    on, a fair coin picks one.

    Args:
        key: random key.
        height: pixels.
        width: pixels.
        mixup_alpha: 0 = off.
        cutmix_alpha: 0 = off; at least one is on.
    """
    coin, up, cut, row, column = jax.random.split(key, 5)
    drawn = []
    if mixup_alpha:
        drawn.append(jnp.zeros(5).at[0].set(jax.random.beta(up, mixup_alpha, mixup_alpha)))
    if cutmix_alpha:
        half = jnp.sqrt(1.0 - jax.random.beta(cut, cutmix_alpha, cutmix_alpha)) / 2
        rows = (jax.random.randint(row, (), 0, height), half * height)
        columns = (jax.random.randint(column, (), 0, width), half * width)
        drawn.append(jnp.stack([jnp.ones(()), *rows, *columns]))
    return jnp.where(jax.random.bernoulli(coin), *drawn) if len(drawn) == 2 else drawn[0]


def mixture_map(drawn: Float[Array, "5"], height: int, width: int) -> Float[Array, "h w"]:
    """Returns the weight of the own image at each pixel, 0 inside the box; the partner gets the
    rest. Its mean is the label's weight: lambda for mixup, the exact share of pixels for cutmix.
    """
    weight, row, half_height, column, half_width = drawn
    rows = jnp.abs(jnp.arange(height) - row) < half_height
    columns = jnp.abs(jnp.arange(width) - column) < half_width
    return weight * (1.0 - (rows[:, None] & columns[None, :]))


def soft_targets(
    label: Int[Array, " b"], num_classes: int, smoothing: float
) -> Float[Array, "b classes"]:
    """One-hot targets with label smoothing: 1 - s + s / classes for the class, s / classes
    elsewhere.
    """
    one_hot = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
    return one_hot * (1.0 - smoothing) + smoothing / num_classes
