"""Hierarchical vision Transformers: PVT, PVTv2, Swin, CSWin and NAT are presets of one class, with
any mixer in any stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention import create_attention
from lambdanet.attention.slide import SlideAttention
from lambdanet.interop.names import Rule
from lambdanet.layers import InitKeys, resize_macs, trunc_normal

from ..context import Context, place_context
from .blocks import Classifier, TransformerBlock
from .embeddings import EmbedSpec, Row, create_embed, layer_norm, resize_positions
from .names import MERGED_TORCH_NAMES, TORCH_NAMES
from .options import check_options, cycles

AttentionSpec = str | Mapping[str, Any]


class Stage(nnx.Module):
    """An embedding and the blocks on its grid.

    Args:
        embed: maps the previous stage's map to this one's.
        blocks: the blocks, in order.
        norm: after the last block, or None.
        position_embedding: [positions, channels], added after the embedding, or None.
        grid: height and width that these positions stand for; read with them alone.
        class_token: [1, channels], or None.
        class_position: [1, channels], its position embedding, or None.
        remat: recompute each block's inner activations in the backward pass.
    """

    def __init__(
        self,
        embed: nnx.Module,
        blocks: Iterable[TransformerBlock],
        *,
        norm: nnx.Module | None,
        position_embedding: jax.Array | None,
        grid: tuple[int, int],
        class_token: jax.Array | None,
        class_position: jax.Array | None,
        remat: bool,
    ):
        def stored(array):
            return None if array is None else nnx.Param(array)

        self.embed, self.blocks, self.norm = embed, nnx.List(blocks), norm
        self.position_embedding, self.grid = stored(position_embedding), grid
        self.class_token, self.class_position = stored(class_token), stored(class_position)
        self.remat = remat

    def __call__(
        self, x: Float[Array, "b h w c"], *, with_token: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *s d"]:
        """Maps [b, h, w, c] to the stage's map [b, *embed.out_size(h, w), d].

        With the class token the blocks see a list of tokens, and so does the caller: [b, 1 +
        positions, d], the class first.
        """
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
        run = nnx.remat(_run_block) if self.remat else _run_block
        for block in self.blocks:
            x = run(block, x, rngs)
        return x if self.norm is None else self.norm(x)

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


class HierarchicalTransformer(nnx.Module):
    """Stages of pre-norm Transformer blocks on ever coarser maps, then a norm, pooling and a linear
    classifier.

    Which layer mixes the positions is an option of each stage (`attention`), and what is inserted
    beside the blocks (`context`) another, so that every family can be had with every attention
    block. Runs on maps of any height and width, unless a mixer or context block is tied to a size;
    learned positions are resized bilinearly where the map is not that of `image_size`.

    Sources: Wang et al. 2021, "Pyramid Vision Transformer" (class token in the last stage, learned
    positions); Wang et al. 2022, "PVT v2" (overlapping embeddings, convolution in the MLP, a norm
    after every stage); Liu et al. 2021, "Swin Transformer" (patch merging); Dong et al. 2022,
    "CSWin Transformer"; Hassani et al. 2023, "Neighborhood Attention Transformer". The embedding of
    a stage stands at its start, where some references have it at the end of the one before. Drop
    path grows linearly over all blocks from 0 to its rate. Linear layers start truncated normal
    0.02 with zero biases. Some references also have dropout inside attention and MLP, at rate 0 in
    every published recipe; that is not here. Depthwise convolutions, slide attention and others
    have gradients of their own in reverse mode; forward-mode differentiation (`jax.jvp`,
    `jax.hessian`) of networks with them is refused by JAX.

    Args:
        blocks: number of blocks per stage.
        widths: channels per stage.
        num_heads: heads per stage, handed to mixers that have such an option, unless their spec
            sets it.
        mlp_ratios: hidden channels of the MLPs as a multiple of the stage's.
        attention: spec of the mixer: a registered name or a mapping with `name` and its options. A
            tuple gives each stage its own; an entry of it may again be a tuple, whose specs the
            stage's blocks take in turn; written out to the stage's length it chooses block by
            block, ("slide", "slide", "window") for two slide blocks before a window.
        stem: embedding of the image: 'conv' | 'double_conv' | 'patch_merging', or a mapping with
            `name` and its options.
        downsample: embedding between stages, likewise.
        context: None, an entry, or a tuple of entries, as in `models.ResNet`; of the placements
            only 'post'.
        position_embedding: learned positions, added at the start of every stage.
        mlp: 'plain' | 'depthwise' | 'depthwise_linear'.
        stage_norm: a norm after every stage in place of the final one.
        pool: what the classifier sees: 'mean' over the last map, or 'cls', a token that the last
            stage carries along. The mixers of that stage must then take lists of tokens. `features`
            leaves the token out.
        layer_scale: value that the factors of each branch start with; None for none.
        conv_init: 'fan_in' (PyTorch's default) | 'fan_out' (normal, variance 2 / fan_out).
        norm_epsilon: of the norms in the blocks and after the last one.
        embed_epsilon: of the norms in the embeddings.
        family: whose name tables `torch_names` gives; None for none.
        num_classes: outputs of the classifier.
        in_channels: channels of the image.
        image_size: (height, width) of the images: the grid of learned positions, and the size for
            mixers and context blocks that are tied to one.
        dropout_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block.
        remat: recompute activations in the backward pass: 'none' | 'block' (stores only each
            block's input).
        dtype: activations: 'float32' | 'bfloat16'. Statistics of norms, softmax, pooling and the
            classifier are float32 either way.
        param_dtype: stored parameters: 'float32' | 'bfloat16'.
        rngs: initialisation source.

    Raises:
        ValueError: an option out of its range; all of them in one message.
    """

    def __init__(
        self,
        *,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        num_heads: tuple[int, ...],
        mlp_ratios: tuple[float, ...],
        attention: AttentionSpec | tuple[AttentionSpec | tuple[AttentionSpec, ...], ...],
        stem: EmbedSpec,
        downsample: EmbedSpec,
        context: Context = None,
        position_embedding: bool = False,
        mlp: str = "plain",
        stage_norm: bool = False,
        pool: str = "mean",
        layer_scale: float | None = None,
        conv_init: str = "fan_in",
        norm_epsilon: float = 1e-5,
        embed_epsilon: float = 1e-5,
        family: str | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        remat: str = "none",
        dtype: str = "float32",
        param_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        check_options({k: v for k, v in locals().items() if k not in ("self", "rngs", "__class__")})
        rngs = InitKeys(rngs.params())
        inserted = place_context(context, blocks)
        self.in_channels, self.num_classes, self.pool, self.family = (
            in_channels,
            num_classes,
            pool,
            family,
        )
        self.dtype, stored = jnp.dtype(dtype), jnp.dtype(param_dtype)
        options = dict(dtype=self.dtype, param_dtype=stored, rngs=rngs)

        def positions(count, width):
            return trunc_normal(0.02)(rngs.params(), (count, width), stored)

        dim, size, stride, done, stages, info = in_channels, image_size, 1, 0, [], []
        for number, (count, width, heads, ratio) in enumerate(
            zip(blocks, widths, num_heads, mlp_ratios, strict=True)
        ):
            spec = stem if number == 0 else downsample
            embed = create_embed(
                spec, dim, width, conv_init=conv_init, epsilon=embed_epsilon, **options
            )
            dim, stride, size = width, stride * embed.stride, embed.out_size(*size)
            if min(size) < 1:
                raise ValueError(
                    f"image_size is {image_size!r}; allowed: larger ones, stage {number + 1} has "
                    "no position left"
                )
            with_token = pool == "cls" and number == len(blocks) - 1
            specs = cycles(attention, len(blocks))[number]
            made = []
            for index in range(count):
                mixer = create_attention(
                    specs[index % len(specs)], width, size=size, num_heads=heads, **options
                )
                beside = [
                    create_attention(s, width, size=size, **options)
                    for _, s in inserted.get((number, index), ())
                ]
                if with_token:
                    for layer in (mixer, *beside):
                        _require_tokens(layer, size[0] * size[1] + 1, width)
                made.append(
                    TransformerBlock(
                        width,
                        mixer,
                        hidden=int(width * ratio),
                        mlp=mlp,
                        layer_scale=layer_scale,
                        context=beside,
                        drop_path_rate=drop_path_rate * done / max(sum(blocks) - 1, 1),
                        conv_init=conv_init,
                        epsilon=norm_epsilon,
                        **options,
                    )
                )
                done += 1
            stages.append(
                Stage(
                    embed,
                    made,
                    norm=layer_norm(width, epsilon=norm_epsilon, **options) if stage_norm else None,
                    position_embedding=positions(size[0] * size[1], width)
                    if position_embedding
                    else None,
                    grid=size,
                    class_token=positions(1, width) if with_token else None,
                    class_position=positions(1, width)
                    if with_token and position_embedding
                    else None,
                    remat=remat == "block",
                )
            )
            info.append((dim, stride))
        self.stages = nnx.List(stages)
        self.stage_info = tuple(info)
        last = {**options, "dtype": jnp.dtype(jnp.float32)}
        self.norm = None if stage_norm else layer_norm(dim, epsilon=norm_epsilon, **last)
        self.head = Classifier(
            dim, num_classes, dropout_rate=dropout_rate, param_dtype=stored, rngs=rngs
        )

    def features(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b oh ow d"]]:
        """Returns the output map of every stage, largest first; see `feature_info` for channels and
        strides.

        The final norm is not part of them; norms after every stage (`stage_norm`) are.

        Args:
            x: normalised images [b, h, w, in_channels].
            rngs: `dropout` stream; read in the training view when a rate is above 0.

        Raises:
            ValueError: wrong number of axes or channels, or an image too small for the embeddings.
        """
        return self._run(x, rngs, with_token=False)

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b classes"]:
        """Maps normalised images [b, h, w, in_channels] to float32 logits [b, num_classes]; `rngs`
        as in `features`.
        """
        last = self._run(x, rngs, with_token=self.pool == "cls")[-1]
        if self.pool == "cls":
            last = last[:, :1]
        if self.norm is not None:
            last = self.norm(last)
        pooled = jnp.mean(last, axis=tuple(range(1, last.ndim - 1)), dtype=jnp.float32)
        return self.head(pooled, rngs=rngs)

    def _run(self, x: jax.Array, rngs: nnx.Rngs | None, *, with_token: bool) -> list[jax.Array]:
        if x.ndim != 4 or x.shape[-1] != self.in_channels:
            raise ValueError(
                f"images have shape {x.shape}; expected [batch, height, width, {self.in_channels}]"
            )
        x, maps = x.astype(self.dtype), []
        for number, stage in enumerate(self.stages):
            x = stage(x, with_token=with_token and number == len(self.stages) - 1, rngs=rngs)
            maps.append(x)
        return maps

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """Channels and total stride of every map that `features` returns."""
        return [{"channels": channels, "stride": stride} for channels, stride in self.stage_info]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Name tables for PyTorch checkpoints of this family: grammar -> table; see
        `models.hierarchical.names`.

        Raises:
            ValueError: the network belongs to no family with published weights, or mixes merged and
                unmerged slide layers.
        """
        if self.family not in TORCH_NAMES:
            raise ValueError(
                f"no PyTorch name table for family={self.family!r}; there is one for "
                f"{', '.join(TORCH_NAMES)}"
            )
        layers = [block.attention for stage in self.stages for block in stage.blocks]
        merged = {layer.merged for layer in layers if isinstance(layer, SlideAttention)}
        if len(merged) == 2:
            raise ValueError(
                "no PyTorch name table for a network of merged and unmerged slide layers; import "
                "into all of one kind, then "
                "merge with lambdanet.attention.slide.reparameterise"
            )
        return (MERGED_TORCH_NAMES if True in merged else TORCH_NAMES)[self.family]

    def summary_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """Returns one dict per layer for an [h, w] image: path, type, output_shape (without the
        batch), macs.

        The paths are disjoint prefixes of the parameter paths and cover all of them.
        """
        rows = []
        for number, stage in enumerate(self.stages):
            with_token = self.pool == "cls" and number == len(self.stages) - 1
            lines = stage.rows(h, w, with_token=with_token)
            rows += [
                dict(path=f"stages/{number}/{n}", type=t, output_shape=s, macs=m)
                for n, t, s, m in lines
            ]
            h, w = stage.embed.out_size(h, w)
        dim = self.stage_info[-1][0]
        if self.norm is not None:
            rows.append(
                dict(
                    path="norm",
                    type="layer_norm",
                    output_shape=(dim,) if self.pool == "cls" else (h, w, dim),
                    macs=0,
                )
            )
        rows.append(
            dict(
                path="head/fc",
                type="linear",
                output_shape=(self.num_classes,),
                macs=dim * self.num_classes,
            )
        )
        return rows

    def macs(self, h: int, w: int) -> int:
        """Returns the multiply-accumulates of convolutions, matrices, attention and context blocks
        for one [h, w] image.
        """
        return sum(row["macs"] for row in self.summary_rows(h, w))


def _run_block(block: TransformerBlock, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    return block(x, rngs=rngs)


def _require_tokens(layer: nnx.Module, count: int, dim: int) -> None:
    """Raises ValueError unless a mixer or context block maps tokens [b, count, dim] to the same
    shape; it is only traced.
    """
    evaluation = nnx.view(
        layer, deterministic=True, use_running_average=True, raise_if_not_found=False
    )
    graphdef, state = nnx.split(evaluation)
    tokens = jax.ShapeDtypeStruct((1, count, dim), jnp.float32)
    try:
        jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, tokens)
    except ValueError as error:
        raise ValueError(
            f"pool is 'cls', so the last stage sees {count} tokens in a list, which "
            f"{type(layer).__name__} does not take "
            f"({error}); allowed: pool='mean', or another block there"
        ) from error
