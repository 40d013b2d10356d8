"""Softmax attention inside the cells of a grid."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from lambdanet.ops.softmax_attention import softmax_attention


def cell_runs(length: int, cells: int) -> list[tuple[int, int, int]]:
    """Cuts an axis into cells of floor(length / cells) positions, the last one taking what is left.

    Args:
        length: positions of the axis.
        cells: wanted number of cells; a shorter axis is cut into single positions.

    Returns:
        Runs of equal cells as (first position, cells, positions per cell): one run, or two if the
        last cell is longer.
    """
    cells = min(cells, length)
    side, rest = divmod(length, cells)
    if rest == 0:
        return [(0, cells, side)]
    return [(0, cells - 1, side), ((cells - 1) * side, 1, side + rest)]


def cell_attention(
    query: Float[Array, "b h w d"],
    key: Float[Array, "b h w d"],
    value: Float[Array, "b h w v"],
    *,
    cells: int,
    scale: float,
    return_weights: bool = False,
) -> tuple[Float[Array, "b h w v"], list[Float[Array, "b r s p p"]] | None]:
    """Positions attend to the positions of their own cell; at most four batched attentions,
    whatever the number of cells.

    Args:
        query: queries.
        key: keys.
        value: values.
        cells: cells per axis, as `cell_runs` cuts them.
        scale: factor of the logits.
        return_weights: also return the softmax.

    Returns:
        The outputs, and the weights [b, rows of cells, cells in a row, positions, positions] of
        each rectangle of equal cells, in the order of `full_map`, or None.
    """
    h, w = query.shape[1:3]
    lines, weights = [], []
    for rows in cell_runs(h, cells):
        line = []
        for columns in cell_runs(w, cells):
            y, part = softmax_attention(
                *(_cut(a, rows, columns) for a in (query, key, value)),
                scale=scale,
                return_weights=return_weights,
            )
            line.append(rearrange(y, "b r s (h w) v -> b (r h) (s w) v", h=rows[2], w=columns[2]))
            weights.append(part)
        lines.append(jnp.concatenate(line, axis=2))
    return jnp.concatenate(lines, axis=1), weights if return_weights else None


def _cut(a: jax.Array, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> jax.Array:
    """[b, h, w, c] -> [b, rows of cells, cells in a row, positions of a cell, c], for one rectangle
    of equal cells.
    """
    (top, row_cells, height), (left, column_cells, width) = rows, columns
    a = a[:, top : top + row_cells * height, left : left + column_cells * width]
    return rearrange(a, "b (r h) (s w) c -> b r s (h w) c", r=row_cells, s=column_cells)


def full_map(
    weights: Sequence[Float[Array, "b r s p p"]], size: tuple[int, int], cells: int
) -> Float[Array, "b h w h w"]:
    """Spreads the weights of `cell_attention` over all pairs of positions, zero between cells; for
    pictures and tests.
    """
    (h, w), rest = size, iter(weights)
    full = jnp.zeros((weights[0].shape[0], h, w, h, w), weights[0].dtype)
    for top, row_cells, rows in cell_runs(h, cells):
        for left, column_cells, columns in cell_runs(w, cells):
            part = rearrange(
                next(rest), "b r s (h w) (H W) -> b r s h w H W", h=rows, w=columns, H=rows
            )
            part = jnp.einsum(
                "brshwHW,rR,sS->brhswRHSW", part, jnp.eye(row_cells), jnp.eye(column_cells)
            )
            part = rearrange(part, "b r h s w R H S W -> b (r h) (s w) (R H) (S W)")
            where = (slice(top, top + row_cells * rows), slice(left, left + column_cells * columns))
            full = full.at[:, *where, *where].set(part.astype(full.dtype))
    return full
