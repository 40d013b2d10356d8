"""RetinaNet: one stage, a focal loss of every anchor and class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lambdanet.layers import Conv2d, InitKeys
from lambdanet.ops.boxes import clip_boxes
from lambdanet.ops.detection_loss import sigmoid_focal_loss
from lambdanet.ops.nms import Selected, select

from ..registration import registry
from .anchoring import Anchors, Targets
from .box_losses import BoxCoder
from .detector import Detector, Losses, Spec
from .inputs import check_pictures, check_targets
from .options import retinanet_problems
from .parts import Sizes, Tower, flat_levels

_NORMAL = nnx.initializers.normal(0.01)
PRIOR = 0.01
"""Probability that every class of every anchor starts with."""


class RetinaNetHead(nnx.Module):
    """Logits of every class and offsets of every anchor, by two towers that all levels share.

    Args:
        dim: channels of the levels.
        channels: of the towers.
        num_classes: classes.
        anchors: per position.
        num_convs: in each tower.
        norm: after them, see `ConvAct`.
        dtype: activation dtype; results are float32.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. Kernels start normal 0.01.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        anchors: int,
        num_convs: int,
        norm: str,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = dict(norm=norm, kernel_init=_NORMAL, **stored)
        self.num_classes = num_classes
        self.class_tower = Tower(dim, dim, num_convs, **options)
        self.box_tower = Tower(dim, dim, num_convs, **options)
        self.classify = Conv2d(
            dim,
            anchors * num_classes,
            (3, 3),
            padding=(1, 1),
            kernel_init=_NORMAL,
            bias_init=nnx.initializers.constant(-math.log((1 - PRIOR) / PRIOR)),
            **stored,
        )
        self.regress = Conv2d(
            dim, anchors * 4, (3, 3), padding=(1, 1), kernel_init=_NORMAL, **stored
        )

    def __call__(
        self, levels: Sequence[Float[Array, "b _h _w c"]]
    ) -> tuple[list[Float[Array, "b _n k"]], list[Float[Array, "b _n 4"]]]:
        """Returns (logits, offsets) of the anchors of every level, in float32."""
        logits = [self.classify(self.class_tower(x)).astype(jnp.float32) for x in levels]
        deltas = [self.regress(self.box_tower(x)).astype(jnp.float32) for x in levels]
        return flat_levels(logits, self.num_classes), flat_levels(deltas, 4)

    def rows(self, sizes: Sizes) -> list[tuple]:
        """Returns the summary for levels of these sizes."""
        rows = []
        for part, tower in (("class_tower", self.class_tower), ("box_tower", self.box_tower)):
            rows += [(f"{part}/{name}", *rest) for name, *rest in tower.rows(sizes)]
        area = sum(h * w for h, w in sizes)
        for name, conv in (("classify", self.classify), ("regress", self.regress)):
            macs = 9 * area * conv.in_features * conv.out_features
            rows.append((name, "conv 3x3", (*sizes[0], conv.out_features), macs))
        return rows


