"""PyTorch's twins of our networks, for the suite `model`: timm's, and pytorchvideo's of clips."""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# Ours to the package that computes the same function, and its name there.
TWINS = {
    "lambda_resnet26t": ("timm", "lambda_resnet26t"),
    "lambda_resnet50ts": ("timm", "lambda_resnet50ts"),
    "resnet50": ("timm", "resnet50"),
    "swin_tiny": ("timm", "swin_tiny_patch4_window7_224"),
    "pvt_v2_b1": ("timm", "pvt_v2_b1"),
    "c2d_resnet50_8x8": ("pytorchvideo", "c2d_r50"),
}


def installed(name: str) -> bool:
    """Returns whether our network has a twin that can be imported; imports nothing."""
    return name in TWINS and all(
        importlib.util.find_spec(package) is not None for package in ("torch", TWINS[name][0])
    )


@functools.lru_cache(maxsize=1)
def initial_state(name: str) -> dict[str, np.ndarray]:
    """Returns the weights of the twin of our network `name`: its initial values, shifted where
    they are all equal.

    A norm that starts at zero would hide everything before it from the comparison.
    """
    import torch

    torch.manual_seed(0)
    model = _create(name, None)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _create(name: str, clip: tuple[int, ...] | None) -> Any:
    """Builds the twin; `clip`, if it takes clips: frames, height, width of what it is to be run on,
    over which pytorchvideo's head averages by a window.
    """
    package, theirs = TWINS[name]
    if package == "timm":
        import timm

        return timm.create_model(theirs, pretrained=False)
    from pytorchvideo.models import hub

    options = {}
    if clip is not None:
        frames, height, width = clip
        options["head_pool_kernel_size"] = (frames // 2, height // 32, width // 32)
    return getattr(hub, theirs)(False, **options)


def _load(name: str, images: np.ndarray) -> Any:
    import torch

    model = _create(name, images.shape[1:-1] if images.ndim == 5 else None)
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
        images: [b, h, w, c], or clips [b, t, h, w, c].
        compile_it: use torch.compile; its seconds are in the facts.
    """
    import torch

    model, x = _load(name, images).eval(), torch.from_numpy(np.moveaxis(images, -1, 1).copy())
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
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    rate: float,
    momentum: float,
    compile_it: bool,
) -> tuple[Callable[[], float], Callable[[], dict[str, np.ndarray]]]:
    """Returns (function that does one step of SGD with momentum and gives the loss, function that
    gives the last gradients).

    Args:
        name: of our network.
        images: [b, h, w, c], or clips [b, t, h, w, c].
        labels: [b].
        rate: learning rate.
        momentum: of the update.
        compile_it: use torch.compile, whose minutes the first step takes.
    """
    import torch

    model = _load(name, images).train()
    for module in model.modules():  # what is dropped is drawn by another generator than ours
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    network = torch.compile(model) if compile_it else model
    x, target = (
        torch.from_numpy(np.moveaxis(images, -1, 1).copy()),
        torch.from_numpy(labels.astype(np.int64)),
    )
    update = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)

    def run() -> float:
        update.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), target)
        loss.backward()
        update.step()
        return loss.item()

    return run, lambda: {key: value.grad.numpy().copy() for key, value in model.named_parameters()}
