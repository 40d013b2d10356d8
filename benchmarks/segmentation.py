"""Memory and time of the loss of segmentation, in bands and with all logits up-sampled at once:

    python -m benchmarks.segmentation > docs/segmentation_loss.md

Two images of 512 x 512, 150 classes, value and gradient; memory is what the compiled program needs
beside inputs and outputs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lambdanet.analysis.text import markdown_table
from lambdanet.layers.resize import resize_bilinear
from lambdanet.ops.segmentation_loss import segmentation_loss
from lambdanet.ops.upsampled_pixels import IGNORED

BATCH, SIDE, CLASSES, STRIDES = 2, 512, 150, (4, 8)


def plain(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over labelled pixels with all logits up-sampled."""
    up, valid = resize_bilinear(logits, labels.shape[1:]), labels != IGNORED
    each = optax.softmax_cross_entropy_with_integer_labels(up, jnp.where(valid, labels, 0))
    return jnp.sum(jnp.where(valid, each, 0.0)) / jnp.sum(valid)


def in_bands(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The same by `segmentation_loss`."""
    return segmentation_loss(logits, labels).value


def measure(loss: Callable, stride: int, repeats: int = 5) -> tuple[float, float, float]:
    """Returns (value, MiB, milliseconds: the least of some runs)."""
    rng = np.random.default_rng(0)
    shape = (BATCH, SIDE // stride, SIDE // stride, CLASSES)
    given = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32),
        jnp.asarray(rng.integers(0, CLASSES, (BATCH, SIDE, SIDE)), jnp.int32),
    )
    program = jax.jit(jax.value_and_grad(loss)).lower(*given).compile()
    memory, spent = program.memory_analysis().temp_size_in_bytes / 2**20, []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        value, _ = jax.block_until_ready(program(*given))
        spent.append(time.perf_counter() - began)
    return float(value), memory, 1000 * min(spent[1:])


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.segmentation", description=__doc__.split("\n")[0]
    ).parse_args()
    rows = []
    for stride in STRIDES:
        for name, loss in (("all at once", plain), ("in bands", in_bands)):
            value, memory, spent = measure(loss, stride)
            rows.append([str(stride), name, f"{memory:.0f}", f"{spent:.0f}", f"{value:.6f}"])
    head = ("output stride", "up-sampling", "MiB", "ms", "loss")
    print("# Memory and time of the segmentation loss\n")
    print(
        f"Cross entropy with its gradient: {BATCH} images, {SIDE} x {SIDE}, {CLASSES} classes, "
        f"float32, {jax.device_count()} x {jax.devices()[0].device_kind}.\n"
    )
    print("\n".join(markdown_table(head, rows, left={1})))


if __name__ == "__main__":
    main()
