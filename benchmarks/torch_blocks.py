"""PyTorch forms of the blocks in `micro_blocks`, eager, written after the public code of each
paper.

Maps are [b, c, h, w]; `w` holds our parameters by our names and in our layout ('query/kernel' is
[in, out]), which costs nothing: a 1x1 convolution takes the transposed view. Batch norms use batch
statistics. torch is imported when a form is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def _pointwise(x, w: Mapping[str, Any], name: str) -> Any:
    from torch.nn import functional

    return functional.conv2d(x, w[f"{name}/kernel"].t()[:, :, None, None], w.get(f"{name}/bias"))


def _batch_norm(x, w: Mapping[str, Any], name: str) -> Any:
    from torch.nn import functional

    return functional.batch_norm(
        x, None, None, w[f"{name}/scale"], w[f"{name}/bias"], training=True, eps=1e-5
    )


def _pointwise_norm_relu(x, w: Mapping[str, Any], name: str) -> Any:
    return _batch_norm(_pointwise(x, w, f"{name}/linear"), w, f"{name}/norm").relu()


def criss_cross(x, w: Mapping[str, Any]) -> Any:
    """CCNet in plain PyTorch: columns and rows as batches, both pieces joined for one softmax."""
    import torch

    batch, _, height, width = x.shape
    query, key, value = (_pointwise(x, w, f"passes/0/{name}") for name in ("query", "key", "value"))

    def columns(a):
        return a.permute(0, 3, 1, 2).reshape(batch * width, -1, height)

    def rows(a):
        return a.permute(0, 2, 1, 3).reshape(batch * height, -1, width)

    own = torch.diag(torch.full((height,), math.inf))
    down = torch.bmm(columns(query).transpose(1, 2), columns(key)) - own
    across = torch.bmm(rows(query).transpose(1, 2), rows(key))
    down = down.view(batch, width, height, height).permute(0, 2, 1, 3)
    weights = torch.cat([down, across.view(batch, height, width, width)], 3).softmax(3)
    down = weights[..., :height].permute(0, 2, 1, 3).reshape(batch * width, height, height)
    across = weights[..., height:].reshape(batch * height, width, width)
    of_columns = (
        torch.bmm(columns(value), down.transpose(1, 2))
        .view(batch, width, -1, height)
        .permute(0, 2, 3, 1)
    )
    of_rows = (
        torch.bmm(rows(value), across.transpose(1, 2))
        .view(batch, height, -1, width)
        .permute(0, 2, 1, 3)
    )
    return x + w["passes/0/gamma"] * (of_columns + of_rows)


def interlaced(x, w: Mapping[str, Any], *, cell: int = 8) -> Any:
    """Interlaced sparse attention: positions of one place in all cells, then those of a cell, each
    by permuted batches.
    """
    import torch

    def attend(y, name):
        query, key = y, y
        for index in range(2):
            query = _pointwise_norm_relu(query, w, f"{name}/query/{index}")
            key = _pointwise_norm_relu(key, w, f"{name}/key/{index}")
        value = _pointwise(y, w, f"{name}/value").flatten(2)
        weights = (
            torch.bmm(query.flatten(2).transpose(1, 2), key.flatten(2)) * key.shape[1] ** -0.5
        ).softmax(2)
        return _pointwise_norm_relu(
            torch.bmm(value, weights.transpose(1, 2)).view(*y.shape), w, f"{name}/out"
        )

    batch, channels, height, width = x.shape
    rows, columns = height // cell, width // cell
    y = x.view(batch, channels, rows, cell, columns, cell).permute(0, 3, 5, 1, 2, 4)
    y = attend(y.reshape(-1, channels, rows, columns), "blocks/0/long_range")
    y = y.view(batch, cell, cell, channels, rows, columns).permute(0, 4, 5, 3, 1, 2)
    y = attend(y.reshape(-1, channels, cell, cell), "blocks/0/short_range")
    y = (
        y.view(batch, rows, columns, channels, cell, cell)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(x.shape)
    )
    return _pointwise_norm_relu(torch.cat([x, y], 1), w, "fuse")


def double_attention(x, w: Mapping[str, Any]) -> Any:
    """A2: gather descriptors, distribute them."""
    import torch

    gather = _pointwise(x, w, "gather").flatten(2).softmax(2)
    distribute = _pointwise(x, w, "distribute").flatten(2).softmax(1)
    descriptors = torch.bmm(_pointwise(x, w, "feature").flatten(2), gather.transpose(1, 2))
    y = torch.bmm(descriptors, distribute).view(x.shape[0], -1, *x.shape[2:])
    return x + _batch_norm(_pointwise(y, w, "out"), w, "norm")


def cgnl(x, w: Mapping[str, Any], *, groups: int = 8) -> Any:
    """CGNL with the dot kernel: one sum per group, group by group."""
    import torch
    from torch.nn import functional

    theta, phi, g = (_pointwise(x, w, name).chunk(groups, 1) for name in ("theta", "phi", "g"))
    parts = []
    for of_theta, of_phi, of_g in zip(theta, phi, g, strict=True):
        total = torch.bmm(of_phi.flatten(1)[:, None], of_g.flatten(1)[:, :, None])
        parts.append(of_theta * total[..., None])
    y = functional.conv2d(torch.cat(parts, 1), w["out_kernel"].t()[:, :, None, None], groups=groups)
    return x + functional.group_norm(y, groups, w["norm/scale"], w["norm/bias"], eps=1e-5)


def linformer(x, w: Mapping[str, Any], *, num_heads: int = 8) -> Any:
    """Linformer over the positions of the map: keys and values of each head compressed along the
    positions.
    """
    batch, channels, height, width = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    query, key, value = (tokens @ w[f"{name}/kernel"] for name in ("query", "key", "value"))
    key, value = (
        w[f"compress_{name}/kernel"].t() @ a for name, a in (("key", key), ("value", value))
    )
    query, key, value = (
        a.view(batch, a.shape[1], num_heads, -1).transpose(1, 2) for a in (query, key, value)
    )
    weights = (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).softmax(3)
    y = (weights @ value).transpose(1, 2).reshape(batch, -1, channels) @ w["output/kernel"] + w[
        "output/bias"
    ]
    return y.transpose(1, 2).reshape(x.shape)


def runner(
    form: Callable[..., Any],
    x: np.ndarray,
    weights: Mapping[str, np.ndarray],
    cotangent: np.ndarray,
    direction: str,
) -> Callable[[], dict[str, Any]]:
    """Returns a function that computes 'y' and, for 'train', the gradients of 'x' and of all
    weights; maps are [b, c, h, w].
    """
    import torch

    def channels_first(a):
        return torch.tensor(np.ascontiguousarray(a.transpose(0, 3, 1, 2)))

    tensors = {name: torch.tensor(np.array(array)) for name, array in weights.items()}
    image, weight = channels_first(x), channels_first(cotangent)

    def forward():
        with torch.no_grad():
            return {"y": form(image, tensors)}

    def train():
        leaves = {
            name: tensor.detach().requires_grad_()
            for name, tensor in {"x": image, **tensors}.items()
        }
        y = form(leaves["x"], {name: leaf for name, leaf in leaves.items() if name != "x"})
        gradients = torch.autograd.grad(y, list(leaves.values()), weight)
        return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}

    return forward if direction == "fwd" else train
