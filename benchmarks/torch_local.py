"""PyTorch forms of the candidates in `micro_local`, eager, in the layout each of them likes best.

Slide attention is written after its public description: heads are folded into the batch, maps are
[b * heads, depth, h, w], kernels [depth * slots, 1, k, k] serve all heads and keys and values.
torch is imported when a form is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def slide_paths(q, k, v, learned, fixed_bias, learned_bias, position_bias) -> Any:
    """Slide attention in the training form: a fixed depthwise convolution that shifts and a learned
    one, summed.
    """
    import torch
    from torch.nn import functional

    side, depth = learned.shape[-1], q.shape[1]
    shift = (
        torch.eye(side * side, dtype=learned.dtype)
        .reshape(side * side, 1, side, side)
        .repeat(depth, 1, 1, 1)
    )

    def slots(x):
        options = dict(padding=side // 2, groups=depth)
        return functional.conv2d(x, shift, fixed_bias, **options) + functional.conv2d(
            x, learned, learned_bias, **options
        )

    return _slide(q, slots(k), slots(v), position_bias)


def slide_merged(q, k, v, learned, fixed_bias, learned_bias, position_bias) -> Any:
    """Slide attention with both kernels added, one depthwise convolution: inference."""
    import torch
    from torch.nn import functional

    side, depth = learned.shape[-1], q.shape[1]
    shift = (
        torch.eye(side * side, dtype=learned.dtype)
        .reshape(side * side, 1, side, side)
        .repeat(depth, 1, 1, 1)
    )
    kernel, bias = learned + shift, fixed_bias + learned_bias

    def slots(x):
        return functional.conv2d(x, kernel, bias, padding=side // 2, groups=depth)

    return _slide(q, slots(k), slots(v), position_bias)


def _shift(learned):
    """The kernel [depth * slots, 1, k, k] that moves slot o to tap o."""
    import torch

    slots, side = learned.shape[-1] ** 2, learned.shape[-1]
    one_hot = torch.eye(slots, dtype=learned.dtype).reshape(slots, 1, side, side)
    return one_hot.repeat(len(learned) // slots, 1, 1, 1)


def _slide(q, keys, values, position_bias):
    (heads, places), (folded, depth, *size) = position_bias.shape, q.shape
    keys = (
        keys.reshape(-1, heads, depth, places, *size) + position_bias[None, :, None, :, None, None]
    )
    weights = (q.reshape(-1, heads, depth, 1, *size) * keys).sum(2, keepdim=True).softmax(3)
    return (
        (weights * values.reshape(-1, heads, depth, places, *size))
        .sum(3)
        .reshape(folded, depth, *size)
    )


def local_unfold(q, k, v, *, window: int) -> Any:
    """Softmax attention over the columns of `unfold`."""
    from torch.nn import functional

    folded, depth, *size = q.shape
    keys, values = (
        functional.unfold(x, window, padding=window // 2).reshape(folded, depth, window**2, -1)
        for x in (k, v)
    )
    weights = (q.reshape(folded, depth, 1, -1) * keys).sum(1, keepdim=True).softmax(2)
    return (weights * values).sum(2).reshape(folded, depth, *size)


def layout(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an operand of `micro_local`, or its gradient, in the layout of the forms above."""
    if name in ("q", "k", "v", "y"):
        batch, height, width, heads, depth = array.shape
        return np.ascontiguousarray(
            array.transpose(0, 3, 4, 1, 2).reshape(batch * heads, depth, height, width)
        )
    if name == "learned":
        rows, columns, depth, slots = array.shape
        return np.ascontiguousarray(
            array.transpose(2, 3, 0, 1).reshape(depth * slots, 1, rows, columns)
        )
    return array if name == "position_bias" else array.reshape(-1)


def runner(
    function: Callable[..., Any],
    operands: Mapping[str, np.ndarray],
    cotangent: np.ndarray,
    direction: str,
) -> Callable[[], dict[str, Any]]:
    """Returns a function that computes the output 'y' and, for direction 'train', the gradients by
    operand.
    """
    import torch

    tensors = {name: torch.tensor(layout(name, array)) for name, array in operands.items()}
    weight = torch.tensor(layout("y", cotangent))

    def forward():
        with torch.no_grad():
            return {"y": function(**tensors)}

    def train():
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        y = function(**leaves)
        gradients = torch.autograd.grad(y, list(leaves.values()), weight)
        return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}

    return forward if direction == "fwd" else train
