"""ResNets whose 3x3 convolutions may be replaced, block by block, by attention layers; the plain
ones by name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention import create_attention
from lambdanet.interop.names import Rule
from lambdanet.layers import InitKeys

from ..backbone import (
    Classifier,
    Recompute,
    Row,
    check_images,
    require_classifier,
    summary_row,
    without_classifier,
)
from ..context import Context, place_context
from ..registration import DIGITS, registry
from . import names
from .blocks import ResidualBlock, Stem, mixer_size, stem_stride, strided_size
from .dilation import block_steps
from .options import option_problems

AttentionSpec = str | Mapping[str, Any] | None


class Stage(Recompute):
    """Residual blocks on one map size; the first may stride.

    Args:
        blocks: the blocks, in order.
        embedding: position embeddings that all attention layers of the stage share, or None. Tables
            tied to a map size are stored for the stage's largest map; layers on a smaller one read
            the centre, which holds the same relative offsets.
        sizes: map size at each block's mixer, where the embedding is tied to the size; else ().
        remat: recompute each block's inner activations in the backward pass.
    """

    def __init__(
        self,
        blocks: Iterable[ResidualBlock],
        *,
        embedding: jax.Array | None,
        sizes: tuple[tuple[int, int], ...],
        remat: bool,
    ):
        self.blocks = nnx.List(blocks)
        self.embedding = None if embedding is None else nnx.Param(embedding)
        self.sizes, self.remat = sizes, remat

    def __call__(
        self, x: Float[Array, "b *t h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *t oh ow d"]:
        """Maps [b, h, w, c] to the stage's output [b, ceil(h / stride), ceil(w / stride), d]."""
        run = nnx.remat(_run_block) if self.remat else _run_block
        for index, block in enumerate(self.blocks):
            embeddings = None
            if self.embedding is not None and block.attention is not None:
                embeddings = self.embedding[...]
                if self.sizes:
                    embeddings = _centre(embeddings, self.sizes[index])
            x = run(block, x, embeddings, rngs)
        return x


