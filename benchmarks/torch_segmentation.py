"""PyTorch's twins of our segmentation networks, for `benchmarks.segmentation_step`: torchvision's
FCN and UPerNet-Swin-T of transformers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

# Ours to the package that has the same network.
TWINS = {"fcn_resnet50": "torchvision", "upernet_swin_tiny": "transformers"}


def installed(name: str) -> bool:
    """Returns whether the twin of our network can be built; imports nothing."""
    return name in TWINS and all(
        importlib.util.find_spec(package) is not None for package in ("torch", TWINS[name])
    )


def build(name: str, *, num_classes: int) -> Any:
    """Returns the twin of our network with random weights and without dropout, which draws from
    another generator than ours.

    Norms that start at zero or one would hide what is before them from the comparison: they are
    shifted, and the last of every residual branch is small, that the maps do not grow from block to
    block.
    """
    import torch

    torch.manual_seed(0)
    if TWINS[name] == "torchvision":
        from torchvision.models.segmentation import fcn_resnet50

        model = fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True
        )
    else:
        import transformers

        backbone = transformers.SwinConfig(
            embed_dim=96,
            depths=[2, 2, 6, 2],
            num_heads=[3, 6, 12, 24],
            window_size=7,
            drop_path_rate=0.0,
            out_features=[f"stage{number}" for number in range(1, 5)],
        )
        config = transformers.UperNetConfig(
            backbone_config=backbone,
            hidden_size=512,
            num_labels=num_classes,
            auxiliary_in_channels=384,
            auxiliary_channels=256,
        )
        model = transformers.UperNetForSemanticSegmentation(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bn3.weight"):
                parameter.uniform_(0.1, 0.3)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def train_step(
    model: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    auxiliary_weight: float,
    rate: float,
    momentum: float,
    decay: float,
) -> Callable[[], tuple[float, float]]:
    """Returns a function that does one step of SGD and gives the loss and the norm of the gradient,
    as torchvision's training script has it: cross entropy of the up-sampled logits and, weighted,
    of those of the auxiliary head, over the labelled pixels.

    Args:
        model: of `build`.
        images: normalised, [b, h, w, c].
        labels: [b, h, w], 255 = ignored.
        auxiliary_weight: of the auxiliary head's loss.
        rate: learning rate.
        momentum: of the update.
        decay: of the weights, added to the gradient.
    """
    import torch

    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    target = torch.from_numpy(labels.astype(np.int64))
    update = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
    entropy = torch.nn.functional.cross_entropy

    def loss_of() -> torch.Tensor:
        if hasattr(model, "config"):  # transformers computes it, auxiliary head included
            model.config.auxiliary_loss_weight = auxiliary_weight
            return model(pixel_values=x, labels=target).loss
        found = model(x)
        main = entropy(found["out"], target, ignore_index=255)
        return main + auxiliary_weight * entropy(found["aux"], target, ignore_index=255)

    def run() -> tuple[float, float]:
        update.zero_grad()
        loss = loss_of()
        loss.backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        update.step()
        return loss.item(), torch.stack(norms).norm().item()

    return run
