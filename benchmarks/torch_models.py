"""timm's twins of our networks, for the suite `model`; needs PyTorch and timm."""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# Ours to timm's name, where both compute the same function.
TWINS = {
    "lambda_resnet26t": "lambda_resnet26t",
    "resnet50": "resnet50",
    "swin_tiny": "swin_tiny_patch4_window7_224",
}


def installed() -> bool:
    """Returns whether PyTorch and timm can be imported; imports neither."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "timm"))


@functools.lru_cache(maxsize=1)
def initial_state(name: str) -> dict[str, np.ndarray]:
    """Returns the weights of the twin of our network `name`: timm's initial values, shifted where
    they are all equal.

    A norm that starts at zero would hide everything before it from the comparison.
    """
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(TWINS[name], pretrained=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _load(name: str) -> Any:
    import timm
    import torch

    model = timm.create_model(TWINS[name], pretrained=False)
    state = {key: torch.from_numpy(value.copy()) for key, value in initial_state(name).items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    return model


def forward(
    name: str, images: np.ndarray, *, compile_it: bool
) -> tuple[Callable[[], np.ndarray], dict[str, float]]:
    """Returns (function that runs the twin in evaluation mode and gives the logits, facts).

    Args:
        name: of our network.
        images: [b, h, w, c].
        compile_it: use torch.compile; its seconds are in the facts.
    """
    import torch

    model, x = _load(name).eval(), torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    facts = {}

    def run() -> np.ndarray:
        with torch.no_grad():
            return model(x).numpy()

    if compile_it:
        model = torch.compile(model)
        began = time.perf_counter()
        run()
        facts["compile_s"] = time.perf_counter() - began
    return run, facts


def train_step(
    name: str, images: np.ndarray, labels: np.ndarray, *, rate: float, momentum: float
) -> tuple[Callable[[], float], Callable[[], dict[str, np.ndarray]]]:
    """Returns (function that does one step of SGD with momentum and gives the loss, function that
    gives the last gradients).

    Args:
        name: of our network.
        images: [b, h, w, c].
        labels: [b].
        rate: learning rate.
        momentum: of the update.
    """
    import torch

    model = _load(name).train()
    for module in model.modules():  # stochastic depth draws from another generator than ours
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    x, target = (
        torch.from_numpy(np.moveaxis(images, -1, 1).copy()),
        torch.from_numpy(labels.astype(np.int64)),
    )
    update = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)

    def run() -> float:
        update.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), target)
        loss.backward()
        update.step()
        return loss.item()

    return run, lambda: {key: value.grad.numpy().copy() for key, value in model.named_parameters()}
