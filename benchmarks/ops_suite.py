"""Suite `ops`: operations that XLA's CPU backend runs badly when written literally, our form of
them, and PyTorch's.

'lax' is the literal operation, 'auto' ours, 'eager' PyTorch's where it is installed; 'train' is the
output and all gradients, 'input_gradient' the gradient of the map alone.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.harness import Case, Prepared
from lambdanet.layers import max_pool
from lambdanet.ops import batch_statistics, gelu
from lambdanet.ops.convolution import convolution

TOLERANCE = 1e-4  # relative, float32
LITERAL_LIMIT = 64  # groups; the gradient of a literal grouped convolution takes minutes beyond


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation on a map of `batch` images, `side` squared positions and `channels`.

    `kind` is 'conv', 'max_pool', 'batch_norm' or 'gelu'; the rest is read by convolutions and, but
    for groups, pooling.
    """

    kind: str
    batch: int
    side: int
    channels: int
    channels_out: int
    window: int = 1
    stride: int = 1
    groups: int = 1
    dilation: int = 1

    @property
    def case(self) -> str:
        where = f"b{self.batch}_{self.side}x{self.side}_c{self.channels}"
        if self.kind in ("batch_norm", "gelu"):
            return f"{self.kind}_{where}"
        window = f"{self.window}x{self.window}" + (f"s{self.stride}" if self.stride > 1 else "")
        if self.kind == "max_pool":
            return f"max_pool_{window}_{where}"
        if self.groups == self.channels > 1:
            return f"depthwise_{window}_{where}"
        more = f"_g{self.groups}" if self.groups > 1 else ""
        more += f"_e{self.dilation}" if self.dilation > 1 else ""
        return f"conv_{window}_{where}_d{self.channels_out}{more}"

    @property
    def side_out(self) -> int:
        return -(-self.side // self.stride)


def _conv(
    batch: int,
    side: int,
    channels: int,
    channels_out: int,
    window: int,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
) -> Operation:
    sizes = batch, side, channels, channels_out, window, stride, groups, dilation
    return Operation("conv", *sizes)


OPERATIONS = (
    _conv(8, 28, 128, 128, 3, groups=4),
    _conv(8, 28, 128, 128, 3, groups=32),
    _conv(8, 28, 128, 128, 3, stride=2, groups=32),
    _conv(8, 28, 192, 192, 3, groups=192),
    _conv(8, 28, 192, 192, 3, stride=2, groups=192),
    _conv(8, 28, 64, 64, 7, groups=64),
    Operation("max_pool", 8, 112, 64, 64, 3, 2),
    _conv(8, 56, 128, 128, 3, stride=2),
    _conv(8, 7, 512, 512, 3),
    _conv(8, 14, 256, 256, 3),
    _conv(8, 56, 64, 256, 1),
    _conv(8, 56, 256, 512, 1, stride=2),
    _conv(8, 128, 32, 64, 3),
    _conv(8, 56, 3, 96, 4, stride=4),
    # Few windows: patch embeddings of PVTv2, and the last stage of a ResNet; then a first layer.
    _conv(2, 224, 3, 64, 7, stride=4),
    _conv(2, 56, 64, 128, 3, stride=2),
    _conv(2, 14, 320, 512, 3, stride=2),
    _conv(2, 7, 512, 512, 3),
    _conv(8, 256, 3, 24, 3, stride=2),
    # Of atrous pyramids.
    _conv(2, 28, 256, 128, 3, dilation=12),
    _conv(2, 56, 128, 64, 3, dilation=24),
    _conv(2, 56, 128, 64, 3, dilation=36),
    _conv(1, 64, 2048, 256, 3, dilation=24),
    Operation("batch_norm", 8, 56, 256, 256),
    Operation("gelu", 4, 56, 512, 512),
)
INPUT_GRADIENTS = tuple(
    op
    for op in OPERATIONS
    if op.kind == "conv" and op.window == 3 and op.groups == op.dilation == 1
)


def cases() -> list[Case]:
    """Returns one case per operation, direction and candidate."""
    torch = importlib.util.find_spec("torch") is not None
    chosen = []
    for operation in OPERATIONS:
        directions = (
            ("fwd", "train", "input_gradient") if operation in INPUT_GRADIENTS else ("fwd", "train")
        )
        for direction in directions:
            # The literal gradient of a depthwise kernel runs for seconds.
            literal = direction == "fwd" or operation.groups < LITERAL_LIMIT
            for impl in ("auto", "lax") if literal else ("auto",):
                prepare = functools.partial(prepare_operation, operation, direction, impl)
                chosen.append(Case("ops", operation.case, direction, impl, prepare))
            if torch:
                chosen.append(
                    Case(
                        "ops",
                        operation.case,
                        direction,
                        "eager",
                        functools.partial(prepare_torch, operation, direction),
                        framework="torch",
                    )
                )
    return chosen


@functools.lru_cache(maxsize=1)
def _arrays(operation: Operation) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Returns the operands (map and parameters) and the gradient of the output."""
    rng, op = np.random.default_rng(0), operation
    shapes = {
        "conv": [(op.window, op.window, op.channels // op.groups, op.channels_out)],
        "batch_norm": [(op.channels,), (op.channels,)],
    }.get(op.kind, [])
    operands = [
        rng.standard_normal(shape, np.float32)
        for shape in [(op.batch, op.side, op.side, op.channels), *shapes]
    ]
    return tuple(operands), rng.standard_normal(
        (op.batch, op.side_out, op.side_out, op.channels_out), np.float32
    )


def _function(operation: Operation, impl: str) -> Callable[..., jax.Array]:
    """Returns the operation as a function of its operands, literal or ours."""
    op, literal = operation, impl == "lax"
    if op.kind == "max_pool":
        return functools.partial(
            max_pool, window=op.window, stride=op.stride, impl="window" if literal else "auto"
        )
    if op.kind == "gelu":
        return functools.partial(gelu.gelu, impl="erfc" if literal else "auto")
    if op.kind == "batch_norm":
        return (
            _literal_norm
            if literal
            else lambda x, scale, bias: batch_statistics.normalise_batch(x, scale, bias, 1e-5)[0]
        )
    steps, apart = (op.stride, op.stride), (op.dilation, op.dilation)
    # Windows without overlap have no padding.
    padding = ((op.window // 2 * op.dilation,) * 2,) * 2 if op.window % 2 else ((0, 0), (0, 0))
    if literal:
        numbers = ("NHWC", "HWIO", "NHWC")
        options = dict(rhs_dilation=apart, dimension_numbers=numbers, feature_group_count=op.groups)
        return lambda x, kernel: lax.conv_general_dilated(x, kernel, steps, padding, **options)
    options = dict(stride=steps, padding=padding, dilation=apart, groups=op.groups)
    return functools.partial(convolution, **options)


def _literal_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    mean, square = x.mean((0, 1, 2)), (x * x).mean((0, 1, 2))
    return (x - mean) * (lax.rsqrt(square - mean * mean + 1e-5) * scale) + bias


def _program(operation: Operation, direction: str, impl: str) -> Callable[..., Any]:
    """Returns (operands, gradient of the output) -> output, with 'train' and all gradients; or the
    map's gradient alone.
    """
    function = _function(operation, impl)

    def train(operands, of_y):
        y, transpose = jax.vjp(function, *operands)
        return y, *transpose(of_y)

    def input_gradient(operands, of_y):
        return jax.vjp(lambda x: function(x, *operands[1:]), operands[0])[1](of_y)

    return {
        "fwd": lambda operands, of_y: (function(*operands),),
        "train": train,
        "input_gradient": input_gradient,
    }[direction]


@functools.lru_cache(maxsize=1)
def _expected(operation: Operation, direction: str) -> list[np.ndarray]:
    """Results of another way than any candidate: the literal form, a depthwise convolution as a sum
    over its taps.
    """
    operands, of_y = _arrays(operation)
    if operation.groups >= LITERAL_LIMIT:
        results = _by_taps(operation, operands, of_y)
        return results[:1] if direction == "fwd" else results
    return [np.asarray(a) for a in jax.jit(_program(operation, direction, "lax"))(operands, of_y)]


def _by_taps(
    operation: Operation, operands: tuple[np.ndarray, ...], of_y: np.ndarray
) -> list[np.ndarray]:
    (x, kernel), pad, step = operands, operation.window // 2, operation.stride
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y, of_padded, of_kernel = np.zeros_like(of_y), np.zeros_like(padded), np.zeros_like(kernel)
    for u, v in np.ndindex(kernel.shape[:2]):
        seen = (
            slice(None),
            *(slice(at, at + step * (operation.side_out - 1) + 1, step) for at in (u, v)),
        )
        y += padded[seen] * kernel[u, v, 0]
        of_padded[seen] += of_y * kernel[u, v, 0]
        of_kernel[u, v, 0] = np.einsum("bhwc,bhwc->c", padded[seen], of_y)
    inner = slice(pad, pad + operation.side)
    return [y, of_padded[:, inner, inner], of_kernel]


def _check(results: Any, operation: Operation, direction: str) -> None:
    for i, (ours, expected) in enumerate(
        zip(results, _expected(operation, direction), strict=True)
    ):
        error = float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())
        assert error < TOLERANCE, f"result {i} is off by {error:.1e}"


def _work(operation: Operation, direction: str) -> dict[str, float]:
    """Useful operations, those of a literal loop; and the bytes of operands and results once."""
    op, passes = operation, 3 if direction == "train" else 1
    positions = op.batch * op.side_out**2 * op.channels_out
    each = {"conv": 2 * op.window**2 * op.channels // op.groups, "max_pool": op.window**2}.get(
        op.kind, 8
    )
    operands, of_y = _arrays(op)
    moved = sum(math.prod(a.shape) for a in operands) + of_y.size
    return dict(
        flops=float(passes * positions * each),
        bytes=4.0 * moved * (2 if direction == "train" else 1),
    )


def prepare_operation(operation: Operation, direction: str, impl: str) -> Prepared:
    """Compiles the literal form ('lax') or ours ('auto')."""
    operands, of_y = jax.tree.map(jnp.asarray, _arrays(operation))
    compiled = jax.jit(_program(operation, direction, impl)).lower(operands, of_y).compile()
    return Prepared(
        lambda: (jax.block_until_ready(compiled(operands, of_y)), None)[1],
        lambda: _check(compiled(operands, of_y), operation, direction),
        temp_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        **_work(operation, direction),
    )


def prepare_torch(operation: Operation, direction: str) -> Prepared:
    """PyTorch's eager operation, on maps of its own layout."""
    import torch

    op, (operands, of_y) = operation, _arrays(operation)

    def tensor(a: np.ndarray, axes: tuple[int, ...]) -> Any:
        return torch.from_numpy(np.ascontiguousarray(a.transpose(axes) if a.ndim == 4 else a))

    to_map, to_kernel, from_map, from_kernel = (
        (0, 3, 1, 2),
        (3, 2, 0, 1),
        (0, 2, 3, 1),
        (2, 3, 1, 0),
    )
    x, weight = tensor(operands[0], to_map), tensor(of_y, to_map)
    parameters = [tensor(a, to_kernel) for a in operands[1:]]
    pad = op.window // 2 * op.dilation if op.window % 2 else 0
    functional = torch.nn.functional
    forward = {
        "conv": lambda x, kernel: functional.conv2d(
            x, kernel, None, op.stride, pad, op.dilation, op.groups
        ),
        "max_pool": lambda x: functional.max_pool2d(x, op.window, op.stride, pad),
        "batch_norm": lambda x, scale, bias: functional.batch_norm(
            x, None, None, scale, bias, True, 0.1, 1e-5
        ),
        "gelu": functional.gelu,
    }[op.kind]
    wanted = {"fwd": [], "train": [x, *parameters], "input_gradient": [x]}[direction]
    for leaf in wanted:
        leaf.requires_grad_()

    def run() -> list[Any]:
        with torch.set_grad_enabled(direction != "fwd"):
            y = forward(x, *parameters)
            if direction == "fwd":
                return [y]
            gradients = torch.autograd.grad(y, wanted, weight)
        return list(gradients) if direction == "input_gradient" else [y.detach(), *gradients]

    def check() -> None:
        results = [a.numpy() for a in run()]
        axes = [from_map] * min(len(results), 2) + [from_kernel] * (len(results) - 2)
        _check(
            [
                a.transpose(order) if a.ndim == 4 else a
                for a, order in zip(results, axes, strict=True)
            ],
            op,
            direction,
        )

    return Prepared(lambda: (run(), None)[1], check, **_work(op, direction))
