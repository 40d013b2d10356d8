"""Class probabilities of every record of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int


def predict(
    forward: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n classes"]]:
    """Runs a model over evaluation batches.

    Args:
        forward: maps weights and uint8 images [b, h, w, c] to logits.
        weights: pytree of arrays.
        batches: dicts with image, id and mask; rows with mask 0 are left out.

    Returns:
        (ids [n], softmax probabilities float32 [n, classes]).

    Raises:
        ValueError: there is no batch.
    """
    probabilities = jax.jit(lambda weights, images: jax.nn.softmax(forward(weights, images)))
    ids, rows = [], []
    for batch in batches:
        keep = np.asarray(batch["mask"]) > 0
        ids.append(np.asarray(batch["id"])[keep])
        rows.append(np.asarray(probabilities(weights, batch["image"]))[keep])
    if not ids:
        raise ValueError("no batches to predict: the split has no records")
    return np.concatenate(ids), np.concatenate(rows)
