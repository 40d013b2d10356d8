"""The check of a block's input that stands before any device work."""

from __future__ import annotations

from collections.abc import Sequence

import jax


def check_map(block: str, x: jax.Array, dim: int, spatial_dims: Sequence[int] = (1, 2, 3)) -> None:
    """Raises ValueError unless `x` is [batch, *spatial, dim] with an allowed number of spatial axes, none of them empty.

    Args:
        block: name for the message.
        x: the input.
        dim: channels the block was built for.
        spatial_dims: allowed numbers of spatial axes.
    """
    if x.ndim - 2 not in spatial_dims or x.shape[-1] != dim or 0 in x.shape:
        axes = " or ".join(map(str, spatial_dims))
        raise ValueError(f"{block}: the input has shape {x.shape}; expected [batch, {axes} spatial axes, {dim} channels]")
