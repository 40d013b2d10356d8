"""C2D and I3D: ResNets on clips, whose kernels reach over several frames or over one, with
attention layers and context blocks in any block.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.interop.names import Rule
from lambdanet.layers import InitKeys

from ..backbone import Classifier, Recompute, require_classifier, summary_row, without_classifier
from ..context import Context, place_context
from ..resnet.blocks import ResidualBlock, strided_sizes
from ..resnet.resnet import AttentionSpec, Stage, run_stage
from . import names
from .inflation import inflate, inflated, kernel_frames
from .options import option_problems
from .poolings import POOLINGS, frames_out, pool_frames
from .stem import ClipStem


class VideoResNet(Recompute):
    """Residual network on clips [b, t, h, w, c]; block for block that of `models.resnet.ResNet`,
    with the same names of parameters.

    C2D has kernels of one frame; only its poolings join frames. In I3D the stem and some blocks
    have kernels over several frames. Kernels are stored [frames, height, width, in, out] in both,
    and weights of the network on images can start either (`fit_array`): a kernel over t frames has
    the image's one, divided by t, for each, so that a clip of equal frames gives what the image
    gives, but for the borders in time; or all of it in the middle, so that each frame gives what it
    gives as an image (`image_weights`).

    Attention layers and context blocks see a clip within their `extent`, a key of their spec beside
    their own options: 'spacetime', 'space' (every frame a map of its own), 'time' (every pixel a
    sequence of its own). Without it a block that takes three axes sees the clip and one that takes
    maps alone, such as slide attention, or a lambda layer without spatial_dims=3, each frame; see
    `models.extent`.

    Runs on clips of any length and size, unless an attention layer or context block is tied to one.

    Sources: Wang et al. 2018, "Non-local Neural Networks", table 1 and section 4.1, and its code
    for what the paper leaves open: which blocks are inflated, and the poolings; Carreira and
    Zisserman 2017, "Quo Vadis, Action Recognition?" (inflation).

    Args:
        blocks: number of blocks per stage; every stage but the first halves height and width.
        widths: inner channels of the blocks, per stage.
        block: 'bottleneck' | 'basic'.
        num_classes: outputs of the classifier; 0 for none, which leaves `features` alone.
        in_channels: channels of the frames.
        image_size: (height, width) of the frames, and
        frames: length of the clips; read only by attention layers and context blocks that are tied
            to a size, and by `macs`.
        stem: as in `ResNet`; its max-pool is that of `pooling`.
        stem_frames: frames under the stem's first kernel, odd: 1 in C2D, 5 in I3D.
        stem_frame_stride: its step over time: 2 for 32 frames and more, 1 for the sparse 8.
        pooling: 'paper' (after the stem 3x3x3 with stride 2, padded; before the second stage 3x1x1
            with stride 2) | 'code' (2x3x3, not padded, and 2x1x1: a map of 55x55 where the paper
            has 56x56) | 'padded' (the same, padded in space) | 'sparse' (1x3x3 and 2x1x1:
            pytorchvideo's, and those of the authors' models of 8 frames) | 'space' (1x3x3 alone).
            Stems without max-pool have none here either.
        inflation: kernels of the inflated blocks: 'none' | '3x1x1' (the first 1x1 of a bottleneck)
            | '3x3x3' (the 3x3 of a bottleneck, the first one of a basic block; nothing where an
            attention layer stands for it).
        inflated_blocks: which are: 'paper' (all of the first stage, the even ones of the last, the
            odd ones of those between), or a tuple with, per stage, 'all' or 1-based numbers, ()
            for none.
        image_weights: how kernels over several frames start that come from a network on images:
            'mean' (as above; the paper) | 'centre' (the middle frame has the image's kernel, the
            others zeros; for clips in which things move further than kernels reach).
        attention: as in `ResNet`, with `extent`.
        attention_blocks: as in `ResNet`.
        context: as in `ResNet`, with `extent`.
        activation: as in `ResNet`.
        shortcut: as in `ResNet`.
        pool: as in `ResNet`, frame by frame.
        post_norm_act: as in `ResNet`.
        zero_init_last: start the last norm of each branch at scale zero.
        dropout_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block.
        norm_momentum: decay of the running statistics.
        remat: recompute activations in the backward pass: 'none' | 'block' | 'stage' (stores only
            each block's or stage's input, and that of the stem).
        dtype: activations: 'float32' | 'bfloat16'. Norm statistics, softmax and the head are
            float32 either way.
        param_dtype: stored parameters: 'float32' | 'bfloat16'.
        rngs: initialisation source.

    Attributes:
        classifier: paths of the layers that depend on the classes.
    """

    classifier: ClassVar[tuple[str, ...]] = ("head/fc",)
    takes_clips: ClassVar[bool] = True
    option_problems = staticmethod(option_problems)

    def __init__(
        self,
        *,
        blocks: tuple[int, ...],
        widths: tuple[int, ...] = (64, 128, 256, 512),
        block: str = "bottleneck",
        num_classes: int = 400,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        frames: int = 32,
        stem: str = "resnet",
        stem_frames: int = 1,
        stem_frame_stride: int = 2,
        pooling: str = "paper",
        inflation: str = "none",
        inflated_blocks: str | tuple[str | tuple[int, ...], ...] = "paper",
        image_weights: str = "mean",
        attention: AttentionSpec | tuple[AttentionSpec, ...] = None,
        attention_blocks: str | tuple[str | tuple[int, ...], ...] = "all",
        context: Context = None,
        activation: str = "relu",
        shortcut: str = "conv",
        pool: str = "avg3",
        post_norm_act: bool = True,
        zero_init_last: bool = True,
        dropout_rate: float = 0.5,
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
        grown = inflated(inflated_blocks, blocks)
        inserted = place_context(context, blocks)
        self.in_channels, self.num_classes, self.frames = in_channels, num_classes, frames
        self.image_weights = image_weights
        self.remat = remat == "stage"  # the whole stages; "block" is the stages' own
        self.dtype, stored = jnp.dtype(dtype), jnp.dtype(param_dtype)
        options = dict(
            activation=activation,
            norm_momentum=norm_momentum,
            dtype=self.dtype,
            param_dtype=stored,
            rngs=rngs,
        )

        self.stem = ClipStem(
            stem,
            in_channels,
            widths[0],
            frames=(stem_frames, stem_frame_stride),
            pooling=pooling,
            remat=remat != "none",
            **options,
        )
        self.pool_window = POOLINGS[pooling][2]  # over time, before the second stage
        make_block = functools.partial(
            ResidualBlock,
            block,
            shortcut=shortcut,
            pool=pool,
            post_norm_act=post_norm_act,
            zero_init_last=zero_init_last,
            **options,
        )
        size = self.stem.rows(frames, *image_size)[-1][2][:3]
        dim, done, stages, info = self.stem.dim_out, 0, [], []
        for number, (count, width, spec, where) in enumerate(
            zip(blocks, widths, specs, placed, strict=True)
        ):
            if number == 1:
                size = (frames_out(size[0], self.pool_window), *size[1:])
            made = []
            for index in range(count):
                stride = 2 if number and not index else 1
                made.append(
                    make_block(
                        dim,
                        width,
                        stride=stride,
                        attention=spec if where == "all" or index + 1 in where else None,
                        size=size,
                        frames=kernel_frames(inflation, block)
                        if (number, index) in grown
                        else (1, 1),
                        context=inserted.get((number, index), ()),
                        drop_path_rate=drop_path_rate * done / max(sum(blocks) - 1, 1),
                    )
                )
                dim, done, size = made[-1].dim_out, done + 1, strided_sizes(size, stride)
            stages.append(Stage(made, embedding=None, sizes=(), remat=remat == "block"))
            info.append(dim)
        self.stages = nnx.List(stages)
        self.stage_dims = tuple(info)
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
        self, x: Float[Array, "b t h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b ot oh ow d"]]:
        """Returns the output of every stage, largest first; see `feature_info`.

        Args:
            x: normalised clips [b, t, h, w, in_channels].
            rngs: `dropout` stream; read in the training view when a rate is above 0.

        Raises:
            ValueError: wrong number of axes or channels, or no frame.
        """
        if x.ndim != 5 or x.shape[-1] != self.in_channels or x.shape[1] == 0:
            raise ValueError(
                f"clips have shape {x.shape}; expected [batch, frames, height, width, "
                f"{self.in_channels}], with one frame or more"
            )
        x = self.stem(x.astype(self.dtype))
        run = nnx.remat(run_stage) if self.remat else run_stage
        maps = []
        for number, stage in enumerate(self.stages):
            x = run(stage, pool_frames(x, self.pool_window) if number == 1 else x, rngs)
            maps.append(x)
        return maps

    def __call__(
        self, x: Float[Array, "b t h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b classes"]:
        """Maps normalised clips [b, t, h, w, in_channels] to float32 logits [b, num_classes];
        `rngs` as in `features`.

        Raises:
            ValueError: as `features`; a model without classifier.
        """
        require_classifier(self)
        last = self.features(x, rngs=rngs)[-1]
        return self.head(jnp.mean(last, axis=(1, 2, 3), dtype=jnp.float32), rngs=rngs)

    def fit_array(self, path: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns an array of a network on images as one of this network; see `inflate`."""
        return inflate(path, array, shape, self.image_weights)

    @property
    def inserted(self) -> tuple[str, ...]:
        """Paths at which the network differs from that without attention layers and context blocks:
        those, the norm after a layer, and the convolution that it stands for.
        """
        paths = []
        for number, stage in enumerate(self.stages):
            for index, block in enumerate(stage.blocks):
                names = ["context"] if block.context_extents else []
                if block.attention is not None:
                    names += ["attention", "norm_attention", "conv2"]
                paths += [f"stages/{number}/blocks/{index}/{name}" for name in names]
        return tuple(paths)

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """Channels of every map that `features` returns, its stride in space, and that in time."""
        (space, time), info = self.stem.strides, []
        for number, channels in enumerate(self.stage_dims):
            if number:
                space, time = 2 * space, time * (min(self.pool_window, 2) if number == 1 else 1)
            info.append(dict(channels=channels, stride=space, frame_stride=time))
        return info

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Name tables by grammar for PyTorch checkpoints: pytorchvideo's, and those of the network
        on images, whose kernels are inflated; without a classifier that of a file is dropped.

        Raises:
            ValueError: no PyTorch network with this stem and shortcut is known.
        """
        tables = names.tables(*self.grammar, second_pool=self.pool_window > 1)
        return without_classifier(self, tables)

    def summary_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """Returns one dict per layer for a clip of `frames` frames of [h, w]: path, type,
        output_shape (without the batch), macs.

        The paths are disjoint prefixes of the parameter paths and cover all of them.
        """
        rows = [
            summary_row(f"stem/{name}", *cells)
            for name, *cells in self.stem.rows(self.frames, h, w)
        ]
        for number, stage in enumerate(self.stages):
            *size, channels = rows[-1]["output_shape"]
            window = self.pool_window
            if number == 1 and window > 1:
                size[0] = frames_out(size[0], window)
                rows.append(summary_row("pool", f"max_pool {window}x1x1", (*size, channels)))
            for index, block in enumerate(stage.blocks):
                lines = block.rows(*rows[-1]["output_shape"][:3])
                path = f"stages/{number}/blocks/{index}"
                rows += [summary_row(f"{path}/{name}", *cells) for name, *cells in lines]
        if self.head is not None:
            fc_macs = self.stage_dims[-1] * self.num_classes
            rows.append(summary_row(self.classifier[0], "linear", (self.num_classes,), fc_macs))
        return rows

    def macs(self, h: int, w: int) -> int:
        """Returns the multiply-accumulates of convolutions, attention and context blocks and
        matrices for a clip of `frames` frames of [h, w].
        """
        return sum(row["macs"] for row in self.summary_rows(h, w))
