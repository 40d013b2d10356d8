"""Detectors by name, and small ones for pictures of 96 x 96 and 128 x 128.

`*_torchvision` have torchvision's conventions and take the weights of its detectors; all others
have mmdetection's. Hierarchical backbones have norms on their maps where they have none of their
own, PVT no class token; Swin's windows are those of its code for dense tasks: shifted also where
one window covers the map.
"""

from __future__ import annotations

from typing import Any

from ..hierarchical.swin import windows
from ..registration import registry
from .rcnn import RCNN
from .retinanet import RetinaNet

COCO = dict(num_classes=80, image_size=(800, 1344))


def _backbones() -> dict[str, dict[str, Any]]:
    normed = dict(output_norm=True)
    dense = windows(7, fit=False)
    found: dict[str, dict[str, Any]] = {
        "resnet50": {},
        "resnet101": {},
        "lambda_resnet50": {},
        "lambda_resnet101": {},
    }
    for size in ("tiny", "small"):
        rates = dict(drop_path_rate=0.2, **normed)
        found[f"swin_{size}"] = dict(attention=(dense,) * 4, **rates)
        found[f"slide_swin_{size}"] = dict(attention=("slide", "slide", dense, dense), **rates)
    for size in ("tiny", "small", "medium", "large"):
        found[f"pvt_{size}"] = found[f"slide_pvt_{size}"] = dict(pool="mean", image_size=(224, 224))
    for number in range(6):
        found[f"pvt_v2_b{number}"] = {}
    for size in ("mini", "tiny", "small", "base"):
        found[f"nat_{size}"] = dict(normed)
    return found


def _mmdetection() -> None:
    for name, options in _backbones().items():
        backbone = dict(name=name, **options)
        form = "_mmdet" if name == "resnet50" else ""
        registry.register(f"retinanet_{name}{form}", RetinaNet, backbone=backbone, **COCO)
        registry.register(f"mask_rcnn_{name}{form}", RCNN, masks=True, backbone=backbone, **COCO)
    registry.register("faster_rcnn_resnet50_mmdet", RCNN, masks=False, backbone="resnet50", **COCO)


def _torchvision() -> None:
    """Labels are the numbers of COCO's categories, 1 to 90 with gaps: of torchvision's RetinaNet
    they are its outputs, of which the first is never used, of its R-CNNs one more than our outputs.
    """
    common = dict(
        backbone="resnet50",
        anchor_style="torchvision",
        padding_anchors=True,
        box_clamp="upper",
        image_size=COCO["image_size"],
    )
    registry.register(
        "retinanet_resnet50_torchvision",
        RetinaNet,
        extra="on_output",
        extra_relu=True,
        loss_average="image",
        max_detections=300,
        num_classes=91,
        numbered_from=0,
        **common,
    )
    for name, masks in (("faster_rcnn", False), ("mask_rcnn", True)):
        registry.register(
            f"{name}_resnet50_torchvision",
            RCNN,
            masks=masks,
            rpn_force_iou=0.0,
            rpn_box_loss="smooth_l1",
            box_loss="smooth_l1",
            proposals_after=(2000, 1000),
            roi_aligned=False,
            background="first",
            mask_target="soft",
            num_classes=90,
            numbered_from=1,
            **common,
        )


SMALL_MIXERS = {
    "": None,
    "_lambda": dict(name="lambda", key_depth=8, num_heads=4, scope=7),
    "_slide": dict(name="slide", num_heads=4),
}
"""Suffix of a small detector -> what stands for the second 3x3 convolution of every block from
stage 2 on."""


def _small() -> None:
    """For 96 x 96 and 128 x 128 and trainings of minutes: ResNets of basic blocks in which no norm
    starts at zero, levels of strides 4 to 32, anchors of 12 pixels and more, narrow heads with
    norms, masks of 20 x 20: the mask branch takes most of the time of a training step.
    """
    backbone = dict(
        name="resnet18",
        stem="strided",
        zero_init_last=False,
        blocks=(1, 1, 2, 1),
        widths=(16, 48, 96, 128),
    )
    common = dict(
        channels=64,
        first_stage=2,
        num_levels=4,
        head_norm="group",
        num_classes=10,
        image_size=(96, 96),
        anchor_scale=3.0,
        anchor_octaves=2,
        before_nms=400,
    )
    one_stage = dict(num_convs=2, candidates=200)
    two_stages = dict(
        rpn_samples=64,
        proposals_before=(200, 200),
        proposals_after=(100, 100),
        fc_channels=128,
        roi_finest=28.0,
        roi_samples=32,
        roi_positive_fraction=0.5,
        mask_size=10,
        mask_convs=2,
        mask_channels=32,
    )
    for suffix, mixer in SMALL_MIXERS.items():
        own = backbone if mixer is None else dict(backbone, attention=(None, mixer, mixer, mixer))
        shared = dict(backbone=own, **common)
        registry.register(f"small_retinanet{suffix}", RetinaNet, **one_stage, **shared)
        for name, masks in (("small_faster_rcnn", False), ("small_mask_rcnn", True)):
            registry.register(f"{name}{suffix}", RCNN, masks=masks, **two_stages, **shared)


_mmdetection()
_torchvision()
_small()
