"""PyTorch forms of context blocks, written after the public code of each paper.

A form is a function of our block without arrays, which knows its options, of the parameters as
`torch_layers` takes them, and of a map [b, c, h, w]. torch is imported when a form is called.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from typing import Any

from benchmarks.torch_layers import batch_norm, pointwise, pointwise_norm_act


def criss_cross(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """CCNet in plain PyTorch: columns and rows as batches, both pieces joined for one softmax."""
    import torch

    batch, _, height, width = x.shape

    def columns(a):
        return a.permute(0, 3, 1, 2).reshape(batch * width, -1, height)

    def rows(a):
        return a.permute(0, 2, 1, 3).reshape(batch * height, -1, width)

    own = torch.diag(torch.full((height,), math.inf, dtype=x.dtype))
    for _ in range(block.recurrence):
        query, key, value = (
            pointwise(w, f"passes/0/{name}", x) for name in ("query", "key", "value")
        )
        down = torch.bmm(columns(query).transpose(1, 2), columns(key)) - own
        across = torch.bmm(rows(query).transpose(1, 2), rows(key))
        down = down.view(batch, width, height, height).permute(0, 2, 1, 3)
        weights = torch.cat([down, across.view(batch, height, width, width)], 3).softmax(3)
        down = weights[..., :height].permute(0, 2, 1, 3).reshape(batch * width, height, height)
        across = weights[..., height:].reshape(batch * height, width, width)
        of_columns = torch.bmm(columns(value), down.transpose(1, 2))
        of_columns = of_columns.view(batch, width, -1, height).permute(0, 2, 3, 1)
        of_rows = torch.bmm(rows(value), across.transpose(1, 2))
        of_rows = of_rows.view(batch, height, -1, width).permute(0, 2, 1, 3)
        x = x + w["passes/0/gamma"] * (of_columns + of_rows)
    return x


def interlaced(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """Interlaced sparse attention: positions of one place in all cells, then those of a cell, each
    by permuted batches.
    """
    import torch

    def attend(y, name):
        query, key = y, y
        for index in range(2):
            query = pointwise_norm_act(w, f"{name}/query/{index}", query)
            key = pointwise_norm_act(w, f"{name}/key/{index}", key)
        value = pointwise(w, f"{name}/value", y).flatten(2)
        logits = torch.bmm(query.flatten(2).transpose(1, 2), key.flatten(2))
        weights = (logits * key.shape[1] ** -0.5).softmax(2)
        context = torch.bmm(value, weights.transpose(1, 2)).view(*y.shape)
        return pointwise_norm_act(w, f"{name}/out", context)

    batch, channels, height, width = x.shape
    cell_rows, cell_columns = block.blocks[0].group_size
    rows, columns = height // cell_rows, width // cell_columns
    y = x.view(batch, channels, rows, cell_rows, columns, cell_columns).permute(0, 3, 5, 1, 2, 4)
    y = attend(y.reshape(-1, channels, rows, columns), "blocks/0/long_range")
    y = y.view(batch, cell_rows, cell_columns, channels, rows, columns).permute(0, 4, 5, 3, 1, 2)
    y = attend(y.reshape(-1, channels, cell_rows, cell_columns), "blocks/0/short_range")
    y = y.view(batch, rows, columns, channels, cell_rows, cell_columns).permute(0, 3, 1, 4, 2, 5)
    return pointwise_norm_act(w, "fuse", torch.cat([x, y.reshape(x.shape)], 1))


def double_attention(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """A2: gather descriptors, distribute them."""
    import torch

    gather = pointwise(w, "gather", x).flatten(2).softmax(2)
    distribute = pointwise(w, "distribute", x).flatten(2).softmax(1)
    descriptors = torch.bmm(pointwise(w, "feature", x).flatten(2), gather.transpose(1, 2))
    y = torch.bmm(descriptors, distribute).view(x.shape[0], -1, *x.shape[2:])
    return x + batch_norm(w, "norm", pointwise(w, "out", y))


def cgnl(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """CGNL and CGNLx: one sum per power of the kernel and group, group by group."""
    import torch
    from torch.nn import functional

    def raised(a, power):
        return a if power == 1 else a**power

    groups = block.groups
    powers = [(power, factor) for power, factor in enumerate(block.coefficients) if factor]
    theta, phi, g = (pointwise(w, name, x).chunk(groups, 1) for name in ("theta", "phi", "g"))
    parts = []
    for of_theta, of_phi, of_g in zip(theta, phi, g, strict=True):
        flat, column = of_phi.flatten(1)[:, None], of_g.flatten(1)[:, :, None]
        terms = [
            factor * torch.bmm(raised(flat, power), column)[..., None] * raised(of_theta, power)
            for power, factor in powers
        ]
        parts.append(functools.reduce(operator.add, terms))
    y = functional.conv2d(torch.cat(parts, 1), w["out_kernel"].t()[:, :, None, None], groups=groups)
    return x + functional.group_norm(y, groups, w["norm/scale"], w["norm/bias"], eps=1e-5)


def nonlocal_block(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """The four modes with all weights in memory, as AlexHex7/Non-local_pytorch has them; keys and
    values from the map pooled first, and the pairs of 'concatenation' as a sum of two scalars.
    """
    import torch
    from torch.nn import functional

    source = functional.max_pool2d(x, 2)
    gaussian = block.mode == "gaussian"
    query = (x if gaussian else pointwise(w, "query", x)).flatten(2).transpose(1, 2)
    key = (source if gaussian else pointwise(w, "key", source)).flatten(2)
    value = pointwise(w, "value", source).flatten(2).transpose(1, 2)
    if block.mode == "concatenation":
        of_query, of_key = w["pair/kernel"][:, 0].split(block.inner)
        weights = ((query @ of_query)[:, :, None] + (of_key @ key)[:, None, :]).relu()
    else:
        weights = torch.bmm(query, key)
    if block.mode == "embedded_gaussian":
        weights = (weights * block.scale).softmax(2)
    else:
        weights = weights.softmax(2) if gaussian else weights / key.shape[2]
    y = torch.bmm(weights, value).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
    return x + batch_norm(w, "norm", pointwise(w, "out", y))


def position_attention(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """DANet's PAM_Module."""
    import torch

    query, key, value = (pointwise(w, name, x).flatten(2) for name in ("query", "key", "value"))
    weights = torch.bmm(query.transpose(1, 2), key).softmax(2)
    return w["gamma"] * torch.bmm(value, weights.transpose(1, 2)).view(x.shape) + x


def channel_attention(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """DANet's CAM_Module."""
    import torch

    flat = x.flatten(2)
    energy = torch.bmm(flat, flat.transpose(1, 2))
    weights = (energy.max(2, keepdim=True)[0].expand_as(energy) - energy).softmax(2)
    return w["gamma"] * torch.bmm(weights, flat).view(x.shape) + x
