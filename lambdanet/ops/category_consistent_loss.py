"""The category-consistent loss of CCNet's journal version: features of a class together, classes
apart.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class CategoryConsistentLoss(NamedTuple):
    """Terms of the loss, all scalars: `total` is the weighted sum of the others."""

    total: jax.Array
    variance: jax.Array
    distance: jax.Array
    regularisation: jax.Array


def category_consistent_loss(
    features: Float[Array, "*positions c"],
    labels: Int[Array, " *positions"],
    num_classes: int,
    *,
    ignore_label: int = 255,
    variance_margin: float = 0.5,
    distance_margin: float = 1.5,
    variance_weight: float | Float[Array, ""] = 1.0,
    distance_weight: float | Float[Array, ""] = 1.0,
    regularisation_weight: float | Float[Array, ""] = 0.001,
) -> CategoryConsistentLoss:
    r"""Returns the loss that is added to the segmentation loss on the features of CCNet's
    head, the map 'embedding' of `models.segmentation.CrissCrossHead`.

    With C the classes present in the batch, N_c their numbers of labelled positions, mu_c their
    mean features, dv and dd the two margins and |.| the Euclidean norm:

        variance = 1/|C| sum_c 1/N_c sum_{i of class c} f(|mu_c - h_i|)
            f(d) = 0 for d <= dv;  (d - dv)^2 for dv < d <= dd;  d - dd + (dd - dv)^2 beyond
        distance = 1/(|C| (|C| - 1)) sum_{a != b} max(0, 2 dd - |mu_a - mu_b|)^2
        regularisation = 1/|C| sum_c |mu_c|

    f is continuous, but its slope falls from 2 (dd - dv) to 1 at dd; that is the paper's function,
    not the Huber loss that some ports make of it. Distance is 0 with fewer than two classes, all is
    0 where nothing is labelled, and the gradient of a norm at 0 is 0. Computed in float32. The
    paper applies it to a copy of the attention's output reduced to few channels by a 1x1
    convolution.

    Source: Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation" (TPAMI 2020),
    section 3.4. Its code was never released.

    Args:
        features: [b, *spatial, channels]; the means are over the whole batch.
        labels: [b, *spatial], 0 <= label < num_classes or `ignore_label`.
        num_classes: classes of the data set, whether present or not.
        ignore_label: positions with it are left out.
        variance_margin: dv, distance to the mean that costs nothing.
        distance_margin: dd; means 2 dd apart cost nothing.
        variance_weight: alpha.
        distance_weight: beta.
        regularisation_weight: gamma.

    Returns:
        The total and its terms. All are NaN if a label is neither a class nor `ignore_label`: under
        jit nothing can be raised, and a wrong label must not train silently.

    Raises:
        ValueError: shapes that do not fit, labels that are not integers, or margins not 0 <=
            variance_margin <= distance_margin.
    """
    if features.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"category-consistent loss: labels have shape {labels.shape}, dtype {labels.dtype}; "
            "expected integers of shape "
            f"{features.shape[:-1]}, as the features have without their channels"
        )
    if not 0 <= variance_margin <= distance_margin:
        raise ValueError(
            f"category-consistent loss: margins are variance_margin={variance_margin}, "
            f"distance_margin={distance_margin}; "
            "allowed: 0 <= variance_margin <= distance_margin"
        )
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    h, labels = features.reshape(-1, features.shape[-1]).astype(dtype), labels.reshape(-1)
    ignored = labels == ignore_label
    wrong = jnp.any(~ignored & ((labels < 0) | (labels >= num_classes)))
    member = jax.nn.one_hot(
        jnp.where(ignored, -1, labels), num_classes, dtype=dtype
    )  # rows of zeros where ignored

    # Static shapes: every class has a row, and those not present are masked. The products with ones
    # and zeros select and sum; they are to round nothing on accelerators either.
    exact = jax.lax.Precision.HIGHEST
    count = member.sum(0)
    present, size = count > 0, jnp.maximum(count, 1)
    classes = jnp.maximum(present.sum(), 1)
    mean = jnp.einsum("ik,ic->kc", member, h, precision=exact) / size[:, None]

    d = _norm(jnp.einsum("ik,kc->ic", member, mean, precision=exact) - h)
    quadratic, linear = (
        (d - variance_margin) ** 2,
        d - distance_margin + (distance_margin - variance_margin) ** 2,
    )
    cost = jnp.where(d <= variance_margin, 0, jnp.where(d <= distance_margin, quadratic, linear))
    variance = (jnp.einsum("ik,i->k", member, cost, precision=exact) / size).sum() / classes

    pairs = present[:, None] & present & ~jnp.eye(num_classes, dtype=bool)
    gap = jnp.maximum(0, 2 * distance_margin - _norm(mean[:, None] - mean))
    distance = jnp.where(pairs, gap**2, 0).sum() / jnp.maximum(classes * (classes - 1), 1)
    regularisation = _norm(mean).sum() / classes  # the mean of a class not present is 0

    total = (
        variance_weight * variance
        + distance_weight * distance
        + regularisation_weight * regularisation
    )
    return CategoryConsistentLoss(
        *(jnp.where(wrong, jnp.nan, t) for t in (total, variance, distance, regularisation))
    )


def _norm(vectors: jax.Array) -> jax.Array:
    """Euclidean norm over the last axis, with gradient 0 at 0."""
    square = jnp.sum(vectors**2, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
