"""Part of suite `micro`: the lowerings of the position lambdas, forward and forward + backward, on shapes of LambdaResNets."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Case, Prepared
from lambdanet.ops import cost_model, position_lambda

KEY_DEPTH, HEADS = 16, 4
# (batch, map side, channels, scope, intra-depth): the stages of a LambdaResNet-50 at 224, two at a training batch, then small
# scopes and u = 4.
SHAPES = (
    (16, 7, 512, 23, 1),
    (8, 14, 256, 23, 1),
    (4, 28, 128, 23, 1),
    (2, 56, 64, 23, 1),
    (64, 14, 256, 23, 1),
    (64, 28, 128, 23, 1),
    (4, 28, 128, 7, 1),
    (8, 14, 256, 7, 4),
)
TOLERANCE = 1e-4  # relative, float32


def cases() -> list[Case]:
    """Returns one case per shape, direction and lowering."""
    return [
        Case("micro", _name(*shape), direction, impl, functools.partial(prepare, shape, direction, impl))
        for shape in SHAPES
        for direction in ("fwd", "train")
        for impl in cost_model.GRID_IMPLS
        if not _hopeless(impl, shape)
    ]


def _name(batch: int, side: int, channels: int, scope: int, intra_depth: int) -> str:
    return f"lambda_b{batch}_{side}x{side}_c{channels}_r{scope}_u{intra_depth}"


def _hopeless(impl: str, shape: Sequence[int]) -> bool:
    """XLA's CPU convolution with a large table is hundreds of times slower than the rest: no use in waiting for it."""
    return impl == "conv" and jax.default_backend() == "cpu" and min(shape[3], 2 * shape[1] - 1) > 13


@functools.lru_cache(maxsize=2)
def _problem(shape: Sequence[int]) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Returns the operands q, v, table, weight of each output in the loss; and the output, by a float64 loop."""
    batch, side, channels, scope, intra_depth = shape
    rng, depth = np.random.default_rng(0), channels // HEADS
    q = rng.normal(size=(batch, side, side, HEADS, KEY_DEPTH))
    v = rng.normal(size=(batch, side, side, intra_depth, depth))
    table = rng.normal(size=(scope, scope, intra_depth, KEY_DEPTH))
    weight = rng.normal(size=(batch, side, side, HEADS, depth))
    y, reach = np.zeros(weight.shape), (scope - 1) // 2
    near = range(max(-reach, 1 - side), min(reach, side - 1) + 1)
    for dy in near:
        for dx in near:
            rows, columns = (slice(max(0, -d), side - max(0, d)) for d in (dy, dx))
            keys = v[:, rows.start + dy : rows.stop + dy, columns.start + dx : columns.stop + dx]
            logits = q[:, rows, columns] @ table[dy + reach, dx + reach].T
            y[:, rows, columns] += logits @ keys
    return tuple(a.astype(np.float32) for a in (q, v, table, weight)), y


def prepare(shape: Sequence[int], direction: str, impl: str) -> Prepared:
    """Compiles one lowering for one shape; `direction` 'train' is the output and all three gradients."""
    operands, expected = _problem(tuple(shape))
    arrays = [jnp.asarray(a) for a in operands]

    def forward(q, v, table, weight):
        return position_lambda.position_term(q, v, table, impl=impl)

    def loss_and_output(q, v, table, weight):
        y = forward(q, v, table, weight)
        return jnp.sum(y * weight), y

    train = jax.value_and_grad(loss_and_output, argnums=(0, 1, 2), has_aux=True)
    compiled = jax.jit(forward if direction == "fwd" else train).lower(*arrays).compile()

    def check():
        result = compiled(*arrays)
        y = result if direction == "fwd" else result[0][1]
        error = np.abs(np.asarray(y) - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE, f"output is off by {error:.1e}"
        if direction == "train":
            (loss, _), gradients = result
            # The loss is linear in each operand, so each gradient times its operand is the loss itself.
            scale = np.linalg.norm(expected) * np.linalg.norm(operands[3])
            exact = float(np.sum(expected * operands[3]))
            for name, operand, gradient in zip("qvE", operands, gradients, strict=False):
                error = abs(float(np.sum(np.asarray(gradient, np.float64) * operand)) - exact) / scale
                assert error < TOLERANCE, f"gradient of {name} is off by {error:.1e}"

    batch, side, channels, scope, intra_depth = shape
    n, depth = side * side, channels // HEADS
    taps = sum(min(scope // 2, side - 1 - i) + min(scope // 2, i) + 1 for i in range(side)) ** 2 / n  # per query, mean
    macs = batch * n * KEY_DEPTH * (taps * intra_depth * depth + HEADS * depth)
    passes = 1 if direction == "fwd" else 3
    moved = sum(math.prod(a.shape) for a in operands[:3]) + expected.size
    return Prepared(
        lambda: (jax.block_until_ready(compiled(*arrays)), None)[1],
        check,
        temp_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        flops=2.0 * macs * passes,
        bytes=4.0 * moved * (1 if direction == "fwd" else 2),
    )
