"""Hierarchical vision Transformers: PVT, PVTv2, Swin, CSWin and NAT are presets of one class, with
any mixer in any stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention import create_attention
from lambdanet.attention.slide import SlideAttention
from lambdanet.interop.names import Rule
from lambdanet.layers import InitKeys, LayerNorm, trunc_normal

from ..backbone import Classifier, check_images, require_classifier, summary_row, without_classifier
from ..context import Context, place_context
from .blocks import TransformerBlock
from .embeddings import EmbedSpec, create_embed, output_norms
from .names import MERGED_TORCH_NAMES, TORCH_NAMES, without_class_token
from .options import cycles, option_problems
from .stage import Stage, stage_tables

AttentionSpec = str | Mapping[str, Any]


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
        output_norm: a norm on every map that `features` returns, in nobody else's way, as the
            dense-prediction forms of Swin, CSWin and NAT have it; PVT's has none, and PVTv2's is
            `stage_norm`.
        pool: what the classifier sees: 'mean' over the last map, or 'cls', a token that the last
            stage carries along. The mixers of that stage must then take lists of tokens. `features`
            leaves the token out.
        layer_scale: value that the factors of each branch start with; None for none.
        conv_init: 'fan_in' (PyTorch's default) | 'fan_out' (normal, variance 2 / fan_out).
        norm_epsilon: of the norms in the blocks and after the last one.
        family: whose name tables `torch_names` gives; None for none.
        num_classes: outputs of the classifier; 0 for none, and no final norm and class token, which
            serve it alone: what is left is `features`.
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

    Attributes:
        classifier: paths of the layers that depend on the classes.

    Raises:
        ValueError: no position left in a stage, a mixer that takes no tokens with pool='cls'.
            `models.create_model` checks the options before, all in one message.
    """

    classifier: ClassVar[tuple[str, ...]] = ("head/fc",)
    option_problems = staticmethod(option_problems)

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
        output_norm: bool = False,
        pool: str = "mean",
        layer_scale: float | None = None,
        conv_init: str = "fan_in",
        norm_epsilon: float = 1e-5,
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
        rngs = InitKeys(rngs.params())
        inserted = place_context(context, blocks)
        self.in_channels, self.num_classes, self.family = in_channels, num_classes, family
        self.pool = pool if num_classes else "mean"  # without a classifier no token
        self.dtype, stored = jnp.dtype(dtype), jnp.dtype(param_dtype)
        options = dict(dtype=self.dtype, param_dtype=stored, rngs=rngs)

        dim, size, stride, done, stages, info = in_channels, image_size, 1, 0, [], []
        for number, (count, width, heads, ratio) in enumerate(
            zip(blocks, widths, num_heads, mlp_ratios, strict=True)
        ):
            spec = stem if number == 0 else downsample
            embed = create_embed(spec, dim, width, conv_init=conv_init, **options)
            dim, stride, size = width, stride * embed.stride, embed.out_size(*size)
            if min(size) < 1:
                raise ValueError(
                    f"image_size is {image_size!r}; allowed: larger ones, stage {number + 1} has "
                    "no position left"
                )
            with_token = self.pool == "cls" and number == len(blocks) - 1
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
                    norm=LayerNorm(width, epsilon=norm_epsilon, **options) if stage_norm else None,
                    tables=stage_tables(
                        size,
                        width,
                        positions=position_embedding,
                        token=with_token,
                        param_dtype=stored,
                        rngs=rngs,
                    ),
                    grid=size,
                    remat=remat == "block",
                )
            )
            info.append((dim, stride))
        self.stages = nnx.List(stages)
        self.stage_info = tuple(info)
        norm = head = None
        if num_classes:
            last = {**options, "dtype": jnp.dtype(jnp.float32)}
            norm = None if stage_norm else LayerNorm(dim, epsilon=norm_epsilon, **last)
            head = Classifier(
                dim,
                num_classes,
                dropout_rate=dropout_rate,
                kernel_init=trunc_normal(0.02),
                param_dtype=stored,
                rngs=rngs,
            )
        self.norm, self.head = norm, head
        self.output_norms = output_norms(widths if output_norm else (), norm_epsilon, **options)

    def features(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b oh ow d"]]:
        """Returns the output map of every stage, largest first; see `feature_info` for channels and
        strides.

        The final norm is not part of them; norms after every stage (`stage_norm`) and on every
        output (`output_norm`) are.

        Args:
            x: normalised images [b, h, w, in_channels].
            rngs: `dropout` stream; read in the training view when a rate is above 0.

        Raises:
            ValueError: wrong number of axes or channels, or an image too small for the embeddings.
        """
        maps = self._run(x, rngs, with_token=False)
        if not self.output_norms:
            return maps
        return [norm(one) for norm, one in zip(self.output_norms, maps, strict=True)]

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b classes"]:
        """Maps normalised images [b, h, w, in_channels] to float32 logits [b, num_classes]; `rngs`
        as in `features`.

        Raises:
            ValueError: as `features`; a model without classifier.
        """
        require_classifier(self)
        last = self._run(x, rngs, with_token=self.pool == "cls")[-1]
        if self.pool == "cls":
            last = last[:, :1]
        if self.norm is not None:
            last = self.norm(last)
        pooled = jnp.mean(last, axis=tuple(range(1, last.ndim - 1)), dtype=jnp.float32)
        return self.head(pooled, rngs=rngs)

    def _run(self, x: jax.Array, rngs: nnx.Rngs | None, *, with_token: bool) -> list[jax.Array]:
        check_images(x, self.in_channels)
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
        `models.hierarchical.names`. Without a classifier that of a file is dropped.

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
        tables = (MERGED_TORCH_NAMES if True in merged else TORCH_NAMES)[self.family]
        if self.head is not None:
            return tables
        last = len(self.stages) - 1
        tables = {name: without_class_token(rules, last) for name, rules in tables.items()}
        return without_classifier(self, tables)

    def summary_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """Returns one dict per layer for an [h, w] image: path, type, output_shape (without the
        batch), macs.

        The paths are disjoint prefixes of the parameter paths and cover all of them.
        """
        rows, norms = [], []
        for number, stage in enumerate(self.stages):
            with_token = self.pool == "cls" and number == len(self.stages) - 1
            lines = stage.rows(h, w, with_token=with_token)
            rows += [summary_row(f"stages/{number}/{n}", *rest) for n, *rest in lines]
            h, w = stage.embed.out_size(h, w)
            if self.output_norms:
                shape = (h, w, self.stage_info[number][0])
                norms.append(summary_row(f"output_norms/{number}", "layer_norm", shape))
        rows += norms
        if self.head is None:
            return rows
        dim = self.stage_info[-1][0]
        if self.norm is not None:
            shape = (dim,) if self.pool == "cls" else (h, w, dim)
            rows.append(summary_row("norm", "layer_norm", shape))
        macs = dim * self.num_classes
        rows.append(summary_row(self.classifier[0], "linear", (self.num_classes,), macs))
        return rows

    def macs(self, h: int, w: int) -> int:
        """Returns the multiply-accumulates of convolutions, matrices, attention and context blocks
        for one [h, w] image.
        """
        return sum(row["macs"] for row in self.summary_rows(h, w))


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
