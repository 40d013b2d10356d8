"""LaViT: stages whose later layers make their attention from that of the layer before; presets, and
one for digits.

Source: Zhang et al. 2024, "You Only Need Less Attention at Each Stage in Vision Transformers"
(arXiv 2406.00427), which has no public code and whose tables of depths, widths and heads are not
available to us; every number in the presets is a decision. `lavit_tiny`, `_small` and `_base` have
the depths of PVT, reduced keys in the first two stages and less-attention in the last two, where
the maps are small enough for it. The `_paper` forms have less-attention in three stages, as the
paper's figure 1 shows it, with Kronecker-factored transforms in the second, whose full ones would
take 2 heads 784^3 multiply-adds per layer. Reported for the paper's own: 10.9, 22.4 and 39.6
million parameters, 79.2, 82.6 and 83.1 % top-1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention import create_attention
from lambdanet.attention.attention_residual import AttentionResidual
from lambdanet.attention.diagonality_loss import diagonality_loss
from lambdanet.attention.less_attention import LessAttention
from lambdanet.attention.vanilla_attention import VanillaAttention
from lambdanet.layers import InitKeys, LayerNorm, trunc_normal

from ..backbone import Classifier, check_images, require_classifier, summary_row
from ..context import Context, place_context
from ..hierarchical.blocks import TransformerBlock
from ..hierarchical.embeddings import ConvEmbed, output_norms
from ..hierarchical.stage import stage_tables
from ..registration import DIGITS, registry
from .options import option_problems, per_stage, stage_specs
from .stage import LavitStage

AttentionSpec = str | Mapping[str, Any]

EPSILON = 1e-6
"""Of all norms, as in PVT's blocks."""


