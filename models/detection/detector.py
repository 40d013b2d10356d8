"""What every detector is made of: a backbone and a feature pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.interop.names import Rule
from lambdanet.layers import FeaturePyramid
from lambdanet.registry import show

from ..backbone import check_images, summary_row
from ..backbone_spec import backbone_options, backbone_tables
from ..building import model_builder
from . import names
from .parts import Sizes

Spec = str | Mapping[str, Any]
LAST_OF_COCO = 90
"""The largest number of its categories."""
Losses = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""Name -> (sum, weight)."""


class Detector(nnx.Module):
    """Base of the detectors: pictures -> levels of a pyramid.

    A subclass calls `set_classes`, sets `classifier`, and has

        losses(images, image_shapes, targets, *, rngs) -> {name: (sum, weight)}
        detect(images, image_shapes, *, rngs=None) -> {'boxes', 'scores', 'classes', 'valid', and
            'masks' where `has_masks`}
        level_losses(levels, canvas, image_shapes, targets, key), and
        level_detections(levels, canvas, image_shapes)     the same of what `levels` gives for
            pictures on canvases of (height, width) `canvas`; `targets` as `check_targets` gives
            them, and of `key` a detector draws its samples, if it does
        head_rows(sizes)      lines of the summary for levels of these sizes

    Args:
        backbone: a name of `models.list_models()`, or a mapping with `name` and options.
        channels: of every level.
        first_stage: the first of the backbone's maps that has a level, from 1.
        num_levels: levels in all.
        extra: how levels beyond the backbone's are made, see `FeaturePyramid`.
        extra_relu: as in `FeaturePyramid`.
        in_channels: channels of the image.
        image_size: (height, width) of the canvas in training; read by what is tied to a map size.
        remat: of the backbone.
        dtype: of activations.
        param_dtype: of stored parameters.
        rngs: initialisation source.

    Attributes:
        classifier: paths of the layers that depend on the classes.
        has_masks: whether `detect` gives masks.
        strides: of every level.
        num_outputs: classes that the layers have.
        num_classes: classes from outside, in targets and detections.
        class_outputs: the output of each of them; None: the first has the first, and so on.
        class_numbers: that the set's origin gives them, as far as the model knows; () for nothing.
    """

    classifier: ClassVar[tuple[str, ...]] = ()
    has_masks: bool = False

    def __init__(
        self,
        *,
        backbone: Spec,
        channels: int,
        first_stage: int,
        num_levels: int,
        extra: str,
        extra_relu: bool,
        in_channels: int,
        image_size: tuple[int, int],
        remat: str,
        dtype: str,
        param_dtype: str,
        rngs: nnx.Rngs,
    ):
        given = dict(
            in_channels=in_channels,
            image_size=image_size,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
        )
        self.in_channels = in_channels
        name, options = backbone_options(backbone, given)
        self.backbone = model_builder(name, **options)(rngs=rngs)
        info = self.backbone.feature_info
        self.neck = FeaturePyramid(
            [one["channels"] for one in info],
            channels,
            num_levels=num_levels,
            start=first_stage - 1,
            extra=extra,
            extra_relu=extra_relu,
            dtype=jnp.dtype(dtype),
            param_dtype=jnp.dtype(param_dtype),
            rngs=rngs,
        )
        strides = [one["stride"] for one in info][first_stage - 1 :]
        while len(strides) < num_levels:
            strides.append(2 * strides[-1])
        self.strides, self.num_maps = tuple(strides), len(info) - first_stage + 1

    def set_classes(
        self, outputs: int, numbered_from: int | None, class_numbers: tuple[int, ...] | None
    ) -> None:
        """Sets which class has which output; see the arguments `num_classes`, `numbered_from` and
        `class_numbers` of a detector.

        Raises:
            ValueError: a class whose number no output has, or two with one number.
        """
        self.num_outputs = self.num_classes = outputs
        self.numbered_from = numbered_from
        self.class_outputs, self.class_numbers = None, ()
        if numbered_from is None:
            return
        last = numbered_from + outputs - 1
        if class_numbers is None or len(class_numbers) == outputs:
            self.class_numbers = tuple(range(numbered_from, last + 1))
            return
        wrong = [n for n in class_numbers if not numbered_from <= n <= last]
        if wrong or len(set(class_numbers)) < len(class_numbers):
            raise ValueError(
                f"class_numbers is {show(class_numbers)}; allowed: different numbers from "
                f"{numbered_from} to {last}, which its {outputs} outputs stand for; leave "
                f"num_classes={outputs} out, and the model has an output for each of the "
                f"{len(class_numbers)} classes of the data"
            )
        self.num_classes, self.class_numbers = len(class_numbers), class_numbers
        self.class_outputs = tuple(n - numbered_from for n in class_numbers)

    @property
    def head_advice(self) -> str:
        """What helps with a file of which all fits but the layers of the classes; '' = nothing."""
        if self.numbered_from is None:
            return ""
        return (
            "If it is of torchvision: its outputs go by the numbers of COCO's categories, which "
            f"--config.model.num_classes={LAST_OF_COCO + 1 - self.numbered_from} takes by the "
            "numbers of the data's classes."
        )

    def of_outputs(self, targets: Mapping[str, Any]) -> dict[str, Any]:
        """Returns targets with outputs in the place of classes."""
        if self.class_outputs is None:
            return dict(targets)
        outputs = jnp.asarray(self.class_outputs, jnp.int32)
        return {**targets, "classes": outputs[targets["classes"]]}

    def of_classes(self, found: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns detections with classes in the place of outputs; those whose output is no class
        are not valid, and go behind the others.
        """
        if self.class_outputs is None:
            return dict(found)
        table = np.full(self.num_outputs, -1, np.int32)
        table[list(self.class_outputs)] = np.arange(len(self.class_outputs))
        classes = jnp.asarray(table)[found["classes"]]
        valid = found["valid"] & (classes >= 0)
        order = jnp.argsort(~valid, axis=1, stable=True)

        def kept(x: jax.Array) -> jax.Array:
            there = valid.reshape(*valid.shape, *(1,) * (x.ndim - 2))
            places = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
            return jnp.take_along_axis(jnp.where(there, x, jnp.zeros_like(x)), places, axis=1)

        return {name: kept(x) for name, x in {**found, "classes": classes, "valid": valid}.items()}

    def features(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _h _w _d"]]:
        """Returns the backbone's maps, largest first; see `feature_info`."""
        check_images(x, self.in_channels)
        return self.backbone.features(x, rngs=rngs)

    def levels(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "b _h _w _d"]]:
        """Returns the levels of the pyramid, largest first; their strides are `strides`."""
        return self.pyramid(self.features(x, rngs=rngs))

    def pyramid(
        self, maps: Sequence[Float[Array, "b _h _w _d"]]
    ) -> list[Float[Array, "b _h _w _c"]]:
        """Returns the levels of the backbone's maps, as `features` gives them."""
        dtype = self.neck.laterals[0].dtype
        return self.neck([one.astype(dtype) for one in maps])

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """Channels and total stride of every map that `features` returns."""
        return self.backbone.feature_info

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> dict[str, jax.Array]:
        """Returns what `detect` finds in pictures that fill their canvas."""
        shapes = jnp.broadcast_to(jnp.asarray(x.shape[1:3], jnp.int32), (x.shape[0], 2))
        return self.detect(x, shapes, rngs=rngs)

    def feature_sizes(self, h: int, w: int) -> Sizes:
        """Returns the (height, width) of every map of the backbone for an [h, w] image."""
        return self._sizes(lambda model, x: model.features(x), h, w)

    def level_sizes(self, h: int, w: int) -> Sizes:
        """Returns the (height, width) of every level for an [h, w] image."""
        return self._sizes(lambda model, x: model.levels(x), h, w)

    def _sizes(self, run: Any, h: int, w: int) -> Sizes:
        view = nnx.view(
            self, deterministic=True, use_running_average=True, raise_if_not_found=False
        )
        graphdef, state = nnx.split(view)
        image = jax.ShapeDtypeStruct((1, h, w, self.in_channels), jnp.float32)
        maps = jax.eval_shape(lambda s, x: run(nnx.merge(graphdef, s), x), state, image)
        return [tuple(m.shape[1:3]) for m in maps]

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Name tables by framework for PyTorch checkpoints, see `models.detection.names`.

        Raises:
            ValueError: no framework has a detector on this backbone.
        """
        return names.tables(self.backbone, self)

    @property
    def backbone_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Name tables for files that hold the backbone alone, with its classifier or without; see
        `models.backbone_spec.backbone_tables`.
        """
        return backbone_tables(self.backbone)

    def summary_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """Returns one dict per layer for an [h, w] image: path, type, output_shape (without the
        batch), macs.

        The paths are disjoint prefixes of the parameter paths and cover all of them. What runs on
        proposals is counted for as many as evaluation has at most.
        """
        rows = [
            {**row, "path": f"backbone/{row['path']}"} for row in self.backbone.summary_rows(h, w)
        ]
        rows += [
            summary_row(f"neck/{name}", *rest)
            for name, *rest in self.neck.rows(self.feature_sizes(h, w))
        ]
        return rows + [summary_row(*row) for row in self.head_rows(self.level_sizes(h, w))]

    def macs(self, h: int, w: int) -> int:
        """Returns the multiply-accumulates of one [h, w] image in evaluation, those of layers."""
        return sum(row["macs"] for row in self.summary_rows(h, w))
