"""A stage of a hierarchical Transformer: an embedding, positions, a class token, blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.interop import grids
from lambdanet.layers import resize_macs, trunc_normal

from ..backbone import Recompute, Row
from .blocks import TransformerBlock
from .embeddings import resize_positions

Grid = tuple[int, int]


class Stage(Recompute):
    """An embedding and the blocks on its grid.

    Args:
        embed: maps the previous stage's map to this one's.
        blocks: the blocks, in order.
        norm: after the last block, or None.
        tables: what `stage_tables` makes.
        grid: height and width that the positions stand for; read with them alone.
        remat: recompute each block's inner activations in the backward pass.
    """

    def __init__(
        self,
        embed: nnx.Module,
        blocks: Iterable[nnx.Module],
        *,
        norm: nnx.Module | None = None,
        tables: dict[str, jax.Array | None],
        grid: Grid,
        remat: bool,
    ):
        self.embed, self.blocks, self.norm = embed, nnx.List(blocks), norm
        for name, table in tables.items():
            setattr(self, name, None if table is None else nnx.Param(table))
        self.grid, self.remat = grid, remat

    def __call__(
        self, x: Float[Array, "b h w c"], *, with_token: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *s d"]:
        """Maps [b, h, w, c] to the stage's map [b, *embed.out_size(h, w), d].

        With the class token the blocks see a list of tokens, and so does the caller: [b, 1 +
        positions, d], the class first.
        """
        x = self.run_blocks(self.enter(x, with_token=with_token), rngs)
        return x if self.norm is None else self.norm(x)

    def enter(self, x: Float[Array, "b h w c"], *, with_token: bool) -> Float[Array, "b *s d"]:
        """Embeds a map, adds the positions and puts the class token before them."""
        x = self.embed(x)
        if self.position_embedding is not None:
            x = x + resize_positions(self.position_embedding[...], self.grid, x.shape[1:3]).astype(
                x.dtype
            )
        if with_token:
            token = self.class_token[...]
            if self.class_position is not None:
                token = token + self.class_position[...]
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], *token.shape))
            x = jnp.concatenate([token, x.reshape(x.shape[0], -1, x.shape[-1])], axis=1)
        return x

    def table_grids(self) -> dict[str, grids.Grid]:
        """Returns the map that the positions stand for."""
        if self.position_embedding is None:
            return {}
        return {"position_embedding": grids.Grid("map", self.grid)}

    def run_blocks(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Applies the blocks, which take and return tokens alone."""
        run = self.recomputed(_run_block)
        for block in self.blocks:
            x = run(block, x, rngs)
        return x

    def recomputed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, with recomputation if `remat` is set."""
        return nnx.remat(function) if self.remat else function

    def rows(self, h: int, w: int, *, with_token: bool) -> list[Row]:
        """Returns the summary for one [h, w] input map."""
        rows = [(f"embed/{name}", *rest) for name, *rest in self.embed.rows(h, w)]
        h, w, dim = rows[-1][2]
        tokens = 1 if with_token else 0
        if self.position_embedding is not None:
            macs = resize_macs(self.grid, (h, w), dim)
            rows.append(
                ("position_embedding", "embedding", tuple(self.position_embedding.shape), macs)
            )
        for name in ("class_token", "class_position"):
            if getattr(self, name) is not None:
                rows.append((name, "embedding", (1, dim), 0))
        for index, block in enumerate(self.blocks):
            rows += [
                (f"blocks/{index}/{name}", *rest) for name, *rest in block.rows(h, w, tokens=tokens)
            ]
        if self.norm is not None:
            rows.append(("norm", "layer_norm", rows[-1][2], 0))
        return rows


def stage_tables(
    grid: Grid, width: int, *, positions: bool, token: bool, param_dtype: Any, rngs: nnx.Rngs
) -> dict[str, jax.Array | None]:
    """Returns the learned positions [positions of the grid, width], added after the embedding, the
    class token [1, width] and its position [1, width]; None for what a stage does not have.

    Args:
        grid: height and width of the stage's map.
        width: channels.
        positions: whether there are learned positions.
        token: whether there is a class token.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def table(count: int, wanted: bool) -> jax.Array | None:
        return trunc_normal(0.02)(rngs.params(), (count, width), param_dtype) if wanted else None

    return dict(
        position_embedding=table(grid[0] * grid[1], positions),
        class_token=table(1, token),
        class_position=table(1, token and positions),
    )


def _run_block(block: TransformerBlock, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    return block(x, rngs=rngs)
