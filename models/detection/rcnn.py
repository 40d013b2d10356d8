"""Faster R-CNN and Mask R-CNN: proposals, then their classes, boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from lambdanet.layers import InitKeys
from lambdanet.ops.detection_loss import mask_cross_entropy
from lambdanet.ops.roi_align import multi_level_roi_align

from ..registration import registry
from . import mask_chunks, regions
from .anchoring import Anchors, Targets
from .box_losses import BoxCoder
from .detector import Detector, Losses, Spec
from .inputs import check_pictures, check_targets
from .options import rcnn_problems
from .parts import Sizes
from .roi_heads import BoxHead, MaskHead
from .rpn import Proposing, RegionProposal


class RCNN(Detector):
    """Objects in two stages: boxes that may hold one, then their classes, better boxes and masks.

        levels = pyramid(backbone(images));  proposals = rpn(levels)
        classes, offsets = box_head(roi_align(levels, proposals))
        masks = mask_head(roi_align(levels, boxes))

    Losses: 'objectness' and 'proposal_box' of the anchors that are drawn, 'classification' and
    'box' of the proposals that are drawn, 'mask' of the positive ones among these.

    Sources: Ren et al. 2015, "Faster R-CNN"; Lin et al. 2017, "Feature Pyramid Networks"; He et al.
    2017, "Mask R-CNN". The defaults are mmdetection's, but that it samples regions by their size;
    torchvision's are in `faster_rcnn_resnet50_torchvision`.

    Args:
        masks: whether there is the mask head.
        backbone: a name of `models.list_models()`, or a mapping with `name` and the model's
            options. It gets `in_channels`, `image_size`, `dtype`, `param_dtype` and `remat` unless
            it sets them, and no classifier.
        channels: of the pyramid.
        first_stage: the first of the backbone's maps that has a level, from 1.
        num_levels: levels of the pyramid; regions are cut out of those that are the backbone's.
        extra: the levels beyond the backbone's, see `FeaturePyramid`.
        rpn_convs: convolutions in front of objectness and offsets.
        head_norm: norms after the convolutions of the heads: 'none' | 'group'.
        anchor_style: 'mmdet' | 'torchvision', see `Anchors`; also how objects force anchors.
        anchor_scale: side of the smallest anchor of a level over the level's stride.
        anchor_octaves: sides per octave.
        anchor_ratios: heights over widths.
        padding_anchors: whether anchors centred in the padding of the canvas take part.
        rpn_positive_iou: overlap from which on an anchor is positive.
        rpn_negative_iou: overlap below which it is negative.
        rpn_force_iou: least overlap with which an object forces its best anchors.
        rpn_samples: anchors per picture that the losses look at.
        rpn_positive_fraction: the most of them that are positive.
        rpn_box_loss: of proposals: 'l1' | 'smooth_l1' | 'giou'.
        proposals_before: of every level before suppression, in (training, evaluation).
        proposals_after: of a picture after it, in (training, evaluation).
        proposal_nms: overlap above which the lower score of the same level is suppressed.
        roi_aligned: regions shifted by half a pixel (detectron2, mmdetection), not so in
            torchvision.
        roi_sampling: samples per bin and axis.
        roi_finest: side of regions, in pixels, of which the double is cut out of the second level;
            None is 14 strides of the first level: 56 for a stride of 4.
        box_size: side of a region for the box head.
        fc_channels: of its two layers.
        background: 'last' of the classes (mmdetection) | 'first' (torchvision, which then has
            offsets and masks of the background, too).
        roi_samples: proposals per picture that the losses look at.
        roi_positive_fraction: the most of them that are positive.
        roi_positive_iou: overlap from which on a proposal is positive.
        box_stds: of the offsets dx, dy, dw, dh of the second stage.
        box_clamp: of dw and dh in both stages: 'both' | 'upper'.
        box_loss: 'l1' | 'smooth_l1' | 'giou'.
        smooth_l1_beta: where 'smooth_l1' turns linear.
        mask_size: side of a region for the mask head; masks have twice as much.
        mask_convs: its convolutions.
        mask_channels: their channels.
        mask_target: 'binary' (mmdetection) | 'soft' (torchvision): what training compares with.
        before_nms: pairs of proposal and class that the last suppression looks at. What it leaves
            is exact if there are no more, or if it leaves `max_detections` of them.
        score_threshold: least score, exclusive.
        nms_threshold: overlap above which the lower score of the same class is suppressed.
        max_detections: per picture.
        num_classes: classes, without the background.
        numbered_from: where outputs go by the numbers that the set's origin gives its classes, as
            torchvision's do for COCO: that of the first; None: by the order of the classes.
        class_numbers: numbers of the data's classes, which outputs that go by numbers and are not
            as many are taken by; None: outputs are the classes.
        in_channels: channels of the image.
        image_size: (height, width) of the canvas in training; read by what is tied to a map size.
        remat: of the backbone; recompute activations in the backward pass.
        dtype: activations: 'float32' | 'bfloat16'. Boxes, scores, losses and RoIAlign are float32.
        param_dtype: stored parameters: 'float32' | 'bfloat16'.
        rngs: initialisation source.

    Attributes:
        classifier: paths of the layers that depend on the classes.
        has_masks: whether there is the mask head.

    Raises:
        ValueError: parts that do not fit each other. `models.create_model` checks the options
            before, those of the backbone included, all in one message.
    """

    option_problems = staticmethod(rcnn_problems)

    def __init__(
        self,
        *,
        masks: bool,
        backbone: Spec = "resnet50",
        channels: int = 256,
        first_stage: int = 1,
        num_levels: int = 5,
        extra: str = "pool",
        rpn_convs: int = 1,
        head_norm: str = "none",
        anchor_style: str = "mmdet",
        anchor_scale: float = 8.0,
        anchor_octaves: int = 1,
        anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        padding_anchors: bool = False,
        rpn_positive_iou: float = 0.7,
        rpn_negative_iou: float = 0.3,
        rpn_force_iou: float = 0.3,
        rpn_samples: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_box_loss: str = "l1",
        proposals_before: tuple[int, int] = (2000, 1000),
        proposals_after: tuple[int, int] = (1000, 1000),
        proposal_nms: float = 0.7,
        roi_aligned: bool = True,
        roi_sampling: int = 2,
        roi_finest: float | None = None,
        box_size: int = 7,
        fc_channels: int = 1024,
        background: str = "last",
        roi_samples: int = 512,
        roi_positive_fraction: float = 0.25,
        roi_positive_iou: float = 0.5,
        box_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
        box_clamp: str = "both",
        box_loss: str = "l1",
        smooth_l1_beta: float = 1 / 9,
        mask_size: int = 14,
        mask_convs: int = 4,
        mask_channels: int = 256,
        mask_target: str = "binary",
        before_nms: int = 2000,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        num_classes: int = 80,
        numbered_from: int | None = None,
        class_numbers: tuple[int, ...] | None = None,
        in_channels: int = 3,
        image_size: tuple[int, int] = (800, 1344),
        remat: str = "none",
        dtype: str = "float32",
        param_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        rngs = InitKeys(rngs.params())
        super().__init__(
            backbone=backbone,
            channels=channels,
            first_stage=first_stage,
            num_levels=num_levels,
            extra=extra,
            extra_relu=False,
            in_channels=in_channels,
            image_size=image_size,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        stored = dict(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype), rngs=rngs)
        self.set_classes(num_classes, numbered_from, class_numbers)
        self.has_masks = masks
        self.first = int(background == "first")  # outputs before that of the first class
        anchors = Anchors(
            anchor_style,
            anchor_scale,
            anchor_octaves,
            anchor_ratios,
            padding_anchors,
            rpn_positive_iou,
            rpn_negative_iou,
            rpn_force_iou,
        )
        self.rpn = RegionProposal(
            channels,
            anchors=anchors,
            coder=BoxCoder((1.0,) * 4, box_clamp, rpn_box_loss, smooth_l1_beta),
            numbers=Proposing(
                rpn_samples, rpn_positive_fraction, proposals_before, proposals_after, proposal_nms
            ),
            num_convs=rpn_convs,
            norm=head_norm,
            **stored,
        )
        outputs = num_classes + self.first
        self.box_head = BoxHead(
            channels,
            size=box_size,
            channels=fc_channels,
            num_outputs=num_classes + 1,
            num_boxes=outputs,
            **stored,
        )
        self.mask_head = (
            MaskHead(
                channels,
                channels=mask_channels,
                num_convs=mask_convs,
                num_outputs=outputs,
                norm=head_norm,
                **stored,
            )
            if masks
            else None
        )
        self.coder = BoxCoder(box_stds, box_clamp, box_loss, smooth_l1_beta)
        finest = 14 * self.strides[0] if roi_finest is None else roi_finest
        self.cutting = regions.Cutting(roi_sampling, roi_aligned, float(finest))
        self.drawing = regions.Drawing(roi_samples, roi_positive_fraction, roi_positive_iou)
        self.detecting = regions.Detecting(
            background, before_nms, score_threshold, nms_threshold, max_detections
        )
        self.box_size, self.mask_size, self.binary = box_size, mask_size, mask_target == "binary"

    @property
    def classifier(self) -> tuple[str, ...]:
        """Paths of the layers that depend on the classes."""
        masks = ("mask_head/classify",) if self.has_masks else ()
        return ("box_head/classify", "box_head/regress", *masks)

    def losses(
        self,
        images: Float[Array, "b h w c"],
        image_shapes: Int[Array, "b 2"],
        targets: Targets,
        *,
        rngs: nnx.Rngs,
    ) -> Losses:
        """Returns 'objectness', 'proposal_box', 'classification', 'box' and, with masks, 'mask' as
        (sum, weight), in float32; what is minimised is the sum of sum / max(weight, 1).

        Args:
            images: normalised, [b, h, w, in_channels], each at the top left of its canvas.
            image_shapes: height and width of each.
            targets: see `Targets`; classes from 0 to num_classes - 1.
            rngs: `dropout` stream; anchors and proposals are drawn from it.
        """
        check_pictures(images, image_shapes, self.in_channels)
        targets = check_targets(targets, images.shape[0], masks=self.mask_head is not None)
        key = rngs.dropout()
        levels = self.levels(images, rngs=rngs)
        return self.level_losses(levels, images.shape[1:3], image_shapes, targets, key)

    def level_losses(
        self,
        levels: Sequence[Float[Array, "b _h _w c"]],
        canvas: tuple[int, int],
        image_shapes: Int[Array, "b 2"],
        targets: Targets,
        key: jax.Array,
    ) -> Losses:
        """Returns the losses of levels; see `Detector`."""
        keys, targets = jax.random.split(key, (2, len(image_shapes))), self.of_outputs(targets)
        logits, deltas = self.rpn(levels)
        anchors = self._anchors(levels, canvas)
        found = self.rpn.losses(logits, deltas, anchors, image_shapes, targets, keys[0])
        boxes, valid = self.rpn.proposals(logits, deltas, anchors, image_shapes, training=True)
        drawn = regions.draw(boxes, valid, targets, keys[1], self.drawing)
        classes = jnp.take_along_axis(targets["classes"], drawn.index, axis=1)
        found |= self._box_losses(levels, drawn, classes, targets["boxes"])
        if self.mask_head is not None:
            found |= self._mask_losses(levels, drawn, classes, targets)
        return found

    def _box_losses(self, levels, drawn, classes, objects):
        """'classification' and 'box' of the proposals that are drawn."""
        logits, deltas = self.box_head(self._regions(levels, drawn.boxes, self.box_size))
        outside = 0 if self.first else self.num_outputs
        wanted = jnp.where(drawn.positive, classes + self.first, outside)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        own = regions.of_class(jnp.swapaxes(deltas, -1, -2), classes + self.first)
        truth = jnp.take_along_axis(objects, drawn.index[..., None], axis=1)
        # a proposal of its own has no error that could overflow
        anchors = jnp.where(drawn.positive[..., None], drawn.boxes, jnp.array([0.0, 0.0, 1.0, 1.0]))
        box = self.coder.losses(own, anchors, jnp.where(drawn.positive[..., None], truth, anchors))
        weight = jnp.sum(drawn.valid * 1.0)
        return {
            "classification": (jnp.sum(jnp.where(drawn.valid, entropy, 0.0)), weight),
            "box": (jnp.sum(jnp.where(drawn.positive, box, 0.0)), weight),
        }

    def _mask_losses(self, levels, drawn, classes, targets):
        """'mask' of the proposals that are drawn and positive, which are the first."""
        most = self.drawing.most_positive(drawn.boxes.shape[1])
        boxes, positive, index, classes = (
            x[:, :most] for x in (drawn.boxes, drawn.positive, drawn.index, classes)
        )
        wanted = regions.mask_targets(
            targets["masks"],
            targets["boxes"],
            boxes,
            index,
            size=2 * self.mask_size,
            binary=self.binary,
        )
        graphdef, weights = nnx.split(self.mask_head)

        def entropy(weights, maps, constants):
            classes, wanted = constants
            logits = nnx.merge(graphdef, weights)(maps[None])[0]
            return mask_cross_entropy(regions.of_class(logits, classes + self.first), wanted)

        maps = self._regions(levels, boxes, self.mask_size)
        maps, constants, there = jax.tree.map(_flat, (maps, (classes, wanted), positive))
        chunk = mask_chunks.chunk_size(self.mask_head.tower.dim_out)
        total = mask_chunks.sum_in_chunks(entropy, weights, maps, constants, there, chunk)
        return {"mask": (total, jnp.sum(positive * 1.0))}

    def detect(
        self,
        images: Float[Array, "b h w c"],
        image_shapes: Int[Array, "b 2"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, jax.Array]:
        """Finds the objects of pictures.

        Args:
            images: as in `losses`.
            image_shapes: as in `losses`.
            rngs: read by a backbone in the training view.

        Returns:
            boxes [b, max_detections, 4] in pixels, scores, classes int32 and valid
            [b, max_detections], by falling score, zeros where not valid; with masks also masks
            [b, max_detections, 2 mask_size, 2 mask_size], probabilities in the coordinates of the
            boxes.
        """
        check_pictures(images, image_shapes, self.in_channels)
        levels = self.levels(images, rngs=rngs)
        return self.level_detections(levels, images.shape[1:3], image_shapes)

    def level_detections(
        self,
        levels: Sequence[Float[Array, "b _h _w c"]],
        canvas: tuple[int, int],
        image_shapes: Int[Array, "b 2"],
    ) -> dict[str, jax.Array]:
        """Returns what `detect` does, of levels; see `Detector`."""
        logits, deltas = self.rpn(levels)
        anchors = self._anchors(levels, canvas)
        boxes, valid = self.rpn.proposals(logits, deltas, anchors, image_shapes, training=False)
        logits, deltas = self.box_head(self._regions(levels, boxes, self.box_size))
        found = regions.detections(
            logits, deltas, boxes, valid, image_shapes, self.coder, self.detecting
        )._asdict()
        if self.mask_head is not None:
            found["masks"] = self._masks(levels, found)
        return self.of_classes(found)

    def _masks(self, levels, found):
        """The masks of detections, for their own classes."""

        def masks(given):
            maps, classes = given
            logits = self.mask_head(maps[None])[0]
            return jax.nn.sigmoid(regions.of_class(logits, classes + self.first))

        maps, valid = self._regions(levels, found["boxes"], self.mask_size), found["valid"]
        given, there = jax.tree.map(_flat, ((maps, found["classes"]), valid))
        chunk = mask_chunks.chunk_size(self.mask_head.tower.dim_out)
        every = mask_chunks.in_chunks(masks, given, there, chunk)
        return every.reshape(*valid.shape, *every.shape[1:])

    def _regions(self, levels: Sequence[jax.Array], boxes: Any, size: int) -> jax.Array:
        maps, strides = levels[: self.num_maps], self.strides[: self.num_maps]
        return multi_level_roi_align(
            maps,
            boxes,
            strides=strides,
            output_size=(size, size),
            sampling_ratio=self.cutting.sampling_ratio,
            aligned=self.cutting.aligned,
            canonical_size=self.cutting.canonical_size,
        ).astype(levels[0].dtype)

    def _anchors(self, levels: Sequence[jax.Array], canvas: tuple[int, int]) -> list[np.ndarray]:
        sizes = [level.shape[1:3] for level in levels]
        return self.rpn.anchors.boxes(sizes, self.strides, canvas)

    def head_rows(self, sizes: Sizes) -> list[tuple]:
        """Returns the summary of the heads for levels of these sizes."""
        parts = {
            "rpn": self.rpn.rows(sizes),
            "box_head": self.box_head.rows(self.rpn.numbers.after[1]),
        }
        if self.mask_head is not None:
            parts["mask_head"] = self.mask_head.rows(self.detecting.count, self.mask_size)
        return [(f"{part}/{name}", *rest) for part, rows in parts.items() for name, *rest in rows]


def _flat(x: jax.Array) -> jax.Array:
    """[b, r, ...] to [b r, ...]."""
    return x.reshape(-1, *x.shape[2:])


registry.register("faster_rcnn", RCNN, masks=False)
registry.register("mask_rcnn", RCNN, masks=True)
