"""PyTorch forms of OCNet's modules, written after its release and `torch_context`'s rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.torch_layers import convolution, norm_act, pointwise, pointwise_norm_act


def object_context(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """Base-OC."""
    import torch

    context = sum(_unit(unit, w, f"units/{i}", x) for i, unit in enumerate(block.units))
    return pointwise_norm_act(w, "fuse", torch.cat([context, x], 1), block.fuse.activation)


def pyramid_object_context(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """Pyramid-OC."""
    import torch

    parts = [pointwise_norm_act(w, "lift", x, block.lift.activation)]
    parts += [_unit(unit, w, f"units/{i}", x) for i, unit in enumerate(block.units)]
    return pointwise_norm_act(w, "fuse", torch.cat(parts, 1), block.fuse.activation)


def asp_object_context(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """ASP-OC: the context beside the branches of atrous spatial pyramid pooling."""
    import torch

    activation = block.fuse.activation

    def dilated(name, dilation=1):
        y = convolution(w, f"{name}/conv", x, dilation=dilation)
        return norm_act(w, name, y, activation)

    context = _unit(block.unit, w, "unit", dilated("context_in"))
    parts = [pointwise_norm_act(w, "context_out", context, activation)]
    parts.append(pointwise_norm_act(w, "point", x, activation))
    for index, branch in enumerate(block.dilated):
        parts.append(dilated(f"dilated/{index}", branch.conv.kernel_dilation[0]))
    return pointwise_norm_act(w, "fuse", torch.cat(parts, 1), activation)


def _unit(unit: Any, w: Mapping[str, Any], name: str, x: Any) -> Any:
    """Self-attention of the pooled map, cell by cell; queries are the keys."""
    import torch
    from torch.nn import functional

    size = x.shape[2:]
    if unit.pool > 1:
        x = functional.max_pool2d(x, unit.pool)
    key = pointwise_norm_act(w, f"{name}/key/0", x, unit.key[0].activation)
    value = pointwise(w, f"{name}/value", x)

    def attend(key, value):
        keys = key.flatten(2)
        weights = (torch.bmm(keys.transpose(1, 2), keys) * unit.key_dim**-0.5).softmax(2)
        context = torch.bmm(weights, value.flatten(2).transpose(1, 2)).transpose(1, 2)
        return context.reshape(value.shape)

    rows, columns = (_edges(side, unit.cells) for side in x.shape[2:])
    lines = []
    for top, bottom in rows:
        line = [
            attend(key[:, :, top:bottom, left:right], value[:, :, top:bottom, left:right])
            for left, right in columns
        ]
        lines.append(torch.cat(line, 3))
    y = pointwise(w, f"{name}/out", torch.cat(lines, 2))
    if unit.pool > 1:
        y = functional.interpolate(y, size=size, mode="bilinear", align_corners=True)
    return y


def _edges(length: int, cells: int) -> list[tuple[int, int]]:
    """First and last position of every cell; the last one takes what is left."""
    side = length // cells
    return [(i * side, length if i == cells - 1 else (i + 1) * side) for i in range(cells)]