class ResNet(Recompute):
    """Residual network of any number of stages, with attention layers and context blocks in any of
    its blocks.

    Which layer stands in for the 3x3 convolutions (`attention`) and where (`attention_blocks`) are
    two options, so that either can be changed alone; what is inserted beside them is a third
    (`context`). Runs on maps of any height and width, unless an attention layer or context block is
    tied to a size.

    Sources: He et al. 2016 (stem 'resnet', shortcut 'conv'); Bello et al. 2021, "Revisiting
    ResNets" (stem 'resnet_rs', shortcut 'avg', context squeeze-excite); Bello 2021,
    "LambdaNetworks"; timm's byobnet (stem 'tiered', pool 'avg2'). Drop path grows linearly over all
    blocks from 0 to its rate. Convolutions start He-normal over the outgoing fan, the classifier at
    normal 0.01.

    Args:
        blocks: number of blocks per stage; every stage but the first halves the map.
        widths: inner channels of the blocks, per stage; the stem has widths[0] channels, 'deep'
            twice as many.
        block: 'bottleneck' | 'basic'.
        num_classes: outputs of the classifier; 0 for none, which leaves `features` alone.
        in_channels: channels of the image.
        image_size: (height, width) of the images; read only by attention layers and context blocks
            that are tied to a map size.
        stem: 'resnet' | 'resnet_rs' | 'tiered' | 'deep' | 'deep_narrow' (stride 4) | 'strided'
            (2) | 'cifar' (1), see `Stem`.
        output_stride: the largest total stride, a power of two from that of the stem on: stages
            that would pass it dilate their 3x3 convolutions instead, each by twice as much as the
            stage before; their mixers see the finer map and neither stride nor dilate. None for no
            bound.
        multi_grid: factors of the last stage's dilation, which its blocks take in turn.
        first_dilation: of the first block of a dilated stage: 'previous' (that of the stage before;
            torchvision, mmsegmentation) | 'own' (CCNet's and OCNet's code); see `block_steps`.
        attention: spec of the attention layer: a registered name, a mapping with `name` and its
            options, or None; a tuple gives each stage its own.
        attention_blocks: blocks in which `attention` replaces the 3x3 convolution: 'all', or a
            tuple with, per stage, 'all' or the 1-based numbers of the blocks, () for none.
        share_embeddings: one set of position embeddings per stage, shared by its attention layers.
        context: None, an entry, or a tuple of entries. An entry is a mapping with `name` (a
            registered context block), `after` (a place or a tuple of places), `placement`, and the
            block's own options. A place is a residual block, 'stage3.4' for the fourth of the third
            stage (both from 1; stage 1 is the papers' c2 or res2), or a shell pattern: 'stage3.*',
            'stage[23].*', 'stage*.*'. Placement is 'post' (after the block's addition and
            activation; the default), 'standard' (at the end of the branch, before the addition),
            'pre' (in the branch, before its first convolution) or 'identity' (at the end of the
            shortcut). Several entries at one place stand there in the given order.
        activation: 'relu' | 'silu' | 'gelu' | 'none'.
        shortcut: 'conv' (1x1 convolution with stride) | 'avg' (2x2 average pooling before it).
        pool: pooling after the attention layer of a strided bottleneck: 'avg3' (3x3, TensorFlow's
            'SAME') | 'avg2' (2x2).
        post_norm_act: batch norm and activation after the attention layer of a bottleneck.
        zero_init_last: start the last norm of each branch at scale zero, so that every block starts
            as its shortcut (Goyal et al. 2017, "Accurate, Large Minibatch SGD"). Long trainings
            gain by it; short ones of small networks lose, see docs/digit_scenes.md.
        dropout_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block.
        norm_momentum: decay of the running statistics.
        remat: recompute activations in the backward pass: 'none' | 'block' | 'stage' (stores only
            each block's or stage's input).
        dtype: activations: 'float32' | 'bfloat16'. Norm statistics, pooling, softmax and the head
            are float32 either way.
        param_dtype: stored parameters: 'float32' | 'bfloat16'.
        rngs: initialisation source.

    Attributes:
        classifier: paths of the layers that depend on the classes.

    Raises:
        ValueError: `share_embeddings` with a layer that has none. `models.create_model` checks the
            options before, all in one message.
    """

    classifier: ClassVar[tuple[str, ...]] = ("head/fc",)
    option_problems = staticmethod(option_problems)

    def __init__(
        self,
        *,
        blocks: tuple[int, ...],
        widths: tuple[int, ...] = (64, 128, 256, 512),
        block: str = "bottleneck",
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        stem: str = "resnet",
        output_stride: int | None = None,
        multi_grid: tuple[int, ...] = (1, 1, 1),
        first_dilation: str = "previous",
        attention: AttentionSpec | tuple[AttentionSpec, ...] = None,
        attention_blocks: str | tuple[str | tuple[int, ...], ...] = "all",
        share_embeddings: bool = False,
        context: Context = None,
        activation: str = "relu",
        shortcut: str = "conv",
        pool: str = "avg3",
        post_norm_act: bool = True,
        zero_init_last: bool = True,
        dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_momentum: float = 0.9,
        remat: str = "none",
        dtype: str = "float32",
        param_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        rngs = InitKeys(rngs.params())
        depth = len(blocks)
        specs = attention if isinstance(attention, tuple) else (attention,) * depth
        placed = (attention_blocks,) * depth if attention_blocks == "all" else attention_blocks
        inserted = place_context(context, blocks)
        self.in_channels, self.num_classes = in_channels, num_classes
        self.remat = remat == "stage"  # the whole stages; "block" is the stages' own
        self.dtype, stored = jnp.dtype(dtype), jnp.dtype(param_dtype)
        options = dict(
            activation=activation,
            norm_momentum=norm_momentum,
            dtype=self.dtype,
            param_dtype=stored,
            rngs=rngs,
        )

        self.stem = Stem(stem, in_channels, widths[0], **options)
        make_block = functools.partial(
            ResidualBlock,
            block,
            shortcut=shortcut,
            pool=pool,
            post_norm_act=post_norm_act,
            zero_init_last=zero_init_last,
            **options,
        )
        stride = stem_stride(stem)
        size = tuple(strided_size(n, stride) for n in image_size)
        steps = block_steps(
            blocks,
            stem=stride,
            output_stride=output_stride,
            multi_grid=multi_grid,
            first_dilation=first_dilation,
        )
        dim, done, stages, info = self.stem.dim_out, 0, [], []
        for number, (count, width, spec, where) in enumerate(
            zip(blocks, widths, specs, placed, strict=True)
        ):
            made, sizes, shared = [], [], None
            if share_embeddings and spec is not None:
                spec = {
                    **({"name": spec} if isinstance(spec, str) else spec),
                    "shared_embeddings": True,
                }
            for index in range(count):
                block_stride, dilations = steps[number][index]
                mixer = spec if where == "all" or index + 1 in where else None
                if mixer is not None and share_embeddings and shared is None:
                    shared = _embedding(
                        spec, width, mixer_size(block, size, block_stride), stored, rngs
                    )
                made.append(
                    make_block(
                        dim,
                        width,
                        stride=block_stride,
                        dilations=dilations,
                        attention=mixer,
                        size=size,
                        context=inserted.get((number, index), ()),
                        drop_path_rate=drop_path_rate * done / max(sum(blocks) - 1, 1),
                    )
                )
                sizes.append(mixer_size(block, size, block_stride))
                dim, done, stride = made[-1].dim_out, done + 1, stride * block_stride
                size = tuple(strided_size(n, block_stride) for n in size)
            tied = shared is not None and spec.get("scope", 0) is None
            stages.append(
                Stage(
                    made,
                    embedding=shared,
                    sizes=tuple(sizes) if tied else (),
                    remat=remat == "block",
                )
            )
            info.append((dim, stride))
        self.stages = nnx.List(stages)
        self.stage_info = tuple(info)
        self.head = (
            Classifier(
                dim,
                num_classes,
                dropout_rate=dropout_rate,
                kernel_init=nnx.initializers.normal(0.01),
                param_dtype=stored,
                rngs=rngs,
            )
            if num_classes
            else None
        )
        self.grammar = (stem, shortcut)

    def features(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b oh ow d"]]:
        """Returns the output map of every stage, largest first; see `feature_info` for channels and
        strides.

        Args:
            x: normalised images [b, h, w, in_channels].
            rngs: `dropout` stream; read in the training view when a rate is above 0.

        Raises:
            ValueError: wrong number of axes or channels.
        """
        check_images(x, self.in_channels)
        x = self.stem(x.astype(self.dtype))
        run = nnx.remat(run_stage) if self.remat else run_stage
        maps = []
        for stage in self.stages:
            x = run(stage, x, rngs)
            maps.append(x)
        return maps

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b classes"]:
        """Maps normalised images [b, h, w, in_channels] to float32 logits [b, num_classes]; `rngs`
        as in `features`.

        Raises:
            ValueError: as `features`; a model without classifier.
        """
        require_classifier(self)
        last = self.features(x, rngs=rngs)[-1]
        return self.head(jnp.mean(last, axis=(1, 2), dtype=jnp.float32), rngs=rngs)

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """Channels and total stride of every map that `features` returns."""
        return [{"channels": channels, "stride": stride} for channels, stride in self.stage_info]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Name tables by grammar for PyTorch checkpoints, see `models.resnet.names`; without a
        classifier that of a file is dropped.

        Raises:
            ValueError: no PyTorch network with this stem and shortcut is known.
        """
        return without_classifier(self, names.tables(*self.grammar))

    def summary_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """Returns one dict per layer for an [h, w] image: path, type, output_shape (without the
        batch), macs.

        The paths are disjoint prefixes of the parameter paths and cover all of them.
        """
        rows = []

        def add(prefix: str, lines: list[Row]) -> tuple[int, int]:
            for name, kind, shape, macs in lines:
                rows.append(summary_row(f"{prefix}/{name}", kind, shape, macs))
            return rows[-1]["output_shape"][:2]

        h, w = add("stem", self.stem.rows(h, w))
        for number, stage in enumerate(self.stages):
            if stage.embedding is not None:
                shape = tuple(stage.embedding.shape)
                rows.append(summary_row(f"stages/{number}/embedding", "embedding", shape))
            for index, block in enumerate(stage.blocks):
                h, w = add(f"stages/{number}/blocks/{index}", block.rows(h, w))
        if self.head is not None:
            fc_macs = self.stage_info[-1][0] * self.num_classes
            rows.append(summary_row(self.classifier[0], "linear", (self.num_classes,), fc_macs))
        return rows

    def macs(self, h: int, w: int) -> int:
        """Returns the multiply-accumulates of convolutions, attention and context blocks and
        matrices for one [h, w] image.

        Twice this is the FLOP count of the LambdaNetworks paper: local position lambdas count
        min(scope**2, map positions) taps.
        """
        return sum(row["macs"] for row in self.summary_rows(h, w))


def _run_block(
    block: ResidualBlock, x: jax.Array, embeddings: jax.Array | None, rngs: nnx.Rngs | None
) -> jax.Array:
    return block(x, embeddings=embeddings, rngs=rngs)


def run_stage(stage: Stage, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    """Applies a stage, in the form that `nnx.remat` takes."""
    return stage(x, rngs=rngs)


def _embedding(
    spec: Mapping[str, Any], width: int, size: tuple[int, int], param_dtype: Any, rngs: nnx.Rngs
) -> jax.Array:
    """Returns the embeddings that a layer of this spec would start with, had it its own."""
    layer = create_attention(
        {**spec, "shared_embeddings": False}, width, size=size, param_dtype=param_dtype, rngs=rngs
    )
    if layer.embedding is None:
        raise ValueError(
            f"share_embeddings is True; allowed: False, {spec!r} has no embeddings to share"
        )
    return layer.embedding[...]


def _centre(table: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Cuts a [..., 2H-1, 2W-1, u, k] table of relative embeddings to the offsets of a map of the
    given size.
    """
    for axis, length in enumerate(size, start=table.ndim - 4):
        start = (table.shape[axis] - (2 * length - 1)) // 2
        table = jax.lax.slice_in_dim(table, start, start + 2 * length - 1, axis=axis)
    return table


for _name, _block, _blocks in (
    ("resnet18", "basic", (2, 2, 2, 2)),
    ("resnet34", "basic", (3, 4, 6, 3)),
    ("resnet50", "bottleneck", (3, 4, 6, 3)),
    ("resnet101", "bottleneck", (3, 4, 23, 3)),
    ("resnet152", "bottleneck", (3, 8, 36, 3)),
):
    registry.register(_name, ResNet, block=_block, blocks=_blocks)

# For 8x8 grey digits: two stages, 8x8 and 4x4.
registry.register("resnet_digits", ResNet, blocks=(2, 2), widths=(16, 32), stem="cifar", **DIGITS)
