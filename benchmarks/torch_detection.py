"""torchvision's RetinaNet and Mask R-CNN, for `benchmarks.detection_step`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

TWINS = {"retinanet": "retinanet_resnet50_fpn", "mask_rcnn": "maskrcnn_resnet50_fpn"}
LAST = ("cls_logits", "bbox_reg", "bbox_pred", "cls_score")


def installed() -> bool:
    """Returns whether the twins can be built; imports nothing."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "torchvision"))


def build(name: str, *, side: int, threshold: float) -> Any:
    """Returns the twin with random weights that say more than that nothing is there: detections of
    a score above `threshold` are as many as it may have.
    """
    import torch
    from torchvision.models import detection

    torch.manual_seed(0)
    model = getattr(detection, TWINS[name])(
        weights=None,
        weights_backbone=None,
        min_size=side,
        max_size=side,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bn3.weight"):
                parameter.uniform_(0.1, 0.3)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif key.split(".")[-2] in LAST:
                parameter.mul_(5)
    (model if name == "retinanet" else model.roi_heads).score_thresh = threshold
    return model


def prepare(
    model: Any,
    images: np.ndarray,
    targets: Mapping[str, np.ndarray],
    *,
    first_label: int,
    training: bool,
    rate: float,
    momentum: float,
) -> Callable[[], dict[str, float]]:
    """Returns a function that does one step of SGD (loss) or finds objects (found, score).

    Args:
        model: of `build`.
        images: [b, side, side, 3], normalised.
        targets: boxes [b, m, 4], classes [b, m], of which all are valid, and masks
            [b, m, side, side].
        first_label: of class 0.
        training: which of the two.
        rate: learning rate.
        momentum: of SGD.
    """
    import torch

    pictures = [torch.from_numpy(np.moveaxis(image, -1, 0).copy()) for image in images]
    objects = [
        dict(
            boxes=torch.from_numpy(targets["boxes"][index]),
            labels=torch.from_numpy(targets["classes"][index]).long() + first_label,
            masks=torch.from_numpy(targets["masks"][index]),
        )
        for index in range(len(images))
    ]
    model.train(training)
    update = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)

    def detect() -> dict[str, float]:
        with torch.no_grad():
            found = model(pictures)
        scores = torch.cat([one["scores"] for one in found])
        return dict(found=len(scores), score=scores.sum().item())

    def train() -> dict[str, float]:
        update.zero_grad()
        loss = sum(model(pictures, objects).values())
        loss.backward()
        update.step()
        return dict(loss=loss.item())

    return train if training else detect
