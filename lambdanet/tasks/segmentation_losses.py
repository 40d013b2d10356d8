"""What segmentation minimises, of the maps that a model gives: for single pictures and for frames
of videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from lambdanet.ops.category_consistent_loss import category_consistent_loss
from lambdanet.ops.segmentation_loss import segmentation_loss
from lambdanet.ops.upsampled_pixels import IGNORED

Terms = dict[str, tuple[jax.Array, jax.Array]]


def losses(
    maps: Mapping[str, Float[Array, "b _h _w _k"]],
    labels: Int[Array, "b height width"],
    config: Any,
    *,
    align_corners: bool,
) -> tuple[Float[Array, ""], Terms]:
    """Cross entropy of the logits, of the auxiliary head and of the head's further maps, and the
    category-consistent loss, times their weights.

    Hard examples are mined for the main logits only: on both it does harm (OCNet).

    Args:
        maps: 'logits' at any resolution, and perhaps 'auxiliary' (of an auxiliary head),
            'embedding' (features for the category-consistent loss) and further logits by name.
        labels: 255 = ignored.
        config: reads the section `segmentation` and, for a message, model.name.
        align_corners: how the logits are resized to the labels.

    Returns:
        (what is minimised, shown): loss and, if it has several terms, cross_entropy and
        auxiliary_NAME (without their weights), each as (sum, weight of the pixels); pixel_accuracy
        as (right, labelled).

    Raises:
        ValueError: the category-consistent loss is asked for, and there is no 'embedding'.
    """
    own, maps = config.segmentation, dict(maps)
    options = dict(mean=own.loss_mean, class_weights=tuple(own.class_weights))
    options["align_corners"] = align_corners
    mining = dict(ohem=own.ohem, threshold=own.ohem_threshold, min_kept=own.ohem_min_kept)
    logits = maps.pop("logits")
    main = segmentation_loss(logits, labels, **options, **mining)
    embedding = maps.pop("embedding", None)
    value, shown = main.value, {}
    for name, further in maps.items():
        weight = own.auxiliary_weight if name == "auxiliary" else own.branch_weight
        if weight:
            term = segmentation_loss(further, labels, **options).value
            shown[f"auxiliary_{'head' if name == 'auxiliary' else name}"] = term
            value = value + weight * term
    if own.category_consistent:
        if embedding is None:
            raise ValueError(
                f"segmentation.category_consistent={own.category_consistent}: the head of "
                f"{config.model.name!r} gives no 'embedding'; set it to 0, or take a head that "
                "does: 'criss_cross' with embedding_channels=16"
            )
        term = _category_consistency(embedding, labels, logits.shape[-1])
        shown["auxiliary_category_consistent"] = term
        value = value + own.category_consistent * term
    if shown:
        shown["cross_entropy"] = main.value
    terms = {"loss": value, **shown}
    sums = {name: (term * main.weight, main.weight) for name, term in terms.items()}
    return value, sums | {"pixel_accuracy": (main.right, main.valid)}


def _category_consistency(
    features: Float[Array, "b h w c"], labels: Int[Array, "b height width"], classes: int
) -> Float[Array, ""]:
    """The category-consistent loss of features, each with the label at its middle."""
    at = [
        ((np.arange(few) + 0.5) * many / few).astype(int)
        for few, many in zip(features.shape[1:3], labels.shape[1:], strict=True)
    ]
    nearest = labels[:, at[0]][:, :, at[1]]
    return category_consistent_loss(features, nearest, classes, ignore_label=IGNORED).total