@registry.register("retinanet")
class RetinaNet(Detector):
    """Objects by one pass: every anchor has a probability for each class and a box.

        levels = pyramid(backbone(images));  logits, offsets = head(levels)

    Losses: 'classification', the focal loss of all anchors but the ignored ones; 'box', that of
    positive anchors; over the number of positive anchors.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection". The defaults are
    mmdetection's; torchvision's are in `retinanet_resnet50_torchvision`.

    Args:
        backbone: a name of `models.list_models()`, or a mapping with `name` and the model's
            options. It gets `in_channels`, `image_size`, `dtype`, `param_dtype` and `remat` unless
            it sets them, and no classifier.
        channels: of the pyramid and the head.
        first_stage: the first of the backbone's maps that has a level, from 1.
        num_levels: levels of the pyramid.
        extra: the levels beyond the backbone's: 'on_input' (a convolution on its last map) |
            'on_output' (on the last level) | 'pool'; see `FeaturePyramid`.
        extra_relu: a ReLU between those (the paper, detectron2, torchvision).
        num_convs: convolutions in each of the two towers.
        head_norm: norms in the towers: 'none' | 'group'.
        anchor_style: 'mmdet' | 'torchvision', see `Anchors`; also how objects force anchors.
        anchor_scale: side of the smallest anchor of a level over the level's stride.
        anchor_octaves: sides per octave.
        anchor_ratios: heights over widths.
        padding_anchors: whether anchors centred in the padding of the canvas take part.
        positive_iou: overlap from which on an anchor is positive.
        negative_iou: overlap below which it is negative.
        box_stds: of the offsets dx, dy, dw, dh.
        box_clamp: of dw and dh: 'both' | 'upper'.
        box_loss: 'l1' | 'smooth_l1' | 'giou'.
        smooth_l1_beta: where 'smooth_l1' turns linear.
        loss_average: 'batch' (over all positive anchors) | 'image' (over those of each picture,
            then over pictures).
        focal_alpha: weight of the positive ones.
        focal_gamma: exponent.
        candidates: pairs of anchor and class with the highest scores that every level gives.
        before_nms: those of all levels that suppression looks at. What it leaves is exact if there
            are no more, or if it leaves `max_detections` of them.
        score_threshold: least score, exclusive.
        nms_threshold: overlap above which the lower score of the same class is suppressed.
        max_detections: per picture.
        num_classes: classes.
        numbered_from: where outputs go by the numbers that the set's origin gives its classes, as
            torchvision's do for COCO: that of the first; None: by the order of the classes.
        class_numbers: numbers of the data's classes, which outputs that go by numbers and are not
            as many are taken by; None: outputs are the classes.
        in_channels: channels of the image.
        image_size: (height, width) of the canvas in training; read by what is tied to a map size.
        remat: of the backbone; recompute activations in the backward pass.
        dtype: activations: 'float32' | 'bfloat16'. Boxes, scores and losses are float32.
        param_dtype: stored parameters: 'float32' | 'bfloat16'.
        rngs: initialisation source.

    Attributes:
        classifier: paths of the layers that depend on the classes.

    Raises:
        ValueError: parts that do not fit each other. `models.create_model` checks the options
            before, those of the backbone included, all in one message.
    """

    classifier: ClassVar[tuple[str, ...]] = ("head/classify",)
    option_problems = staticmethod(retinanet_problems)

    def __init__(
        self,
        *,
        backbone: Spec = "resnet50",
        channels: int = 256,
        first_stage: int = 2,
        num_levels: int = 5,
        extra: str = "on_input",
        extra_relu: bool = False,
        num_convs: int = 4,
        head_norm: str = "none",
        anchor_style: str = "mmdet",
        anchor_scale: float = 4.0,
        anchor_octaves: int = 3,
        anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        padding_anchors: bool = False,
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        box_stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        box_clamp: str = "both",
        box_loss: str = "l1",
        smooth_l1_beta: float = 1 / 9,
        loss_average: str = "batch",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        candidates: int = 1000,
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
            extra_relu=extra_relu,
            in_channels=in_channels,
            image_size=image_size,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.set_classes(num_classes, numbered_from, class_numbers)
        self.anchors = Anchors(
            anchor_style,
            anchor_scale,
            anchor_octaves,
            anchor_ratios,
            padding_anchors,
            positive_iou,
            negative_iou,
        )
        self.coder = BoxCoder(box_stds, box_clamp, box_loss, smooth_l1_beta)
        self.loss_average, self.focal = loss_average, (focal_alpha, focal_gamma)
        self.candidates, self.before_nms = candidates, before_nms
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.max_detections = max_detections
        self.head = RetinaNetHead(
            channels,
            num_classes,
            anchors=self.anchors.count,
            num_convs=num_convs,
            norm=head_norm,
            dtype=jnp.dtype(dtype),
            param_dtype=jnp.dtype(param_dtype),
            rngs=rngs,
        )

    def losses(
        self,
        images: Float[Array, "b h w c"],
        image_shapes: Int[Array, "b 2"],
        targets: Targets,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Losses:
        """Returns 'classification' and 'box' as (sum, weight), in float32; what is minimised is the
        sum of sum / max(weight, 1).

        Args:
            images: normalised, [b, h, w, in_channels], each at the top left of its canvas.
            image_shapes: height and width of each.
            targets: see `Targets`; classes from 0 to num_classes - 1.
            rngs: `dropout` stream; read by the backbone in the training view.
        """
        check_pictures(images, image_shapes, self.in_channels)
        targets = check_targets(targets, images.shape[0], masks=False)
        levels = self.levels(images, rngs=rngs)
        return self.level_losses(levels, images.shape[1:3], image_shapes, targets)

    def level_losses(
        self,
        levels: Sequence[Float[Array, "b _h _w c"]],
        canvas: tuple[int, int],
        image_shapes: Int[Array, "b 2"],
        targets: Targets,
        key: jax.Array | None = None,
    ) -> Losses:
        """Returns the losses of levels; see `Detector`. It draws no samples."""
        targets = self.of_outputs(targets)
        logits, deltas = (jnp.concatenate(one, axis=1) for one in self.head(levels))
        anchors = np.concatenate(self._anchors(levels, canvas))
        sums = jax.vmap(lambda *one: self._sums(anchors, *one))(
            logits,
            deltas,
            image_shapes,
            *(targets[key] for key in ("boxes", "classes", "valid", "crowd")),
        )
        classification, box, positives = sums
        if self.loss_average == "image":
            share = 1 / jnp.maximum(positives, 1.0)
            weight = jnp.float32(1) * len(image_shapes)
            return {
                "classification": (jnp.sum(classification * share), weight),
                "box": (jnp.sum(box * share), weight),
            }
        weight = jnp.sum(positives)
        return {"classification": (jnp.sum(classification), weight), "box": (jnp.sum(box), weight)}

    def _sums(self, anchors, logits, deltas, image_shape, boxes, classes, valid, crowd):
        """Sums of the losses of one picture, and the number of its positive anchors."""
        found = self.anchors.assign(anchors, image_shape, boxes, valid, crowd)
        positive = found.label == 1
        alpha, gamma = self.focal
        wanted = jax.nn.one_hot(classes[found.index], self.num_outputs) * positive[:, None]
        focal = sigmoid_focal_loss(logits, wanted, alpha=alpha, gamma=gamma)
        classification = jnp.sum(jnp.where((found.label >= 0)[:, None], focal, 0.0))
        # where nothing is to be found, an anchor's own box has no error that could overflow
        own = jnp.where(positive[:, None], boxes[found.index], anchors)
        box = self.coder.losses(deltas, jnp.asarray(anchors), own)
        return classification, jnp.sum(jnp.where(positive, box, 0.0)), jnp.sum(positive * 1.0)

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
            [b, max_detections], by falling score; zeros where not valid.
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
        logits, deltas = self.head(levels)
        anchors = self._anchors(levels, canvas)
        found = jax.vmap(lambda *one: self._detect_one(anchors, *one))(logits, deltas, image_shapes)
        return self.of_classes(found._asdict())

    def _detect_one(self, anchors, logits, deltas, image_shape) -> Selected:
        """What is found in one picture; lists of levels without the axis of the batch."""
        boxes, scores, classes, valid = [], [], [], []
        for level, level_logits, level_deltas in zip(anchors, logits, deltas, strict=True):
            inside = self.anchors.inside(level, image_shape)
            level_logits = jnp.where(inside[:, None], level_logits, -jnp.inf)
            # the best pairs belong to the anchors whose best classes are the best
            count = min(self.candidates, len(level))
            _, places = jax.lax.top_k(jnp.max(level_logits, axis=1), count)
            pairs = level_logits[places].reshape(-1)
            best, index = jax.lax.top_k(pairs, min(self.candidates, len(pairs)))
            own = places[index // self.num_outputs]
            found = self.coder.decode(level_deltas[own], jnp.asarray(level)[own])
            boxes.append(clip_boxes(found, image_shape))
            scores.append(jax.nn.sigmoid(best))
            classes.append((index % self.num_outputs).astype(jnp.int32))
            valid.append(scores[-1] > self.score_threshold)
        boxes, scores, classes, valid = map(jnp.concatenate, (boxes, scores, classes, valid))
        _, order = jax.lax.top_k(jnp.where(valid, scores, -1.0), min(self.before_nms, len(scores)))
        return select(
            boxes[order],
            scores[order],
            classes[order],
            valid[order],
            iou_threshold=self.nms_threshold,
            count=self.max_detections,
        )

    def _anchors(self, levels: Sequence[jax.Array], canvas: tuple[int, int]) -> list[np.ndarray]:
        sizes = [level.shape[1:3] for level in levels]
        return self.anchors.boxes(sizes, self.strides, canvas)

    def head_rows(self, sizes: Sizes) -> list[tuple]:
        """Returns the summary of the head for levels of these sizes."""
        return [(f"head/{name}", *rest) for name, *rest in self.head.rows(sizes)]
