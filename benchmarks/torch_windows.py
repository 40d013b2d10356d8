"""PyTorch forms of attention inside windows, by the rules of `torch_context`; maps are [b, h, w,
c].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import torch_local
from benchmarks.torch_layers import linear


def neighborhood(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """Keys and values of every window gathered, the windows at the border moved inside."""
    import torch

    batch, height, width, _ = x.shape
    side, heads = block.kernel_size[0], block.num_heads
    qkv = linear(w, "qkv", x).view(batch, height, width, 3, heads, -1)
    query, key, value = qkv.permute(3, 0, 4, 1, 2, 5)
    starts = [(torch.arange(n) - side // 2).clamp(0, n - side) for n in (height, width)]

    def windows(a):  # [b, heads, h, w, depth, taps]
        a = a.unfold(2, side, 1).unfold(3, side, 1)
        return a.index_select(2, starts[0]).index_select(3, starts[1]).flatten(5)

    offsets = [  # [n, taps]: key - query + side - 1
        start[:, None] + torch.arange(side) - torch.arange(len(start))[:, None] + side - 1
        for start in starts
    ]
    bias = w["relative_bias"][:, offsets[0][:, None, :, None], offsets[1][None, :, None, :]]
    logits = (query * block.scale)[..., None, :] @ windows(key) + bias.flatten(3)[..., None, :]
    y = (logits.softmax(5) @ windows(value).transpose(4, 5)).squeeze(4)
    return linear(w, "output", y.permute(0, 2, 3, 1, 4).reshape(x.shape))


def cross_shaped_window(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """CSWinBlock's attention: stripes as batches, and a depthwise convolution of their values."""
    import torch
    from torch.nn import functional

    batch, height, width, channels = x.shape
    branches = len(block.stripes)
    qkv = linear(w, "qkv", x).view(batch, height, width, 3, branches, channels // branches)
    mixed = []
    for index, stripe in enumerate(block.stripes):
        rows, columns = (stripe[0] or height, stripe[1] or width)
        grid = height // rows, width // columns

        def cells(a, rows=rows, columns=columns, grid=grid):  # [stripes, positions, channels]
            a = a.view(batch, grid[0], rows, grid[1], columns, -1).permute(0, 1, 3, 2, 4, 5)
            return a.reshape(-1, rows * columns, a.shape[-1])

        def heads(a):
            return a.view(*a.shape[:2], block.num_heads // branches, -1).transpose(1, 2)

        query, key, value = (cells(qkv[..., part, index, :].contiguous()) for part in range(3))
        kernel = w[f"position_convs/{index}/kernel"].permute(3, 2, 0, 1)
        local = functional.conv2d(
            value.transpose(1, 2).reshape(-1, value.shape[2], rows, columns),
            kernel,
            w[f"position_convs/{index}/bias"],
            padding=1,
            groups=value.shape[2],
        )
        query, key, value = map(heads, (query, key, value))
        logits = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
        y = (logits.softmax(3) @ value).transpose(1, 2).flatten(2)
        y = (y + local.flatten(2).transpose(1, 2)).view(batch, *grid, rows, columns, -1)
        mixed.append(y.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1))
    return linear(w, "output", torch.cat(mixed, 3))


def slide(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """Slide attention in its training form, with two convolutions."""
    batch, height, width, _ = x.shape
    qkv = linear(w, "qkv", x).view(batch, height, width, block.num_heads, 3, block.head_dim)
    query, key, value = qkv.permute(4, 0, 3, 5, 1, 2).flatten(1, 2)
    y = torch_local.slide_paths(
        query * block.scale,
        key,
        value,
        w["deformed_kernel"].permute(3, 2, 0, 1),
        w["fixed_bias"],
        w["deformed_bias"],
        w["position_bias"],
    )
    y = y.view(batch, -1, height, width).permute(0, 2, 3, 1)
    return linear(w, "output", y.reshape(x.shape))