class LaViT(nnx.Module):
    """A hierarchical Transformer in which a few blocks of each stage attend as usual and hand their
    logits to the rest.

    A stage has `vanilla_blocks` leading blocks with queries and keys, the others are of
    less-attention (`lambdanet.attention.less_attention`). At a stage's first block the logits that
    the stage before ended with can be added, down-sampled (`attention_residual`). The
    less-attention layers have auxiliary losses, `symmetry` and `diagonality`
    (`lambdanet.attention.diagonality_loss`), which `return_auxiliary` asks for and
    `train.auxiliary_losses` weights. A stage in which no logits are needed has spatial-reduction
    attention, which has the same parameters as the vanilla blocks; `attention` puts any other mixer
    there.

    Around it stands PVT: embeddings of patches by convolution, learned positions in every stage,
    pre-norm blocks, a final norm. Logits, their down-sampling and the losses are float32 whatever
    `dtype` is. Without less-attention any image of one patch or more per stage runs; with it, other
    sizes than `image_size` do if a policy allows them (`resize`). Drop path grows linearly over all
    blocks from 0 to its rate. Linear layers start truncated normal 0.02 with zero biases.

    Source: Zhang et al. 2024 (see the module's docstring). The paper's: four stages, patches by
    convolutions with kernel = stride, position embeddings per stage, vanilla blocks before
    less-attention blocks in each stage, the residual at the first block only, the loss over all
    less-attention layers. Ours: all sizes, norms and MLPs in the less-attention blocks (its figure
    shows none), mean pooling as default (the paper classifies from a class token), reduced keys in
    the early stages, the loss as the mean over samples and heads, summed over layers.

    Args:
        blocks: number of blocks per stage.
        widths: channels per stage.
        num_heads: heads per stage; also of mixers put there that have such an option, unless their
            spec sets it.
        mlp_ratios: hidden channels of the MLPs as a multiple of the stage's.
        sr_ratios: side of the cells that share one key, per stage; 1 in stages with less-attention.
            Not read where `attention` has a mixer.
        vanilla_blocks: leading blocks with queries and keys, per stage, 1 or more; where that is as
            many as `blocks` or more, the stage has no less-attention. Not read where `attention`
            has a mixer.
        attention_residual: per stage, whether the logits of the stage before are added to those of
            its first block.
        attention: what stands in for this machinery: None for nothing; a spec (a registered name of
            a mixer, or a mapping with `name` and its options) for all stages; a tuple gives each
            stage its own, None, or a tuple of specs that its blocks take in turn.
        transform: how less-attention maps logits: 'full' | 'kron' | 'reuse'; a tuple gives each
            stage its own.
        transform_bias: biases of the transforms; None means those of 'full' only.
        center_rows: transforms see logits less their mean over the keys.
        resize: what less-attention does at another map size than that of `image_size`: 'refuse' |
            'interpolate' | 'reuse'; None means 'refuse' for 'full' and 'interpolate' for 'kron'.
        residual_kernel: 'full' | 'separable', see `AttentionResidual`.
        residual_mode: 'square' between stages without reduced keys | 'query_only' between stages
            with as many keys.
        residual_norm: 'batch' | 'instance' | 'none'.
        residual_scale: value that the factors of the residual start with.
        loss_variant: 'paper' | 'flipped' | 'norm_flipped' | 'norm_hinge_agg' | 'norm_hinge_pair',
            see `diagonality_loss`.
        loss_on: 'logits' | 'probs'.
        patch_sizes: kernel and stride of each stage's embedding; rows and columns that fill no
            patch are left out.
        position_embedding: learned positions, added at the start of every stage; resized bilinearly
            at other sizes.
        context: None, an entry, or a tuple of entries, as in `models.ResNet`; of the placements
            only 'post'.
        pool: what the classifier sees: 'mean' over the last map, or 'cls', a token that the last
            stage carries along; `features` leaves it out.
        output_norm: a norm on every map that `features` returns.
        num_classes: outputs of the classifier; 0 for none and no final norm, which leaves
            `features` alone, without the auxiliary losses.
        in_channels: channels of the image.
        image_size: (height, width) of the images.
        dropout_rate: dropout before the classifier.
        attention_dropout_rate: dropout on the softmax in blocks that hand on logits, never on the
            logits.
        drop_path_rate: stochastic depth of the last block.
        norm_momentum: decay of the running statistics of the residual's batch norm.
        remat: recompute activations in the backward pass: 'none' | 'block' (stores each block's
            input and logits only).
        dtype: activations: 'float32' | 'bfloat16'.
        param_dtype: stored parameters: 'float32' | 'bfloat16'.
        rngs: initialisation source.

    Attributes:
        auxiliary_losses: names of the terms that `return_auxiliary` gives; () without
            less-attention.
        classifier: paths of the layers that depend on the classes.

    Raises:
        ValueError: no position left in a stage. `models.create_model` checks the options before,
            all in one message.
    """

    classifier: ClassVar[tuple[str, ...]] = ("head/fc",)
    option_problems = staticmethod(option_problems)

    def __init__(
        self,
        *,
        blocks: tuple[int, ...],
        widths: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (4, 4, 4, 4),
        sr_ratios: tuple[int, ...] = (8, 4, 1, 1),
        vanilla_blocks: tuple[int, ...],
        attention_residual: tuple[bool, ...],
        attention: AttentionSpec
        | None
        | tuple[AttentionSpec | None | tuple[AttentionSpec, ...], ...] = None,
        transform: str | tuple[str, ...] = "full",
        transform_bias: bool | None = None,
        center_rows: bool = False,
        resize: str | None = None,
        residual_kernel: str = "full",
        residual_mode: str = "square",
        residual_norm: str = "batch",
        residual_scale: float = 0.1,
        loss_variant: str = "norm_hinge_agg",
        loss_on: str = "logits",
        patch_sizes: tuple[int, ...] = (4, 2, 2, 2),
        position_embedding: bool = True,
        context: Context = None,
        pool: str = "mean",
        output_norm: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_momentum: float = 0.9,
        remat: str = "none",
        dtype: str = "float32",
        param_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        rngs, depth = InitKeys(rngs.params()), len(blocks)
        inserted, specs = place_context(context, blocks), stage_specs(attention, depth)
        self.in_channels, self.num_classes = in_channels, num_classes
        self.loss_variant, self.loss_on = loss_variant, loss_on
        self.dtype, stored = jnp.dtype(dtype), jnp.dtype(param_dtype)
        options = dict(dtype=self.dtype, param_dtype=stored, rngs=rngs)
        transforms = per_stage(transform, depth)

        dim, size, stride, done, stages, info = in_channels, image_size, 1, 0, [], []
        any_less = False
        for number, (count, width, heads) in enumerate(zip(blocks, widths, num_heads, strict=True)):
            embed = ConvEmbed(
                dim, width, kernel_size=patch_sizes[number], epsilon=EPSILON, **options
            )
            dim, stride, size = width, stride * embed.stride, embed.out_size(*size)
            if min(size) < 1:
                raise ValueError(
                    f"image_size is {image_size!r}; allowed: larger ones, stage {number + 1} has "
                    "no position left"
                )
            with_token, own = pool == "cls" and number == depth - 1, specs[number] is None
            less_from = vanilla_blocks[number] if own else count
            handing = any(attention_residual[number : number + 2])
            carries = own and (less_from < count or handing or with_token)
            any_less |= less_from < count
            carrying = dict(
                num_heads=heads,
                class_token=with_token,
                dropout_rate=attention_dropout_rate,
                **options,
            )
            less = dict(
                size=size, transform=transforms[number], center_rows=center_rows, **carrying
            )
            if transforms[number] != "reuse":
                less |= dict(transform_bias=transform_bias, resize=resize)
            mixers = specs[number] or (dict(name="spatial_reduction", sr_ratio=sr_ratios[number]),)
            made = []
            for index in range(count):
                if not carries:
                    mixer = create_attention(
                        mixers[index % len(mixers)], width, size=size, num_heads=heads, **options
                    )
                elif index < less_from:
                    # The last one's logits are less-attention's, or the next stage's.
                    read = less_from < count or any(attention_residual[number + 1 : number + 2])
                    mixer = VanillaAttention(
                        width,
                        sr_ratio=sr_ratios[number],
                        hands_on=read and index == min(less_from, count) - 1,
                        **carrying,
                    )
                else:
                    mixer = LessAttention(width, **less)
                made.append(
                    TransformerBlock(
                        width,
                        mixer,
                        hidden=int(width * mlp_ratios[number]),
                        context=[
                            create_attention(s, width, size=size, **options)
                            for _, s in inserted.get((number, index), ())
                        ],
                        drop_path_rate=drop_path_rate * done / max(sum(blocks) - 1, 1),
                        epsilon=EPSILON,
                        **options,
                    )
                )
                done += 1
            residual = None
            if attention_residual[number]:
                residual = AttentionResidual(
                    num_heads[number - 1],
                    heads,
                    kernel=residual_kernel,
                    mode=residual_mode,
                    norm=residual_norm,
                    class_token_out=with_token,
                    scale_init=residual_scale,
                    norm_momentum=norm_momentum,
                    param_dtype=stored,
                    rngs=rngs,
                )
            stages.append(
                LavitStage(
                    embed,
                    made,
                    carries=carries,
                    attention_residual=residual,
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
        self.stage_info, self.pool = tuple(info), pool
        self.auxiliary_losses = ("symmetry", "diagonality") if any_less and num_classes else ()
        norm = head = None
        if num_classes:
            norm = LayerNorm(
                dim, epsilon=EPSILON, dtype=jnp.dtype(jnp.float32), param_dtype=stored, rngs=rngs
            )
            head = Classifier(
                dim,
                num_classes,
                dropout_rate=dropout_rate,
                kernel_init=trunc_normal(0.02),
                param_dtype=stored,
                rngs=rngs,
            )
        self.norm, self.head = norm, head
        self.output_norms = output_norms(widths if output_norm else (), EPSILON, **options)

    def features(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b oh ow d"]]:
        """Returns the output map of every stage, largest first; see `feature_info` for channels and
        strides.

        The final norm and a class token are not part of them; norms on every output
        (`output_norm`) are.

        Args:
            x: normalised images [b, h, w, in_channels].
            rngs: `dropout` stream; read in the training view when a rate is above 0.

        Raises:
            ValueError: wrong number of axes or channels, an image too small for the embeddings, or
                of a size that less-attention refuses.
        """
        maps = self._run(x, rngs)[0]
        if not self.output_norms:
            return maps
        return [norm(one) for norm, one in zip(self.output_norms, maps, strict=True)]

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *,
        return_auxiliary: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b classes"] | tuple[Float[Array, "b classes"], dict[str, Float[Array, ""]]]:
        """Maps normalised images [b, h, w, in_channels] to float32 logits [b, num_classes].

        Args:
            x: images.
            return_auxiliary: also return every term of `auxiliary_losses`, a float32 scalar each:
                the mean over samples and heads, summed over the less-attention layers; of the map's
                positions, without the class token.
            rngs: as in `features`.

        Raises:
            ValueError: as `features`; a model without classifier.
        """
        require_classifier(self)
        maps, last, handed = self._run(x, rngs)
        last = self.norm(last)
        pooled = (
            last[:, 0] if self.pool == "cls" else jnp.mean(last, axis=(1, 2), dtype=jnp.float32)
        )
        classes = self.head(pooled, rngs=rngs)
        if not return_auxiliary:
            return classes
        first = [int(number == len(maps) - 1 and self.pool == "cls") for number in range(len(maps))]
        pairs = [
            diagonality_loss(logits[:, :, skip:, skip:], self.loss_variant, self.loss_on)
            for skip, stage in zip(first, handed, strict=True)
            for less, logits in stage
            if less
        ]
        terms = zip(*pairs, strict=True) if pairs else ()
        return classes, {
            n: sum(t.mean() for t in term)
            for n, term in zip(self.auxiliary_losses, terms, strict=True)
        }

    def _run(
        self, x: jax.Array, rngs: nnx.Rngs | None
    ) -> tuple[list[jax.Array], jax.Array, list[list]]:
        """Returns the stages' maps, the last stage's output with its class token, and what each
        stage handed on.
        """
        check_images(x, self.in_channels)
        x, logits, maps, handed = x.astype(self.dtype), None, [], []
        for stage in self.stages:
            grid = stage.embed.out_size(*x.shape[1:3])
            x, own = stage(x, logits, rngs=rngs)
            maps.append(x if x.ndim == 4 else x[:, 1:].reshape(x.shape[0], *grid, x.shape[-1]))
            handed.append(own)
            logits = own[-1][1] if own else None
        return maps, x, handed

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """Channels and total stride of every map that `features` returns."""
        return [{"channels": channels, "stride": stride} for channels, stride in self.stage_info]

    @property
    def torch_names(self):
        """Raises ValueError: there are no published weights of this network."""
        raise ValueError(
            "no PyTorch name table for LaViT: neither the authors' code nor weights are public"
        )

    def summary_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """Returns one dict per layer for an [h, w] image: path, type, output_shape (without the
        batch), macs.

        The paths are disjoint prefixes of the parameter paths and cover all of them.
        """
        rows, norms = [], []
        for number, stage in enumerate(self.stages):
            rows += [summary_row(f"stages/{number}/{n}", *rest) for n, *rest in stage.rows(h, w)]
            h, w = stage.embed.out_size(h, w)
            if self.output_norms:
                shape = (h, w, self.stage_info[number][0])
                norms.append(summary_row(f"output_norms/{number}", "layer_norm", shape))
        rows += norms
        if self.head is None:
            return rows
        dim = self.stage_info[-1][0]
        shape = (h * w + 1, dim) if self.pool == "cls" else (h, w, dim)
        rows.append(summary_row("norm", "layer_norm", shape))
        macs = dim * self.num_classes
        rows.append(summary_row(self.classifier[0], "linear", (self.num_classes,), macs))
        return rows

    def macs(self, h: int, w: int) -> int:
        """Returns the multiply-accumulates of convolutions, matrices and attention for one [h, w]
        image.

        The transforms of less-attention are counted in full, 2 heads N^3 each for 'full', as at the
        size they were made for; the published numbers seem to leave them out.
        """
        return sum(row["macs"] for row in self.summary_rows(h, w))


_TABLE = (
    ("tiny", (2, 2, 2, 2), (2, 2, 1, 1), (2, 1, 1, 1), 0.1),
    ("small", (3, 4, 6, 3), (3, 4, 2, 1), (3, 1, 2, 1), 0.1),
    ("base", (3, 4, 18, 3), (3, 4, 6, 1), (3, 1, 6, 1), 0.3),
)
"""(size, blocks, vanilla blocks, those of the paper form, drop path)."""

for _size, _blocks, _vanilla, _paper, _rate in _TABLE:
    registry.register(
        f"lavit_{_size}",
        LaViT,
        blocks=_blocks,
        vanilla_blocks=_vanilla,
        attention_residual=(False, False, False, True),
        drop_path_rate=_rate,
    )
    registry.register(
        f"lavit_{_size}_paper",
        LaViT,
        blocks=_blocks,
        vanilla_blocks=_paper,
        sr_ratios=(8, 1, 1, 1),
        attention_residual=(False, False, True, True),
        transform=("full", "kron", "full", "full"),
        drop_path_rate=_rate,
    )

# For 8x8 grey digits: two stages, 8x8 and 4x4, with less-attention in both and the residual between
# them.
registry.register(
    "lavit_digits",
    LaViT,
    blocks=(2, 3),
    widths=(32, 64),
    num_heads=(2, 4),
    mlp_ratios=(3, 3),
    sr_ratios=(1, 1),
    vanilla_blocks=(1, 1),
    attention_residual=(False, True),
    patch_sizes=(1, 2),
    **DIGITS,
)
