"""A model with weights of a source in place of initial values."""

from __future__ import annotations

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lambdanet.training.state import split_model
from lambdanet.training.weights import HEADS, fill, read_weights

from . import pretrained
from .closest import closest_model


def build_with_weights(
    name: str,
    build: Callable[..., nnx.Module],
    source: str | os.PathLike | bool,
    *,
    head: str,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Builds a model and gives it the weights of a source; see `models.create_model`.

    Args:
        name: of the model.
        build: of `model_builder`.
        source: see `lambdanet.interop.sources`; True for the public weights of `pretrained.TABLE`.
        head: of `lambdanet.training.weights.HEADS`.
        rngs: initialises what is not taken from the source.

    Raises:
        FileNotFoundError, ValueError: as `create_model`.
    """
    if head not in HEADS:
        raise ValueError(f"pretrained_head={head!r}; allowed: {', '.join(HEADS)}")
    if isinstance(source, bool):
        source = pretrained.source_of(name)
    shapes = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    graphdef, *trees = split_model(shapes)
    found = read_weights(source, shapes, *trees, head=head, closest=closest_model)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(found)):
        found = fill(found, tuple(split_model(build(rngs=rngs))[1:]))
    return nnx.merge(graphdef, *jax.tree.map(jnp.asarray, found))
