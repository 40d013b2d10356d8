"""torchvision's RetinaNet and Mask R-CNN in the size of `small_retinanet` and `small_mask_rcnn` of
models/detection/presets.py, for `benchmarks.detection_peer`.

Built of torchvision's own parts: its ResNet of basic blocks with our widths, its pyramid, heads and
losses, random weights. The RPN's head has no norm there; anchors are rounded to whole pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

WIDTHS, BLOCKS, CHANNELS = (16, 48, 96, 128), (1, 1, 2, 1), 64
STRIDES, OCTAVES, RATIOS = (4, 8, 16, 32), 2, (0.5, 1.0, 2.0)
MAX_DETECTIONS = 100
FIRST_LABELS = {"retinanet": 0, "mask_rcnn": 1}


@dataclasses.dataclass(frozen=True)
class Options:
    """What of a detector is set.

    Attributes:
        detector: 'retinanet' | 'mask_rcnn'.
        classes: without the background.
        image_size: (height, width) of the canvas.
        anchor_scale: side of the smallest anchor of a level over the level's stride.
        proposals: of a picture after suppression, of 'mask_rcnn'; before it, every level gives
            twice as many.
    """

    detector: str
    classes: int
    image_size: tuple[int, int]
    anchor_scale: float
    proposals: int


def build(options: Options) -> Any:
    """Returns the detector; its pictures are canvases with values in [0, 1]."""
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sides = [
        [options.anchor_scale * s * 2 ** (i / OCTAVES) for i in range(OCTAVES)] for s in STRIDES
    ]
    common = dict(
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        _skip_resize=True,
        fixed_size=options.image_size[::-1],
    )
    anchors = AnchorGenerator([[int(s) for s in own] for own in sides], [RATIOS] * len(STRIDES))
    build_one = _retinanet if options.detector == "retinanet" else _mask_rcnn
    model = build_one(detection, options, anchors, common)
    model.transform.postprocess = lambda found, shapes, sizes: found  # masks stay in their boxes
    return model


def _retinanet(detection: Any, options: Options, anchors: Any, common: dict[str, Any]) -> Any:
    from torchvision.models.detection.retinanet import RetinaNetHead

    count = anchors.num_anchors_per_location()[0]
    head = RetinaNetHead(CHANNELS, count, options.classes, norm_layer=_group_norm())
    for tower in (head.classification_head, head.regression_head):
        tower.conv = tower.conv[:2]
    return detection.RetinaNet(
        _backbone(convolution=True),
        options.classes,
        anchor_generator=anchors,
        head=head,
        detections_per_img=MAX_DETECTIONS,
        topk_candidates=200,
        **common,
    )


def _mask_rcnn(detection: Any, options: Options, anchors: Any, common: dict[str, Any]) -> Any:
    from torchvision.models.detection import faster_rcnn, mask_rcnn
    from torchvision.ops import MultiScaleRoIAlign

    # regions of 56 pixels and more are cut out of the second level, as ours
    cut = functools.partial(
        MultiScaleRoIAlign, ["0", "1", "2"], sampling_ratio=2, canonical_scale=56, canonical_level=3
    )
    outputs = options.classes + 1
    return detection.MaskRCNN(
        _backbone(convolution=False),
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=2 * options.proposals,
        rpn_pre_nms_top_n_test=2 * options.proposals,
        rpn_post_nms_top_n_train=options.proposals,
        rpn_post_nms_top_n_test=options.proposals,
        rpn_batch_size_per_image=64,
        box_roi_pool=cut(output_size=7),
        box_head=faster_rcnn.TwoMLPHead(CHANNELS * 7 * 7, 128),
        box_predictor=faster_rcnn.FastRCNNPredictor(128, outputs),
        box_detections_per_img=MAX_DETECTIONS,
        box_batch_size_per_image=32,
        box_positive_fraction=0.5,
        mask_roi_pool=cut(output_size=10),
        mask_head=mask_rcnn.MaskRCNNHeads(CHANNELS, (32, 32), 1, norm_layer=_group_norm()),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(32, 32, outputs),
        **common,
    )


def _group_norm() -> Callable[[int], Any]:
    import torch

    return functools.partial(torch.nn.GroupNorm, 32)


def _backbone(convolution: bool) -> Any:
    """ResNet and pyramid; the fourth level by a convolution on the last map, or by a pool."""
    import torch
    from torchvision.models import resnet
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

    class LastLevelP6(ExtraFPNBlock):
        """torchvision's LastLevelP6P7 without the second."""

        def __init__(self):
            super().__init__()
            self.p6 = torch.nn.Conv2d(WIDTHS[-1], CHANNELS, 3, 2, 1)
            torch.nn.init.kaiming_uniform_(self.p6.weight, a=1)
            torch.nn.init.zeros_(self.p6.bias)

        def forward(self, levels, maps, names):
            return [*levels, self.p6(maps[-1])], [*names, "p6"]

    class NarrowResNet(resnet.ResNet):
        """With our stem and widths."""

        def __init__(self):
            super().__init__(resnet.BasicBlock, BLOCKS, num_classes=1)
            self.conv1 = torch.nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False)
            self.bn1, self.maxpool = torch.nn.BatchNorm2d(WIDTHS[0]), torch.nn.Identity()
            self.inplanes = WIDTHS[0]
            for stage, (width, count) in enumerate(zip(WIDTHS, BLOCKS, strict=True), 1):
                made = self._make_layer(resnet.BasicBlock, width, count, stride=1 + (stage > 1))
                setattr(self, f"layer{stage}", made)
            for module in self.modules():
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")

    return BackboneWithFPN(
        NarrowResNet(),
        {f"layer{stage}": str(stage - 2) for stage in (2, 3, 4)},
        list(WIDTHS[1:]),
        CHANNELS,
        LastLevelP6() if convolution else LastLevelMaxPool(),
    )


