"""The check of a block's input that stands before any device work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def is_count(value: Any) -> bool:
    """Whether a value is an integer of 1 or more (True is none)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def as_pair(value: Any) -> tuple[int, int] | None:
    """Returns (value, value) of an integer, or a pair of integers as a tuple; None for anything
    else.
    """
    pair = (value, value) if not isinstance(value, Sequence) else tuple(value)
    whole = len(pair) == 2 and all(
        isinstance(one, int) and not isinstance(one, bool) for one in pair
    )
    return pair if whole else None


def check_map(block: str, x: jax.Array, dim: int, spatial_dims: Sequence[int] = (1, 2, 3)) -> None:
    """Raises ValueError unless `x` is [batch, *spatial, dim] with an allowed number of spatial
    axes, none of them empty, and of a floating dtype.

    Args:
        block: name for the message.
        x: the input.
        dim: channels the block was built for.
        spatial_dims: allowed numbers of spatial axes.
    """
    if x.ndim - 2 not in spatial_dims or x.shape[-1] != dim or 0 in x.shape:
        axes = " or ".join(map(str, spatial_dims))
        raise ValueError(
            f"{block}: the input has shape {x.shape}; expected [batch, {axes} spatial axes, {dim} "
            f"channels]{', none of them empty' if 0 in x.shape else ''}"
        )
    check_floating(block, x)


def check_floating(block: str, x: jax.Array) -> None:
    """Raises ValueError if the input holds integers, to which a block would round its output."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{block}: the input has dtype {x.dtype}; expected a floating one: convert it by "
            "x.astype('float32')"
        )
