"""Layers of PyTorch with our parameters by our names, for the forms of blocks.

`w` holds tensors by path, in our layouts; maps are [b, c, h, w], lists of tokens [..., c]. Batch
norms use batch statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def linear(w: Mapping[str, Any], name: str, tokens: Any) -> Any:
    """Applies 'name/kernel' [in, out] and its bias, if there is one, to the last axis."""
    from torch.nn import functional

    return functional.linear(tokens, w[f"{name}/kernel"].t(), w.get(f"{name}/bias"))


def pointwise(w: Mapping[str, Any], name: str, x: Any) -> Any:
    """The same as a 1x1 convolution of a map."""
    from torch.nn import functional

    return functional.conv2d(x, w[f"{name}/kernel"].t()[:, :, None, None], w.get(f"{name}/bias"))


def convolution(w: Mapping[str, Any], name: str, x: Any, *, dilation: int = 1) -> Any:
    """Convolves a map with a square 'name/kernel' [k, k, in, out] and keeps its size."""
    from torch.nn import functional

    kernel = w[f"{name}/kernel"].permute(3, 2, 0, 1)
    padding = dilation * (kernel.shape[-1] // 2)
    return functional.conv2d(x, kernel, w.get(f"{name}/bias"), padding=padding, dilation=dilation)


def batch_norm(w: Mapping[str, Any], name: str, x: Any) -> Any:
    """Normalises a map by the statistics of the batch."""
    from torch.nn import functional

    return functional.batch_norm(
        x, None, None, w[f"{name}/scale"], w[f"{name}/bias"], training=True, eps=1e-5
    )


def norm_act(w: Mapping[str, Any], name: str, x: Any, activation: str) -> Any:
    """Batch norm, and one of the activations 'relu' and 'leaky_relu_0.01'."""
    from torch.nn import functional

    y = batch_norm(w, f"{name}/norm", x)
    return y.relu() if activation == "relu" else functional.leaky_relu(y, 0.01)


def pointwise_norm_act(w: Mapping[str, Any], name: str, x: Any, activation: str = "relu") -> Any:
    """1x1 convolution, batch norm, activation."""
    return norm_act(w, name, pointwise(w, f"{name}/linear", x), activation)
