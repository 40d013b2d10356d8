"""A block in PyTorch that has our parameters: what `torch_blocks` lists and `blocks_suite` runs.

torch is imported when a form is made.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lambdanet.interop import names

Runner = tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], dict[str, np.ndarray]]]
INPUTS, OUTPUTS = ("x", "logits"), ("y", "handed_on")
"""Of a block that carries logits; others have the first of each, a map."""
MAPS = ("x", "y")


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of a block.

    Attributes:
        call: its inputs -> its output, or outputs.
        parameters: its leaves by name.
        shapes: of our parameters by path.
        table: from the leaves' names to ours; None where they have ours, in our layouts.
        channels_last: whether its maps are [b, h, w, c] as ours, or [b, c, h, w].
    """

    call: Callable[..., Any]
    parameters: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    table: Sequence[names.Rule] | None = None
    channels_last: bool = False


Builder = Callable[[Any, int, Mapping[str, np.ndarray]], Form]
"""(our block without arrays, side of its maps, its parameters by path) -> form."""


def installed() -> bool:
    """Returns whether all forms can be made; imports nothing."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "timm"))


def literal(function: Callable[..., Any], *, channels_last: bool = False) -> Builder:
    """Returns the builder of a form that is a function of (our block, parameters, *inputs).

    The function takes the parameters as ours are, which costs nothing: a 1x1 convolution takes the
    transposed view of 'query/kernel' [in, out].
    """

    def make(block: Any, side: int, params: Mapping[str, np.ndarray]) -> Form:
        import torch

        tensors = {name: torch.tensor(np.array(array)) for name, array in params.items()}
        call = functools.partial(function, block, tensors)
        shapes = {name: array.shape for name, array in params.items()}
        return Form(call, tensors, shapes, channels_last=channels_last)

    return make


def of_module(
    module: Any,
    params: Mapping[str, np.ndarray],
    table: Sequence[names.Rule],
    *,
    call: Callable[..., Any] | None = None,
    channels_last: bool = False,
) -> Form:
    """Returns the form that is a PyTorch module in training mode, with our parameters.

    Args:
        module: what the parameters belong to.
        params: ours by path.
        table: from the module's names to ours.
        call: what is run; None means the module.
        channels_last: as in `Form`.
    """
    import torch

    parameters = dict(module.named_parameters())
    found = in_torch({n: tuple(p.shape) for n, p in parameters.items()}, params, table)
    module.train().to(torch.from_numpy(next(iter(found.values()))).dtype)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(found[name]))
    shapes = {name: array.shape for name, array in params.items()}
    return Form(call or module, parameters, shapes, table, channels_last)


def in_torch(
    shapes: Mapping[str, tuple[int, ...]],
    params: Mapping[str, np.ndarray],
    table: Sequence[names.Rule],
) -> dict[str, np.ndarray]:
    """Returns our parameters under PyTorch's names and in its layouts: where the table puts every
    entry of PyTorch's arrays, told by numbering them.

    Args:
        shapes: of PyTorch's parameters.
        params: ours by path.
        table: from PyTorch's names to ours, of transforms that only move numbers.
    """
    counts = [int(np.prod(shape)) for shape in shapes.values()]
    starts = np.cumsum([0, *counts])
    numbered = {
        name: start + np.arange(count).reshape(shape)
        for (name, shape), start, count in zip(shapes.items(), starts[:-1], counts, strict=True)
    }
    places = names.convert(numbered, table, {n: array.shape for n, array in params.items()})
    flat = np.empty(starts[-1], np.result_type(*params.values()))
    for name, array in params.items():
        flat[places[name]] = array
    return {name: flat[numbers] for name, numbers in numbered.items()}


def runner(
    form: Form,
    inputs: Mapping[str, np.ndarray],
    cotangents: Mapping[str, np.ndarray],
    direction: str,
) -> Runner:
    """Prepares a form.

    Args:
        form: the form.
        inputs: by name, one or all of `INPUTS`; maps are [b, h, w, c].
        cotangents: gradients of the outputs by name, of `OUTPUTS`.
        direction: 'fwd' or 'train'.

    Returns:
        (function that computes the outputs and, for 'train', the gradients of inputs and
        parameters, by the form's names; function that turns that into our names and layouts).
    """
    import torch

    def tensor(name: str, array: np.ndarray) -> torch.Tensor:
        if name in MAPS and not form.channels_last:
            array = array.transpose(0, 3, 1, 2)
        return torch.tensor(np.ascontiguousarray(array))

    given = {name: tensor(name, inputs[name]) for name in INPUTS if name in inputs}
    weights = {name: tensor(name, cotangents[name]) for name in OUTPUTS if name in cotangents}
    leaves = {**given, **form.parameters}
    for leaf in leaves.values():
        leaf.requires_grad_(direction == "train")

    def forward() -> dict[str, torch.Tensor]:
        found = form.call(*given.values())
        found = found if isinstance(found, tuple) else (found,)
        return dict(zip(weights, found, strict=True))

    def evaluate() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return forward()

    def train() -> dict[str, torch.Tensor]:
        outputs = forward()
        of, by = list(outputs.values()), list(leaves.values())
        gradients = torch.autograd.grad(of, by, list(weights.values()))
        return {**outputs, **dict(zip(leaves, gradients, strict=True))}

    def read(found: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        arrays = {name: array.detach().numpy() for name, array in found.items()}
        for name in arrays.keys() & MAPS if not form.channels_last else ():
            arrays[name] = arrays[name].transpose(0, 2, 3, 1)
        own = {name: arrays.pop(name) for name in form.parameters if name in arrays}
        if own and form.table is not None:
            own = names.convert(own, form.table, form.shapes)
        return arrays | own

    return (train if direction == "train" else evaluate), read
