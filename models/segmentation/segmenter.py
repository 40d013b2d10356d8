"""The segmenter: a backbone, a head, and perhaps an auxiliary head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.interop.names import Rule
from lambdanet.layers import InitKeys, resize_bilinear

from ..backbone import check_images, summary_row
from ..backbone_spec import backbone_options, backbone_tables
from ..building import model_builder
from ..registration import registry as model_registry
from . import names
from .options import describe_parts, head_builder, option_problems
from .parts import CLASSIFIER_STD, PixelClassifier, Sizes

Spec = str | Mapping[str, Any]


@model_registry.register("segmenter")
class Segmenter(nnx.Module):
    """Logits of every pixel: a head on the maps of any backbone.

        maps = backbone.features(images);  logits = resize(head(maps))

    Sources: the form is that of mmsegmentation's EncoderDecoder; the heads say their own.

    Args:
        backbone: a name of `models.list_models()`, or a mapping with `name` and the model's
            options. It gets `in_channels`, `image_size`, `dtype`, `param_dtype` and `remat` unless
            it sets them, and no classifier.
        head: a name of `models.segmentation.registry.names()`, or a mapping with `name` and the
            head's options.
        auxiliary: a second head that only training has a loss of, given likewise; None for none.
            The usual one is dict(name='fcn', stage=3, channels=256).
        align_corners: how logits are resized to the image, and maps inside the heads; True is what
            the networks for crops of 769 x 769 were trained with, see `resize_bilinear`.
        classifier_std: standard deviation that the kernels of the classifiers start with; 0.01 is
            mmsegmentation's.
        num_classes: outputs.
        in_channels: channels of the image.
        image_size: (height, width) of the images in training; read by what is tied to a map size.
        remat: of the backbone; recompute activations in the backward pass.
        dtype: activations: 'float32' | 'bfloat16'. Norm statistics, softmax and logits are float32
            either way.
        param_dtype: stored parameters: 'float32' | 'bfloat16'.
        rngs: initialisation source.

    Attributes:
        classifier: paths of the layers that depend on the classes.

    Raises:
        ValueError: parts that do not fit each other. `models.create_model` checks the options
            before, those of the parts included, all in one message.
    """

    PARTS = ("backbone", "head", "auxiliary")
    option_problems = staticmethod(option_problems)
    describe_parts = staticmethod(describe_parts)

    def __init__(
        self,
        *,
        backbone: Spec = "resnet50",
        head: Spec = "fcn",
        auxiliary: Spec | None = None,
        align_corners: bool = False,
        classifier_std: float = CLASSIFIER_STD,
        num_classes: int = 150,
        in_channels: int = 3,
        image_size: tuple[int, int] = (512, 512),
        remat: str = "none",
        dtype: str = "float32",
        param_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        rngs = InitKeys(rngs.params())
        self.num_classes, self.in_channels = num_classes, in_channels
        self.align_corners = align_corners
        given = dict(
            in_channels=in_channels,
            image_size=image_size,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
        )
        name, options = backbone_options(backbone, given)
        self.backbone = model_builder(name, **options)(rngs=rngs)
        info = self.backbone.feature_info
        built = {}
        for part, spec in (("head", head), ("auxiliary", auxiliary)):
            if spec is None:
                built[part] = None
                continue
            build, declared = head_builder(spec)
            host = dict(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype), rngs=rngs)
            if "align_corners" in declared and "align_corners" not in build.keywords:
                host["align_corners"] = align_corners
            if "map_sizes" in declared and "map_sizes" not in build.keywords:
                host["map_sizes"] = tuple(self.feature_sizes(*image_size))
            built[part] = build(info, num_classes, **host)
        self.head, self.auxiliary = built["head"], built["auxiliary"]
        for _, module in nnx.iter_modules(self):
            if isinstance(module, PixelClassifier):  # of a normal distribution
                module.kernel[...] *= classifier_std / CLASSIFIER_STD
        self.classifier = tuple(
            f"{part}/{path}"
            for part, made in built.items()
            if made is not None
            for path in made.classifier
        )

    def features(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _h _w _d"]]:
        """Returns the backbone's maps, largest first; see `feature_info`."""
        check_images(x, self.in_channels)
        return self.backbone.features(x, rngs=rngs)

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """Channels and total stride of every map that `features` returns."""
        return self.backbone.feature_info

    def outputs(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "b _h _w _k"]]:
        """Returns what training has losses of, at the heads' own sizes, in float32.

        Args:
            x: normalised images [b, h, w, in_channels].
            rngs: `dropout` stream; read in the training view.

        Returns:
            'logits' of the head; 'auxiliary', those of the auxiliary head; and what the head has
            besides: 'position' and 'channel', logits of DANet's branches, or 'embedding', features
            for the category-consistent loss.
        """
        maps = self.features(x, rngs=rngs)
        logits, extra = self.head(maps, rngs=rngs, return_auxiliary=True)
        found = {"logits": logits, **extra}
        if self.auxiliary is not None:
            found["auxiliary"] = self.auxiliary(maps, rngs=rngs)
        return found

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w k"]:
        """Maps normalised images [b, h, w, in_channels] to float32 logits of every pixel, [b, h, w,
        num_classes]; `rngs` as in `outputs`.
        """
        logits = self.head(self.features(x, rngs=rngs), rngs=rngs)
        return resize_bilinear(logits, x.shape[1:3], align_corners=self.align_corners)

    def feature_sizes(self, h: int, w: int) -> Sizes:
        """Returns the (height, width) of every map of the backbone for an [h, w] image."""
        view = nnx.view(
            self.backbone, deterministic=True, use_running_average=True, raise_if_not_found=False
        )
        graphdef, state = nnx.split(view)
        image = jax.ShapeDtypeStruct((1, h, w, self.in_channels), jnp.float32)
        maps = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s).features(x), state, image)
        return [tuple(m.shape[1:3]) for m in maps]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Name tables by framework for PyTorch checkpoints, see `models.segmentation.names`.

        Raises:
            ValueError: no framework has both this backbone and this head.
        """
        return names.tables(self.backbone, self.head, self.auxiliary)

    @property
    def backbone_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Name tables for files that hold the backbone alone, with its classifier or without: ours
        ('lambdanet') and the backbone's; see `models.backbone_spec.backbone_tables`.
        """
        return backbone_tables(self.backbone)

    def summary_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """Returns one dict per layer for an [h, w] image: path, type, output_shape (without the
        batch), macs.

        The paths are disjoint prefixes of the parameter paths and cover all of them. The auxiliary
        head, which evaluation leaves out, has no multiply-adds.
        """
        rows = [
            {**row, "path": f"backbone/{row['path']}"} for row in self.backbone.summary_rows(h, w)
        ]
        sizes = self.feature_sizes(h, w)
        for name, kind, shape, macs in self.head.rows(sizes):
            rows.append(summary_row(f"head/{name}", kind, shape, macs))
        if self.auxiliary is not None:
            for name, kind, shape, _ in self.auxiliary.rows(sizes):
                rows.append(summary_row(f"auxiliary/{name}", kind, shape))
        return rows

    def macs(self, h: int, w: int) -> int:
        """Returns the multiply-accumulates of one [h, w] image in evaluation, without the resizing
        of the logits.
        """
        return sum(row["macs"] for row in self.summary_rows(h, w))
