"""A stage of LaViT: blocks that hand the logits of their attention on, and the residual from the
stage before.

Source: Zhang et al. 2024 (arXiv 2406.00427); what of it is the paper's stands in
`models/lavit/lavit.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.attention_residual import AttentionResidual
from lambdanet.attention.less_attention import LessAttention
from lambdanet.layers import DropPath, resize_macs

from ..hierarchical.blocks import TransformerBlock
from ..hierarchical.embeddings import ConvEmbed, Row, layer_norm, resize_positions

Grid = tuple[int, int]


class AttentionBlock(nnx.Module):
    """x = x + drop_path(attention(norm1(x))): a block without MLP, for the attention layers of
    which it is the whole.

    Args:
        dim: channels.
        attention: called by the stage, which goes on with `finish`.
        context: context blocks that stand after the block in this order.
        drop_path_rate: probability of dropping the branch.
        epsilon: of the norm.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        attention: nnx.Module,
        *,
        context: Iterable[nnx.Module],
        drop_path_rate: float,
        epsilon: float,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.dim, self.attention, self.drop_path = dim, attention, DropPath(drop_path_rate)
        self.norm1 = layer_norm(
            dim, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.context = nnx.List(context)

    def finish(
        self,
        x: Float[Array, "b *s c"],
        mixed: Float[Array, "b *s c"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b *s c"]:
        """Adds what the attention made of `norm1(x)`; then the context blocks."""
        x = x + self.drop_path(mixed, rngs=rngs)
        for block in self.context:
            x = block(x, rngs=rngs)
        return x

    def rows(self, h: int, w: int, *, tokens: int = 0) -> list[Row]:
        """Returns the summary for one [h, w] map, read as a list when `tokens` more are put before
        it.
        """
        shape = (h * w + tokens, self.dim) if tokens else (h, w, self.dim)
        macs = self.attention.macs(*shape[:-1])
        rows = [
            ("norm1", "layer_norm", shape, 0),
            ("attention", type(self.attention).__name__, shape, macs),
        ]
        return rows + [
            (f"context/{i}", type(c).__name__, shape, c.macs(h, w))
            for i, c in enumerate(self.context)
        ]


class LavitStage(nnx.Module):
    """An embedding and the blocks on its grid, with the logits that pass from block to block.

    Args:
        embed: maps the previous stage's map to this one's.
        blocks: the blocks, in order.
        carries: whether the blocks take and return logits.
        attention_residual: makes the addition to the first block's logits from the previous
            stage's, or None.
        position_embedding: [positions, channels], added after the embedding, or None.
        grid: height and width that these positions stand for.
        class_token: [1, channels], or None.
        class_position: [1, channels], its position embedding, or None.
        remat: recompute each block's inner activations in the backward pass.
    """

    def __init__(
        self,
        embed: ConvEmbed,
        blocks: Iterable[TransformerBlock | AttentionBlock],
        *,
        carries: bool,
        attention_residual: AttentionResidual | None,
        position_embedding: jax.Array | None,
        grid: Grid,
        class_token: jax.Array | None,
        class_position: jax.Array | None,
        remat: bool,
    ):
        def stored(array):
            return None if array is None else nnx.Param(array)

        self.embed, self.blocks = embed, nnx.List(blocks)
        self.attention_residual = attention_residual
        self.position_embedding, self.grid = stored(position_embedding), grid
        self.class_token, self.class_position = stored(class_token), stored(class_position)
        self.carries, self.remat = carries, remat

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        logits: Float[Array, "b heads n m"] | None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "b *s d"], list[tuple[bool, Float[Array, "b heads n m"]]]]:
        """Applies the stage.

        Args:
            x: the previous stage's map.
            logits: of that stage's last block; read with an attention residual.
            rngs: `dropout` stream; read in the training view when a rate is above 0.

        Returns:
            The stage's map [b, h, w, d], or with a class token the list [b, 1 + positions, d], and
            for every block whether it is one of less-attention, and its logits; [] for blocks
            without.
        """
        before = x.shape[1:3]
        x = self.embed(x)
        grid = x.shape[1:3]
        if self.position_embedding is not None:
            x = x + resize_positions(self.position_embedding[...], self.grid, grid).astype(x.dtype)
        if self.class_token is not None:
            token = self.class_token[...] + (
                0 if self.class_position is None else self.class_position[...]
            )
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], *token.shape))
            x = jnp.concatenate([token, x.reshape(x.shape[0], -1, x.shape[-1])], axis=1)
        keep = nnx.remat if self.remat else lambda function: function
        if not self.carries:
            run = keep(_run_block)
            for block in self.blocks:
                x = run(block, x, rngs)
            return x, []
        run, handed = keep(functools.partial(_run_carrying, grid)), []
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
        rows = [(f"embed/{name}", *rest) for name, *rest in self.embed.rows(h, w)]
        before, (h, w, dim) = (h, w), rows[-1][2]
        tokens = 0 if self.class_token is None else 1
        if self.position_embedding is not None:
            macs = resize_macs(self.grid, (h, w), dim)
            rows.append(
                ("position_embedding", "embedding", tuple(self.position_embedding.shape), macs)
            )
        for name in ("class_token", "class_position"):
            if getattr(self, name) is not None:
                rows.append((name, "embedding", (1, dim), 0))
        if self.attention_residual is not None:
            kh, kw = self.blocks[0].attention.key_grid(h, w)
            shape = (self.attention_residual.heads_out, h * w, kh * kw)
            macs = self.attention_residual.macs(*before, keys=kh * kw)
            rows.append(("attention_residual", "AttentionResidual", shape, macs))
        for index, block in enumerate(self.blocks):
            rows += [
                (f"blocks/{index}/{name}", *rest) for name, *rest in block.rows(h, w, tokens=tokens)
            ]
        return rows


def _run_block(block: TransformerBlock, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    return block(x, rngs=rngs)


def _run_carrying(
    grid: Grid,
    block: TransformerBlock | AttentionBlock,
    x: jax.Array,
    carried: jax.Array | None,
    rngs: nnx.Rngs | None,
) -> tuple[jax.Array, jax.Array]:
    mixed, logits = block.attention(block.norm1(x), carried, grid=grid, rngs=rngs)
    return block.finish(x, mixed, rngs=rngs), logits