def optimizer(model: Any, rate: float, decay: float) -> Any:
    """Returns AdamW, without decay of biases and norms."""
    import torch

    parameters = list(model.parameters())
    groups = [
        dict(params=[p for p in parameters if p.ndim > 1], weight_decay=decay),
        dict(params=[p for p in parameters if p.ndim == 1], weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, lr=rate)


def train_step(
    model: Any, update: Any, batch: Mapping[str, np.ndarray], *, first: int, clip: float
) -> dict[str, float]:
    """Does one step and returns the losses, 'loss' their sum first.

    Args:
        model: of `build`.
        update: of `optimizer`.
        batch: of the task's training batches.
        first: label of class 0.
        clip: largest norm of the gradient.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    import torch

    model.train()
    found = model(pictures(batch["image"]), [*targets(batch, first)])
    loss = sum(found.values())
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss.item()}; lower --lr")
    update.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    update.step()
    return {"loss": loss.item()} | {name: value.item() for name, value in found.items()}


def pictures(images: np.ndarray) -> list[Any]:
    """Returns uint8 [b, h, w, 3] as torchvision's list of [3, h, w] in [0, 1]."""
    import torch

    return list(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)


def targets(batch: Mapping[str, np.ndarray], first: int) -> Iterator[dict[str, Any]]:
    """Yields torchvision's targets of every picture: boxes, labels and, if there are any, masks
    pasted into the canvas. Crowds, and boxes without area, torchvision does not know.

    Args:
        batch: of the task's training batches.
        first: label of class 0.
    """
    import torch

    for index, boxes in enumerate(batch["boxes"]):
        kept = batch["valid"][index] & ~batch["crowd"][index]
        kept &= (boxes[:, 2:] > boxes[:, :2]).all(-1)
        target = dict(
            boxes=torch.from_numpy(boxes[kept]),
            labels=torch.from_numpy(batch["classes"][index][kept]).long() + first,
        )
        if "masks" in batch:
            shape = batch["image"].shape[1:3]
            pairs = zip(batch["masks"][index][kept], boxes[kept], strict=True)
            whole = [on_canvas(mask, box, shape) for mask, box in pairs]
            target["masks"] = torch.from_numpy(np.array(whole, np.uint8).reshape(-1, *shape))
        yield target


def on_canvas(mask: np.ndarray, box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns a bitmap that fills its box, read at the centres of the canvas's pixels.

    `paste_masks` is for what a detector gives: it widens boxes by up to a pixel, as torchvision.

    Args:
        mask: [s, s], 0 and 1.
        box: left, top, right, bottom in pixels of the canvas.
        shape: height and width of the canvas.
    """
    places = []
    for low, high, side in ((box[1], box[3], shape[0]), (box[0], box[2], shape[1])):
        at = np.floor((np.arange(side) + 0.5 - low) / (high - low) * len(mask)).astype(int)
        places.append(np.where((at >= 0) & (at < len(mask)), at, len(mask)))
    return np.pad(mask, ((0, 1), (0, 1)))[np.ix_(*places)]


def detect(model: Any, images: np.ndarray, *, first: int) -> dict[str, np.ndarray]:
    """Returns what is found in pixels of the canvas, as our detectors' `detect` does.

    Args:
        model: of `build`.
        images: uint8 [b, h, w, 3].
        first: label of class 0.

    Returns:
        boxes [b, k, 4], scores, classes and valid [b, k], and of Mask R-CNN masks [b, k, s, s].
    """
    import torch

    model.eval()
    with torch.no_grad():
        found = model(pictures(images))
    rows = dict(
        boxes=_rows([one["boxes"] for one in found]),
        scores=_rows([one["scores"] for one in found]),
        classes=_rows([one["labels"] - first for one in found]).astype(np.int32),
        valid=_rows([torch.ones(len(one["scores"]), dtype=torch.bool) for one in found]),
    )
    if "masks" in found[0]:
        rows["masks"] = _rows([one["masks"][:, 0] for one in found])
    return rows


def _rows(values: Sequence[Any]) -> np.ndarray:
    result = np.zeros((len(values), MAX_DETECTIONS, *values[0].shape[1:]), values[0].numpy().dtype)
    for row, one in zip(result, values, strict=True):
        row[: len(one)] = one.numpy()
    return result
