"""A stage of LaViT: blocks that hand the logits of their attention on, and the residual from the
stage before.

Source: Zhang et al. 2024 (arXiv 2406.00427); what of it is the paper's stands in
`models/lavit/lavit.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.attention_residual import AttentionResidual
from lambdanet.attention.less_attention import LessAttention

from ..backbone import Row
from ..hierarchical.blocks import TransformerBlock
from ..hierarchical.embeddings import ConvEmbed
from ..hierarchical.stage import Grid, Stage


class LavitStage(Stage):
    """A stage with the logits that pass from block to block.

    Args:
        embed: maps the previous stage's map to this one's.
        blocks: the blocks, in order.
        carries: whether the blocks take and return logits.
        attention_residual: makes the addition to the first block's logits from the previous
            stage's, or None.
        tables: as in `Stage`.
        grid: height and width that the positions stand for.
        remat: recompute each block's inner activations in the backward pass.
    """

    def __init__(
        self,
        embed: ConvEmbed,
        blocks: Iterable[TransformerBlock],
        *,
        carries: bool,
        attention_residual: AttentionResidual | None,
        tables: dict[str, jax.Array | None],
        grid: Grid,
        remat: bool,
    ):
        super().__init__(embed, blocks, tables=tables, grid=grid, remat=remat)
        self.attention_residual, self.carries = attention_residual, carries

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        logits: Float[Array, "b heads n m"] | None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b *s d"], list[tuple[bool, Float[Array, "b _ _ _"] | None]]]:
        """Applies the stage.

        Args:
            x: the previous stage's map.
            logits: of that stage's last block; read with an attention residual.
            rngs: `dropout` stream; read in the training view when a rate is above 0.

        Returns:
            The stage's map [b, h, w, d], or with a class token the list [b, 1 + positions, d], and
            for every block whether it is one of less-attention, and its logits, None where nobody
            reads them; [] for blocks without.
        """
        before = x.shape[1:3]
        grid = self.embed.out_size(*before)
        x = self.enter(x, with_token=self.class_token is not None)
        if not self.carries:
            return self.run_blocks(x, rngs), []
        run, handed = self.recomputed(functools.partial(_run_carrying, grid)), []
        addition = (
            None if self.attention_residual is None else self.attention_residual(logits, before)
        )
        for block in self.blocks:
            less = isinstance(block.attention, LessAttention)
            x, logits = run(block, x, logits if less else addition, rngs)
            addition = None  # the first block is a vanilla one, and it alone gets one
            handed.append((less, logits))
        return x, handed

    def rows(self, h: int, w: int) -> list[Row]:
        """Returns the summary for one [h, w] input map."""
        rows = super().rows(h, w, with_token=self.class_token is not None)
        if self.attention_residual is None:
            return rows
        grid = self.embed.out_size(h, w)
        kh, kw = self.blocks[0].attention.key_grid(*grid)
        shape = (self.attention_residual.heads_out, grid[0] * grid[1], kh * kw)
        macs = self.attention_residual.macs(h, w, keys=kh * kw)
        first = next(i for i, row in enumerate(rows) if row[0].startswith("blocks/"))
        rows.insert(first, ("attention_residual", "AttentionResidual", shape, macs))
        return rows


def _run_carrying(
    grid: Grid,
    block: TransformerBlock,
    x: jax.Array,
    carried: jax.Array | None,
    rngs: nnx.Rngs | None,
) -> tuple[jax.Array, jax.Array | None]:
    mixed, logits = block.attention(block.norm1(x), carried, grid=grid, rngs=rngs)
    return block.finish(x, mixed, rngs=rngs), logits
